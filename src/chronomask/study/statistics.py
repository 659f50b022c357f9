"""How sure are we: intervals, paired differences, permutation tests, Holm's correction, power.

A result of an arm is named by (pre-training seed, fine-tuning seed) and holds arrays over the examples
of a test set. Two things are a sample of what could have been: the examples, which are resampled
(bootstrap), and the pre-training seeds, of which there are so few that resampling them says little
about their spread; they enter through Student's t. docs/statistics.md has the formulas, what is
covered, and the measured coverage.

No torch, no files. The same key gives the same interval.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, product
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from chronomask.errors import DataError, UsageError, need
from chronomask.study.resample import (
    Examples,
    metric_of,
    metric_over_counts,
    metric_over_resamples,
    resamples,
)

__all__ = [
    "Comparison",
    "Difference",
    "Floats",
    "Interval",
    "Pair",
    "Results",
    "compare",
    "compare_pairs",
    "half_width",
    "holm",
    "interval",
    "mean_and_spread",
    "mean_intervals",
    "metric_of",
    "metric_over_resamples",
    "paired_difference",
    "permutation_p",
    "smallest_difference",
    "smallest_p",
]

Results = Mapping[tuple[int, int], Examples]
"""One arm and task: (pre-training seed, fine-tuning seed) → arrays over the same examples."""

Pair = tuple[str, str]
"""Two arms, of which the second is taken off the first."""
Floats = NDArray[np.float64]
"""An array of numbers of double precision."""

DRAWS = 2000
LEVEL = 0.95

_EXACT_UP_TO = 16
"""Units whose 2¹⁶ sign patterns are all tried; above, so many are drawn."""


@dataclass(frozen=True)
class Interval:
    """An estimate and where the true value lies with confidence ``level``."""

    estimate: float
    low: float
    high: float
    level: float
    covers: tuple[str, ...] = ("pre-training seeds", "examples")
    """what the interval allows to have been otherwise: ``pre-training seeds`` or ``fine-tuning seeds``,
    and ``examples``; what is not named is taken as it is"""


@dataclass(frozen=True)
class Comparison:
    """An arm: its own interval, and its difference from the baseline (None: it is the baseline)."""

    own: Interval
    difference: Interval | None
    p_value: float | None
    """of :func:`permutation_p`, not corrected for anything"""


@dataclass(frozen=True, slots=True)
class Difference:
    """One arm minus another: interval, p of :func:`permutation_p`, and the difference of each unit."""

    interval: Interval
    p_value: float
    units: tuple[float, ...]
    """one for each pre-training seed; for each fine-tuning seed where there is one of those"""


def mean_and_spread(values: Iterable[float]) -> tuple[float, float]:
    """Mean and standard deviation (n − 1 in the denominator); nan where there are too few values."""
    found = np.array(list(values), dtype=float)
    mean = float(found.mean()) if found.size else math.nan
    return mean, float(found.std(ddof=1)) if found.size > 1 else math.nan


def mean_intervals(values: ArrayLike, level: float = LEVEL) -> tuple[Floats, Floats]:
    """Lower and upper limits [N] of the means over n seeds of ``values`` [n, N], by Student's t.

    Raises DataError for fewer than two seeds.
    """
    found = np.asarray(values, dtype=float)
    n = len(found)
    if n < 2:
        raise DataError(f"an interval over seeds needs at least two of them, not {n}")
    mean, half = found.mean(0), half_width(level, n) * found.std(0, ddof=1) / math.sqrt(n)
    return mean - half, mean + half


def interval(
    results: Results, metric: str, *, draws: int = DRAWS, level: float = LEVEL, key: int
) -> Interval:
    """Mean over pre-training seeds of the mean over fine-tuning seeds, with its interval.

    Draw r adds to the mean on resampled examples (the same examples for all seeds) the spread of
    the seeds' scores over √n times a draw of Student's t with n − 1 degrees of freedom; the limits are
    quantiles of the draws. With one pre-training seed its fine-tuning seeds are the n, with one
    result nothing is added: ``covers`` says so. Raises DataError as ``metric_over_resamples`` does.
    """
    return compare({"": results}, "", metric, draws=draws, level=level, key=key)[""].own


def paired_difference(
    a: Results, b: Results, metric: str, *, draws: int = DRAWS, level: float = LEVEL, key: int
) -> Interval:
    """``a`` − ``b``, as :func:`interval`, of the differences of the same seeds on the same examples.

    Raises DataError if the two do not have the same seeds and examples.
    """
    found = compare({"a": a, "b": b}, "b", metric, draws=draws, level=level, key=key)
    difference = found["a"].difference
    assert difference is not None
    return difference


def compare(
    arms: Mapping[str, Results],
    baseline: str | None,
    metric: str,
    *,
    draws: int = DRAWS,
    level: float = LEVEL,
    key: int,
) -> dict[str, Comparison]:
    """Every arm of a task with its interval, and its difference from ``baseline`` (None: from none).

    The same numbers as :func:`interval`, :func:`paired_difference` and :func:`permutation_p` give,
    for all arms at once: each resample of the examples is drawn and counted once.
    """
    return compare_pairs(arms, baseline, (), metric, draws=draws, level=level, key=key)[0]


def compare_pairs(
    arms: Mapping[str, Results],
    baseline: str | None,
    pairs: Iterable[Pair],
    metric: str,
    *,
    draws: int = DRAWS,
    level: float = LEVEL,
    key: int,
) -> tuple[dict[str, Comparison], dict[Pair, Difference]]:
    """What :func:`compare` gives, and the first arm minus the second of every one of ``pairs``.

    Raises UsageError for an arm that is not there, DataError where arms do not have the same seeds.
    """
    pairs = list(pairs)
    if unknown := {name for pair in pairs for name in pair} - set(arms):
        raise UsageError(f"there is no arm {', '.join(sorted(unknown))} among {', '.join(arms)}")
    if not 0 < level < 1 or draws < 1:
        raise UsageError(f"level {level} must lie between 0 and 1, and draws {draws} above 0")
    if baseline is not None and baseline not in arms:
        raise UsageError(f"the baseline '{baseline}' is none of the arms {', '.join(arms)}")
    for name, results in arms.items():
        _check_seeds(name, results, arms[baseline] if baseline is not None else results)
    sets = [examples for results in arms.values() for examples in results.values()]
    size = _num_examples(sets[0])
    as_they_are = np.ones((1, size), np.float32)
    found = metric_over_counts(metric, sets, chain([as_they_are], resamples(size, draws, key)))
    observed, resampled = found[0], found[1:]
    scores: dict[str, _Scores] = {}
    start = 0
    for name, results in arms.items():
        columns = slice(start, start + len(results))
        scores[name] = _by_unit(list(results), observed[columns], resampled[:, columns])
        start = columns.stop
    out = {}
    for name, own in scores.items():
        difference = p_value = None
        if baseline is not None and name != baseline:
            paired = own.minus(scores[baseline])
            difference = _as_interval(paired, level, key)
            p_value = _sign_flip_p(paired.units, key)
        out[name] = Comparison(_as_interval(own, level, key), difference, p_value)
    differences = {}
    for first, second in pairs:
        _check_seeds(first, arms[first], arms[second])
        paired = scores[first].minus(scores[second])
        differences[first, second] = Difference(
            _as_interval(paired, level, key), _sign_flip_p(paired.units, key), tuple(paired.units)
        )
    return out, differences


def permutation_p(a: Results, b: Results, metric: str, *, key: int = 0) -> float:
    """Two-sided p of "swapping the two arms within a pre-training seed changes nothing".

    The unit is the pre-training seed: its difference is the mean over its fine-tuning seeds, which
    share a checkpoint and are not exchangeable one by one. Under the null hypothesis every pattern
    of signs of the differences is as likely; p is the share of patterns whose |mean| reaches the
    observed. All 2ⁿ are tried up to n = 16, so p ≥ 2¹⁻ⁿ (:func:`smallest_p`): 3 seeds cannot go below
    0.25, nor 5 below 0.0625. Above, 2¹⁶ are drawn and p = (reached + 1) / (drawn + 1). With one
    pre-training seed the units are its fine-tuning seeds: p then speaks of these two checkpoints.
    """
    _check_seeds("a", a, b)
    names = list(a)
    a_scores, b_scores = (
        np.array([metric_of(metric, results[name]) for name in names]) for results in (a, b)
    )
    units = _by_unit(names, a_scores - b_scores, np.zeros((0, len(names)))).units
    return _sign_flip_p(units, key)


def smallest_difference(
    spread: float, num_seeds: int, *, alpha: float = 0.05, power: float = 0.8
) -> float:
    """The smallest true difference that a paired t test finds with a chance of ``power``; inf for one seed.

    ``spread``: standard deviation of the differences over seeds. Two-sided at ``alpha``; solved with the
    noncentral t distribution of ``num_seeds`` − 1 degrees of freedom.
    """
    if num_seeds < 2:
        return math.inf
    if spread == 0:
        return 0.0
    stats = need("scipy.stats", "report", "The power of a study")
    optimize = need("scipy.optimize", "report", "The power of a study")
    free = num_seeds - 1
    limit = float(stats.t.ppf(1 - alpha / 2, free))

    def missing(shift: float) -> float:
        # The other tail, of a difference with the wrong sign, is far below 1 % of this one.
        return float(stats.nct.sf(limit, free, shift)) - power

    most = 1.0
    while missing(most) < 0:
        most *= 1.5
    shift = optimize.brentq(missing, 0.0, most)
    return float(shift) * spread / math.sqrt(num_seeds)


def smallest_p(num_units: int) -> float:
    """The smallest p that :func:`permutation_p` can give with so many units: 2¹⁻ⁿ, or 2⁻¹⁶ or so."""
    if num_units <= _EXACT_UP_TO:
        return 2.0 ** (1 - num_units)
    return 1 / (2**_EXACT_UP_TO + 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's (1979) adjusted p, in the order given: at most α ⇔ rejected at family-wise error α.

    Sorted ascending, p̃ᵢ = max over j ≤ i of min(1, (m − j + 1) pⱼ).
    """
    p = np.asarray(p_values, dtype=float)
    if p.size and not ((p >= 0) & (p <= 1)).all():
        raise UsageError(f"p values must lie in [0, 1]; got {', '.join(map(str, p_values))}")
    order = np.argsort(p, kind="stable")
    steps = np.minimum(1, p[order] * np.arange(p.size, 0, -1))
    out = np.empty(p.size)
    out[order] = np.maximum.accumulate(steps)
    return out.tolist()


