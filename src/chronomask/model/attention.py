"""Attention over packed rows: the documents of a row never see each other.

transformers' models take an attention function by name (``AttentionInterface``) and hand it every
keyword they were called with. The function registered here reads one keyword, ``documents``
(:mod:`chronomask.model.documents`): where documents lie.

On the host, documents much shorter than their rows are attended to one by one
(:mod:`chronomask.model.host_attention`). Otherwise attention runs there with one additive mask per window
size, made once per batch and shared by the layers; rows that hold a single document need none. On CUDA in
half precision, ``torch.nn.attention.varlen.varlen_attn`` takes the document bounds as they are.

Every model that chronomask opens runs with this function where its architecture lets us name one, also
in evaluation and fine-tuning: one place decides which kernels may see a mask.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    AutoModelForMaskedLM,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.masking_utils import sdpa_mask

from chronomask.errors import UsageError
from chronomask.model import flash4, host_attention
from chronomask.model.config import AttentionScope
from chronomask.model.device import is_fast_width
from chronomask.model.documents import DOCUMENTS_ATTENTION, Documents

__all__ = [
    "attention_at",
    "attention_dropout",
    "check_directions",
    "check_supported",
    "head_width",
    "implementation_for",
    "varlen_fits",
    "without_cudnn",
]


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
    distance below it; in causal documents, none after it. Without ``documents`` every row is one, and
    ``attention_mask`` says the rest: [B, 1, T, T], true or 0 where a token is seen.
    """
    if documents is None and attention_mask is None:
        documents = _whole_rows(key)
    if documents is not None and varlen_fits(query, dropout):
        rows, length = query.shape[0], query.shape[2]
        flat, bounds = query.transpose(1, 2).flatten(0, 1), documents.cu_seqlens
        output = _varlen(flat, bounds, key, value, scaling, sliding_window, documents)
        return output.unflatten(0, (rows, length)), None
    computed_here = _computed_here(query, key) and host_attention.takes(query, key, value)
    if documents is not None and computed_here:
        blocks = host_attention.split(documents, query, dropout)
        if blocks is not None:
            longest = max(block.end - block.start for block in blocks)
            all_seen = not documents.causal and (
                sliding_window is None or longest <= sliding_window
            )
            mask = None if all_seen else _mask_of(documents, None, sliding_window, query.dtype)
            return host_attention.attend(query, key, value, mask, dropout, scaling, blocks), None
    mask = _mask_of(documents, attention_mask, sliding_window, query.dtype)
    return _densely(query, key, value, mask, dropout, scaling), None


def attention_at(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    positions: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    dropout: float,
    scaling: float | None,
    sliding_window: int | None,
    documents: Documents | None,
) -> torch.Tensor:
    """:func:`documents_attention` for some tokens of a batch, which see as many as ever.

    ``query`` [N, heads, width] of the tokens at flat ``positions`` int64 [N], which ascend; key and value
    [B, heads, T, width] → [N, heads, width]. The kernel for documents of any lengths is given how many
    tokens of each ask. It does not know where these stand, so it takes no windows and no causal documents.
    Without it, the tokens of each row that ask are put side by side. For that kernel positions may be filled
    up with B · T, which is no token: these belong to no document, and are given zeros.
    """
    if documents is None and attention_mask is None:
        documents = _whole_rows(key)
    if documents is not None and varlen_fits(query, dropout):
        assert sliding_window is None
        assert not documents.causal
        asked = torch.searchsorted(positions.int(), documents.cu_seqlens, out_int32=True)
        # The kernel writes nothing for a query of no document, nor for its gradient, so what stands there
        # is whatever the memory held before; neither may go on to what is multiplied with it.
        is_token = (positions < documents.number.numel())[:, None, None]
        query = torch.where(is_token, query, 0.0)
        output = _varlen(query, asked, key, value, scaling, None, documents)
        return torch.where(is_token, output, 0.0)

    num_rows, _, length, _ = key.shape
    row = positions // length
    number = torch.bincount(row, minlength=num_rows)
    most = max(1, int(number.max()))
    place = torch.arange(positions.shape[0], device=positions.device)
    slot = (
        place + (most * torch.arange(num_rows, device=row.device) - number.cumsum(0) + number)[row]
    )
    at = torch.arange(0, num_rows * length, length, device=row.device).repeat_interleave(most)
    at[slot] = positions  # a row with fewer is filled up with its first token, whose query is 0
    side_by_side = query.new_zeros(num_rows * most, *query.shape[1:]).index_copy(0, slot, query)
    mask = _mask_of(documents, attention_mask, sliding_window, query.dtype)
    if mask is not None:
        mask = mask.expand(num_rows, 1, length, length).flatten(0, 2).index_select(0, at)
        mask = mask.view(num_rows, 1, most, length)
    asking = side_by_side.unflatten(0, (num_rows, most)).transpose(1, 2)
    return _densely(asking, key, value, mask, dropout, scaling).flatten(0, 1).index_select(0, slot)


