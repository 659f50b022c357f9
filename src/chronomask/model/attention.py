"""Attention over packed rows: the documents of a row never see each other.

transformers' models take an attention function by name (``AttentionInterface``) and hand it every
keyword they were called with. The function registered here reads one keyword, ``documents``: where
documents begin, from :class:`~chronomask.types.Rows`. Restarting ``position_ids`` alone does not
separate documents; it is done as well, so that a packed document is given the positions it would
have alone.

On the host, attention runs with one additive mask per window size, made once per batch and shared by the
layers; rows that hold a single document need no mask at all. On CUDA in half precision,
``torch.nn.attention.varlen.varlen_attn`` takes the document bounds as they are.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    AutoModelForMaskedLM,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.masking_utils import sdpa_mask

from chronomask.errors import UsageError
from chronomask.model.config import AttentionScope
from chronomask.types import Rows

__all__ = [
    "DOCUMENTS_ATTENTION",
    "Documents",
    "backbone_inputs",
    "implementation_for",
    "position_offset",
]

DOCUMENTS_ATTENTION = "chronomask_documents"
"""The name under which :func:`documents_attention` is registered with transformers."""


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
    _masks: dict[tuple[int | None, torch.dtype], torch.Tensor] = field(default_factory=dict)

    def mask(self, window: int | None, dtype: torch.dtype) -> torch.Tensor | None:
        """Additive mask [B, 1, T, T]: 0 where attention is allowed, −inf elsewhere; None if it is all.

        ``window``: tokens further apart than this are hidden too. Made once per batch and window.
        """
        length = self.number.shape[1]
        if window is not None and window >= length - 1:
            window = None
        if not self.separate and window is None:
            return None
        mask = self._masks.get((window, dtype))
        if mask is None:
            allowed = self.number[:, None, :, None] == self.number[:, None, None, :]
            if window is not None:
                place = torch.arange(length, device=self.number.device)
                allowed = allowed & ((place[:, None] - place[None, :]).abs() <= window)
            mask = torch.zeros(allowed.shape, dtype=dtype, device=allowed.device)
            mask.masked_fill_(~allowed, float("-inf"))
            self._masks[window, dtype] = mask
        return mask


def documents_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    documents: Documents | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attention within documents; query, key, value [B, heads, T, width] → [B, T, heads, width].

    ``sliding_window`` counts as transformers hands it to flash attention: a token sees those at a
    distance below it. Without ``documents`` every row is one, and ``attention_mask`` says the rest.
    """
    groups = key.shape[1] != query.shape[1]
    if documents is None and attention_mask is None:
        documents = _whole_rows(query)
    if documents is not None and _varlen_fits(query, dropout):
        return _varlen(query, key, value, scaling, sliding_window, documents, groups), None
    if documents is not None:
        window = None if sliding_window is None else sliding_window - 1
        attention_mask = documents.mask(window, query.dtype)
    if dropout and not query.is_cuda and not groups and not torch.compiler.is_compiling():
        output = _with_host_dropout(query, key, value, attention_mask, dropout, scaling)
        return output.transpose(1, 2).contiguous(), None
    output = nn.functional.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=attention_mask,
        dropout_p=dropout,
        scale=scaling,
        enable_gqa=groups,
    )
    return output.transpose(1, 2).contiguous(), None


def _mask_of_padding(*shape: Any, attention_mask: torch.Tensor | None = None, **how: Any) -> Any:
    """The mask a model makes of the caller's ``attention_mask``; none where documents say it all."""
    if attention_mask is None:
        return None
    return sdpa_mask(*shape, attention_mask=attention_mask, **how)


AttentionInterface.register(DOCUMENTS_ATTENTION, documents_attention)
AttentionMaskInterface.register(DOCUMENTS_ATTENTION, _mask_of_padding)


def _whole_rows(query: torch.Tensor) -> Documents:
    rows, length = query.shape[0], query.shape[2]
    number = torch.arange(rows, device=query.device)[:, None].expand(rows, length)
    bounds = torch.arange(0, rows * length + 1, length, dtype=torch.int32, device=query.device)
    return Documents(number, bounds, length, separate=False)


