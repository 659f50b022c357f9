"""Counter-based random numbers: every number is a pure function of what it is for.

``bits(seed, stream, epoch, row, position)`` holds no state, so the same token gets the same number
in any process, batch, rank or order, and after any resume (Salmon et al., "Parallel random numbers:
as easy as 1, 2, 3", SC 2011, argue for the idea; Philox itself costs ten wide multiplications a
number, too many for one per token).

Two levels: a 64-bit *row key* is mixed from (seed, epoch, row, stream) with the SplitMix64 finaliser
(Steele, Lea and Flood, OOPSLA 2014); a token's 32 bits come from a 32-bit mixer of its position,
begun and multiplied by the halves of the row key. Every step is a bijection of the position, so two
positions of a row never get the same bits: sorting by them is a permutation without ties.

numpy and torch give the same bits: integer arithmetic only.
"""

from __future__ import annotations

from enum import IntEnum
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numba import njit, vectorize

from chronomask.compiled import KEPT

if TYPE_CHECKING:
    import torch

__all__ = [
    "GOLDEN",
    "SILVER",
    "Scalar",
    "Stream",
    "bits",
    "keys_by_stream",
    "permute",
    "row_keys",
    "scalar_mix",
    "spread_of_range",
    "torch_bits",
    "unit_interval",
    "weyl",
]


Scalar = Any
"""A number in compiled code: a Python or numpy scalar, whose width the compiler keeps."""


class Stream(IntEnum):
    """What a number is for; numbers of different streams are unrelated."""

    ORDER = 1
    """the order of rows in an epoch"""
    SELECT = 2
    """which units of a row are masked"""
    BUDGET = 3
    """rounding of a row's budget"""
    REPLACE = 4
    """mask, random or keep"""
    TOKEN = 5
    """which random token"""
    SPAN = 6
    """where spans begin"""
    RATIO = 7
    """a row's own masking ratio"""
    ACCEPT = 8
    """acceptance in the published PTW walk"""
    # 9 once said which corpus a row comes from; no other stream may have that number.
    DROPOUT = 10
    """the model's dropout in one micro-batch"""
    STRATEGY = 11
    """which strategy a row follows, where several do"""
    EXPLORE = 12
    """in which of several epochs a unit may be masked"""
    NGRAM = 13
    """which of two n-grams that overlap is one unit"""
    OBJECTIVE = 14
    """what a row is trained for"""


_NUM_STREAMS = max(Stream) + 1

_S1, _C1 = np.uint32(15), np.uint32(0x2C1B3C6D)
_S2, _C2 = np.uint32(12), np.uint32(0x297A2D39)
_S3 = np.uint32(15)
_ROUNDS = ((_S1, _C1), (_S2, _C2), (_S3, None))
"""(shift, multiplier): x ← x ^ (x >> shift), then x ← x · multiplier. The constants are those of the
"lowbias32" searches (C. Wellons, hash-prospector)."""


@njit(inline="always")
def _mix(state: Scalar, value: Scalar) -> Scalar:
    """The SplitMix64 finaliser, a bijection of uint64, of ``state`` and one more number."""
    x = state + np.uint64(0x9E3779B97F4A7C15) * (value + np.uint64(1))
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@vectorize(["uint64(uint64, uint64)"], cache=KEPT)
def _absorb(state: Any, value: Any) -> Any:
    return _mix(state, value)


def row_keys(
    seed: int, stream: Stream, epoch: np.ndarray | int, row: np.ndarray | int
) -> np.ndarray:
    """uint64 key(s) for (seed, stream, epoch, row); ``epoch`` and ``row`` broadcast together."""
    start = _absorb(np.uint64(int(seed) % 2**64), np.uint64(0))
    by_epoch = _absorb(start, np.asarray(epoch).astype(np.uint64))
    base = _absorb(by_epoch, np.asarray(row).astype(np.uint64))
    return _absorb(base, np.uint64(int(stream)))


def keys_by_stream(seed: int, epoch: np.ndarray, row: np.ndarray) -> np.ndarray:
    """uint64 [streams, B]: :func:`row_keys` of every stream, ``keys[Stream.SELECT]`` and so on.

    ``epoch`` and ``row``: integers [B]. One compiled call, for those who need several streams.
    """
    keys = np.empty((_NUM_STREAMS, row.size), np.uint64)
    _fill_keys(np.uint64(int(seed) % 2**64), epoch.astype(np.uint64), row.astype(np.uint64), keys)
    return keys


@njit(cache=KEPT, nogil=True)
def _fill_keys(seed: Scalar, epoch: np.ndarray, row: np.ndarray, keys: np.ndarray) -> None:
    start = _mix(seed, np.uint64(0))
    for b in range(row.size):
        base = _mix(_mix(start, epoch[b]), row[b])
        for stream in range(keys.shape[0]):
            keys[stream, b] = _mix(base, np.uint64(stream))


