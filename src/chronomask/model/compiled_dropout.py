"""Dropout in a compiled graph: a hash of an element's place under a key, as on the host.

torch's compiler draws a number for every element by the ten rounds of Philox, and keeps a byte of each for
the backward pass. In a step of BERT-base on an H200 that was a third of the time of its normalisations,
residuals and dropout. A hash of three products and four shifts is drawn in either pass, which then keep the
key alone.
"""

from __future__ import annotations

from typing import Any

import torch

__all__ = ["drop_in_graph", "fits"]

_LOWEST = -(2**31)
"""Of 32 bits with a sign."""


def fits(values: torch.Tensor) -> bool:
    """Whether places of ``values`` can be counted in 31 bits."""
    return values.numel() < 2**31 - 1


def drop_in_graph(values: torch.Tensor, dropout: float) -> torch.Tensor:
    """``values`` [...], each 0 with probability ``dropout``, else divided by 1 − ``dropout``.

    The key is drawn in the graph by torch's generator, so seeding that seeds this. For a key that is given,
    it drops what :class:`chronomask.model.dropout.Kept` does.
    """
    key = torch.randint(_LOWEST, 2**31, (2,), dtype=torch.int32, device=values.device)
    return Dropped.apply(values, key, dropout)


class Dropped(torch.autograd.Function):
    """``values`` without those that a key, int32 [2], drops; the gradient is that of the same key."""

    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, key: torch.Tensor, dropout: float) -> torch.Tensor:
        ctx.save_for_backward(key)
        ctx.dropout = dropout
        return _scale(values, _is_kept(values, key, dropout, 0), dropout)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (grad,), (key,) = grad_outputs, ctx.saved_tensors
        # Places are counted from 1 here. A compiler that saw the same formula twice would compute it once,
        # and keep what it gave.
        return _scale(grad, _is_kept(grad, key, ctx.dropout, 1), ctx.dropout), None, None


def _scale(values: torch.Tensor, kept: torch.Tensor, dropout: float) -> torch.Tensor:
    return torch.where(kept, values * (1 / (1 - dropout) if dropout < 1 else 0.0), 0.0)


def _is_kept(values: torch.Tensor, key: torch.Tensor, dropout: float, start: int) -> torch.Tensor:
    """Whether the hash of each place reaches ``dropout``, a probability: bool, of the shape of ``values``.

    The hash is that of the host, in signed numbers: their sums and products have the same bits. ``start``:
    the number of the first place, which changes nothing.
    """
    x = _places(values, start) + (key[0] - start)
    x = (x ^ _shift(x, 17)) * _with_sign(0xED5AD4BB) + key[1]
    x = (x ^ _shift(x, 11)) * _with_sign(0xAC4C1B51)
    x = (x ^ _shift(x, 15)) * 0x31848BAB
    x = x ^ _shift(x, 14)
    threshold = min(round(dropout * 2**32), 2**32 - 1)
    return (x ^ _LOWEST) >= threshold + _LOWEST  # as numbers without a sign compare


def _places(values: torch.Tensor, start: int) -> torch.Tensor:
    """The number of each place from ``start`` on, int32, of the shape of ``values``.

    It is a sum along the dimensions: a count of all places at once, viewed in that shape, would have a loop
    of its own, which the compiler does not fuse with the gradient of a normalisation.
    """
    places = torch.full((), start, dtype=torch.int32, device=values.device)
    step = 1
    for size in reversed(values.shape):
        along = torch.arange(size, dtype=torch.int32, device=values.device) * step
        places = along.view(size, *[1] * places.dim()) + places
        step *= size
    return places


def _shift(x: torch.Tensor, bits: int) -> torch.Tensor:
    """``x`` shifted right, with zeros coming in from the left whatever its sign."""
    return (x >> bits) & (2 ** (32 - bits) - 1)


def _with_sign(bits: int) -> int:
    return bits - 2**32 if bits >= 2**31 else bits
