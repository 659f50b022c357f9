"""Dropout that is drawn faster than torch draws it, on the host and in compiled graphs.

On the host torch draws its random numbers one after the other, keeps a mask, and multiplies by it in three
passes. Here whether an element is dropped is a hash of its place under a key of 64 bits, so that one pass
draws and multiplies, threads share it, and the backward pass needs the key alone. The key comes from torch's
generator, so seeding that seeds this. :mod:`chronomask.model.compiled_dropout` has the same for graphs.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray
from torch import nn

from chronomask.compiled import KEPT
from chronomask.machine import available_cores
from chronomask.model.bfloat16 import of_bits, to_bits
from chronomask.model.compiled_dropout import drop_in_graph, fits

# numba keeps compiled code by this file's contents; those of the compiled files that it imports are:
# compiled in: 898f0b65c1c3

__all__ = ["Kept", "KeyedDropout", "draw_key", "drop", "share", "softmax_and_drop"]

_PART = 2**18
"""Elements of a thread, once there are four times as many: they take it an eighth of a millisecond, and to
hand them over takes a fifth of one."""


def drop(values: torch.Tensor, dropout: float) -> torch.Tensor:
    """``values`` on the host, each 0 with probability ``dropout``, else divided by 1 − ``dropout``.

    The probability is rounded to a multiple of 2⁻³². Nothing is kept for the backward pass but a key.
    """
    return _Dropped.apply(values, draw_key(), dropout)


def softmax_and_drop(scores: torch.Tensor, dropout: float, key: int | None = None) -> torch.Tensor:
    """:func:`drop` of the softmax of ``scores`` [..., N] over the last dimension.

    The backward passes of both are one.
    """
    return _DroppedSoftmax.apply(scores, draw_key() if key is None else key, dropout)[0]


class KeyedDropout(nn.Dropout):
    """``nn.Dropout`` that is :func:`drop` where values are on the host, and in compiled graphs
    :func:`chronomask.model.compiled_dropout.drop_in_graph`, on every device.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if self.training and self.p:
            if torch.compiler.is_compiling():
                if fits(input):
                    return drop_in_graph(input, self.p)
            elif input.device.type == "cpu":
                return drop(input, self.p)
        return nn.functional.dropout(input, self.p, self.training, self.inplace)


def draw_key() -> int:
    """A key of 62 bits from torch's generator."""
    return int(torch.randint(2**62, ()))


class _Dropped(torch.autograd.Function):
    """``values`` without those that a key drops; the gradient is that of the same key."""

    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, key: int, dropout: float) -> torch.Tensor:
        ctx.key, ctx.dropout = key, dropout
        if values.dtype in (torch.float32, torch.bfloat16):
            return Kept(key, dropout).of(values)
        factors = Kept(key, dropout).of(torch.ones(values.shape))
        return (values * factors).to(values.dtype)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return _Dropped.apply(grad_outputs[0], ctx.key, ctx.dropout), None, None


