"""A faster FlashAttention behind torch's attention, where one is installed and right for this model.

FlashAttention-4 is called by an operator of ours (:mod:`chronomask.model.flash4`). torch from 2.11 lets
FlashAttention-3 put its kernels behind ``varlen_attn`` and SDPA
(``torch.nn.attention.activate_flash_attention_impl``). Versions differ in what they can: windows, the width
of a head, a backward pass for it; and for short rows, or many documents, other kernels are compiled. So the
model's own case is tried at the start of a run, on rows like its own, forwards and backwards, against
float32; torch's kernel stays where anything is amiss.

What was in use before is in use again after the run. Nothing was tried for other models, and FlashAttention-3
is given every attention of a process, that with dropout included, which it does not know.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
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

__all__ = ["AttentionCase", "activate_fastest", "case_of", "own_kernels_after", "queries_agree"]

logger = logging.getLogger(__name__)

_OURS = "FA4"
_OF_TORCH = ("FA3",)
_PACKAGES = ("flash_attn", "flash_attn.cute", "flash_attn_interface")
"""What is imported of the packages."""
_LENGTHS = (5, 64, 131, 1, 55)
"""Of the first documents that kernels are tried on: below, at and above the sizes of their tiles."""
_SHORT = 4
"""Tokens of all others."""
_LONGEST_ROW = 1024
"""Tokens of a row that is tried at most, above the sizes of all tiles; float32 needs their square."""
_USUAL = (256, 0)
"""Tokens of a row and documents of a batch where kernels are the same for all."""


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
    batches: tuple[tuple[int, int], ...] = (_USUAL,)
    """tokens of a row, and documents (those without tokens too), of the batches that are to be tried"""


def case_of(
    model: PreTrainedModel,
    causal: bool = False,
    batches: Iterable[tuple[int, int]] = (_USUAL,),
) -> AttentionCase | None:
    """What the model asks of attention, in such batches; None where its config does not say."""
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
        batches=tuple(batches),
    )


@contextmanager
def own_kernels_after() -> Iterator[None]:
    """Put back what attention ran with before, however this ends."""
    before, was_ours = attention.current_flash_attention_impl(), flash4.is_on()
    try:
        yield
    finally:
        if attention.current_flash_attention_impl() != before or flash4.is_on() != was_ours:
            _switch_off()
            if was_ours:
                _switch_on(_OURS)
            if before is not None:
                _switch_on(before)


def activate_fastest(
    case: AttentionCase,
    device: torch.device,
    works: Callable[[AttentionCase, torch.device], bool] | None = None,
) -> str | None:
    """Let torch use the fastest kernels that are there and pass ``works``; their name, or None for its own.

    ``works``: whether the kernels now in use are right for the case; :func:`_agrees` if not given. It may
    raise: kernels that are not made for the case do.
    """
    _switch_off()  # what is in use was tried on another model
    for name in _known_kernels():
        try:
            _switch_on(name)
            if (works or _agrees)(case, device):
                return name
            why = "its results differ from float32's"
        except Exception as error:  # packages raise what they like, compilers of kernels included
            why = f"{type(error).__name__}: {error}".splitlines()[0]
            if isinstance(error, ModuleNotFoundError) and error.name in _PACKAGES:
                why = ""  # it is not installed
        _switch_off()
        if why:
            logger.info("%s is installed and not used: %s", name, why)
    return None


def queries_agree(
    heads: int,
    width: int,
    device: torch.device,
    dtype: torch.dtype,
    documents: Documents | None = None,
) -> bool:
    """Whether the kernel in use is right where some tokens ask, and in one document none: tried once.

    Once for each kind of batch, where the kernel in use is another one in batches like ``documents``.
    """
    batch = _USUAL
    if flash4.is_on() and documents is not None:
        batch = documents.max_length, documents.cu_seqlens.shape[0] - 1
    return _queries_agree(heads, width, device, dtype, batch)


@cache
def _queries_agree(
    heads: int, width: int, device: torch.device, dtype: torch.dtype, batch: tuple[int, int]
) -> bool:
    try:
        # Whoever asks may be evaluating, or computing in another precision.
        with (
            torch.inference_mode(False),
            torch.enable_grad(),
            torch.autocast(device.type, enabled=False),
        ):
            right = _try_queries(heads, width, device, dtype, batch)
        why = "its results differ from float32's"
    except Exception as error:  # as above
        right, why = False, f"{type(error).__name__}: {error}".splitlines()[0]
    if not right:
        logger.info("all tokens ask in the last layer, since the kernel fails for some: %s", why)
    return right


def _try_queries(
    heads: int, width: int, device: torch.device, dtype: torch.dtype, batch: tuple[int, int]
) -> bool:
    """Try it: every third token asks, and none in the third document; gradients count too.

    Positions are filled up by as many again, as those of a compiled model are.
    """
    from chronomask.model.attention import attention_at, varlen_fits

    documents = _tried_documents(device, batch)
    rows, length = documents.number.shape
    total = rows * length
    positions = torch.arange(0, total, 3, device=device)
    begin, end = documents.cu_seqlens[2:4].tolist()
    positions = positions[(positions < begin) | (positions >= end)]
    number = positions.shape[0]
    generator = torch.Generator().manual_seed(0)
    shapes = ((2 * number, heads, width), *2 * ((rows, heads, length, width),))
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


def _tried_documents(
    device: torch.device, batch: tuple[int, int], causal: bool = False
) -> Documents:
    """A row of documents of :data:`_LENGTHS`, as far as it reaches, a row of short ones, and some without
    tokens, which batches hold as well: as many in all as ``batch`` says, in rows of its length.
    """
    from chronomask.model.documents import documents_between

    length, number = min(batch[0], _LONGEST_ROW), batch[1]
    long = np.cumsum((0, *_LENGTHS))
    short = np.arange(length, 2 * length + 1, _SHORT)
    bounds = np.concatenate((long[long < length], short, (2 * length,)))
    return documents_between(np.unique(bounds), 2, length, device, room=number, causal=causal)


def _known_kernels() -> Iterable[str]:
    """Names of kernels, the fastest first; whether they are there shows on use."""
    return [_OURS, *(name for name in _OF_TORCH if name in attention.list_flash_attention_impls())]


def _switch_on(name: str) -> None:
    _queries_agree.cache_clear()  # what it says is of the kernel in use
    if name == _OURS:
        flash4.switch(on=True)
    else:
        attention.activate_flash_attention_impl(name)


def _switch_off() -> None:
    _queries_agree.cache_clear()
    flash4.switch(on=False)
    attention.restore_flash_attention_impl(_raise_warn=False)


def _agrees(case: AttentionCase, device: torch.device) -> bool:
    """Whether packed attention in bfloat16 is that of float32, output and gradients, in every window."""
    ways = (False, True) if case.causal else (False,)
    return all(
        _agrees_within(case, window, _tried_documents(device, batch, causal))
        for batch in case.batches
        for window in case.windows
        for causal in ways
    )


def _agrees_within(case: AttentionCase, window: int | None, documents: Documents) -> bool:
    """Whether these documents give what float32 gives, within 3 % of the most."""
    from chronomask.model.attention import documents_attention

    device, (rows, length) = documents.number.device, documents.number.shape
    generator = torch.Generator().manual_seed(0)
    tensors = [
        torch.randn(rows, heads, length, case.width, generator=generator)
        .to(device, torch.bfloat16)
        .requires_grad_()
        for heads in (case.heads, case.key_heads, case.key_heads)
    ]
    into = torch.randn(rows, length, case.heads, case.width, generator=generator).to(device)

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
