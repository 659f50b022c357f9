"""Choosing units so that a row's budget is met and every unit has exactly the chance it should.

The design, for a row with n maskable tokens, asked ratio r and weights w:

1. *Budget.* r·n is rounded to whole tokens at random so that its expectation is r·n; the roundings
   of consecutive rows follow a Weyl sequence, so over many rows they cancel.
2. *Chances.* A unit of class c is masked with probability π_c = λw_c / (1 + λw_c), with λ such that
   the expected number of masked tokens is r·n. For small r, π is proportional to w; as r grows it
   saturates at 1; equal weights give π = r. Odds are proportional to weights: conditional Poisson
   sampling (Hájek 1981), the maximum-entropy design for given chances.
3. *Units of several tokens* are drawn by systematic sampling (Madow 1949) over a random order,
   longest first: every unit has exactly its chance π, and numbers vary by less than one.
4. *Units of one token* take what is left of the budget, again by systematic sampling over a random
   order, with chances shifted by δ · π(1 − π) so that they sum to it. The shift has expectation 0, so
   every unit keeps its chance, long or short, and the row meets its budget to the token. A row with
   too few one-token units to always make up for step 3 makes up for a fixed share of it, so that
   the shift keeps its expectation of 0; such a row meets its budget on average.

The published walk over shuffled words has none of these: it skips words that overshoot the budget,
so long words vanish as the ratio falls.

This is the numpy version, for hosts. :mod:`chronomask.masking.device` is the same in dense torch
operations and gives the same bits. Arithmetic that could differ between devices is done on integers
(chances in units of 2⁻³²) or in single IEEE operations.

Letters: B rows, T tokens, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from chronomask import keyed

__all__ = ["MAX_CLASSES", "RowRandomness", "budgets", "chances", "levels", "select"]

MAX_CLASSES = 63
"""Class numbers 0 … 62 fit the packed sort keys; 63 marks places that hold no unit."""
_ONE = 2.0**32
NEWTON_STEPS = 10
TOLERANCE = 1e-7


@dataclass(frozen=True, slots=True)
class RowRandomness:
    """The random numbers of rows that are drawn once a row.

    ``keys`` uint64 [B]: of :attr:`~chronomask.keyed.Stream.SELECT`; ``round_budget``,
    ``start_multi``, ``start_single`` uint32 [B]: roundings, in units of 2⁻³².
    """

    keys: np.ndarray
    round_budget: np.ndarray
    start_multi: np.ndarray
    start_single: np.ndarray

    @classmethod
    def of(cls, seed: int, base: np.ndarray, order: np.ndarray) -> RowRandomness:
        """From the seed, the rows' :func:`~chronomask.keyed.row_base` and their place in training."""
        starts = keyed.stream_keys(base, keyed.Stream.BUDGET)
        return cls(
            keys=keyed.stream_keys(base, keyed.Stream.SELECT),
            round_budget=keyed.weyl(seed, keyed.Stream.BUDGET, order),
            start_multi=(starts >> np.uint64(32)).astype(np.uint32),
            start_single=starts.astype(np.uint32),
        )


def budgets(ratio: np.ndarray, num_maskable: np.ndarray, rounding: np.ndarray) -> np.ndarray:
    """int64 [B]: tokens to mask in each row, with expectation ``ratio`` · ``num_maskable``."""
    exact = np.rint(ratio * _ONE).astype(np.int64) * num_maskable
    return (exact + rounding.astype(np.int64)) >> 32