def _mask_of(
    documents: Documents | None,
    attention_mask: torch.Tensor | None,
    sliding_window: int | None,
    dtype: torch.dtype,
) -> torch.Tensor | None:
    """What a kernel without documents is to be given: [B, 1, T, T], or None where all see all."""
    if documents is not None:
        return documents.mask(None if sliding_window is None else sliding_window - 1, dtype)
    return None if attention_mask is None else _let_every_token_see(attention_mask)


def _densely(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    dropout: float,
    scaling: float | None,
) -> torch.Tensor:
    """Attention of [B, heads, Q, width] to [B, heads, T, width] under a mask → [B, Q, heads, width]."""
    learned = mask is not None and mask.requires_grad
    if dropout and not learned and _computed_here(query, key):
        return host_attention.attend(query, key, value, mask, dropout, scaling)
    output = _dot_product(query, key, value, mask, dropout, scaling)
    return output.transpose(1, 2).contiguous()


def _computed_here(query: torch.Tensor, key: torch.Tensor) -> bool:
    """Whether the host computes, not a graph that is compiled, and every head has a key of its own."""
    on_host = query.device.type == "cpu" and not torch.compiler.is_compiling()
    return on_host and query.shape[1] == key.shape[1]


_MAY_SEE_A_MASK = [
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
    SDPBackend.OVERRIDEABLE,
]
"""Kernels of SDPA that are right under a mask: all but cuDNN's, torch's first choice on H100 since 2.11.
Its backward pass gives NaN for queries where a mask is passed, the length is 64 modulo 128 and the sum of a
row's exponentials is small (pytorch/pytorch#196678)."""


@contextmanager
def without_cudnn() -> Iterator[None]:
    """While open, SDPA leaves out cuDNN's kernels, which are not right under a mask.

    For models whose attention is not ours; other kernels that were switched off before stay off.
    """
    on = {
        SDPBackend.FLASH_ATTENTION: torch.backends.cuda.flash_sdp_enabled(),
        SDPBackend.EFFICIENT_ATTENTION: torch.backends.cuda.mem_efficient_sdp_enabled(),
        SDPBackend.MATH: torch.backends.cuda.math_sdp_enabled(),
    }
    with sdpa_kernel([kernel for kernel in _MAY_SEE_A_MASK if on.get(kernel, True)]):
        yield


def _dot_product(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    dropout: float,
    scaling: float | None,
) -> torch.Tensor:
    """Torch's attention, [B, heads, T, width], by a kernel that is right under this mask."""
    groups = key.shape[1] != query.shape[1]
    more: dict[str, Any] = {"dropout_p": dropout, "scale": scaling, "enable_gqa": groups}
    attend = nn.functional.scaled_dot_product_attention
    if mask is None:
        return attend(query, key, value, **more)
    if torch.compiler.is_compiling():  # a graph cannot ask which kernels are switched on
        with sdpa_kernel(_MAY_SEE_A_MASK):
            return attend(query, key, value, attn_mask=mask, **more)
    with without_cudnn():
        return attend(query, key, value, attn_mask=mask, **more)


def _let_every_token_see(mask: torch.Tensor) -> torch.Tensor:
    """The mask, with rows that allow no key allowing all: some kernels make NaN of a softmax over nothing.

    Such a row is padding far from any token of a window. Nothing reads what it gives, but 0 · NaN is NaN.
    """
    if mask.dtype == torch.bool:
        return mask | ~mask.any(-1, keepdim=True)
    return mask.masked_fill((mask == -torch.inf).all(-1, keepdim=True), 0.0)


def _mask_of_padding(*shape: Any, attention_mask: torch.Tensor | None = None, **how: Any) -> Any:
    """The mask a model makes of the caller's ``attention_mask``; none where documents say it all."""
    if attention_mask is None:
        return None
    return sdpa_mask(*shape, attention_mask=attention_mask, **how)


AttentionInterface.register(DOCUMENTS_ATTENTION, documents_attention)
AttentionMaskInterface.register(DOCUMENTS_ATTENTION, _mask_of_padding)


def _whole_rows(key: torch.Tensor) -> Documents:
    rows, length = key.shape[0], key.shape[2]
    number = torch.arange(rows, device=key.device)[:, None].expand(rows, length)
    bounds = torch.arange(0, rows * length + 1, length, dtype=torch.int32, device=key.device)
    return Documents(number, bounds, length, separate=False)


