"""The curves of a comparison: a quantity over training against what it cost, and how soon it was as good.

How soon a curve is as good as a target, with its interval over seeds, is said by :func:`value_to_reach` and
:func:`reach_interval`.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from chronomask.errors import DataError
from chronomask.report.comparison import AXIS_NAMES, FREQUENCIES, LOSS, LOSSES, MEAN_LOSS, PAIRS
from chronomask.runs.layout import MODEL
from chronomask.runs.read import Run
from chronomask.study.gather import ArmRuns, Gathered
from chronomask.study.notices import predictions_of
from chronomask.study.statistics import LEVEL, Floats, Interval, half_width, mean_intervals

if TYPE_CHECKING:
    from chronomask.data.folder import PreparedData
    from chronomask.runs.rules import Stretch
    from chronomask.train.config import RunConfig

__all__ = ["Cost", "Costs", "draw_curves", "reach", "reach_interval", "value_to_reach"]

Numbers = dict[str, Any]
Costs = Mapping[str, "Cost"]
"""Arm → the operations of its model."""


class Cost:
    """The operations of an arm: its model on rows of one length.

    Operations are those of :mod:`chronomask.model.flops`: 6 × matrix entries × tokens, the head and most of
    the last layer for predicted tokens alone, and 12 × layers × width × pairs for attention, with every
    token seeing its whole row (an upper bound where documents are kept apart; the same for all arms). What
    an arm's config makes more or less of it (causal rows, masks that enter late, passes that score rows) is
    that of :mod:`chronomask.train.operations`.
    """

    def __init__(self, model: Path, data: PreparedData, config: RunConfig) -> None:
        """``model``: a folder of it, whose weights are not needed; ``config``: what decides how it is trained
        on ``data``. Raises UsageError for a folder without a model's config, DataError for a damaged one.
        """
        import torch
        from transformers import AutoModelForMaskedLM

        from chronomask.model.attention import implementation_for
        from chronomask.model.flops import count_flops
        from chronomask.model.open import open_config
        from chronomask.runs.rules import maskable_tokens
        from chronomask.train.operations import Operations

        architecture = open_config(model)
        with torch.device("meta"):
            skeleton = AutoModelForMaskedLM.from_config(
                architecture, attn_implementation=implementation_for(architecture)
            )
        flops, length = count_flops(skeleton), data.row_length
        lengths = np.array([length])
        self._per_token = flops.of(lengths, 0) / length
        self._per_prediction = flops.of(lengths, length) / length - self._per_token
        self._steps, self._beside = np.zeros(1), np.zeros(1)
        usual = config.late_masks is None and config.masking.content.look_ahead is None
        if usual and not config.objective.has_causal_rows:
            return
        split = data.split("train")
        tokens = split.num_tokens / split.num_rows
        own = Operations(config, skeleton, flops, lengths, tokens)
        parts = list(own.stretches(maskable_tokens(config, data)))
        beside = [
            now.rows * tokens * (own.per_token(now) - own.plain(_masked_share(now, tokens)))
            for now in parts
        ]
        self._steps = np.array([0, *(now.end for now in parts)], dtype=float)
        self._beside = np.concatenate(([0.0], np.cumsum(beside)))

    @classmethod
    def of(cls, arm: ArmRuns, data: PreparedData, config: RunConfig) -> Cost | None:
        """That of an arm with complete runs; None where no run has its last checkpoint any more."""
        for run in arm.runs.values():
            assert run.summary is not None
            model = run.path / run.summary["checkpoint"] / MODEL
            if (model / "config.json").is_file():
                return cls(model, data, config)
        return None

    def flops(self, steps: np.ndarray, tokens: np.ndarray, masked: np.ndarray) -> np.ndarray:
        """Floating-point operations of so many steps on so many tokens, so many of them masked."""
        usual = self._per_token * tokens + self._per_prediction * masked
        return usual + np.interp(steps, self._steps, self._beside)


def _masked_share(now: Stretch, tokens_per_row: float) -> float:
    """The share of the tokens of a part of training that are masked and predicted."""
    return (1 - now.causal_share) * now.ratio * now.maskable / tokens_per_row


def draw_curves(
    gathered: Gathered, compared: Mapping[str, Mapping[int, Run]], costs: Costs
) -> list[Numbers]:
    """Validation loss and the mean of the yardsticks over training, and each task that several checkpoints
    were evaluated on; with differences from the baseline, but of losses that do not compare.
    """
    shown = {arm.name: compared.get(arm.name, arm.runs) for arm in gathered.arms}
    losses = [_loss_curve(shown, costs), _loss_curve(shown, costs, MEAN_LOSS, "mean_loss")]
    tasks = dict.fromkeys(results.task for results in gathered.curves)
    drawn = [curve for curve in losses if curve["arms"]]
    curves = [*drawn, *(_task_curve(t, gathered, costs) for t in tasks)]
    finished = {arm.name for arm in gathered.arms if arm.complete}
    for curve in curves if gathered.losses_compare else curves[len(drawn) :]:
        among = compared if curve["quantity"] in LOSSES else finished
        _add_differences(curve, gathered.baseline, among)
    return curves


def _loss_curve(
    runs: Mapping[str, Mapping[int, Run]], costs: Costs, quantity: str = LOSS, column: str = "loss"
) -> Numbers:
    """The validations of each arm, at those steps of its first seed that all its seeds have come to; arms
    without the column are left out.

    Accuracy, and what the data's frequencies alone would reach, belong to the loss at the fixed ratio.
    """
    arms, ratios = {}, set()
    for name, by_seed in runs.items():
        lines = {seed: run.validation for seed, run in by_seed.items() if len(run.validation)}
        finite = {seed: np.isfinite(line[column]) for seed, line in lines.items()}
        lines = {seed: line for seed, line in lines.items() if finite[seed].any()}
        if not lines:
            continue
        first = next(iter(lines))
        steps = lines[first]["step"][finite[first]]
        ends = [line["step"][finite[seed]][[0, -1]] for seed, line in lines.items()]
        begin, end = max(own[0] for own in ends), min(own[1] for own in ends)
        steps = steps[(begin <= steps) & (steps <= end)]
        if not len(steps):
            continue
        values, accuracies = (
            {
                seed: np.interp(steps, line["step"][finite[seed]], line[key][finite[seed]])
                for seed, line in lines.items()
            }
            for key in (column, "accuracy")
        )
        arms[name] = _curve({s: by_seed[s] for s in lines}, costs.get(name), steps, values)
        if quantity != LOSS:
            continue
        for seed in lines:
            arms[name]["by_seed"][str(seed)]["accuracy"] = accuracies[seed]
        arms[name]["accuracy"] = np.mean(list(accuracies.values()), axis=0)
        ratios |= {float(r) for line in lines.values() for r in line["masking_ratio"] if r == r}
    curve = {
        "quantity": quantity,
        "family": "intrinsic",
        "metric": column,
        "unit": "nats",
        "higher_is_better": False,
    }
    if quantity == LOSS:
        curve["masking_ratios"] = sorted(ratios)
        every = [run for own in runs.values() for run in own.values()]
        curve["same_predictions"] = len(ratios) == 1 and len(predictions_of(every)) < 2
        curve["references"] = _references(every)
    return {**curve, "arms": arms}


def _references(runs: Iterable[Run]) -> dict[str, float]:
    """What words' frequencies and a table of pairs would reach on the data of all runs, in nats."""
    names = {FREQUENCIES: "unigram_entropy", PAIRS: "bigram_bound"}
    noted = [{name: run.validation.last(key) for name, key in names.items()} for run in runs]
    alike = all(one == noted[0] for one in noted)  # else the runs are of several data sets
    return noted[0] if noted and alike and np.isfinite(list(noted[0].values())).all() else {}