def chances(counts: np.ndarray, weights: np.ndarray, ratio: np.ndarray) -> np.ndarray:
    """float64 [B, C]: chance π of a unit of each class, so that Σ counts · π = ratio · Σ counts.

    ``counts`` int64 [B, C]: maskable tokens of each class; ``weights`` float64 [C] on the grid of
    :func:`chronomask.masking.content.quantise`; ``ratio`` float64 [B].
    Newton's method on λ: Σ counts · π is concave in λ and the start (the solution for the mean weight) lies
    left of the root by Jensen's inequality, so the steps rise to it and never overshoot. A row within
    10⁻⁷ of its target rests, so stopping early changes nothing.
    """
    counts = counts.astype(np.float64)
    total = np.maximum(counts.sum(axis=1), 1.0)
    mean_weight = np.maximum(counts @ weights, 2.0**-16) / total
    share = np.clip(ratio, 1e-9, 1 - 1e-9)
    target = np.rint(share * total * _ONE)
    rate = share / (1 - share) / mean_weight
    for _ in range(NEWTON_STEPS):
        odds = rate[:, None] * weights
        chance = odds / (odds + 1.0)
        missing = target - _weighted_sum(counts, chance)
        missing[np.abs(missing) <= target * TOLERANCE] = 0.0
        if not missing.any():
            break
        slope = _weighted_sum(counts, chance * (1.0 - chance))
        rate = rate * (1.0 + missing / np.maximum(slope, 1.0))
    odds = rate[:, None] * weights
    return odds / (odds + 1.0)


def _weighted_sum(counts: np.ndarray, values: np.ndarray) -> np.ndarray:
    """float64 [B]: Σ counts · values in units of 2⁻³², exact: whole numbers below 2⁵³ throughout."""
    return np.einsum("bc,bc->b", counts, np.rint(values * _ONE))


def select(
    unit_id: np.ndarray,
    token_class: np.ndarray | None,
    weights: np.ndarray | None,
    ratio: np.ndarray,
    random: RowRandomness,
) -> np.ndarray:
    """int64 [N], ascending: flat positions (row · T + token) of the tokens of the chosen units.

    ``unit_id`` integer [B, T], −1 = not maskable, tokens of a unit adjacent; ``token_class``
    uint8 [B, T] and ``weights`` float64 [C], C ≤ 63, or both None for equal chances; ``ratio``
    float64 [B].
    """
    num_rows, length = unit_id.shape
    maskable = unit_id >= 0
    num_maskable = _count_true(maskable)
    if np.all(ratio >= 1):
        return np.flatnonzero(maskable)
    budget = budgets(ratio, num_maskable, random.round_budget)

    single, first, unit_length = _units(unit_id, maskable)
    row_of = first // length
    num_single = _count_true(single)
    if weights is None or token_class is None:
        chance = np.minimum(ratio, 1.0)[:, None]
        multi_class = np.zeros(first.shape, np.int64)
        single_counts = num_single[:, None]
    else:
        multi_class = token_class.ravel()[first].astype(np.int64)
        num_classes = weights.shape[0]
        single_counts = _count(num_rows, num_classes, token_class, single)
        flat_class = row_of * num_classes + multi_class
        multi_tokens = np.bincount(flat_class, unit_length, num_rows * num_classes)
        counts = single_counts + multi_tokens.astype(np.int64).reshape(num_rows, num_classes)
        chance = chances(counts, weights, ratio)

    selected = np.zeros(num_rows * length, bool)
    covered, longest = np.zeros(num_rows, np.int64), np.zeros(num_rows, np.int64)
    if first.size:
        hit = _systematic_multi(first, row_of, unit_length, multi_class, chance, random, length)
        selected[_ranges(first[hit], unit_length[hit])] = True
        covered = np.bincount(row_of[hit], unit_length[hit], num_rows).astype(np.int64)
        rows_with, begins = np.unique(row_of, return_index=True)
        longest[rows_with] = np.maximum.reduceat(unit_length, begins)
    left = _left_for_single(budget, covered, longest, single_counts, chance)
    if weights is None or token_class is None:
        chosen = _smallest(single, (left + random.start_single) >> 32, random.keys)
        if not first.size:
            return chosen
    else:
        shifted = _shift(chance, single_counts, left)
        chosen = _systematic_single(single, token_class, shifted, random)
    selected[chosen] = True
    return np.flatnonzero(selected)


