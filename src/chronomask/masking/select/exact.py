"""Choosing units so that a row's budget is met and every unit has exactly the chance it should.

The design, for a row with n maskable tokens, asked ratio r and weights w:

1. *Budget.* r·n is rounded to whole tokens at random so that its expectation is r·n; the roundings
   of consecutive rows follow a Weyl sequence, so over many rows they cancel.
2. *Chances.* A unit of class c is masked with probability π_c = λw_c / (1 + λw_c), with λ such that
   the expected number of masked tokens is r·n. For small r, π is proportional to w; as r grows it
   saturates at 1; equal weights give π = r. Odds are proportional to weights: the form of the
   chances in conditional Poisson sampling (Hájek 1981).
3. *Units of several tokens* are drawn by systematic sampling (Madow 1949) over a random order,
   longest first: every unit has exactly its chance π, and numbers vary by less than one.
4. *Units of one token* take what is left of the budget: without weights those with the smallest
   random keys, else again by systematic sampling over a random order, with chances shifted by
   δ · π(1 − π) so that they sum to it. The shift has expectation 0, so every unit keeps its chance,
   long or short, and the row meets its budget to the token. A row with too few one-token units to
   always make up for step 3 makes up for a fixed share of it, so that the shift keeps its
   expectation of 0; such a row meets its budget on average. Chances that a shift would move out of
   [0, 1] are cut off there, which rows of a few units feel.

The published walk over shuffled words has none of these: it skips words that overshoot the budget,
so long words vanish as the ratio falls.

This is the version for hosts: row after row, compiled by numba, a few nanoseconds a token.
:mod:`chronomask.masking.select.dense` is the same in dense torch operations and gives the same bits.
Arithmetic that could differ between the two is done on integers (chances in units of 2⁻³²) or in
single IEEE operations. Random orders are orders of the eight highest bits of a unit's key, then of its
place: chances are exact in any order, and this one needs no comparison sort.

Letters: B rows, T tokens, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numba import njit

from chronomask import keyed
from chronomask.compiled import KEPT
from chronomask.errors import UsageError
from chronomask.keyed import Scalar
from chronomask.masking.config import Budget
from chronomask.masking.select import draws

# numba keeps compiled code by this file's contents; those of the compiled files that it imports are:
# compiled in: 5fe601f99c59

__all__ = [
    "MAX_CLASSES",
    "RowRandomness",
    "count_maskable",
    "level_weights",
    "levels",
    "select",
]

MAX_CLASSES = 63
"""Classes that can have weights of their own."""
LEVEL_WEIGHTS = np.rint(2.0 ** (16 - np.arange(48) / 4.0)) * 2.0**-16
"""Weights of :func:`levels`: quarter powers of two from 1 down to 2⁻¹¹·⁷⁵, on the 2⁻¹⁶ grid."""

MAX_POOL = 2**20
"""Tokens that can share a budget: 2²⁰ · 2³² is below 2⁵³, up to which float64 counts exactly."""

_ONE = 2.0**32
_NO_CLASSES = np.zeros((1, 1), np.uint8)
_NO_WEIGHTS = np.zeros(0)


@dataclass(frozen=True, slots=True)
class RowRandomness:
    """The random numbers of rows that are drawn once a row.

    ``keys`` uint64 [B]: of :attr:`~chronomask.keyed.Stream.SELECT`; ``round_budget`` uint32 [B]: rounding, in
    units of 2⁻³²; ``starts`` uint64 [B]: where the two systematic samples of a row start, see below.
    """

    keys: np.ndarray
    round_budget: np.ndarray
    starts: np.ndarray

    @classmethod
    def of(cls, seed: int, keys: np.ndarray, order: np.ndarray) -> RowRandomness:
        """From the rows' :func:`~chronomask.keyed.keys_by_stream` and places in training."""
        return cls(
            keys=keys[keyed.Stream.SELECT],
            round_budget=keyed.weyl(seed, keyed.Stream.BUDGET, order),
            starts=keys[keyed.Stream.BUDGET],
        )

    @property
    def start_multi(self) -> np.ndarray:
        """uint32 [B], in units of 2⁻³²: for the units of several tokens, the upper half."""
        return (self.starts >> np.uint64(32)).astype(np.uint32)

    @property
    def start_single(self) -> np.ndarray:
        """uint32 [B], in units of 2⁻³²: for the units of one token, the lower half."""
        return self.starts.astype(np.uint32)