def _task_curve(task: str, gathered: Gathered, costs: Costs) -> Numbers:
    """A task at the checkpoints that all seeds of an arm have, as means over fine-tuning seeds."""
    by_arm: dict[str, dict[int, dict[int, float]]] = {}
    primary, higher, family, unit, title = "", True, "", "", ""
    for results in gathered.curves:
        if results.task != task:
            continue
        assert results.step is not None  # those are the final ones
        for name, by_pair in results.arms.items():
            for (seed, _), result in by_pair.items():
                primary, higher, family = result.primary, result.higher_is_better, result.family
                unit, title = result.unit, result.title
                values = [r.metrics[primary] for (own, _), r in by_pair.items() if own == seed]
                of_seed = by_arm.setdefault(name, {}).setdefault(seed, {})
                of_seed[results.step] = float(np.mean(values))
    arms = {}
    for name, by_seed in by_arm.items():
        common = sorted(set.intersection(*(set(curve) for curve in by_seed.values())))
        values = {seed: np.array([curve[s] for s in common]) for seed, curve in by_seed.items()}
        runs = {seed: gathered.arm(name).runs[seed] for seed in by_seed}
        if common:
            arms[name] = _curve(runs, costs.get(name), np.array(common, dtype=float), values)
    return {
        "quantity": task,
        "title": title,
        "family": family,
        "metric": primary,
        "unit": unit,
        "higher_is_better": higher,
        "arms": arms,
    }


