"""The compiled steps by which :mod:`chronomask.masking.select.exact` draws the units of a row.

Each works on plain arrays of one row (or of rows that share a budget, end to end) and is documented with
the step of the design it carries out. Loops over tokens have no branch that depends on the text: a
wrongly guessed branch costs more than the work. Places are counted from the row's first token.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from chronomask import keyed
from chronomask.compiled import KEPT
from chronomask.keyed import Scalar

# numba keeps compiled code by this file's contents; those of the compiled files that it imports are:
# compiled in: 423aeb35f00b

__all__ = [
    "FEW",
    "OTHER",
    "count",
    "expect",
    "find_single",
    "find_units",
    "gather",
    "hash_row",
    "in_units",
    "left_for_single",
    "longest_first",
    "mark_classes",
    "shift",
    "shuffle",
    "smallest",
    "solve",
    "systematic",
    "systematic_in_place",
    "systematic_of_few",
]

NEWTON_STEPS = 10
TOLERANCE = 1e-7
ORDER_BITS = 8
"""Highest bits of a key that make the random order of systematic sampling."""
EDGE_BITS = 8
"""Highest bits of a key that are counted to find the smallest keys; whole keys decide at the edge."""
LONGEST = 63
"""Units of this many tokens and more are ordered as one length."""

FEW = 32
"""Units of several tokens, up to which comparing all pairs is cheaper than ordering them."""
OTHER = 64
"""Added to the class of a token that is no unit of its own; more than there can be classes."""

_ONE = 2.0**32
_U32 = np.uint64(0xFFFFFFFF)
_LAST = np.uint32(0xFFFFFFFF)


@njit(cache=KEPT, nogil=True)
def hash_row(row_key: Scalar, spread: np.ndarray, hashed: np.ndarray) -> None:
    """:func:`chronomask.keyed.bits` of a row."""
    low = np.uint32(row_key & _U32)
    odd = np.uint32(row_key >> np.uint64(32)) | np.uint32(1)
    for column in range(spread.size):
        hashed[column] = keyed.scalar_mix(spread[column], low, odd)


@njit(cache=KEPT, nogil=True)
def gather(marked: np.ndarray, offset: Scalar, num: Scalar, out: np.ndarray) -> Scalar:
    """Append the marked places, moved by ``offset``, to the ``num`` there are; their new number."""
    at = np.uintp(num)
    for place in range(marked.size):
        out[at] = offset + place
        at += np.uintp(marked[place] != 0)
    return np.int64(at)


@njit(cache=KEPT, nogil=True)
def find_single(unit_id: np.ndarray, single: np.ndarray) -> Scalar:
    """Mark the maskable tokens, each a unit of its own; their number."""
    num = np.int32(0)
    for column in range(unit_id.size):
        is_maskable = unit_id[column] >= 0
        single[column] = is_maskable
        num += is_maskable
    return num


@njit(cache=KEPT, nogil=True)
def find_units(
    unit_id: np.ndarray,
    offset: Scalar,
    num: Scalar,
    single: np.ndarray,
    edges: np.ndarray,
    bounds: np.ndarray,
) -> tuple[Scalar, Scalar, Scalar]:
    """Mark the units of one token; append first and last place of the others to the ``num`` bounds there are.

    ``bounds`` holds a unit's first place, its last, the next unit's first, and so on, moved by ``offset``.
    Gives the new number of bounds, the number of one-token units, and the number of maskable tokens.
    ``edges``: scratch, bool, T rounded up to a multiple of 8; what is beyond T is False.
    """
    num_single = np.int32(0)
    end = unit_id.size - 1
    before, here, after = unit_id[:-2], unit_id[1:-1], unit_id[2:]  # indices ≥ 0 can be vectorised
    alone, at_edge = single[1:-1], edges[1:end]
    for i in range(here.size):
        _mark(here[i], here[i] != before[i], here[i] != after[i], i, alone, at_edge)
    _mark(unit_id[0], True, end == 0 or unit_id[0] != unit_id[1], 0, single, edges)
    _mark(unit_id[end], end == 0 or unit_id[end] != unit_id[end - 1], True, end, single, edges)
    for column in range(unit_id.size):
        num_single += single[column]
    maskable = num_single
    filled = _gather_few(edges, offset, num, bounds)
    for b in range(num, filled, 2):
        maskable += np.int32(bounds[b + 1] - bounds[b]) + 1
    return filled, num_single, maskable


@njit(inline="always")
def _mark(
    unit: Scalar, begins: Scalar, ends: Scalar, at: Scalar, single: np.ndarray, edges: np.ndarray
) -> None:
    """Whether the token is a unit of its own, or else the first or last of one."""
    single[at] = (unit >= 0) & begins & ends
    edges[at] = (unit >= 0) & (begins != ends)


@njit(inline="always")
def _gather_few(marked: np.ndarray, offset: Scalar, num: Scalar, out: np.ndarray) -> Scalar:
    """As :func:`gather`, where most eights of places hold no marked one; a multiple of 8 in all."""
    eights, at = marked.view(np.uint64), np.uintp(num)
    for eight in range(eights.size):
        if eights[eight] != 0:
            for place in range(8 * eight, 8 * eight + 8):
                out[at] = offset + place
                at += np.uintp(marked[place])
    return np.int64(at)


@njit(cache=KEPT, nogil=True)
def mark_classes(token_class: np.ndarray, single: np.ndarray, classes: np.ndarray) -> None:
    """Fill ``classes`` uint8 [T]: each token's class, plus :data:`OTHER` where it is no unit of its own."""
    for column in range(token_class.size):
        own = token_class[column] & np.uint8(OTHER - 1)
        classes[column] = own if single[column] else own | np.uint8(OTHER)