def _with_host_dropout(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    dropout: float,
    scaling: float | None,
) -> torch.Tensor:
    """Attention with dropout on the host, where SDPA has no fused kernel for it.

    torch draws dropout on the host one number after the other; numpy's SFC64 gives 16 bits an element
    in a seventh of the time. Its seed comes from torch's generator, so seeding that seeds this.
    ``dropout`` is rounded to a multiple of 2⁻¹⁶ and the scale of what is kept fits the rounded value.
    """
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = torch.matmul(query * scale, key.transpose(2, 3))
    if mask is not None:
        scores = (
            scores + mask if mask.is_floating_point() else scores.masked_fill(~mask, -torch.inf)
        )
    weights = torch.softmax(scores, dim=-1)
    dropped = round(dropout * 2**16)
    generator = np.random.SFC64(int(torch.randint(2**62, ())))
    raw = generator.random_raw(-(-weights.numel() // 4)).view(np.uint16)[: weights.numel()]
    kept = torch.from_numpy(raw >= dropped).view(weights.shape).to(weights.dtype)
    return torch.matmul(weights * kept.mul_(2**16 / max(1, 2**16 - dropped)), value)


def _varlen_fits(query: torch.Tensor, dropout: float) -> bool:
    """The flash kernel behind ``varlen_attn`` knows half precision only, and no dropout."""
    return query.is_cuda and query.dtype in (torch.bfloat16, torch.float16) and not dropout


def _varlen(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float | None,
    sliding_window: int | None,
    documents: Documents,
    groups: bool,
) -> torch.Tensor:
    from torch.nn.attention.varlen import varlen_attn

    rows, length = query.shape[0], query.shape[2]
    flat = [x.transpose(1, 2).flatten(0, 1) for x in (query, key, value)]
    reach = -1 if sliding_window is None else sliding_window - 1
    bounds, longest = documents.cu_seqlens, documents.max_length
    output = varlen_attn(
        flat[0],
        flat[1],
        flat[2],
        bounds,
        bounds,
        longest,
        longest,
        scale=scaling,
        window_size=(reach, reach),
        enable_gqa=groups,
    )
    assert isinstance(output, torch.Tensor)
    return output.unflatten(0, (rows, length))


def implementation_for(architecture: PretrainedConfig, scope: AttentionScope | None) -> str | None:
    """The attention implementation to ask transformers for; None for the architecture's own default."""
    model_class = AutoModelForMaskedLM._model_mapping.get(type(architecture), None)
    if scope is None or not getattr(model_class, "_supports_attention_backend", False):
        return None
    return DOCUMENTS_ATTENTION if scope == "documents" else "sdpa"


def check_supported(model: PreTrainedModel, scope: AttentionScope) -> None:
    """Raise UsageError where an architecture cannot keep documents apart."""
    if scope == "row":
        return
    config = model.config
    if not type(model)._supports_attention_backend:
        why = "takes no attention function from outside"
    elif getattr(config, "trigram_input", False):
        why = "mixes neighbouring tokens before attention (trigram_input)"
    elif getattr(config, "token_dropout", False):
        why = "scales tokens by the masked share of their row (token_dropout)"
    else:
        return
    raise UsageError(
        f"model type '{config.model_type}' {why}, so packed documents would see each other; "
        "set attention: row to accept that, or choose another model"
    )


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
) -> dict[str, Any]:
    """What the backbone is given beside ``input_ids``: which tokens see which, and positions.

    ``rows``: on the host (numpy), unmasked. ``documents``: position ids restarting at
    ``first_position`` with every document, and :class:`Documents`. ``row``: an attention mask
    [B, T] if any row is padded, else nothing.
    """
    padding = rows.input_ids == pad_token_id
    padded = bool(padding.any())
    if scope == "row":
        if not padded:
            return {}
        return {"attention_mask": torch.from_numpy((~padding).astype(np.int64)).to(device)}

    num_rows, length = rows.input_ids.shape
    bounds = np.asarray(rows.cu_seqlens, np.int64)
    if padded:
        flat = padding.ravel()
        begins = np.flatnonzero(flat & ~np.concatenate(([False], flat[:-1])))
        bounds = np.union1d(bounds, begins)
    lengths = np.diff(bounds)
    number = np.repeat(np.arange(lengths.size), lengths).reshape(num_rows, length)
    place = np.arange(num_rows * length) - np.repeat(bounds[:-1], lengths)
    position_ids = (place + first_position).reshape(num_rows, length)

    def move(array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array).to(device, non_blocking=True)

    documents = Documents(
        number=move(number),
        cu_seqlens=move(_to_power_of_two(bounds.astype(np.int32))),
        max_length=length,
        separate=lengths.size > num_rows,
    )
    return {"position_ids": move(position_ids), "documents": documents}


def _to_power_of_two(bounds: np.ndarray) -> np.ndarray:
    """``bounds`` with its last repeated: documents of no tokens at the end."""
    room = 1 << (bounds.size - 1).bit_length()
    return np.pad(bounds, (0, room - bounds.size), mode="edge")