def _curve(
    runs: Mapping[int, Run], cost: Cost | None, steps: np.ndarray, values: Mapping[int, np.ndarray]
) -> Numbers:
    """An arm's curve: every axis as the mean over seeds, the values of each seed, mean, range, interval."""
    axes = {seed: _spent(run, cost, steps) for seed, run in runs.items()}
    names = list(next(iter(axes.values())))
    stacked = np.stack(list(values.values()))
    interval = mean_intervals(stacked) if len(stacked) > 1 else (None, None)
    return {
        **{axis: np.mean([axes[seed][axis] for seed in runs], axis=0) for axis in names},
        "mean": stacked.mean(0),
        "low": stacked.min(0),
        "high": stacked.max(0),
        "interval_low": interval[0],
        "interval_high": interval[1],
        "by_seed": {str(seed): {**axes[seed], "value": values[seed]} for seed in runs},
    }


def _spent(run: Run, cost: Cost | None, steps: np.ndarray) -> dict[str, np.ndarray]:
    """What a run had spent at these steps, read between its logged lines and validations.

    ``step``, ``tokens_seen``, ``masked_tokens``, ``seconds``, and ``flops`` where the cost is known.
    """
    at, order = np.unique(
        np.concatenate(([0.0], run.validation["step"], run.metrics["step"])), return_index=True
    )
    spent = {"step": steps.astype(float)}
    for key in ("tokens_seen", "masked_tokens", "seconds"):
        logged = np.concatenate(([0.0], run.validation[key], run.metrics[key]))[order]
        spent[key] = np.interp(steps, at, logged)
    if cost is not None:
        spent["flops"] = cost.flops(steps, spent["tokens_seen"], spent["masked_tokens"])
    return {axis: spent[axis] for axis in AXIS_NAMES if axis in spent}


def _add_differences(curve: Numbers, baseline: str, finished: Collection[str]) -> None:
    """Put beside every finished arm how far it is from the baseline at the steps and seeds that both have."""
    arms = {name: own for name, own in curve["arms"].items() if name in finished}
    theirs: Any = arms.get(baseline)
    for own in arms.values() if theirs else ():
        steps, mine, other = np.intersect1d(own["step"], theirs["step"], return_indices=True)
        seeds = [seed for seed in own["by_seed"] if seed in theirs["by_seed"]]
        gaps = [
            own["by_seed"][seed]["value"][mine] - theirs["by_seed"][seed]["value"][other]
            for seed in seeds
        ]
        if not len(steps):
            continue
        if not seeds:
            gaps = [own["mean"][mine] - theirs["mean"][other]]
        interval = mean_intervals(gaps) if len(seeds) > 1 else (None, None)
        own["difference"] = {
            "step": steps,
            "mean": np.mean(gaps, axis=0),
            "low": interval[0],
            "high": interval[1],
            "by_seed": dict(zip(seeds, gaps, strict=False)),
        }


