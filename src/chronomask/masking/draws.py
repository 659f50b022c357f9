"""The compiled steps by which :mod:`chronomask.masking.sampling` draws the units of a row.

Each works on plain arrays of one row (or of rows that share a budget) and is documented with the step
of the design it carries out. Units are numbered from left to right.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from chronomask import keyed
from chronomask.keyed import Scalar

__all__ = [
    "by_length",
    "count",
    "hash_row",
    "left_for_single",
    "order_units",
    "shift",
    "smallest",
    "solve",
    "systematic",
    "units",
]

NEWTON_STEPS = 10
TOLERANCE = 1e-7
ORDER_BITS = 10
"""Highest bits of a key that make the random order of systematic sampling."""
EDGE_BITS = 8
"""Highest bits of a key that are counted to find the smallest keys; whole keys decide at the edge."""
LONGEST = 63
"""Units of this many tokens and more are ordered as one length."""

_ONE = 2.0**32
_U32 = np.uint64(0xFFFFFFFF)


@njit(cache=True, nogil=True)
def units(
    unit_id: np.ndarray,
    each_token: bool,
    offset: Scalar,
    num: Scalar,
    first: np.ndarray,
    size: np.ndarray,
) -> tuple[Scalar, Scalar]:
    """Append each unit's first place (column + ``offset``) and tokens to the ``num`` there are.

    Gives the new number of units, and the tokens of those appended.
    """
    if each_token:
        before = num
        for column in range(unit_id.size):
            first[num] = offset + column
            size[num] = 1
            num += unit_id[column] >= 0
        return num, num - before
    maskable, begin, previous = 0, 0, np.int32(-1)
    for column in range(unit_id.size):
        unit = unit_id[column]
        if unit != previous:
            if previous >= 0:
                size[num - 1] = column - begin
                maskable += column - begin
            if unit >= 0:
                begin = column
                first[num] = offset + column
                num += 1
            previous = unit
    if previous >= 0:
        size[num - 1] = unit_id.size - begin
        maskable += unit_id.size - begin
    return num, maskable


@njit(cache=True, nogil=True)
def count(
    token_class: np.ndarray,
    first: np.ndarray,
    size: np.ndarray,
    num: Scalar,
    group: np.ndarray,
    counts: np.ndarray,
    single_counts: np.ndarray,
) -> None:
    """Fill each unit's class, and per class the tokens of all units and of one-token units."""
    counts[:] = 0.0
    single_counts[:] = 0.0
    for u in range(num):
        c = token_class[first[u]]
        group[u] = c
        if size[u] == 1:
            single_counts[c] += 1.0
        else:
            counts[c] += size[u]
    for c in range(counts.size):
        counts[c] += single_counts[c]


@njit(cache=True, nogil=True)
def hash_row(row_key: Scalar, spread: np.ndarray, hashed: np.ndarray) -> None:
    """:func:`chronomask.keyed.bits` of a row."""
    low = np.uint32(row_key & _U32)
    odd = np.uint32(row_key >> np.uint64(32)) | np.uint32(1)
    for column in range(spread.size):
        hashed[column] = keyed.scalar_mix(spread[column], low, odd)


@njit(cache=True, nogil=True)
def solve(counts: np.ndarray, weights: np.ndarray, ratio: Scalar, chance: np.ndarray) -> None:
    """Fill ``chance`` [C]: π of each class, so that Σ counts · π = ratio · Σ counts.

    Newton's method on λ: Σ counts · π is concave in λ and the start (the solution for the mean
    weight) lies left of the root by Jensen's inequality, so the steps rise to it and never
    overshoot. A row within 10⁻⁷ of its target rests. Sums are of whole numbers below 2⁵³: exact.
    """
    total, mean_weight = 0.0, 0.0
    for c in range(weights.size):
        total += counts[c]
        mean_weight += counts[c] * weights[c]
    total = max(total, 1.0)
    mean_weight = max(mean_weight, 2.0**-16) / total
    share = min(max(ratio, 1e-9), 1 - 1e-9)
    target = np.rint(share * total * _ONE)
    rate = share / (1 - share) / mean_weight
    for _ in range(NEWTON_STEPS):
        expected, slope = 0.0, 0.0
        for c in range(weights.size):
            odds = rate * weights[c]
            p = odds / (odds + 1.0)
            expected += counts[c] * np.rint(p * _ONE)
            slope += counts[c] * np.rint(p * (1.0 - p) * _ONE)
        missing = target - expected
        if abs(missing) <= target * TOLERANCE:
            break
        rate = rate * (1.0 + missing / max(slope, 1.0))
    for c in range(weights.size):
        odds = rate * weights[c]
        chance[c] = odds / (odds + 1.0)


