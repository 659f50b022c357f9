"""How sure are we: intervals, paired differences and their p values, Holm's correction, power.

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
from itertools import chain

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
    "mean_and_spread",
    "mean_intervals",
    "metric_of",
    "metric_over_resamples",
    "smallest_difference",
]

Results = Mapping[tuple[int, int], Examples]
"""One arm and task: (pre-training seed, fine-tuning seed) → arrays over the same examples."""

Pair = tuple[str, str]
"""Two arms, of which the second is taken off the first."""
Floats = NDArray[np.float64]
"""An array of numbers of double precision."""

_SPREADS_TRIED = 512
"""Spreads of seeds over which the power of a study is averaged."""

_POWER = 0.8
"""The chance with which the smallest difference is found."""
DRAWS = 2000
LEVEL = 0.95


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
    """of the difference, as in :class:`Difference`"""
    examples_spread: float | None = None
    """of the difference, as in :class:`Difference`"""


@dataclass(frozen=True, slots=True)
class Difference:
    """One arm minus another: interval, p value, and the difference of each unit."""

    interval: Interval
    p_value: float | None
    """two-sided, of "the true difference is 0", not corrected: below 1 − ``level`` exactly where the interval
    excludes 0, for both are made of one distribution. None with one pre-training seed, which is no sample
    of the seeds that arms could have had"""
    units: tuple[float, ...]
    """one for each pre-training seed; for each fine-tuning seed where there is one of those"""
    examples_spread: float
    """standard deviation of the estimate over resamples of the examples; 0 for one example, as a loss of
    validation is where the losses of its rows were not kept"""


def mean_and_spread(values: Iterable[float]) -> tuple[float, float]:
    """Mean and standard deviation (n − 1 in the denominator); nan where there are too few values."""
    found = np.array(list(values), dtype=float)
    mean = float(found.mean()) if found.size else math.nan
    return mean, float(found.std(ddof=1)) if found.size > 1 else math.nan


def mean_intervals(values: ArrayLike) -> tuple[Floats, Floats]:
    """Lower and upper limits [N] of the means over n seeds of ``values`` [n, N], by Student's t.

    Raises DataError for fewer than two seeds.
    """
    found = np.asarray(values, dtype=float)
    n = len(found)
    if n < 2:
        raise DataError(f"an interval over seeds needs at least two of them, not {n}")
    mean, half = found.mean(0), half_width(LEVEL, n) * found.std(0, ddof=1) / math.sqrt(n)
    return mean - half, mean + half


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

    An arm's score is the mean over pre-training seeds of the mean over fine-tuning seeds. Its distribution is
    the mean on resampled examples (the same examples for all seeds) plus the spread of the seeds' scores over
    √n times Student's t with n − 1 degrees of freedom; the limits are its quantiles. With one pre-training
    seed its fine-tuning seeds are the n, with one result nothing is added: ``covers`` says so. A difference
    is made likewise, of the differences of the same seeds on the same examples.

    Each resample of the examples is drawn and counted once for all arms. Raises DataError as
    ``metric_over_resamples`` does, and if arms do not have the same seeds and examples.
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
    drawn = resamples(size, draws, key) if size > 1 else ()  # of one example all are alike
    values = metric_over_counts(metric, sets, chain([np.ones((1, size), np.float32)], drawn))
    observed = values[0]
    resampled = values[1:] if size > 1 else np.broadcast_to(observed, (draws, len(sets)))
    scores: dict[str, _Scores] = {}
    start = 0
    for name, results in arms.items():
        columns = slice(start, start + len(results))
        scores[name] = _by_unit(list(results), observed[columns], resampled[:, columns])
        start = columns.stop
    out = {}
    for name, own in scores.items():
        difference = p_value = examples = None
        if baseline is not None and name != baseline:
            found = _difference(own.minus(scores[baseline]), level)
            difference, p_value, examples = found.interval, found.p_value, found.examples_spread
        out[name] = Comparison(_as_interval(own, level), difference, p_value, examples)
    differences = {}
    for first, second in pairs:
        _check_seeds(first, arms[first], arms[second])
        differences[first, second] = _difference(scores[first].minus(scores[second]), level)
    return out, differences


def smallest_difference(
    spread: float,
    num_seeds: int,
    *,
    examples_spread: float = 0.0,
    alpha: float = 0.05,
) -> float:
    """The smallest true difference that the test of :class:`Difference` finds in four studies of five.

    ``spread``: standard deviation of the differences over seeds; ``examples_spread``: that of their mean
    over resampled examples; where it is 0 the test is the paired t test. Two-sided at ``alpha``. The chance
    is averaged over what the spread of so few seeds may come out as (its χ² distribution); a difference found
    with the wrong sign is not counted. inf for one seed, with which nothing is tested.
    """
    if num_seeds < 2:
        return math.inf
    error = math.hypot(spread / math.sqrt(num_seeds), examples_spread)
    if error == 0:
        return 0.0
    stats = need("scipy.stats", "report", "The power of a study")
    special = need("scipy.special", "report", "The power of a study")
    optimize = need("scipy.optimize", "report", "The power of a study")
    free = num_seeds - 1
    shares = (np.arange(_SPREADS_TRIED) + 0.5) / _SPREADS_TRIED
    found = spread * np.sqrt(stats.chi2.ppf(shares, free) / free / num_seeds)
    limits = _half_widths(found, examples_spread, free, alpha)

    def missing(effect: float) -> float:
        return float(special.ndtr((effect - limits) / error).mean()) - _POWER

    return float(optimize.brentq(missing, 0.0, limits.max() + 9 * error, xtol=1e-9 * error))


def _half_widths(errors: Floats, examples_spread: float, free: int, alpha: float) -> Floats:
    """Half the width of an interval of level 1 − ``alpha`` at each of ``errors`` [K], standard errors over
    seeds, where the resamples of the examples are normal.

    The sum of a normal and a scaled Student t is normal with a variance of its own for each χ² that the t
    divides by. In the logarithm of that χ² the mean over it is an integral of a smooth function, however the
    two scales compare.
    """
    special = need("scipy.special", "report", "The power of a study")
    stats = need("scipy.stats", "report", "The power of a study")
    if not examples_spread:
        return -float(special.stdtrit(free, alpha / 2)) * errors
    ends = stats.chi2.ppf(1e-9, free), stats.chi2.isf(1e-9, free)
    squares = np.geomspace(*ends, 64)
    weights = stats.chi2.pdf(squares, free) * squares
    weights /= weights.sum()
    scales = np.sqrt(examples_spread**2 + free / squares * errors[:, None] ** 2)
    low = np.zeros_like(errors)
    high = -special.ndtri(alpha / 4) * examples_spread - special.stdtrit(free, alpha / 4) * errors
    for _ in range(32):
        middle = (low + high) / 2
        outside = special.ndtr(-middle[:, None] / scales) @ weights
        low, high = (
            np.where(outside > alpha / 2, new, old) for new, old in ((middle, low), (high, middle))
        )
    return high


def holm(p_values: Sequence[float], tests: int | None = None) -> list[float]:
    """Holm's (1979) adjusted p, in the order given: at most α ⇔ rejected at family-wise error α.

    Sorted ascending, p̃ᵢ = max over j ≤ i of min(1, (m − j + 1) pⱼ), of m ``tests``: as many as there are p,
    or more where some could not be made, which count as those with the largest p.
    """
    p = np.asarray(p_values, dtype=float)
    if p.size and not ((p >= 0) & (p <= 1)).all():
        raise UsageError(f"p values must lie in [0, 1]; got {', '.join(map(str, p_values))}")
    order = np.argsort(p, kind="stable")
    m = p.size if tests is None else tests
    steps = np.minimum(1, p[order] * np.arange(m, m - p.size, -1))
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


def _difference(paired: _Scores, level: float) -> Difference:
    """What is said of a paired difference."""
    tested = paired.covers[0] == "pre-training seeds"
    return Difference(
        _as_interval(paired, level),
        _two_sided_p(paired) if tested else None,
        tuple(paired.units),
        _scatter(paired.resampled),
    )


def _scatter(values: Floats) -> float:
    """Their standard deviation; 0 where they differ in rounding alone, as the resamples of a loss do."""
    spread = float(values.std())
    return spread if spread > 1e-12 * float(np.abs(values).max()) else 0.0


def _standard_error(units: Floats) -> float:
    """That of the mean of the units; 0 where they differ in rounding alone, or where there is one."""
    if len(units) < 2:
        return 0.0
    error = float(units.std(ddof=1)) / math.sqrt(len(units))
    return error if error > 1e-12 * float(np.abs(units).max()) else 0.0


def _as_interval(scores: _Scores, level: float) -> Interval:
    """Quantiles of the mean on resampled examples plus the seeds' Student t.

    The distribution function is that of the t around each resample, averaged over the resamples; of a loss,
    whose resamples are all alike, it is Student's. Where seeds do not scatter the limits are two of the
    resamples, which leave out as many as :func:`_two_sided_p` counts.
    """
    outside, around = (1 - level) / 2, scores.resampled
    error, free = _standard_error(scores.units), len(scores.units) - 1
    if not error:
        ordered = np.sort(around)
        rank = max(1, math.ceil(outside * (len(ordered) + 1)) - 1)
        low, high = ordered[rank - 1], ordered[-rank]
    else:
        reach = half_width(level, len(scores.units)) * error
        low, high = around.min() - reach, around.max() + reach
        if np.ptp(around) > 1e-9 * error:
            special = need("scipy.special", "report", "An interval over seeds")
            optimize = need("scipy.optimize", "report", "An interval over seeds")

            def beyond(limit: float, share: float) -> float:
                return float(special.stdtr(free, (limit - around) / error).mean()) - share

            # The quantile of each resample's own t lies between these.
            ends = ((low, around.max() - reach), (around.min() + reach, high))
            low, high = (
                optimize.brentq(beyond, *between, args=(share,), xtol=1e-9 * reach)
                for between, share in zip(ends, (outside, 1 - outside), strict=True)
            )
    return Interval(float(scores.units.mean()), float(low), float(high), level, scores.covers)


def _two_sided_p(scores: _Scores) -> float:
    """Twice the smaller share of the distribution of :func:`_as_interval` on either side of 0.

    For a loss that is the p of a paired t test. Seeds that do not scatter leave the resamples alone,
    R of them, and p is 2 (k + 1) / (R + 1) with k of them on the other side: never 0.
    """
    around, error = scores.resampled, _standard_error(scores.units)
    if not error:
        fewer = min((around <= 0).sum(), (around >= 0).sum())
        return min(1.0, 2 * (int(fewer) + 1) / (len(around) + 1))
    special = need("scipy.special", "report", "A test over seeds")
    free = len(scores.units) - 1
    if np.ptp(around) <= 1e-9 * error:
        around = around[:1]
    return 2 * min(float(special.stdtr(free, sign * around / error).mean()) for sign in (-1, 1))


def half_width(level: float, n: int) -> float:
    """Half the width, in standard errors of a mean of n, of an interval that holds ``level``."""
    stats = need("scipy.stats", "report", "An interval over seeds")
    return float(stats.t.ppf((1 + level) / 2, n - 1))


def _check_numbers(name: str, results: Results) -> None:
    for pair, examples in results.items():
        for values in map(np.asarray, examples.values()):
            if np.issubdtype(values.dtype, np.inexact) and not np.isfinite(values).all():
                raise DataError(
                    f"arm '{name}' has numbers with seeds {pair} that are NaN or infinite, of which no mean "
                    "can be told: leave that seed out, in all arms"
                )


def _check_seeds(name: str, results: Results, baseline: Results) -> None:
    if not results:
        raise DataError(f"arm '{name}' has no results")
    _check_numbers(name, results)
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
