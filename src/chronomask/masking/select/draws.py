"""The compiled steps by which :mod:`chronomask.masking.select.exact` draws the units of a row.

Each works on plain arrays of one row (or of rows that share a budget, end to end) and is documented with
the step of the design it carries out. Loops over tokens have no branch that depends on the text: a
wrongly guessed branch costs more than the work. Places are counted from the row's first token.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from chronomask import keyed
from chronomask.keyed import Scalar

# numba keeps compiled code by this file's contents; those of the compiled files that it imports are:
# compiled in: 475e112f1da7

__all__ = [
    "FEW",
    "OTHER",
    "count",
    "cut_spans",
    "deal_units",
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


@njit(cache=True, nogil=True)
def hash_row(row_key: Scalar, spread: np.ndarray, hashed: np.ndarray) -> None:
    """:func:`chronomask.keyed.bits` of a row."""
    low = np.uint32(row_key & _U32)
    odd = np.uint32(row_key >> np.uint64(32)) | np.uint32(1)
    for column in range(spread.size):
        hashed[column] = keyed.scalar_mix(spread[column], low, odd)


@njit(cache=True, nogil=True)
def gather(marked: np.ndarray, offset: Scalar, num: Scalar, out: np.ndarray) -> Scalar:
    """Append the marked places, moved by ``offset``, to the ``num`` there are; their new number."""
    at = np.uintp(num)
    for place in range(marked.size):
        out[at] = offset + place
        at += np.uintp(marked[place] != 0)
    return np.int64(at)


@njit(cache=True, nogil=True)
def find_single(unit_id: np.ndarray, single: np.ndarray) -> Scalar:
    """Mark the maskable tokens, each a unit of its own; their number."""
    num = np.int32(0)
    for column in range(unit_id.size):
        is_maskable = unit_id[column] >= 0
        single[column] = is_maskable
        num += is_maskable
    return num


@njit(cache=True, nogil=True)
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
    ``edges``: scratch, [T].
    """
    num_single = np.int32(0)
    end = unit_id.size - 1
    for column in range(1, end):
        begins = unit_id[column] != unit_id[column - 1]
        ends = unit_id[column] != unit_id[column + 1]
        _mark(unit_id, column, begins, ends, single, edges)
    _mark(unit_id, 0, True, end == 0 or unit_id[0] != unit_id[1], single, edges)
    _mark(unit_id, end, end == 0 or unit_id[end] != unit_id[end - 1], True, single, edges)
    for column in range(unit_id.size):
        num_single += single[column]
    maskable = num_single
    filled = gather(edges, offset, num, bounds)
    for b in range(num, filled, 2):
        maskable += np.int32(bounds[b + 1] - bounds[b]) + 1
    return filled, num_single, maskable


@njit(inline="always")
def _mark(
    unit_id: np.ndarray,
    column: Scalar,
    begins: Scalar,
    ends: Scalar,
    single: np.ndarray,
    edges: np.ndarray,
) -> None:
    """Whether a token is a unit of its own, or else the first or last of one."""
    single[column] = (unit_id[column] >= 0) & begins & ends
    edges[column] = (unit_id[column] >= 0) & (begins != ends)


@njit(cache=True, nogil=True)
def mark_classes(token_class: np.ndarray, single: np.ndarray, classes: np.ndarray) -> None:
    """Fill ``classes`` uint8 [T]: each token's class, plus :data:`OTHER` where it is no unit of its own."""
    for column in range(token_class.size):
        own = token_class[column] & np.uint8(OTHER - 1)
        classes[column] = own if single[column] else own | np.uint8(OTHER)


@njit(cache=True, nogil=True)
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
@njit(cache=True, nogil=True, error_model="numpy")
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
@njit(cache=True, nogil=True, fastmath={"reassoc"})
def expect(counts: np.ndarray, chance: np.ndarray) -> tuple[Scalar, Scalar]:
    """Σ counts · π and Σ counts · π(1 − π), in units of 2⁻³²."""
    expected, spread = 0.0, 0.0
    for c in range(chance.size):
        expected += counts[c] * np.rint(chance[c] * _ONE)
        spread += counts[c] * np.rint(chance[c] * (1.0 - chance[c]) * _ONE)
    return expected, spread


@njit(cache=True, nogil=True)
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


@njit(cache=True, nogil=True)
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


