"""Where documents lie in packed or padded rows, and what a model is given to know it.

Models whose attention is ours (:mod:`chronomask.model.attention`) take one keyword, ``documents``; others
take an attention mask. Restarting ``position_ids`` alone does not separate documents; it is done as
well, so that a packed document is given the positions it would have alone.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from chronomask.model.config import AttentionScope
from chronomask.types import Rows, send, send_all

__all__ = [
    "DOCUMENTS_ATTENTION",
    "Documents",
    "attends_by_documents",
    "backbone_inputs",
    "documents_between",
    "keywords_of",
    "mixes_padding",
    "padded_rows",
    "position_offset",
]

DOCUMENTS_ATTENTION = "chronomask_documents"
"""The name under which :func:`~chronomask.model.attention.documents_attention` is registered with
transformers, once that module is imported."""
_MIXING = (
    "big_bird", "convbert", "fnet", "funnel", "mobilebert", "nystromformer", "reformer", "xlnet", "yoso",
)  # fmt: skip
"""Types of models that do more across a row than attention with a mask: a Fourier transform, convolutions,
pools, blocks, neighbours' embeddings; or that classify a text by the last token of its row."""


@dataclass(slots=True)
class Documents:
    """Where documents lie in a batch of packed rows, in the forms that attention kernels take.

    ``number`` int64 [B, T]: counts documents from 0 over the whole batch, padding after a document
    being one of its own; ``cu_seqlens`` int32, a power of two of them, the last bound repeated, and
    ``max_length``, the row length, say the same for varlen kernels in shapes that seldom change;
    ``separate``: whether any row holds more than one, so that a mask is needed at all.
    """

    number: torch.Tensor
    cu_seqlens: torch.Tensor
    max_length: int
    separate: bool
    causal: bool = False
    """whether a token sees itself and those before it alone"""
    _masks: dict[tuple[int | None, torch.dtype], torch.Tensor] = field(default_factory=dict)

    def mask(self, window: int | None, dtype: torch.dtype) -> torch.Tensor | None:
        """Additive mask [B, 1, T, T]: 0 where attention is allowed, −inf elsewhere; None if it is all.

        ``window``: tokens further apart than this are hidden too. Made once per batch and window, and once
        per graph where it is compiled: what a CUDA graph made is overwritten when it runs again.
        """
        length = self.number.shape[1]
        if window is not None and window >= length - 1:
            window = None
        if not self.separate and not self.causal and window is None:
            return None
        if torch.compiler.is_compiling():  # which makes one of the masks that layers ask for alike
            return self._make_mask(window, dtype)
        if (window, dtype) not in self._masks:
            self._masks[window, dtype] = self._make_mask(window, dtype)
        return self._masks[window, dtype]

    def _make_mask(self, window: int | None, dtype: torch.dtype) -> torch.Tensor:
        allowed = self.number[:, None, :, None] == self.number[:, None, None, :]
        place = torch.arange(self.number.shape[1], device=self.number.device)
        ahead = place[:, None] - place[None, :]
        if window is not None:
            allowed = allowed & (ahead.abs() <= window)
        if self.causal:
            allowed = allowed & (ahead >= 0)
        mask = torch.zeros(allowed.shape, dtype=dtype, device=allowed.device)
        return mask.masked_fill(~allowed, float("-inf"))


def position_offset(model: PreTrainedModel) -> int:
    """Position id of a document's first token: RoBERTa and its kin count from padding id + 1."""
    embeddings = getattr(model.base_model, "embeddings", None)
    table = getattr(embeddings, "position_embeddings", None)
    padding = getattr(table, "padding_idx", None)
    return 0 if padding is None else int(padding) + 1


