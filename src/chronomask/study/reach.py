"""How soon a curve is as good as a target: where it first is, and the interval of that over seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike

from chronomask.errors import DataError
from chronomask.study.statistics import Floats, Interval, half_width

__all__ = ["reach_interval", "value_to_reach"]


def value_to_reach(
    x: ArrayLike, y: ArrayLike, target: float, *, higher_is_better: bool
) -> float | None:
    """The first x at which the piecewise linear curve is as good as ``target``; None if it never is.

    ``x`` ascends strictly; a curve that starts at or beyond the target reaches it at ``x[0]``. Raises
    DataError for an empty curve, unequal lengths, or an x that does not ascend.
    """
    at, value = _curve(x, y)
    ahead = (value - target) if higher_is_better else (target - value)
    found = _first_crossing(at, ahead)
    return None if math.isinf(found) else found


def reach_interval(
    curves_by_seed: Mapping[int, tuple[ArrayLike, ArrayLike]],
    targets_by_seed: Mapping[int, float],
    *,
    higher_is_better: bool,
    level: float = 0.95,
) -> Interval | None:
    """Where the mean curve over seeds reaches the seeds' targets; None with fewer than two seeds.

    d(x) is the mean over seeds of how far the curve at x is ahead of the seed's own target, and
    d(x) ± t·s(x)/√n its interval. ``estimate``: the first x with d(x) ≥ 0. ``low``: the first x whose
    upper limit is at 0 or above. ``high``: the first x from which on the lower limit stays there. So
    the interval is the set of x that a paired t test would not exclude. Between two points of the curves
    nobody has looked, and a bent curve is not the straight line drawn there, so both limits are moved out
    to the nearest point: the interval holds the true x at least as often as ``level`` says if seeds
    scatter normally. ``math.inf``: not within the curves.

    Curves meet on the union of their x within the range all of them cover. Raises DataError if seeds
    of curves and targets differ, or curves have no x in common.
    """
    if set(curves_by_seed) != set(targets_by_seed):
        raise DataError(
            f"curves of seeds {sorted(curves_by_seed)} and targets of seeds {sorted(targets_by_seed)}: "
            "each curve is measured against the target of its own seed"
        )
    n = len(curves_by_seed)
    if n < 2:
        return None
    curves = {seed: _curve(*curve) for seed, curve in curves_by_seed.items()}
    grid = _common_grid([at for at, _ in curves.values()])
    sign = 1.0 if higher_is_better else -1.0
    ahead = np.stack(
        [
            sign * (np.interp(grid, at, value) - targets_by_seed[seed])
            for seed, (at, value) in curves.items()
        ]
    )
    # s(x) is no straight line between the points of the grid, so its limits are read on a finer one.
    fine = np.unique(np.concatenate([np.linspace(a, b, 17) for a, b in _steps(grid)]))
    ahead = np.stack([np.interp(fine, grid, own) for own in ahead])
    mean = ahead.mean(0)
    half = half_width(level, n) * ahead.std(0, ddof=1) / math.sqrt(n)
    return Interval(
        estimate=_first_crossing(fine, mean),
        low=_point_before(grid, _first_crossing(fine, mean + half)),
        high=_point_after(grid, _last_crossing(fine, mean - half)),
        level=level,
        covers=("pre-training seeds",),
    )


def _curve(x: ArrayLike, y: ArrayLike) -> tuple[Floats, Floats]:
    at, value = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    if at.ndim != 1 or at.shape != value.shape or not at.size:
        raise DataError(
            f"a curve needs as many x as y, and at least one: {at.shape}, {value.shape}"
        )
    if not (np.isfinite(at).all() and np.isfinite(value).all()) or (np.diff(at) <= 0).any():
        raise DataError("a curve needs finite numbers and an x that ascends from point to point")
    return at, value


def _common_grid(all_x: list[Floats]) -> Floats:
    first, last = max(at[0] for at in all_x), min(at[-1] for at in all_x)
    if first > last:
        raise DataError(
            f"the curves have no x in common: one begins at {first}, one ends at {last}"
        )
    grid = np.unique(np.concatenate([*all_x, [first, last]]))
    return grid[(grid >= first) & (grid <= last)]


def _steps(grid: Floats) -> list[tuple[float, float]]:
    return list(pairwise(grid)) or [(grid[0], grid[0])]


def _first_crossing(x: Floats, ahead: Floats) -> float:
    """The first x at which the line through (x, ahead) is 0 or above; inf if nowhere."""
    reached = np.flatnonzero(ahead >= 0)
    if not reached.size:
        return math.inf
    return _crossing_before(x, ahead, int(reached[0]))


def _last_crossing(x: Floats, ahead: Floats) -> float:
    """The first x from which on the line stays at 0 or above; inf if it ends below."""
    below = np.flatnonzero(ahead < 0)
    first = int(below[-1]) + 1 if below.size else 0
    return math.inf if first == len(x) else _crossing_before(x, ahead, first)


def _point_before(grid: Floats, x: float) -> float:
    """The last point of the grid at or before x; x itself where it is infinite."""
    return x if math.isinf(x) else float(grid[np.searchsorted(grid, x, side="right") - 1])


def _point_after(grid: Floats, x: float) -> float:
    """The first point of the grid at or after x; x itself where it is infinite."""
    return x if math.isinf(x) else float(grid[np.searchsorted(grid, x, side="left")])


def _crossing_before(x: Floats, ahead: Floats, k: int) -> float:
    """Where between points k − 1 (below 0) and k (0 or above) the line is 0."""
    if k == 0:
        return float(x[0])
    share = -ahead[k - 1] / (ahead[k] - ahead[k - 1])
    return float(x[k - 1] + share * (x[k] - x[k - 1]))