@njit(cache=True, nogil=True)
def in_units(chance: np.ndarray, fixed: np.ndarray) -> None:
    """Fill the first places of ``fixed`` uint32 with ``chance`` [C] in units of 2⁻³², 1 a little less."""
    for c in range(chance.size):
        fixed[c] = min(np.int64(np.rint(chance[c] * _ONE)), np.int64(2**32 - 1))


@njit(cache=True, nogil=True)
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


@njit(cache=True, nogil=True)
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


@njit(cache=True, nogil=True)
def systematic_in_place(
    hashed: np.ndarray,
    classes: np.ndarray,
    fixed: np.ndarray,
    start: Scalar,
    totals: np.ndarray,
    marked: np.ndarray,
    offset: Scalar,
    num: Scalar,
    out: np.ndarray,
) -> Scalar:
    """As :func:`gather` of the ``marked`` places and of the one-token units hit by systematic sampling.

    The order is that of :func:`shuffle`, but is never made: before a unit come those with smaller highest
    bits, whose chances are added up first, and those with its own bits at earlier places. ``fixed`` is 0
    for codes from :data:`OTHER` on, so what is no one-token unit changes no sum and is never hit.
    ``totals``: scratch, one per value of the bits.
    """
    shift = np.uint32(32 - ORDER_BITS)
    totals[:] = 0
    for place in range(classes.size):
        totals[hashed[place] >> shift] += fixed[classes[place]]
    total = np.uint32(start)
    for b in range(totals.size):
        here = totals[b]
        totals[b] = total
        total = np.uint32(total + here)
    at, position = np.uintp(num), offset
    for place in range(classes.size):
        b = hashed[place] >> shift
        own = fixed[classes[place]]
        total = np.uint32(totals[b] + own)
        totals[b] = total
        out[at] = position
        position += 1
        at += np.uintp(total < own) | np.uintp(marked[place])
    return np.int64(at)


@njit(cache=True, nogil=True, error_model="numpy")
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


@njit(cache=True, nogil=True, error_model="numpy")
def shift(chance: np.ndarray, missing: Scalar, spread: Scalar) -> None:
    """Move ``chance`` [C] by δπ(1 − π), so that its sum over units grows by ``missing``.

    ``spread``: Σ π(1 − π) over the units; both in units of 2⁻³².
    """
    step = missing / max(spread, 1.0)
    for c in range(chance.size):
        moved = step * (chance[c] * (1.0 - chance[c]))
        chance[c] = min(max(chance[c] + moved, 0.0), 1.0)


@njit(cache=True, nogil=True)
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


@njit(cache=True, nogil=True)
def cut_spans(
    word_id: np.ndarray, keys: np.ndarray, spread: np.ndarray, stop_below: Scalar, max_words: Scalar
) -> np.ndarray:
    """int32 [B, T]: spans of words, counted from 0 in each row, −1 where nothing may be masked.

    ``word_id`` int32 [B, T]; ``keys`` uint64 [B]; ``spread`` as for :func:`hash_row`. A span ends before
    a word whose bits are below ``stop_below`` of 2³², after ``max_words`` words, and at tokens that are
    never masked.
    """
    out = np.empty(word_id.shape, np.int32)
    for row in range(word_id.shape[0]):
        low = np.uint32(keys[row] & _U32)
        odd = np.uint32(keys[row] >> np.uint64(32)) | np.uint32(1)
        span, words, previous = -1, 0, np.int32(-1)
        for column in range(word_id.shape[1]):
            word = word_id[row, column]
            if word < 0:
                out[row, column] = -1
            else:
                if word != previous:
                    stops = keyed.scalar_mix(spread[column], low, odd) < stop_below
                    if previous < 0 or stops or words == max_words:
                        span, words = span + 1, 0
                    words += 1
                out[row, column] = span
            previous = word
    return out


