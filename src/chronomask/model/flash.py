"""A faster FlashAttention behind torch's attention, where one is installed and right for this model.

FlashAttention-4 is called by an operator of ours (:mod:`chronomask.model.flash4`). torch from 2.11 lets
FlashAttention-3 put its kernels behind ``varlen_attn`` and SDPA
(``torch.nn.attention.activate_flash_attention_impl``). Versions differ in what they can: windows, the width
of a head, a backward pass for it. So the model's own case is tried at the start of a run, forwards and
backwards, against float32; torch's kernel stays where anything is amiss.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import attention
from transformers import PreTrainedModel

from chronomask.model import flash4

if TYPE_CHECKING:
    from chronomask.model.documents import Documents

__all__ = ["AttentionCase", "activate_fastest", "case_of", "queries_agree"]

logger = logging.getLogger(__name__)

_OURS = "FA4"
_OF_TORCH = ("FA3",)
_LENGTHS = (5, 64, 131, 1, 55)
"""Of the documents that kernels are tried on: below, at and above the sizes of their tiles."""


@dataclass(frozen=True, slots=True)
class AttentionCase:
    """What a model asks of attention."""

    heads: int
    key_heads: int
    width: int
    windows: tuple[int | None, ...]
    """how far tokens see in its layers; None: all"""
    causal: bool = False
    """whether some rows are to see what comes before alone"""


def case_of(model: PreTrainedModel, causal: bool = False) -> AttentionCase | None:
    """What the model asks of attention; None where its config does not say."""
    config = model.config.get_text_config()
    heads = getattr(config, "num_attention_heads", None)
    if not heads:
        return None
    windows = {
        getattr(module, "sliding_window", None)
        for module in model.modules()
        if hasattr(module, "sliding_window")
    } or {None}
    return AttentionCase(
        heads=heads,
        key_heads=getattr(config, "num_key_value_heads", None) or heads,
        width=getattr(config, "head_dim", None) or config.hidden_size // heads,
        windows=tuple(sorted(windows, key=str)),
        causal=causal,
    )


def activate_fastest(
    case: AttentionCase,
    device: torch.device,
    works: Callable[[AttentionCase, torch.device], bool] | None = None,
) -> str | None:
    """Let torch use the fastest kernels that are there and pass ``works``; their name, or None for its own.

    ``works``: whether the kernels now in use are right for the case; :func:`_agrees` if not given. It may
    raise: kernels that are not made for the case do.
    """
    queries_agree.cache_clear()  # what it says is of the kernel in use
    _switch_off()  # an earlier run's, of another model
    for name in _known_kernels():
        try:
            _switch_on(name)
            if (works or _agrees)(case, device):
                return name
            why = "its results differ from float32's"
        except Exception as error:  # packages raise what they like, compilers of kernels included
            why = f"{type(error).__name__}: {error}".splitlines()[0]
        _switch_off()
        logger.info("%s is installed and not used: %s", name, why)
    return None


@cache
def queries_agree(heads: int, width: int, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the kernel in use is right where some tokens ask, and in one document none: tried once."""
    try:
        # Whoever asks may be evaluating, or computing in another precision.
        with (
            torch.inference_mode(False),
            torch.enable_grad(),
            torch.autocast(device.type, enabled=False),
        ):
            right = _queries_agree(heads, width, device, dtype)
        why = "its results differ from float32's"
    except Exception as error:  # as above
        right, why = False, f"{type(error).__name__}: {error}".splitlines()[0]
    if not right:
        logger.info("all tokens ask in the last layer, since the kernel fails for some: %s", why)
    return right


def _queries_agree(heads: int, width: int, device: torch.device, dtype: torch.dtype) -> bool:
    """Try it: every third token asks, and none in the third document; gradients count too.

    Positions are filled up by as many again, as those of a compiled model are.
    """
    from chronomask.model.attention import attention_at, varlen_fits

    documents, total = _tried_documents(device)
    positions = torch.arange(0, total, 3, device=device)
    begin, end = documents.cu_seqlens[2:4].tolist()
    positions = positions[(positions < begin) | (positions >= end)]
    number = positions.shape[0]
    generator = torch.Generator().manual_seed(0)
    shapes = ((2 * number, heads, width), *2 * ((1, heads, total, width),))
    tensors = [
        torch.randn(shape, generator=generator).to(device, dtype).requires_grad_()
        for shape in shapes
    ]
    into = torch.randn(shapes[0], generator=generator).to(device)

    def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        filled = number if varlen_fits(query, 0.0) else 0
        there = attention_at(
            query[: number + filled],
            key,
            value,
            torch.nn.functional.pad(positions, (0, filled), value=total),
            None,
            dropout=0.0,
            scaling=None,
            sliding_window=None,
            documents=documents,
        )
        return torch.nn.functional.pad(there, (0, 0, 0, 0, 0, number - filled))

    return _alike(attend, tensors, into)


def _tried_documents(device: torch.device, causal: bool = False) -> tuple[Documents, int]:
    """One row of documents of :data:`_LENGTHS` and of some without tokens, which batches hold as well; and
    its tokens.
    """
    from chronomask.model.documents import documents_between

    bounds = np.cumsum((0, *_LENGTHS))
    total = int(bounds[-1])
    return documents_between(bounds, 1, total, device, causal=causal), total


def _known_kernels() -> Iterable[str]:
    """Names of kernels, the fastest first; whether they are there shows on use."""
    return [_OURS, *(name for name in _OF_TORCH if name in attention.list_flash_attention_impls())]


def _switch_on(name: str) -> None:
    if name == _OURS:
        flash4.switch(on=True)
    else:
        attention.activate_flash_attention_impl(name)


def _switch_off() -> None:
    flash4.switch(on=False)
    attention.restore_flash_attention_impl(_raise_warn=False)


def _agrees(case: AttentionCase, device: torch.device) -> bool:
    """Whether packed attention in bfloat16 is that of float32, output and gradients, in every window."""
    ways = (False, True) if case.causal else (False,)
    return all(
        _agrees_within(case, window, causal, device) for window in case.windows for causal in ways
    )


def _agrees_within(
    case: AttentionCase, window: int | None, causal: bool, device: torch.device
) -> bool:
    """Whether documents of :data:`_LENGTHS` in one row give what float32 gives, within 3 % of the most."""
    from chronomask.model.attention import documents_attention

    documents, total = _tried_documents(device, causal)
    generator = torch.Generator().manual_seed(0)
    tensors = [
        torch.randn(1, heads, total, case.width, generator=generator)
        .to(device, torch.bfloat16)
        .requires_grad_()
        for heads in (case.heads, case.key_heads, case.key_heads)
    ]
    into = torch.randn(1, total, case.heads, case.width, generator=generator).to(device)

    def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        layer = torch.nn.Identity()
        return documents_attention(
            layer, query, key, value, None, sliding_window=window, documents=documents
        )[0]

    return _alike(attend, tensors, into)


def _alike(
    attend: Callable[..., torch.Tensor], tensors: Sequence[torch.Tensor], into: torch.Tensor
) -> bool:
    """Whether the output and gradients of half-precision tensors are those of float32, which takes a mask.

    Within 3 % of the largest number.
    """
    results = []
    for dtype in (tensors[0].dtype, torch.float32):
        output = attend(*(tensor.to(dtype) for tensor in tensors))
        gradients = torch.autograd.grad(output, tensors, into.to(dtype))
        results.append([output.detach(), *gradients])
    return all(
        bool(found.isfinite().all())
        and float((found.float() - wanted.float()).abs().max()) <= 0.03 * float(wanted.abs().max())
        for found, wanted in zip(*results, strict=True)
    )