def select(
    unit_id: np.ndarray,
    token_class: np.ndarray | None,
    weights: np.ndarray | None,
    ratio: np.ndarray,
    random: RowRandomness,
    each_token: bool = False,
    budget: Budget = "row",
) -> np.ndarray:
    """int64 [N], ascending: flat positions (row · T + token) of the tokens of the chosen units.

    ``unit_id`` int32 [B, T], −1 = not maskable, tokens of a unit adjacent; ``token_class``
    uint8 [B, T] and ``weights`` float64 [C], C ≤ 63, on the grid of
    :func:`chronomask.masking.content.quantise`, or both None for equal chances; ``ratio``
    float64 [B]; ``each_token``: every maskable token is a unit, ``unit_id`` only says which are.

    ``budget``: "row", every row meets its own; "batch", all rows share one of
    round(mean ratio · B · T) tokens, the same for every batch of that shape; "none", every unit is
    chosen or not on its own (Bernoulli), and numbers vary. Raises UsageError for a batch budget over
    more than 2²⁰ tokens, which exact sums cannot hold.
    """
    if budget == "batch" and unit_id.size > MAX_POOL:
        raise UsageError(
            f"budget 'batch' supports at most {MAX_POOL:,} tokens of a micro-batch, and this one has "
            f"{unit_id.size:,}: raise micro_batches, or use budget 'row'"
        )
    if token_class is None or weights is None:
        token_class, weights = _NO_CLASSES, _NO_WEIGHTS
    positions = np.empty(unit_id.size + 1, np.int64)  # one more: where the next would go
    number = _select_rows(
        unit_id,
        each_token,
        token_class,
        weights,
        share_ratio(ratio) if budget == "batch" else ratio,
        random.keys,
        random.round_budget,
        random.starts,
        keyed.spread_of_range(unit_id.shape[1]),
        unit_id.shape[0] if budget == "batch" else 1,
        budget == "none",
        positions,
    )
    return positions[:number]


@lru_cache(maxsize=8)
def level_weights(strength: float) -> np.ndarray:
    """float64 [48]: :data:`LEVEL_WEIGHTS` to the power ``strength``, on the same grid."""
    grid = np.maximum(1.0, np.rint(LEVEL_WEIGHTS**strength * 2.0**16))
    return grid * 2.0**-16


def share_ratio(ratio: np.ndarray) -> np.ndarray:
    """float64 [B]: the mean ratio for every row, what a shared budget follows."""
    return np.full(ratio.shape, ratio.mean())


