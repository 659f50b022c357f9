"""Tries a model on a row before anything is trained.

Architectures whose head is known (:data:`~chronomask.model.head.HEADS`) take what rows there are, as tests
know. Any other is run once as it will be in training: what it cannot take is refused then, and no run ends
with an error of its code at the first step.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from chronomask.errors import UsageError
from chronomask.model.config import AttentionScope
from chronomask.model.documents import attends_by_documents, backbone_inputs, position_offset
from chronomask.model.head import HEADS
from chronomask.model.host import use_host_kernels
from chronomask.model.open import one_line
from chronomask.types import Rows
from chronomask.vocabulary import vocabulary_size

__all__ = ["settle"]


def settle(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    row_lengths: Iterable[int],
    *,
    attention: AttentionScope,
    padded: bool = False,
    causal: bool = False,
) -> None:
    """Run a model on rows of each length in turn, as they are in training; it is then as it will stay.

    Some architectures make modules anew when they see how long rows are (BigBird, whose attention is plain
    in short ones). That is not to happen within a step, and these too compute by the ways of this host.
    ``padded``: whether rows may end in padding; ``causal``: whether some are causal. Random states, and what
    a model counts of the rows that it sees, stay as they were.

    Raises UsageError for an architecture that cannot take such rows, or, if ``causal``, that lets a token
    see the next one.
    """
    if model.config.model_type in HEADS:
        return
    special = set(tokenizer.all_special_ids)
    words = sorted(range(vocabulary_size(tokenizer)), key=special.__contains__)[:2]
    pad: Any = tokenizer.pad_token_id
    pad_token_id = -1 if pad is None else int(pad)
    for length in row_lengths:
        ids = np.full((2 if padded else 1, length), words[0])
        ids[1:, length // 2 :] = pad_token_id
        counted = {name: buffer.clone() for name, buffer in model.named_buffers()}
        try:
            with torch.no_grad(), _without_trace():
                model.train()(**_inputs(model, ids, pad_token_id, attention))
        except Exception as error:  # architectures check themselves and raise what they like
            ending = ", some of which end in padding" if padded else ""
            raise UsageError(
                f"model type '{model.config.model_type}' cannot be trained on rows of {length} tokens"
                f"{ending}: {one_line(error)}"
            ) from None
        for name, buffer in model.named_buffers():
            if name in counted and buffer.shape == counted[name].shape:
                buffer.data.copy_(counted[name])
        if causal:
            _check_reads_forwards(model, words, length, attention)
    use_host_kernels(model.train())


@torch.no_grad()
def _check_reads_forwards(
    model: PreTrainedModel, words: list[int], row_length: int, attention: AttentionScope
) -> None:
    """Refuse an architecture in which a token of a causal row comes to know of the next one."""
    ids = np.full((2, row_length), words[0])
    ids[1, -1] = words[-1]
    first, second = model.eval()(**_inputs(model, ids, -1, attention, causal=True)).logits[:, :-1]
    if not torch.allclose(first, second, rtol=1e-4, atol=1e-5):
        raise UsageError(
            f"model type '{model.config.model_type}' lets tokens see the next one, which causal rows "
            "predict: set objective.kind=mlm, or choose another model, such as bert or modernbert"
        )


def _inputs(
    model: PreTrainedModel,
    ids: np.ndarray,
    pad_token_id: int,
    attention: AttentionScope,
    *,
    causal: bool = False,
) -> dict[str, Any]:
    """What the model is given for int64 [B, T] ``ids``, each row being a document."""
    nothing, numbers = np.zeros(ids.shape, np.int32), np.arange(ids.shape[0])
    bounds = ids.shape[1] * np.arange(ids.shape[0] + 1, dtype=np.int32)
    inputs = backbone_inputs(
        Rows(ids, nothing, nothing, numbers, numbers, bounds),
        attention,
        pad_token_id,
        position_offset(model),
        "cpu",
        causal=causal,
        ours=attends_by_documents(model),
    )
    return {"input_ids": torch.from_numpy(ids), **inputs}


@contextmanager
def _without_trace() -> Iterator[None]:
    """Leave the generators of torch (on the host), numpy and Python as they were."""
    of_numpy, of_python = np.random.get_state(), random.getstate()  # noqa: NPY002
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        np.random.set_state(of_numpy)  # noqa: NPY002
        random.setstate(of_python)