@njit(cache=KEPT, nogil=True)
def count(
    classes: np.ndarray,
    first: np.ndarray,
    last: np.ndarray,
    num_multi: Scalar,
    tables: np.ndarray,
    counts: np.ndarray,
    single_counts: np.ndarray,
) -> None:
    """Fill, per class, the number of tokens of all units and of one-token units.

    ``classes`` as of :func:`mark_classes`; ``tables``: scratch, int32 [4, 2 · OTHER].
    """
    tables[:] = 0
    whole = classes.size - classes.size % 4
    for place in range(0, whole, 4):  # four tables: one would wait for its own last store
        tables[0, classes[place]] += np.int32(1)
        tables[1, classes[place + 1]] += np.int32(1)
        tables[2, classes[place + 2]] += np.int32(1)
        tables[3, classes[place + 3]] += np.int32(1)
    for place in range(whole, classes.size):
        tables[0, classes[place]] += np.int32(1)
    for c in range(counts.size):
        single_counts[c] = counts[c] = tables[0, c] + tables[1, c] + tables[2, c] + tables[3, c]
    for u in range(num_multi):
        counts[classes[first[u]] - OTHER] += last[u] - first[u] + 1


# Without the checks of Python's division, which would keep the loops from being vectorised.
@njit(cache=KEPT, nogil=True, error_model="numpy")
def solve(counts: np.ndarray, weights: np.ndarray, ratio: Scalar, chance: np.ndarray) -> None:
    """Fill ``chance`` [C]: π of each class, so that Σ counts · π = ratio · Σ counts.

    Newton's method on λ: Σ counts · π is concave in λ and the start (the solution for the mean
    weight) lies left of the root by Jensen's inequality, so the steps rise to it and never
    overshoot. A row within 10⁻⁷ of its target is left as it is. Sums are of whole numbers below 2⁵³: exact.
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
    for step in range(NEWTON_STEPS + 1):
        for c in range(weights.size):
            odds = rate * weights[c]
            chance[c] = odds / (odds + 1.0)
        if step == NEWTON_STEPS:
            break
        expected, slope = expect(counts, chance)
        missing = target - expected
        if abs(missing) <= target * TOLERANCE:
            break
        rate = rate * (1.0 + missing / max(slope, 1.0))


# Sums of whole numbers below 2⁵³ are the same in any order, so they may be added in parallel.
@njit(cache=KEPT, nogil=True, fastmath={"reassoc"})
def expect(counts: np.ndarray, chance: np.ndarray) -> tuple[Scalar, Scalar]:
    """Σ counts · π and Σ counts · π(1 − π), in units of 2⁻³²."""
    expected, spread = 0.0, 0.0
    for c in range(chance.size):
        expected += counts[c] * np.rint(chance[c] * _ONE)
        spread += counts[c] * np.rint(chance[c] * (1.0 - chance[c]) * _ONE)
    return expected, spread


@njit(cache=KEPT, nogil=True)
def shuffle(
    hashed: np.ndarray, at: np.ndarray, num: Scalar, order: np.ndarray, buckets: np.ndarray
) -> None:
    """Fill ``order`` with 0 … num − 1, by the highest bits of the keys of the places ``at``."""
    shift = np.uint32(32 - ORDER_BITS)
    buckets[:] = 0
    for i in range(num):
        buckets[hashed[at[i]] >> shift] += 1
    total = 0
    for b in range(buckets.size):
        here = buckets[b]
        buckets[b] = total
        total += here
    for i in range(num):
        b = hashed[at[i]] >> shift
        order[buckets[b]] = i
        buckets[b] += 1


@njit(cache=KEPT, nogil=True)
def longest_first(
    order: np.ndarray,
    num: Scalar,
    first: np.ndarray,
    last: np.ndarray,
    by_size: np.ndarray,
    out: np.ndarray,
) -> None:
    """Fill ``out`` with ``order``, longest units first, the order kept among equals."""
    by_size[:] = 0
    for u in range(num):
        by_size[LONGEST - min(last[u] - first[u] + 1, LONGEST)] += 1
    total = 0
    for s in range(by_size.size):
        here = by_size[s]
        by_size[s] = total
        total += here
    for i in range(num):
        u = order[i]
        s = LONGEST - min(last[u] - first[u] + 1, LONGEST)
        out[by_size[s]] = u
        by_size[s] += 1


@njit(cache=KEPT, nogil=True)
def in_units(chance: np.ndarray, fixed: np.ndarray) -> None:
    """Fill the first places of ``fixed`` uint32 with ``chance`` [C] in units of 2⁻³², 1 a little less."""
    for c in range(chance.size):
        fixed[c] = min(np.int64(np.rint(chance[c] * _ONE)), np.int64(2**32 - 1))


@njit(cache=KEPT, nogil=True)
def systematic(
    order: np.ndarray,
    num: Scalar,
    classes: np.ndarray,
    first: np.ndarray,
    fixed: np.ndarray,
    start: Scalar,
    hit: np.ndarray,
) -> None:
    """Mark in ``hit`` [num] the longer units hit by systematic sampling in ``order``; first places ``first``.

    The sum of the chances ``fixed`` is kept modulo 1, in units of 2⁻³²: a unit is hit where it wraps around.
    """
    total = np.uint32(start)
    for i in range(num):
        u = order[i]
        own = fixed[classes[first[u]] % OTHER]
        total = np.uint32(total + own)
        hit[u] = total < own


@njit(cache=KEPT, nogil=True)
def systematic_of_few(
    hashed: np.ndarray,
    classes: np.ndarray,
    first: np.ndarray,
    last: np.ndarray,
    num: Scalar,
    fixed: np.ndarray,
    start: Scalar,
    rank: np.ndarray,
    own: np.ndarray,
    hit: np.ndarray,
) -> None:
    """What :func:`systematic` marks in the order of :func:`longest_first`, for at most :data:`FEW` units.

    Every unit adds up the chances of those that are before it: so few comparisons cost less than an order.
    ``rank``, ``own``: scratch, uint32.
    """
    for u in range(num):
        shortness = np.uint32(LONGEST - min(last[u] - first[u] + 1, LONGEST))
        bits = hashed[first[u]] >> np.uint32(32 - ORDER_BITS)
        rank[u] = (((shortness << np.uint32(ORDER_BITS)) | bits) * np.uint32(FEW)) + np.uint32(u)
        own[u] = fixed[classes[first[u]] % OTHER]
    for u in range(num):
        total, mine = np.uint32(start), rank[u]
        for v in range(num):
            total = np.uint32(total + (own[v] if rank[v] <= mine else np.uint32(0)))
        hit[u] = total < own[u]


@njit(cache=KEPT, nogil=True)
def systematic_in_place(
    hashed: np.ndarray,
    classes: np.ndarray,
    fixed: np.ndarray,
    start: Scalar,
    totals: np.ndarray,
    chances: np.ndarray,
    marked: np.ndarray,
    offset: Scalar,
    num: Scalar,
    out: np.ndarray,
) -> Scalar:
    """As :func:`gather` of the ``marked`` places and of the one-token units hit by systematic sampling.

    The order is that of :func:`shuffle`, but is never made: before a unit come those with smaller highest
    bits, whose chances are added up first, and those with its own bits at earlier places. ``fixed`` is 0
    for codes from :data:`OTHER` on, so what is no one-token unit changes no sum and is never hit.
    Scratch, uint32: ``totals``, one per value of the bits; ``chances``, one per place.
    """
    shift = np.uint32(32 - ORDER_BITS)
    totals[:] = 0
    for place in range(classes.size):
        own = fixed[classes[place]]
        totals[hashed[place] >> shift] += own
        chances[place] = own  # looked up once: the compiler cannot know that no store changes it
    total = np.uint32(start)
    for b in range(totals.size):
        here = totals[b]
        totals[b] = total
        total = np.uint32(total + here)
    at, position = np.uintp(num), offset
    for place in range(classes.size):
        b = hashed[place] >> shift
        own = chances[place]
        total = np.uint32(totals[b] + own)
        totals[b] = total
        out[at] = position
        position += 1
        at += np.uintp(total < own) | np.uintp(marked[place])
    return np.int64(at)


@njit(cache=KEPT, nogil=True, error_model="numpy")
def left_for_single(
    budget: Scalar, covered: Scalar, longest: Scalar, num_single: Scalar, expected: Scalar
) -> Scalar:
    """How many one-token units to choose, in units of 2⁻³², see step 4.

    ``covered``: tokens of the longer units chosen; ``longest``: tokens of the longest, 0 if there is
    none, a bound on how far ``covered`` can be from its expectation (Abel summation: units are drawn
    systematically in order of length); ``num_single`` one-token units, whose chances add up to
    ``expected``, in units of 2⁻³².
    """
    missing = (budget - covered) * _ONE - expected
    room = min(expected, num_single * _ONE - expected)
    share = min(1.0, room / ((longest + 1) * _ONE))
    return np.int64(expected + np.rint(share * missing))


@njit(cache=KEPT, nogil=True, error_model="numpy")
def shift(chance: np.ndarray, missing: Scalar, spread: Scalar) -> None:
    """Move ``chance`` [C] by δπ(1 − π), so that its sum over units grows by ``missing``.

    ``spread``: Σ π(1 − π) over the units; both in units of 2⁻³².
    """
    step = missing / max(spread, 1.0)
    for c in range(chance.size):
        moved = step * (chance[c] * (1.0 - chance[c]))
        chance[c] = min(max(chance[c] + moved, 0.0), 1.0)


@njit(cache=KEPT, nogil=True)
def smallest(
    hashed: np.ndarray,
    marked: np.ndarray,
    wanted: Scalar,
    buckets: np.ndarray,
    at_edge: np.ndarray,
) -> None:
    """Keep of the ``marked`` places the ``wanted`` ones with the smallest keys, then places.

    ``hashed`` is overwritten where nothing is marked.
    """
    buckets[:] = 0
    shift = np.uint32(32 - EDGE_BITS)
    total = np.int32(0)
    for place in range(marked.size):
        is_marked = marked[place] != 0
        total += is_marked
        hashed[place] = hashed[place] if is_marked else _LAST
    if wanted >= total:
        return
    for place in range(hashed.size):
        buckets[hashed[place] >> shift] += 1
    below, edge = 0, 0
    while below + buckets[edge] <= wanted:
        below += buckets[edge]
        edge += 1
    rest = 0
    for place in range(hashed.size):
        if hashed[place] >> shift == edge and marked[place]:  # rare
            at_edge[rest] = place
            rest += 1
    for place in range(hashed.size):
        marked[place] = hashed[place] >> shift < edge
    for _ in range(wanted - below):
        best = 0
        for i in range(1, rest):  # places rise at first; of equal keys the first place is taken
            here, there = at_edge[i], at_edge[best]
            if hashed[here] < hashed[there] or (hashed[here] == hashed[there] and here < there):
                best = i
        marked[at_edge[best]] = True
        rest -= 1
        at_edge[best] = at_edge[rest]
