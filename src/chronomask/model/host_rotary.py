"""Rotary positions as the host turns them: in one pass, without copies of halves.

In torch a rotation of numbers in bfloat16 is eight passes over float32, and took a seventh of a step of a
ModernBERT of 4 layers × 512 on a processor that multiplies in bfloat16. Here every number is read and written
once. Results are those of torch's formula, bit for bit.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray

from chronomask.compiled import KEPT
from chronomask.model.bfloat16 import of_bits, to_bits
from chronomask.model.dropout import share

# numba keeps compiled code by this file's contents; those of the compiled files that it imports are:
# compiled in: 898f0b65c1c3

__all__ = ["takes", "turn"]

_OUTER = 3
"""Dimensions beside that of the numbers that are turned."""


def takes(x: torch.Tensor, cos: torch.Tensor) -> bool:
    """Whether :func:`turn` turns ``x``: at most four dimensions of float32 or bfloat16 on the host, outside
    of compiled models, each row by angles of its width.
    """
    here = x.device.type == "cpu" and not torch.compiler.is_compiling()
    known = x.dtype in (torch.float32, torch.bfloat16) and x.dim() <= _OUTER + 1
    return here and known and cos.shape[-1] == x.shape[-1]


def turn(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """``x`` [..., 2 · H] with its halves rotated against each other: (x₁·cos − x₂·sin, x₂·cos + x₁·sin).

    ``cos`` and ``sin`` broadcast to ``x``, and the second half of each is not read. Computed in float32 and
    rounded once; the result lies in memory in the order of ``x``. It has no gradient.
    """
    x = x.detach()
    if x.stride(-1) != 1:
        x = x.contiguous()
    out = torch.empty_like(x)
    if not out.numel():
        return out
    order = sorted(range(x.dim() - 1), key=x.stride, reverse=True)
    sizes = np.array([1] * (_OUTER - len(order)) + [x.shape[dim] for dim in order])
    angles = (angle.detach().float().contiguous().expand(x.shape) for angle in (cos, sin))
    given = [_Flat(states, order) for states in (x, out, *angles)]
    numbers, strides = [flat.numbers for flat in given], np.array([flat.strides for flat in given])
    width, low = x.shape[-1], x.dtype == torch.bfloat16

    def fill(start: int, end: int) -> None:
        _turn(*numbers, strides, sizes, width // 2, low, start, end)  # pyright: ignore[reportCallIssue]

    share(fill, int(sizes[0] * sizes[1]), int(sizes[2]) * width)
    return out


class _Flat:
    """A tensor as one row of numbers and what to go on by in each of three dimensions."""

    def __init__(self, states: torch.Tensor, order: list[int]) -> None:
        reach = 1 + sum((n - 1) * by for n, by in zip(states.shape, states.stride(), strict=True))
        flat = states.as_strided((reach,), (1,))
        self.numbers = (flat.view(torch.uint16) if flat.dtype == torch.bfloat16 else flat).numpy()
        strides = [states.stride(dim) for dim in order]
        self.strides = [0] * (_OUTER - len(strides)) + strides


@njit(cache=KEPT, nogil=True, error_model="numpy", inline="always")
def _place(strides: NDArray[np.int64], which: int, first: int, middle: int, last: int) -> int:
    """Where a row begins in one of four tensors, of which ``strides`` [4, 3] are."""
    return first * strides[which, 0] + middle * strides[which, 1] + last * strides[which, 2]


@njit(cache=KEPT, nogil=True, error_model="numpy")
def _turn(
    source: NDArray[Any],
    target: NDArray[Any],
    cos: NDArray[np.float32],
    sin: NDArray[np.float32],
    strides: NDArray[np.int64],
    sizes: NDArray[np.int64],
    half: int,
    low: bool,
    start: int,
    end: int,
) -> None:
    """Into ``target``: ``source``, rows of 2 · ``half`` numbers, at some places of its first two dimensions.

    ``strides`` [4, 3]: of the four before them; ``sizes`` [3]: of the dimensions; ``low``: source and target
    hold bfloat16, by its bits, and not float32.
    """
    for outer in range(start, end):
        first, middle = outer // sizes[1], outer % sizes[1]
        for inner in range(sizes[2]):
            s = _place(strides, 0, first, middle, inner)
            t = _place(strides, 1, first, middle, inner)
            c = _place(strides, 2, first, middle, inner)
            n = _place(strides, 3, first, middle, inner)
            x, y = source[s : s + half], source[s + half : s + 2 * half]
            u, v = target[t : t + half], target[t + half : t + 2 * half]
            a, b = cos[c : c + half], sin[n : n + half]
            if low:
                for j in range(half):
                    one, other = of_bits(x[j]), of_bits(y[j])
                    u[j] = to_bits(np.float32(one * a[j] - other * b[j]))
                    v[j] = to_bits(np.float32(other * a[j] + one * b[j]))
            else:
                for j in range(half):
                    u[j] = x[j] * a[j] - y[j] * b[j]
                    v[j] = y[j] * a[j] + x[j] * b[j]