@njit(cache=True, nogil=True)
def order_units(
    key: np.ndarray,
    size: np.ndarray,
    num: Scalar,
    multi: bool,
    order: np.ndarray,
    buckets: np.ndarray,
) -> Scalar:
    """Fill ``order`` with the units of several tokens, or of one, in random order; their number."""
    buckets[:] = 0
    for u in range(num):
        if (size[u] > 1) == multi:
            buckets[key[u] >> np.uint32(32 - ORDER_BITS)] += 1
    total = 0
    for b in range(buckets.size):
        here = buckets[b]
        buckets[b] = total
        total += here
    for u in range(num):
        if (size[u] > 1) == multi:
            b = key[u] >> np.uint32(32 - ORDER_BITS)
            order[buckets[b]] = u
            buckets[b] += 1
    return total


@njit(cache=True, nogil=True)
def by_length(
    order: np.ndarray, num: Scalar, size: np.ndarray, by_size: np.ndarray, out: np.ndarray
) -> None:
    """Fill ``out`` with ``order``, longest units first, the order kept among equals."""
    by_size[:] = 0
    for i in range(num):
        by_size[LONGEST - min(size[order[i]], LONGEST)] += 1
    total = 0
    for s in range(by_size.size):
        here = by_size[s]
        by_size[s] = total
        total += here
    for i in range(num):
        s = LONGEST - min(size[order[i]], LONGEST)
        out[by_size[s]] = order[i]
        by_size[s] += 1


@njit(cache=True, nogil=True)
def systematic(
    order: np.ndarray,
    num: Scalar,
    group: np.ndarray,
    chance: np.ndarray,
    start: Scalar,
    size: np.ndarray,
    chosen: np.ndarray,
) -> Scalar:
    """Mark in ``chosen`` the units hit by systematic sampling; the number of their tokens.

    The sum of chances is kept modulo 1, in units of 2⁻³²: a unit is hit where it wraps around.
    """
    fixed = np.empty(chance.size, np.int64)
    for c in range(chance.size):
        fixed[c] = min(np.int64(np.rint(chance[c] * _ONE)), np.int64(2**32 - 1))
    covered, total = np.int64(0), np.int64(start)
    for i in range(num):
        u = order[i]
        total += fixed[group[u]]
        hit = total >> 32
        total &= 2**32 - 1
        chosen[u] = hit != 0
        covered += hit * size[u]
    return covered


@njit(cache=True, nogil=True)
def left_for_single(
    budget: Scalar, covered: Scalar, longest: Scalar, counts: np.ndarray, chance: np.ndarray
) -> Scalar:
    """How many one-token units to choose, in units of 2⁻³², see step 4.

    ``covered``: tokens of the longer units chosen; ``longest``: tokens of the longest, 0 if there is
    none, a bound on how far ``covered`` can be from its expectation (Abel summation: units are drawn
    systematically in order of length); ``counts``, ``chance`` [C] of the one-token units.
    """
    expected, total = 0.0, 0.0
    for c in range(chance.size):
        expected += counts[c] * np.rint(chance[c] * _ONE)
        total += counts[c]
    missing = (budget - covered) * _ONE - expected
    room = min(expected, total * _ONE - expected)
    share = min(1.0, room / ((longest + 1) * _ONE))
    return np.int64(expected + np.rint(share * missing))


@njit(cache=True, nogil=True)
def shift(chance: np.ndarray, counts: np.ndarray, number: Scalar) -> None:
    """Move ``chance`` [C] by δπ(1 − π) so that it sums to ``number`` · 2⁻³² over ``counts``."""
    expected, room = 0.0, 0.0
    for c in range(chance.size):
        spread = chance[c] * (1.0 - chance[c])
        expected += counts[c] * np.rint(chance[c] * _ONE)
        room += counts[c] * np.rint(spread * _ONE)
    step = (np.float64(number) - expected) / max(room, 1.0)
    for c in range(chance.size):
        moved = step * (chance[c] * (1.0 - chance[c]))
        chance[c] = min(max(chance[c] + moved, 0.0), 1.0)


@njit(cache=True, nogil=True)
def smallest(
    key: np.ndarray,
    size: np.ndarray,
    num: Scalar,
    wanted: Scalar,
    order: np.ndarray,
    buckets: np.ndarray,
    chosen: np.ndarray,
) -> None:
    """Mark the ``wanted`` one-token units with the smallest keys."""
    num_buckets = 1 << EDGE_BITS
    buckets[:num_buckets] = 0
    for u in range(num):
        buckets[key[u] >> np.uint32(32 - EDGE_BITS)] += size[u] == 1
    below, edge = 0, 0
    while edge < num_buckets and below + buckets[edge] <= wanted:
        below += buckets[edge]
        edge += 1
    at_edge = 0
    for u in range(num):
        if size[u] == 1:
            bucket = key[u] >> np.uint32(32 - EDGE_BITS)
            chosen[u] = bucket < edge
            if bucket == edge:
                order[at_edge] = u
                at_edge += 1
    for _ in range(wanted - below):
        best = 0
        for i in range(1, at_edge):
            here, there = order[i], order[best]
            if key[here] < key[there] or (key[here] == key[there] and here < there):
                best = i
        chosen[order[best]] = True
        at_edge -= 1
        order[best] = order[at_edge]