@dataclass(frozen=True)
class _Scores:
    """Scores of the units [n], whose mean is the estimate, and that mean on each resample [R]."""

    units: Floats
    resampled: Floats
    covers: tuple[str, ...]

    def minus(self, other: _Scores) -> _Scores:
        """The paired difference."""
        return _Scores(self.units - other.units, self.resampled - other.resampled, self.covers)


def _by_unit(names: Sequence[tuple[int, int]], observed: Floats, resampled: Floats) -> _Scores:
    """Means per pre-training seed; per fine-tuning seed if there is one pre-training seed.

    In the order of the seeds, so that paired units meet.
    """
    of_seed = [name[0] for name in names]
    unit_name = "pre-training seeds"
    if len(set(of_seed)) == 1:
        of_seed = [name[1] for name in names]
        unit_name = "fine-tuning seeds"
    seeds = sorted(set(of_seed))
    mean = np.array([[(seed == own) for own in of_seed] for seed in seeds], dtype=float)
    mean /= mean.sum(1, keepdims=True)
    covers = ("examples",) if len(seeds) == 1 else (unit_name, "examples")
    return _Scores(mean @ observed, (resampled @ mean.T).mean(1), covers)


def _as_interval(scores: _Scores, level: float, key: int) -> Interval:
    """Quantiles of the mean on resampled examples plus the seeds' Student t."""
    draws, n = len(scores.resampled), len(scores.units)
    around = scores.resampled
    if n > 1:
        around = around + _student(draws, n, key) * scores.units.std(ddof=1) / math.sqrt(n)
    low, high = np.quantile(around, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(scores.units.mean()), float(low), float(high), level, scores.covers)