def _halves(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The start and the odd multiplier that a row key gives the 32-bit mixer."""
    low = (keys & np.uint64(0xFFFFFFFF)).astype(np.uint32)
    return low, (keys >> np.uint64(32)).astype(np.uint32) | np.uint32(1)


@lru_cache(maxsize=16)
def spread_of_range(num_positions: int) -> np.ndarray:
    """uint32 [T]: positions 0 … T − 1 mixed alone: the same for every row of that length."""
    spread = _spread(np.arange(num_positions))
    spread.flags.writeable = False
    return spread


def _spread(positions: np.ndarray) -> np.ndarray:
    """uint32: positions mixed alone, so that the keyed rounds start from unrelated numbers."""
    x = positions.astype(np.uint32)
    with np.errstate(over="ignore"):
        x = (x + np.uint32(0x9E3779B9)) * np.uint32(0x21F0AAAD)
        x = (x ^ (x >> np.uint32(15))) * np.uint32(0x735A2D97)
    return x ^ (x >> np.uint32(15))


def _keyed_mix(spread: np.ndarray, keys: np.ndarray) -> np.ndarray:
    low, odd = _halves(keys)
    x = spread ^ low
    scratch = np.empty_like(x)
    np.multiply(x, odd, out=x)
    for shift, multiplier in _ROUNDS:
        np.right_shift(x, shift, out=scratch)
        np.bitwise_xor(x, scratch, out=x)
        if multiplier is not None:
            np.multiply(x, multiplier, out=x)
    return x


def bits(keys: np.ndarray, num_positions: int) -> np.ndarray:
    """uint32 [B, T]: bits of positions 0 … ``num_positions`` − 1 under each of ``keys`` [B]."""
    return _keyed_mix(spread_of_range(num_positions), keys[:, None])


@njit(inline="always")
def scalar_mix(spread: Scalar, low: Scalar, odd: Scalar) -> Scalar:
    """uint32: one number of :func:`bits`, for compiled code.

    ``spread``: the position's :func:`spread_of_range`; ``low``, ``odd``: halves of the row key, the
    second made odd; all uint32.
    """
    x = np.uint32(np.uint32(spread ^ low) * odd)
    x = np.uint32(np.uint32(x ^ (x >> _S1)) * _C1)
    x = np.uint32(np.uint32(x ^ (x >> _S2)) * _C2)
    return np.uint32(x ^ (x >> _S3))


def torch_bits(keys: np.ndarray, num_positions: int, device: torch.device) -> torch.Tensor:
    """int64 [B, T] in [0, 2³²): :func:`bits` computed on ``device``; ``keys`` uint64 [B], host."""
    import torch

    mask = 0xFFFFFFFF
    low, odd = (
        torch.from_numpy(half.astype(np.int64)).to(device, non_blocking=True)[:, None]
        for half in _halves(keys)
    )
    spread = spread_of_range(num_positions).astype(np.int64)
    x = torch.from_numpy(spread).to(device, non_blocking=True) ^ low
    x = (x * odd) & mask
    for shift, multiplier in _ROUNDS:
        x = x ^ (x >> int(shift))
        if multiplier is not None:
            x = (x * int(multiplier)) & mask
    return x


@lru_cache(maxsize=64)
def _weyl_start(seed: int, stream: Stream) -> np.uint64:
    return np.uint64(int(row_keys(seed, stream, 0, 0)) >> 32)


GOLDEN, SILVER = 0x9E3779B9, 0x6A09E667
"""Steps of Weyl sequences, in units of 2⁻³²: (√5 − 1) / 2 and √2 − 1. Two sequences of one step would be one
another's shift; of these two, pairs cover the unit square evenly."""


def weyl(seed: int, stream: Stream, order: np.ndarray, step: int = GOLDEN) -> np.ndarray:
    """uint32: numbers that any run of consecutive ``order`` covers evenly (a Weyl sequence).

    (start + order · step) modulo 1, in units of 2⁻³²; the start is keyed.
    """
    start = _weyl_start(seed, stream)
    moved = order.astype(np.uint64) * np.uint64(step)
    return (start + moved).astype(np.uint32)


def unit_interval(random_bits: np.ndarray) -> np.ndarray:
    """float64 in (0, 1) from uint32 bits: (bits + ½) / 2³², never 0 and never 1."""
    return (random_bits + 0.5) * 2.0**-32


def permute(index: np.ndarray, size: int, key: int) -> np.ndarray:
    """int64: where each of ``index`` (0 ≤ index < ``size``) goes in a random permutation of ``size``.

    A keyed bijection evaluated point by point, in O(1) memory: a four-round Feistel network on the
    smallest even-bit domain that holds ``size``, walked until it lands inside (Black and Rogaway,
    CT-RSA 2002). ``size`` below 2⁶².
    """
    half_bits = max(1, ((max(size - 1, 1)).bit_length() + 1) // 2)
    half_mask = np.uint64((1 << half_bits) - 1)
    shift = np.uint64(half_bits)
    round_keys = row_keys(key, Stream.ORDER, 0, np.arange(4))
    out = np.asarray(index, np.int64).astype(np.uint64)
    pending = np.ones(out.shape, bool)
    while pending.any():
        x = out[pending]
        left, right = x >> shift, x & half_mask
        for round_key in round_keys:
            left, right = right, left ^ (_absorb(round_key, right) & half_mask)
        out[pending] = (left << shift) | right
        pending = out >= np.uint64(size)
    return out.astype(np.int64)