@njit(cache=KEPT, nogil=True)
def _select_rows(
    unit_id: np.ndarray,
    each_token: bool,
    token_class: np.ndarray,
    weights: np.ndarray,
    ratio: np.ndarray,
    keys: np.ndarray,
    round_budget: np.ndarray,
    starts: np.ndarray,
    spread: np.ndarray,
    pool: Scalar,
    bernoulli: bool,
    positions: np.ndarray,
) -> Scalar:
    """Fill ``positions``; the number filled. ``pool`` rows at a time share a budget."""
    num_rows, length = unit_id.shape
    room = pool * length
    num_classes = max(weights.size, 1)
    uniform = weights.size == 0
    chosen = np.empty(room, np.bool_)  # by place; holds the one-token units at first
    edges = np.zeros(length + -length % 8, np.bool_)
    bounds = np.empty(room + 1, np.uint32)
    first, last = bounds[::2], bounds[1::2]
    classes = np.zeros(room, np.uint8)
    hashed = np.empty(room, np.uint32)
    order, scratch = np.empty(room + 1, np.uint32), np.empty(room, np.uint32)
    hit = np.empty(room, np.bool_)
    buckets = np.empty(1 << draws.ORDER_BITS, np.uint32)
    by_size = np.empty(draws.LONGEST + 1, np.uint32)
    tables, fixed = np.empty((4, 2 * draws.OTHER), np.int32), np.zeros(2 * draws.OTHER, np.uint32)
    counts, single_counts = np.empty(num_classes), np.empty(num_classes)
    chance = np.empty(num_classes)
    number = 0
    for row in range(0, num_rows, pool):
        num_bounds, num_single, maskable = 0, 0, 0
        for r in range(pool):
            here = slice(r * length, (r + 1) * length)
            if each_token:
                alone = tokens = draws.find_single(unit_id[row + r], chosen[here])
            else:
                num_bounds, alone, tokens = draws.find_units(
                    unit_id[row + r], r * length, num_bounds, chosen[here], edges, bounds
                )
            num_single += alone
            maskable += tokens
            draws.hash_row(keys[row + r], spread, hashed[here])
            if not uniform:
                draws.mark_classes(token_class[row + r], chosen[here], classes[here])
        num_multi = num_bounds // 2

        share = ratio[row]
        if pool > 1:
            budget = min(np.int64(np.rint(share * room)), np.int64(maskable))
            share = budget / max(maskable, 1)
        else:
            fixed_ratio = np.int64(np.rint(share * _ONE))
            budget = (fixed_ratio * maskable + np.int64(round_budget[row])) >> 32
        start_single = np.uint32(starts[row])
        in_place = False
        if share >= 1.0:
            hit[:num_multi] = True
        else:
            if uniform:
                single_counts[0] = num_single
                chance[0] = share
            else:
                draws.count(classes, first, last, num_multi, tables, counts, single_counts)
                draws.solve(counts, weights, share, chance)
            draws.in_units(chance, fixed)
            if bernoulli:
                for place in range(room):
                    below = np.int64(np.rint(chance[classes[place] % draws.OTHER] * _ONE))
                    chosen[place] &= np.int64(hashed[place]) < below
                for u in range(num_multi):
                    below = np.int64(np.rint(chance[classes[first[u]] % draws.OTHER] * _ONE))
                    hit[u] = np.int64(hashed[first[u]]) < below
            else:
                covered, longest = 0, 0
                start = np.uint32(starts[row] >> np.uint64(32))
                if num_multi <= draws.FEW:
                    draws.systematic_of_few(
                        hashed, classes, first, last, num_multi, fixed, start, order, scratch, hit
                    )
                else:
                    draws.shuffle(hashed, first, num_multi, order, buckets)
                    draws.longest_first(order, num_multi, first, last, by_size, scratch)
                    draws.systematic(scratch, num_multi, classes, first, fixed, start, hit)
                for u in range(num_multi):
                    tokens = np.int64(last[u] - first[u]) + 1
                    longest = max(longest, tokens)
                    covered += hit[u] * tokens
                expected, spread_of_sum = draws.expect(single_counts, chance)
                left = draws.left_for_single(budget, covered, longest, num_single, expected)
                if uniform:
                    wanted = (left + np.int64(start_single)) >> 32
                    draws.smallest(hashed, chosen, wanted, buckets, order)
                else:
                    draws.shift(chance, left - expected, spread_of_sum)
                    draws.in_units(chance, fixed)
                    chosen[:] = False
                    in_place = True
        for u in range(num_multi):
            chosen[first[u]] = chosen[last[u]] = hit[u]
            for place in range(first[u] + 1, last[u]):  # rare: most have two tokens
                chosen[place] = hit[u]
        if in_place:
            number = draws.systematic_in_place(
                hashed,
                classes,
                fixed,
                start_single,
                buckets,
                scratch,
                chosen,
                row * length,
                number,
                positions,
            )
        else:
            number = draws.gather(chosen, row * length, number, positions)
    return number


@njit(cache=KEPT, nogil=True)
def count_maskable(word_id: np.ndarray) -> Scalar:
    """How many tokens of int32 [B, T] may be masked: those that are not −1."""
    number = 0
    for row in range(word_id.shape[0]):
        for column in range(word_id.shape[1]):
            number += word_id[row, column] >= 0
    return number


@njit(cache=KEPT, nogil=True)
def levels(unit_id: np.ndarray, token_weight: np.ndarray, each_token: bool) -> np.ndarray:
    """uint8 [B, T]: classes for units whose tokens differ in weight, indices of LEVEL_WEIGHTS.

    ``unit_id`` int32 [B, T]; ``token_weight`` float64 [B, T] in (0, 1], on the 2⁻¹⁶ grid. A unit's
    class is the level nearest, in ratio, to the mean weight of its tokens: within 9 %.
    """
    num_rows, length = unit_id.shape
    out = np.empty((num_rows, length), np.uint8)
    for row in range(num_rows):
        column = 0
        while column < length:
            end, total = column, 0.0
            while end < length and unit_id[row, end] == unit_id[row, column]:
                total += token_weight[row, end]
                end += 1
                if each_token:
                    break
            mean = total / (end - column)
            level = 0
            while level + 1 < LEVEL_WEIGHTS.size and mean * mean < (
                LEVEL_WEIGHTS[level] * LEVEL_WEIGHTS[level + 1]
            ):
                level += 1
            out[row, column:end] = level
            column = end
    return out