def backbone_inputs(
    rows: Rows,
    scope: AttentionScope,
    pad_token_id: int,
    first_position: int,
    device: torch.device | str,
    *,
    room: int | None = None,
    causal: bool = False,
    ours: bool = True,
) -> dict[str, Any]:
    """What the backbone is given beside ``input_ids``: which tokens see which, and positions.

    ``rows``: on the host (numpy), unmasked. ``documents``: position ids restarting at
    ``first_position`` with every document, and :class:`Documents`. ``row``: rows as documents, if any is
    padded, else nothing; for a model whose attention is not ``ours``, an attention mask [B, T]. ``room``: as
    in :func:`documents_between`; what a batch could do without is made all the same then, so that a compiled
    model is given one kind of inputs and not two. ``causal``: tokens see themselves and those before them
    alone; rows are documents then too.
    """
    num_rows, length = rows.input_ids.shape
    padding = rows.input_ids == pad_token_id
    padded = bool(padding.any())
    if scope == "row" and not causal:
        if not padded and room is None:
            return {}
        if not ours:
            return {"attention_mask": _mask_of_tokens(~padding, device)}

    starts = np.arange(num_rows + 1) * length
    bounds = starts if scope == "row" else np.asarray(rows.cu_seqlens, np.int64)
    if padded and not (scope == "row" and causal):  # which stands behind all that is read
        flat = padding.ravel()
        begins = np.flatnonzero(flat & ~np.concatenate(([False], flat[:-1])))
        bounds = np.union1d(bounds, begins)
    documents = documents_between(bounds, num_rows, length, device, room=room, causal=causal)
    if scope == "row":
        return {"documents": documents}
    place = np.arange(num_rows * length) - np.repeat(bounds[:-1], np.diff(bounds))
    position_ids = (place + first_position).reshape(num_rows, length)
    return {
        "position_ids": send(position_ids, device),
        "documents": documents,
    }


def padded_rows(
    model: PreTrainedModel,
    real: np.ndarray,
    device: torch.device | str,
    *,
    one_shape: bool = False,
) -> dict[str, Any]:
    """What a model is given beside rows that are padded on the right; nothing where none is padded.

    ``real`` bool [B, T]: tokens that are not padding. ``attention_mask`` int64 [B, T], and, where the
    model's attention is ours, ``documents``: the tokens of a row and its padding as a document each, so
    that no kernel needs a mask. ``one_shape``: all batches of a shape are given the same kind of inputs,
    whatever their padding, so that a step that was recorded with one fits the others.
    """
    if real.all() and not one_shape:
        return {}
    inputs: dict[str, Any] = {"attention_mask": _mask_of_tokens(real, device)}
    if _takes_documents(model):
        num_rows, length = real.shape
        starts = np.arange(num_rows + 1) * length
        bounds = np.union1d(starts, starts[:-1] + real.sum(1))
        room = 2 * num_rows if one_shape else None
        inputs["documents"] = documents_between(bounds, num_rows, length, device, room=room)
    return inputs


def mixes_padding(model: torch.nn.Module) -> bool:
    """Whether padding changes what the model says of the tokens before it, whatever mask it is given."""
    configs = (getattr(part, "config", None) for part in model.modules())
    return any(getattr(config, "model_type", None) in _MIXING for config in configs)


def _mask_of_tokens(real: np.ndarray, device: torch.device | str) -> torch.Tensor:
    """int64 [B, T] on the device: 1 for tokens that are not padding; bool ``real`` says which."""
    return send(real.astype(np.int64), device)


def attends_by_documents(model: PreTrainedModel) -> bool:
    """Whether the model's attention is ours, so that it can be told where documents lie."""
    return model.config._attn_implementation == DOCUMENTS_ATTENTION


def _takes_documents(model: PreTrainedModel) -> bool:
    """Whether the model's attention is ours, and its head hands on keywords that it does not know."""
    parameters = keywords_of(model).values()
    return attends_by_documents(model) and any(
        p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters
    )


def keywords_of(model: Any) -> Mapping[str, inspect.Parameter]:
    """The parameters of the model's ``forward``, by name."""
    return _parameters(getattr(model.forward, "__func__", model.forward))


@lru_cache(maxsize=16)
def _parameters(forward: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    """Kept, for to read a signature takes longer than to make a batch."""
    return inspect.signature(forward).parameters


def documents_between(
    bounds: np.ndarray,
    num_rows: int,
    length: int,
    device: torch.device | str,
    *,
    room: int | None = None,
    causal: bool = False,
) -> Documents:
    """Documents between ``bounds`` int64 [D + 1] of the flat batch.

    ``room``: for a model that is compiled or recorded, how many documents a batch hardly ever exceeds: there
    are always as many bounds, and always a mask where one may be needed.
    """
    number = np.repeat(np.arange(bounds.size - 1), np.diff(bounds)).reshape(num_rows, length)
    bounds_there = _to_power_of_two(bounds.astype(np.int32), room or 0)
    return Documents(
        **send_all({"number": number, "cu_seqlens": bounds_there}, device),
        max_length=length,
        separate=room is not None or bounds.size - 1 > num_rows,
        causal=causal,
    )


def _to_power_of_two(bounds: np.ndarray, documents: int) -> np.ndarray:
    """``bounds`` with its last repeated: documents of no tokens at the end; at least so many in all."""
    size = 1 << (max(bounds.size, documents + 1) - 1).bit_length()
    return np.concatenate((bounds, np.full(size - bounds.size, bounds[-1])))