@lru_cache(maxsize=8)
def _student(draws: int, n: int, key: int) -> Floats:
    """Student's t with n − 1 degrees of freedom [draws]; not to be written to.

    Its own quantiles in random order: less noise in its tails than draws have.
    """
    random = np.random.Generator(np.random.Philox(key=[key % 2**64, n]))
    return _students_t().ppf((random.permutation(draws) + 0.5) / draws, n - 1)


def half_width(level: float, n: int) -> float:
    """Half the width, in standard errors of a mean of n, of an interval that holds ``level``."""
    return float(_students_t().ppf((1 + level) / 2, n - 1))


def _students_t() -> Any:
    """The distribution, of scipy; imported here because not every install has it."""
    return need("scipy.stats", "report", "An interval over seeds").t


def _sign_flip_p(differences: Floats, key: int) -> float:
    n = len(differences)
    if n <= _EXACT_UP_TO:
        signs = np.array(list(product((1.0, -1.0), repeat=n)))
    else:
        random = np.random.Generator(np.random.Philox(key=[key % 2**64, 2**32 + n]))
        signs = random.integers(0, 2, (2**_EXACT_UP_TO, n)) * 2.0 - 1
    means = np.abs(signs @ differences)
    # Sums that are equal on paper differ in their last digits.
    reached = int((means >= abs(differences.sum()) - 1e-12 * np.abs(differences).sum()).sum())
    if n <= _EXACT_UP_TO:
        return reached / len(signs)
    return (reached + 1) / (len(signs) + 1)


def _check_seeds(name: str, results: Results, baseline: Results) -> None:
    if not results:
        raise DataError(f"arm '{name}' has no results")
    missing = sorted(set(results) ^ set(baseline))
    if missing:
        listed = ", ".join(f"({a}, {b})" for a, b in missing[:5])
        raise DataError(
            f"arm '{name}' and its baseline are paired by (pre-training, fine-tuning) seed, but only "
            f"one of them has {listed}: finish the missing results, or compare the common seeds"
        )
    per_seed = {seed: [pair[1] for pair in results if pair[0] == seed] for seed, _ in results}
    if len({len(found) for found in per_seed.values()}) > 1:
        counts = ", ".join(f"{seed}: {len(found)}" for seed, found in sorted(per_seed.items()))
        raise DataError(
            f"arm '{name}' has unequal numbers of fine-tuning seeds per pre-training seed ({counts}): "
            "finish the missing results, or compare the common seeds"
        )


def _num_examples(examples: Examples) -> int:
    return max((len(column) for column in examples.values()), default=0)