def _left_for_single(
    budget: np.ndarray,
    covered: np.ndarray,
    longest: np.ndarray,
    counts: np.ndarray,
    chance: np.ndarray,
) -> np.ndarray:
    """int64 [B], in units of 2⁻³²: how many one-token units to choose, see step 4.

    ``covered`` [B]: tokens of the longer units chosen; ``longest`` [B]: the longest unit's tokens, a
    bound on how far ``covered`` can be from its expectation (Abel summation: units are drawn
    systematically in order of length); ``counts``, ``chance`` [B, C] of the one-token units.
    """
    expected = _weighted_sum(counts, chance)
    missing = (budget - covered) * _ONE - expected
    room = np.minimum(expected, counts.sum(axis=1) * _ONE - expected)
    share = np.minimum(1.0, room / ((longest + 1) * _ONE))
    return (expected + np.rint(share * missing)).astype(np.int64)


def _units(unit_id: np.ndarray, maskable: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Units by size: ``single`` bool [B, T]; flat first token and length, int64, of longer ones."""
    begins = np.ones(unit_id.shape, bool)
    np.not_equal(unit_id[:, 1:], unit_id[:, :-1], out=begins[:, 1:])
    ends = np.ones(unit_id.shape, bool)
    ends[:, :-1] = begins[:, 1:]
    single = begins & ends & maskable
    first = np.flatnonzero(begins & ~ends & maskable)
    last = np.flatnonzero(ends & ~begins & maskable)
    return single, first, last - first + 1


def _count_true(flags: np.ndarray) -> np.ndarray:
    """int64 [B]: True values of each row of bool [B, T], eight at a time where T allows."""
    if flags.shape[1] % 8:
        return np.count_nonzero(flags, axis=1)
    return np.bitwise_count(flags.view(np.uint64)).sum(axis=1, dtype=np.int64)


def _count(num_rows: int, num_classes: int, classes: np.ndarray, where: np.ndarray) -> np.ndarray:
    """int64 [B, C]: how many places of each row and class there are in ``where`` bool [B, T]."""
    slot = np.where(where, classes, np.uint8(num_classes))
    index = slot + np.arange(num_rows)[:, None] * (num_classes + 1)
    counts = np.bincount(index.ravel(), minlength=num_rows * (num_classes + 1))
    return counts.reshape(num_rows, num_classes + 1)[:, :-1]


def _fixed_point(chance: np.ndarray) -> np.ndarray:
    """uint32 in units of 2⁻³²; a chance of 1 becomes 1 − 2⁻³²."""
    return np.minimum(np.rint(chance * _ONE), _ONE - 1).astype(np.uint32)


def _systematic_multi(
    first: np.ndarray,
    row_of: np.ndarray,
    unit_length: np.ndarray,
    unit_class: np.ndarray,
    chance: np.ndarray,
    random: RowRandomness,
    row_length: int,
) -> np.ndarray:
    """int64: which units of several tokens are chosen, as indices into ``first``."""
    key = keyed.bits_at(random.keys[row_of], first - row_of * row_length) >> np.uint32(16)
    index_bits = np.uint64(first.size.bit_length())
    packed = (row_of.astype(np.uint64) << np.uint64(6)) | _longest_first(unit_length)
    packed = (packed << np.uint64(16)) | key
    packed = (packed << index_bits) | np.arange(first.size, dtype=np.uint64)
    packed.sort()
    index = (packed & ((np.uint64(1) << index_bits) - np.uint64(1))).astype(np.int64)
    row = row_of[index]
    own = _fixed_point(chance)[row, unit_class[index]]
    total = np.cumsum(own, dtype=np.uint32)  # modulo 2³²: a unit is hit where the sum wraps around
    per_row = np.bincount(row, minlength=chance.shape[0])
    begins = np.cumsum(per_row) - per_row
    before = np.concatenate(([0], total)).astype(np.uint32)[begins]
    return index[(total - before[row] + random.start_multi[row]) < own]


def _longest_first(unit_length: np.ndarray) -> np.ndarray:
    """uint64 in 0 … 61, falling with the length of a unit (2 … 63 tokens, longer ones together)."""
    return (63 - np.minimum(unit_length, 63)).astype(np.uint64)


def _smallest(single: np.ndarray, number: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Flat positions of the ``number`` [B] one-token units with the smallest keys in each row."""
    key = keyed.bits(keys, single.shape[1])
    key |= (single.view(np.int8) - np.int8(1)).astype(np.int32).view(np.uint32)
    kth = np.unique(number[number > 0]) - 1
    if not kth.size:
        return np.empty(0, np.int64)
    ordered = np.partition(key, kth, axis=1) if kth.size <= 4 else np.sort(key, axis=1)
    largest = ordered[np.arange(number.size), np.maximum(number - 1, 0)]
    chosen = key <= largest[:, None]
    chosen &= single
    if not number.all():
        chosen[number == 0] = False
    return np.flatnonzero(chosen)


def _shift(chance: np.ndarray, counts: np.ndarray, number: np.ndarray) -> np.ndarray:
    """float64 [B, C]: chances moved by δπ(1 − π) so that they sum to ``number`` · 2⁻³²."""
    spread = chance * (1.0 - chance)
    missing = number - _weighted_sum(counts, chance)
    step = missing / np.maximum(_weighted_sum(counts, spread), 1.0)
    return np.clip(chance + step[:, None] * spread, 0.0, 1.0)


def _systematic_single(
    single: np.ndarray, classes: np.ndarray, chance: np.ndarray, random: RowRandomness
) -> np.ndarray:
    """Flat positions, unordered, of the chosen one-token units."""
    num_rows, length = single.shape
    position_bits = np.uint32((length - 1).bit_length())
    low_bits = position_bits + np.uint32(6)
    packed = keyed.bits(random.keys, length)
    packed &= ~np.uint32((1 << int(low_bits)) - 1)
    place = classes.astype(np.uint32) << position_bits
    place |= np.arange(length, dtype=np.uint32)
    packed |= place
    packed |= (single.view(np.int8) - np.int8(1)).astype(np.int32).view(np.uint32)
    packed.sort(axis=1)
    table = np.zeros((num_rows, MAX_CLASSES + 1), np.uint32)
    table[:, : chance.shape[1]] = _fixed_point(chance)
    slot = (packed >> position_bits) & np.uint32(MAX_CLASSES)
    slot += (np.arange(num_rows, dtype=np.uint32) * np.uint32(MAX_CLASSES + 1))[:, None]
    own = table.ravel().take(slot)
    total = np.cumsum(own, axis=1, dtype=np.uint32)
    total += random.start_single[:, None]
    hit = np.flatnonzero(total < own)
    place_of = packed.ravel()[hit] & np.uint32((1 << int(position_bits)) - 1)
    return (hit // length) * length + place_of


def _ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """start, start + 1, … start + length − 1 of each pair, joined."""
    ends = np.cumsum(lengths)
    return np.arange(ends[-1] if ends.size else 0) + np.repeat(starts - (ends - lengths), lengths)


def levels(unit_id: np.ndarray, token_weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Classes for units whose tokens differ in weight: each unit's mean weight, on 48 levels.

    ``unit_id`` integer [B, T]; ``token_weight`` float64 [B, T] in (0, 1]. Gives uint8 [B, T], the
    level of each token's unit, and float64 [C], the weight of each level: quarter powers of two from
    1 down to 2⁻¹¹·⁷⁵, so a unit's weight is met within 9 %.
    """
    begins = np.ones(unit_id.shape, bool)
    np.not_equal(unit_id[:, 1:], unit_id[:, :-1], out=begins[:, 1:])
    start = np.flatnonzero(begins)
    size = np.diff(np.append(start, unit_id.size))
    grid = np.rint(token_weight.ravel() * 2.0**16).astype(np.int64)
    mean = np.add.reduceat(grid, start) / size
    level_weights = np.rint(2.0 ** (16 - np.arange(48) / 4.0)) * 2.0**-16
    bounds = np.sqrt(level_weights[:-1] * level_weights[1:]) * 2.0**16
    level = np.searchsorted(-bounds, -mean, side="left").astype(np.uint8)
    return np.repeat(level, size).reshape(unit_id.shape), level_weights