class _DroppedSoftmax(torch.autograd.Function):
    """(softmax without those that a key drops, softmax), of which the second is for the backward pass alone:
    a gradient of a gradient is right only if what is kept is an output.
    """

    @staticmethod
    def forward(
        ctx: Any, scores: torch.Tensor, key: int, dropout: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        weights = torch.softmax(scores, dim=-1)
        ctx.save_for_backward(weights)
        ctx.set_materialize_grads(False)
        ctx.key, ctx.dropout = key, dropout
        return _Dropped.apply(weights, key, dropout), weights

    @staticmethod
    def backward(
        ctx: Any, *grad_outputs: torch.Tensor | None
    ) -> tuple[torch.Tensor | None, None, None]:
        grad, of_weights = grad_outputs
        (weights,) = ctx.saved_tensors
        if grad is not None and of_weights is None and not torch.is_grad_enabled():
            if weights.dtype == grad.dtype == torch.float32:
                return Kept(ctx.key, ctx.dropout).softmax_backward(grad, weights), None, None
        elif grad is None and of_weights is None:
            return None, None, None
        total = 0 if of_weights is None else of_weights
        if grad is not None:
            total = total + _Dropped.apply(grad, ctx.key, ctx.dropout)
        return weights * (total - (total * weights).sum(-1, keepdim=True)), None, None


class Kept:
    """Which elements of a tensor a key leaves, and the scale of these; the same for any threads."""

    def __init__(self, key: int, dropout: float) -> None:
        # At 1 the last of 2³² hashes would be kept, so all are scaled to 0.
        threshold = np.uint32(min(round(dropout * 2**32), 2**32 - 1))
        scale = np.float32(1 / (1 - dropout) if dropout < 1 else 0)
        self._given = np.uint32(key & 0xFFFFFFFF), np.uint32(key >> 32), threshold, scale

    def of(self, values: torch.Tensor) -> torch.Tensor:
        """A new tensor: the float32 or bfloat16 ``values``, 0 where dropped, times the scale elsewhere.

        The place of an element is the number of those before it. Products are float32 and rounded once.
        """
        values = values.detach().contiguous()
        out = torch.empty_like(values)
        if values.dtype == torch.bfloat16:  # which NumPy has no name for
            keep, kind = _keep_bf16, torch.uint16
        else:
            keep, kind = _keep, torch.float32
        x, y = (t.view(kind).numpy().reshape(-1) for t in (values, out))

        def fill(start: int, end: int) -> None:
            keep(x[start:end], y[start:end], np.uint32(start % 2**32), *self._given)

        share(fill, x.size, 1)
        return out

    def of_rows(
        self, rows: NDArray[np.float32], places: NDArray[np.uint32], out: NDArray[np.float32]
    ) -> None:
        """Into ``out`` [R, N], which is not ``rows`` [R, N]: ``rows``, 0 where dropped, else times the scale.

        ``places`` [R]: those of each row's first element; the others of the row follow it.
        """

        def fill(start: int, end: int) -> None:
            _keep_rows(rows[start:end], out[start:end], places[start:end], *self._given)

        share(fill, *rows.shape)

    def softmax_backward(self, grad: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """The gradient of the scores, float32 [..., N], from those of what was kept of ``weights``."""
        grad, weights = grad.detach().contiguous(), weights.detach()
        out = torch.empty_like(weights, memory_format=torch.contiguous_format)
        if not out.numel():
            return out
        n = out.shape[-1]
        g, w, y = (t.contiguous().numpy().reshape(-1, n) for t in (grad, weights, out))

        def fill(start: int, end: int) -> None:
            part = slice(start, end)
            _softmax_backward(g[part], w[part], y[part], np.uint32(start * n % 2**32), *self._given)

        share(fill, len(y), n)
        return out


def share(fill: Callable[[int, int], None], items: int, size: int) -> None:
    """Call ``fill`` with the bounds of parts of the items, of ``size`` elements each, by torch's threads."""
    parts = items * size // _PART
    number = min(torch.get_num_threads(), items, parts) if parts >= 4 else 1
    if number < 2:
        fill(0, items)
        return
    bounds = np.linspace(0, items, number + 1).astype(np.int64).tolist()
    list(_threads().map(fill, bounds, bounds[1:]))


@cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(available_cores(), "dropout")


if hasattr(os, "register_at_fork"):  # a forked process has none of its parent's threads
    os.register_at_fork(after_in_child=_threads.cache_clear)


@njit(cache=KEPT, nogil=True, error_model="numpy", inline="always")
def _is_kept(place: np.uint32, other_key: np.uint32, threshold: np.uint32) -> bool:
    """Whether the hash of a place, to which half of the key is added, reaches ``threshold``.

    The hash is Wellons' ``triple32`` (github.com/skeeto/hash-prospector), with the other half of the key
    added after its first multiplication.
    """
    x = place ^ (place >> np.uint32(17))
    x = np.uint32(x * np.uint32(0xED5AD4BB) + other_key)
    x ^= x >> np.uint32(11)
    x = np.uint32(x * np.uint32(0xAC4C1B51))
    x ^= x >> np.uint32(15)
    x = np.uint32(x * np.uint32(0x31848BAB))
    return bool((x ^ (x >> np.uint32(14))) >= threshold)


@njit(cache=KEPT, nogil=True, error_model="numpy")
def _keep(
    values: NDArray[np.float32],
    out: NDArray[np.float32],
    first: np.uint32,
    key: np.uint32,
    other_key: np.uint32,
    threshold: np.uint32,
    scale: np.float32,
) -> None:
    """``out`` [N] = ``values`` [N] · ``scale`` where kept, else 0; ``first``: place of the first element."""
    for i in range(values.size):
        kept = _is_kept(np.uint32(i + first + key), other_key, threshold)
        out[i] = values[i] * scale if kept else np.float32(0)


@njit(cache=KEPT, nogil=True, error_model="numpy")
def _keep_bf16(
    values: NDArray[np.uint16],
    out: NDArray[np.uint16],
    first: np.uint32,
    key: np.uint32,
    other_key: np.uint32,
    threshold: np.uint32,
    scale: np.float32,
) -> None:
    """:func:`_keep` of bfloat16 given by its bits."""
    for i in range(values.size):
        kept = _is_kept(np.uint32(i + first + key), other_key, threshold)
        scaled = to_bits(np.float32(of_bits(values[i]) * scale))
        out[i] = scaled if kept else np.uint16(0)


@njit(cache=KEPT, nogil=True, error_model="numpy")
def _keep_rows(
    rows: NDArray[np.float32],
    out: NDArray[np.float32],
    places: NDArray[np.uint32],
    key: np.uint32,
    other_key: np.uint32,
    threshold: np.uint32,
    scale: np.float32,
) -> None:
    """:func:`_keep` of each of ``rows`` [R, N], of whose first elements ``places`` [R] are given."""
    for r in range(places.size):
        _keep(rows[r], out[r], places[r], key, other_key, threshold, scale)


@njit(cache=KEPT, nogil=True, error_model="numpy", fastmath={"reassoc"})
def _softmax_backward(
    grad: NDArray[np.float32],
    weights: NDArray[np.float32],
    out: NDArray[np.float32],
    first: np.uint32,
    key: np.uint32,
    other_key: np.uint32,
    threshold: np.uint32,
    scale: np.float32,
) -> None:
    """``out`` [R, N] = w · (g − Σ g w) of each row, g: ``grad`` [R, N] · ``scale`` where kept, else 0."""
    rows, n = grad.shape
    for r in range(rows):
        start = np.uint32(r * n + first + key)
        total = np.float32(0)
        for j in range(n):
            kept = _is_kept(np.uint32(j + start), other_key, threshold)
            product = (grad[r, j] * scale if kept else np.float32(0)) * weights[r, j]
            out[r, j] = product
            total += product
        for j in range(n):
            out[r, j] -= weights[r, j] * total