@njit(cache=True, nogil=True)
def join_ngrams(
    word_id: np.ndarray, ngrams: np.ndarray, keys: np.ndarray, spread: np.ndarray
) -> np.ndarray:
    """int32 [B, T]: n-grams, and words in none, counted from 0 in each row, −1 where nothing may be masked.

    ``word_id`` int32 [B, T]; ``ngrams`` uint8 [B, T] as in ``Rows``; ``keys`` uint64 [B]; ``spread`` as for
    :func:`hash_row`. An n-gram within another is part of it. Of n-grams that overlap, that with the
    smallest random number is a unit, then of those left, and so on; other words are units of their own.
    """
    num_rows, length = word_id.shape
    out = np.empty((num_rows, length), np.int32)
    first = np.empty(length, np.int64)  # of each word, its first column
    joins = np.empty(length, np.bool_)  # whether it is part of the unit of the word before
    begin, end = np.empty(length, np.int64), np.empty(length, np.int64)  # of n-grams, in words
    drawn = np.empty(length, np.int64)
    for row in range(num_rows):
        low = np.uint32(keys[row] & _U32)
        odd = np.uint32(keys[row] >> np.uint64(32)) | np.uint32(1)
        num, previous = 0, np.int32(-1)
        for column in range(length):
            word = word_id[row, column]
            if word >= 0 and word != previous:
                first[num], joins[num] = column, False
                num += 1
            previous = word
        found, furthest = 0, 0
        for w in range(num):
            stop = w + np.int64(ngrams[row, first[w]])
            if stop < w + 2 or stop > num or stop <= furthest:
                continue
            whole = True  # rows that were cut have words that are never masked
            for v in range(w + 1, stop):
                whole &= word_id[row, first[v] - 1] >= 0
            if whole:
                begin[found], end[found] = w, stop
                drawn[found] = np.int64(keyed.scalar_mix(spread[first[w]], low, odd))
                found, furthest = found + 1, stop
        here = 0
        while here < found:  # n-grams that overlap one after the other
            after = here + 1
            while after < found and begin[after] < end[after - 1]:
                after += 1
            while True:
                best = -1
                for i in range(here, after):
                    if drawn[i] >= 0 and (best < 0 or drawn[i] < drawn[best]):
                        best = i
                if best < 0:
                    break
                joins[begin[best] + 1 : end[best]] = True
                for i in range(here, after):
                    if begin[i] < end[best] and end[i] > begin[best]:
                        drawn[i] = -1
            here = after
        w, unit, previous = -1, np.int32(-1), np.int32(-1)
        for column in range(length):
            word = word_id[row, column]
            if word >= 0 and word != previous:
                w += 1
                unit += not joins[w]
            out[row, column] = unit if word >= 0 else -1
            previous = word
    return out


@njit(cache=True, nogil=True)
def deal_units(
    unit_id: np.ndarray, keys: np.ndarray, spread: np.ndarray, turn: np.ndarray, num_turns: Scalar
) -> np.ndarray:
    """int32 [B, T]: ``unit_id`` where the unit's turn is the row's ``turn``, else −1.

    ``unit_id`` integer [B, T], −1 = not maskable; ``keys`` uint64 [B]; ``spread`` as for :func:`hash_row`;
    ``turn`` int64 [B] below ``num_turns``. The units of a row lie end to end on a circle, in random order
    and from a random start; arcs of equal length are the turns, and a unit belongs to that in which it
    begins. So every unit has each turn with the same chance, and turns have as many tokens, to a unit.
    """
    num_rows, length = unit_id.shape
    out = np.empty((num_rows, length), np.int32)
    first, size = np.empty(length, np.int64), np.empty(length, np.int64)
    hashed, own = np.empty(length, np.uint32), np.empty(length, np.bool_)
    order, buckets = np.empty(length, np.uint32), np.empty(1 << ORDER_BITS, np.uint32)
    for row in range(num_rows):
        hash_row(keys[row], spread, hashed)
        num, total, previous = 0, 0, -1
        for column in range(length):
            here = unit_id[row, column]
            if here >= 0:
                if here != previous:
                    first[num], size[num] = column, 0
                    num += 1
                size[num - 1] += 1
                total += 1
            previous = here
        start = np.int64(keys[row] >> np.uint64(32))
        before = 0
        shuffle(hashed, first, num, order, buckets)
        for i in range(num):
            u = order[i]
            place = (start + (before << 32) // total) & np.int64(0xFFFFFFFF)
            own[u] = (place * num_turns) >> 32 == turn[row]
            before += size[u]
        u, previous = -1, -1
        for column in range(length):
            here = unit_id[row, column]
            if here >= 0 and here != previous:
                u += 1
            out[row, column] = here if here >= 0 and own[u] else -1
            previous = here
    return out