def reach(curve: Numbers, baseline: str, finished: Collection[str]) -> Numbers:
    """What it cost each finished arm to be as good as the baseline ended, seed by seed.

    Found in steps; what an arm had spent at a step is the mean over its seeds. None: not reached.
    """
    among = {name: own for name, own in curve["arms"].items() if name in finished}
    theirs: Any = among.get(baseline)
    arms: Numbers = {}
    for name, own in among.items() if theirs else ():
        seeds = [seed for seed in own["by_seed"] if seed in theirs["by_seed"]]
        if not seeds:
            continue
        found = _reached_step(
            {int(seed): (own["step"], own["by_seed"][seed]["value"]) for seed in seeds},
            {int(seed): float(theirs["by_seed"][seed]["value"][-1]) for seed in seeds},
            curve["higher_is_better"],
        )
        arms[name] = {"seeds": len(seeds)}
        for axis in AXIS_NAMES:
            if axis in own and axis in theirs:
                arms[name][axis] = _reached_on(axis, found, own, float(theirs[axis][-1]))
    return {
        "quantity": curve["quantity"],
        **({"title": curve["title"]} if "title" in curve else {}),
        "unit": curve["unit"],
        "metric": curve["metric"],
        "arms": arms,
    }


def _reached_on(
    axis: str, found: Mapping[str, float | None], own: Numbers, total: float
) -> Numbers:
    """What an arm had spent on an axis at the steps found, and the share of the baseline's total."""
    spent = {
        key: None if step is None else float(np.interp(step, own["step"], own[axis]))
        for key, step in found.items()
    }
    shares = {
        "share" if key == "estimate" else f"share_{key}": value / total
        if value and total
        else value
        for key, value in spent.items()
    }
    return {**spent, **shares, "baseline": total}


def _reached_step(
    curves: Mapping[int, tuple[Any, Any]], targets: Mapping[int, float], higher: bool
) -> dict[str, float | None]:
    """``estimate`` and, with several seeds, ``low`` and ``high``; None where beyond the curve."""
    found = reach_interval(curves, targets, higher_is_better=higher)
    if found is None:
        (seed,) = curves
        return {"estimate": value_to_reach(*curves[seed], targets[seed], higher_is_better=higher)}
    return {
        key: value if math.isfinite(value) else None
        for key, value in (("estimate", found.estimate), ("low", found.low), ("high", found.high))
    }


def value_to_reach(
    x: ArrayLike, y: ArrayLike, target: float, *, higher_is_better: bool
) -> float | None:
    """The first x at which the piecewise linear curve is as good as ``target``; None if it never is.

    ``x`` ascends strictly; a curve that starts at or beyond the target reaches it at ``x[0]``. Raises
    DataError for an empty curve, unequal lengths, or an x that does not ascend.
    """
    at, value = _check_curve(x, y)
    ahead = (value - target) if higher_is_better else (target - value)
    found = _first_crossing(at, ahead)
    return None if math.isinf(found) else found


def reach_interval(
    curves_by_seed: Mapping[int, tuple[ArrayLike, ArrayLike]],
    targets_by_seed: Mapping[int, float],
    *,
    higher_is_better: bool,
) -> Interval | None:
    """Where the mean curve over seeds reaches the seeds' targets; None with fewer than two seeds.

    d(x) is the mean over seeds of how far the curve at x is ahead of the seed's own target, and
    d(x) ± t·s(x)/√n its interval. ``estimate``: the first x with d(x) ≥ 0. ``low``: the first x whose
    upper limit is at 0 or above. ``high``: the first x from which on the lower limit stays there. So
    the interval is the set of x that a paired t test would not exclude. Between two points of the curves
    nobody has looked, and a bent curve is not the straight line drawn there, so both limits are moved out
    to the nearest point: the interval holds the true x at least as often as its level says if seeds
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
    curves = {seed: _check_curve(*curve) for seed, curve in curves_by_seed.items()}
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
    half = half_width(LEVEL, n) * ahead.std(0, ddof=1) / math.sqrt(n)
    return Interval(
        estimate=_first_crossing(fine, mean),
        low=_point_before(grid, _first_crossing(fine, mean + half)),
        high=_point_after(grid, _last_crossing(fine, mean - half)),
        level=LEVEL,
        covers=("pre-training seeds",),
    )


def _check_curve(x: ArrayLike, y: ArrayLike) -> tuple[Floats, Floats]:
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