def varlen_fits(query: torch.Tensor, dropout: float) -> bool:
    """The flash kernel behind ``varlen_attn`` knows half precision only, and no dropout.

    It takes heads (the last dimension of ``query``) of some widths alone.
    """
    half = query.dtype in (torch.bfloat16, torch.float16)
    return query.is_cuda and half and not dropout and is_fast_width(query.shape[-1])


def _varlen(
    query: torch.Tensor,
    query_bounds: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float | None,
    sliding_window: int | None,
    documents: Documents,
) -> torch.Tensor:
    """Attention within each document by torch's flash kernel for rows of any lengths.

    ``query`` [N, heads, width]: the first ``query_bounds[1]`` belong to the first document, and so on; key
    and value [B, heads, T, width] → [N, heads, width].
    """
    from torch.nn.attention.varlen import varlen_attn

    reach = -1 if sliding_window is None else sliding_window - 1
    window = (reach, 0 if documents.causal else reach)
    if flash4.is_on():
        keys, values = (x.transpose(1, 2).flatten(0, 1) for x in (key, value))
        bounds, longest = documents.cu_seqlens, documents.max_length
        return flash4.attend(query, keys, values, query_bounds, bounds, longest, scaling, window)
    more: dict[str, Any] = {}
    groups = key.shape[1] != query.shape[1]
    if groups and _varlen_knows_groups():
        more["enable_gqa"] = True
    elif groups:
        times = query.shape[1] // key.shape[1]
        key, value = (x.repeat_interleave(times, dim=1) for x in (key, value))
    key, value = (x.transpose(1, 2).flatten(0, 1) for x in (key, value))
    output = varlen_attn(
        query,
        key,
        value,
        query_bounds,
        documents.cu_seqlens,
        documents.max_length,
        documents.max_length,
        scale=scaling,
        window_size=window,
        **more,
    )
    assert isinstance(output, torch.Tensor)
    return output


@cache
def _varlen_knows_groups() -> bool:
    """Whether several query heads may share a key head: torch 2.11 has no word for it."""
    from torch.nn.attention.varlen import varlen_attn

    return "enable_gqa" in inspect.signature(varlen_attn).parameters


def implementation_for(architecture: PretrainedConfig) -> str | None:
    """The attention implementation to ask transformers for; None for the architecture's own default."""
    model_class = AutoModelForMaskedLM._model_mapping.get(type(architecture), None)
    ours = getattr(model_class, "_supports_attention_backend", False)
    return DOCUMENTS_ATTENTION if ours else None


def attention_dropout(architecture: PretrainedConfig) -> tuple[str | None, float]:
    """The field of a config that says how many attention weights are dropped in training, and its value."""
    for name in ("attention_probs_dropout_prob", "attention_dropout"):
        if getattr(architecture, name, None) is not None:
            return name, float(getattr(architecture, name))
    return None, 0.0


def head_width(architecture: PretrainedConfig) -> int | None:
    """Numbers in the query of one attention head; None where the config tells of no heads, as FNet's."""
    config: Any = architecture
    heads = getattr(config, "num_attention_heads", None)
    return (getattr(config, "head_dim", None) or config.hidden_size // heads) if heads else None


def check_directions(
    architecture: PretrainedConfig,
    whose: str | Path,
    way: str = 'set "is_decoder": false in its config.json',
) -> None:
    """Raise UsageError for a model that is set to read every row in one direction, of which attention that is
    ours knows nothing. ``whose``: the model as a message names it; ``way``: the way out.
    """
    if implementation_for(architecture) is not None and getattr(architecture, "is_decoder", False):
        raise UsageError(
            f"{whose} has is_decoder set to true: masked tokens are predicted from both sides here, and "
            f"whoever opens the model's files would read rows in one direction; {way}"
        )


def check_supported(model: PreTrainedModel, scope: AttentionScope, causal: bool = False) -> None:
    """Raise UsageError where an architecture cannot keep documents apart, or read causal rows, or is set to
    read every row in one direction.
    """
    config = model.config
    check_directions(
        config,
        f"model type '{config.model_type}'",
        'set model.overrides.is_decoder=false; for a model from a folder, set "is_decoder": false in its '
        "config.json",
    )
    if scope == "row" and not causal:
        return
    if not type(model)._supports_attention_backend:
        why = "takes no attention function from outside"
    elif getattr(config, "trigram_input", False):
        why = "mixes neighbouring tokens before attention (trigram_input)"
    elif getattr(config, "token_dropout", False):
        why = "scales tokens by the masked share of their row (token_dropout)"
    else:
        return
    if causal:
        raise UsageError(
            f"model type '{config.model_type}' {why}, so its tokens could see the next token, which causal "
            "rows predict; set objective.kind=mlm, or choose another model, such as bert or modernbert"
        )
    raise UsageError(
        f"model type '{config.model_type}' {why}, so packed documents would see each other; "
        "set attention=row to accept that, or choose another model"
    )
