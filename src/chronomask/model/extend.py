"""Gives a model rows for new entries of its vocabulary, each the mean of the pieces it replaces.

What belongs to the vocabulary (embeddings, the head's matrix and bias, tied or not, and in some
architectures more) is found by building the architecture with two sizes and comparing shapes, so that no
list of names is needed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForMaskedLM, PretrainedConfig, PreTrainedModel

from chronomask.errors import DataError
from chronomask.model.attention import implementation_for
from chronomask.model.export import export
from chronomask.model.open import open_model, open_tokenizer, quietly
from chronomask.vocabulary import vocabulary_size

__all__ = ["extend_model", "grow_vocabulary"]

_MULTIPLE = 64
"""Matrix products are fastest where rows are a multiple of it; a model that has such a number keeps it."""


def extend_model(folder: Path, tokenizer_folder: Path, out: Path, card: str) -> None:
    """Write the model in ``folder`` to ``out`` with the extended tokenizer of ``tokenizer_folder``.

    A new token's rows are the mean of those of the pieces into which the model's own tokenizer cuts it;
    ``card`` is the text of the model card. Raises DataError where the tokenizer numbers the old tokens anew.
    """
    ours, extended = open_tokenizer(folder), open_tokenizer(tokenizer_folder)
    old, new = ours.get_vocab(), extended.get_vocab()
    moved = [token for token, number in old.items() if new.get(token) != number]
    if moved:
        raise DataError(
            f"{tokenizer_folder} is no extension of the tokenizer of {folder}: {len(moved):,} of its tokens "
            f"have other ids, such as {moved[0]!r}"
        )
    backend: Any = ours.backend_tokenizer
    cut = backend.model
    pieces = {
        number: [piece.id for piece in cut.tokenize(token)]
        for token, number in new.items()
        if token not in old
    }
    model = grow_vocabulary(open_model(folder), pieces, vocabulary_size(extended))
    export(model, extended, out, card)


@torch.no_grad()
def grow_vocabulary(
    model: PreTrainedModel, pieces: Mapping[int, Sequence[int]], size: int
) -> PreTrainedModel:
    """A float32 model with at least ``size`` entries: ``model``'s, and new ones from their pieces.

    ``pieces``: of each new id, the ids whose mean its rows become: the input embedding, the head's row and
    the head's bias. So the logit of a new token is the mean of its pieces' logits wherever the model
    looks, which is what makes the bias a mean too: a log-frequency would be on another scale than the
    biases of a trained model. By Jensen's inequality no new token gets more probability than its
    pieces have on average, and other predictions stay nearly what they were. Rows that pad the
    vocabulary are used before new ones are made.
    """
    rows = model.config.vocab_size
    multiple = _MULTIPLE if rows % _MULTIPLE == 0 else 1
    wanted = max(rows, -(-size // multiple) * multiple)
    axes = _vocabulary_axes(model.config)
    weights = dict(model.state_dict())
    for name, axis in axes.items():
        # Rows first, on whichever axis they are.
        old = weights[name].transpose(0, axis)
        grown = old.new_zeros(wanted, *old.shape[1:])
        grown[:rows] = old
        for number, ids in pieces.items():
            grown[number] = old[list(ids)].mean(0)
        weights[name] = grown.transpose(0, axis).contiguous()
    config = _resize(model.config, wanted)
    if not _is_tied(model):  # also where the config says otherwise, and its weights are two
        config.tie_word_embeddings = False
    with torch.random.fork_rng(devices=[]):
        bigger = _build(config)
    bigger.load_state_dict(weights)
    return bigger.train(model.training)


def _is_tied(model: PreTrainedModel) -> bool:
    """Whether the head's matrix is that of the input embeddings; so too where there is none to compare."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    return head is None or embedding is None or head.weight is embedding.weight


def _vocabulary_axes(config: PretrainedConfig) -> dict[str, int]:
    """Names of the weights that have an entry per token, and on which axis."""
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        first, second = (
            _build(_resize(config, config.vocab_size + more)).state_dict() for more in (0, 1)
        )
    return {
        name: axis
        for name, weight in first.items()
        for axis, (here, there) in enumerate(zip(weight.shape, second[name].shape, strict=True))
        if here != there
    }


def _resize(config: PretrainedConfig, vocab_size: int) -> PretrainedConfig:
    changed = type(config).from_dict(config.to_dict())
    changed.vocab_size = vocab_size
    return changed


def _build(config: PretrainedConfig) -> PreTrainedModel:
    with quietly():
        return AutoModelForMaskedLM.from_config(
            config, attn_implementation=implementation_for(config), dtype=torch.float32
        )
