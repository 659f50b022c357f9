"""Every number of a report: arms beside their baseline, with intervals, as one object of plain values.

Per task and arm: mean, spread, interval, paired difference from the baseline, its p value, and Holm's
correction: of the headline over what is tested on it, of all other measures together. Per arm: what it is
and spent, and what reaching the baseline's final quality cost. Curves over seeds. A study keeps the object
as ``comparison.json``, which docs/studies.md describes; a report of other runs is made from it at once.
"""

from __future__ import annotations

import math
import shlex
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from chronomask import __version__
from chronomask.errors import UsageError
from chronomask.report.arms import arm_row, mean_row
from chronomask.report.comparison import (
    FILE,
    LOSSES,
    P_VALUES,
    SCHEMA_VERSION,
    families,
    join_words,
    task_title,
)
from chronomask.report.yardstick_tables import list_yardsticks
from chronomask.runs.read import Run
from chronomask.storage import write_json
from chronomask.study.curves import Cost, Costs, draw_curves, reach
from chronomask.study.gather import ArmRuns, Gathered, TaskResults, from_runs, from_study
from chronomask.study.losses import Loss, last_losses, runs_to_compare
from chronomask.study.notices import RunsByArm
from chronomask.study.statistics import (
    Comparison,
    Difference,
    Pair,
    Results,
    compare,
    compare_pairs,
    holm,
    mean_and_spread,
    metric_of,
    smallest_difference,
)
from chronomask.study.units import Study

if TYPE_CHECKING:
    from chronomask.data.folder import PreparedData

__all__ = ["compare_runs", "compare_study"]

Numbers = dict[str, Any]


def compare_study(study: Study, gathered: Gathered | None = None) -> Path:
    """Write ``comparison.json`` into the study's folder; ``gathered``: what :func:`gather.from_study` gave.

    Raises as that does.
    """
    from chronomask.data.folder import PreparedData

    gathered = gathered or from_study(study)
    if study.config.prepare is not None and not study.data.exists():
        raise UsageError(
            f"{study.data} is gone, and its text is part of a comparison: chronomask study run prepares it "
            f"again; chronomask report {shlex.quote(str(study.folder))} draws the last comparison, if there "
            "is one"
        )
    data = PreparedData.open(study.data)
    costs: dict[str, Cost] = {}
    for arm in gathered.arms:
        if not arm.runs:
            continue
        if (cost := Cost.of(arm, data, study.arms[arm.name].config)) is not None:
            costs[arm.name] = cost
        else:
            gathered.notices.append(
                f"The checkpoints of “{arm.name}” are gone, which say how large its model is: its operations "
                "are not counted."
            )
    values = _compare_arms(gathered, study.config.name, costs, study.config.contrasts)
    values |= {
        "seeds": list(study.config.seeds),
        "task_seeds": list(study.config.task_seeds),
        "shared_start": gathered.shared_start(),
        "other_weights": gathered.with_other_weights(),
        "data": _data(data),
        "versions": gathered.versions(),
    }
    for arm in values["arms"]:
        for run in arm["runs"]:
            run["folder"] = str(Path(run["folder"]).relative_to(study.folder))
    path = study.folder / FILE
    write_json(path, _plain(values), indent=1)
    return path


def compare_runs(runs: Sequence[Run], title: str) -> tuple[Numbers, dict[str, list[Run]]]:
    """The comparison of runs of any folders, and the runs of each arm that it speaks of.

    What needs the model, its operations, is not in it.
    """
    gathered = from_runs(runs)
    fingerprints = [str((run.summary or {}).get("data_fingerprint", "")) for run in gathered.runs]
    values = _compare_arms(gathered, title, {}, ())
    values |= {
        "seeds": sorted({seed for arm in gathered.arms for seed in arm.runs}),
        "task_seeds": sorted(
            {pair[1] for task in gathered.final for by in task.arms.values() for pair in by}
        ),
        "shared_start": gathered.shared_start(),
        "other_weights": gathered.with_other_weights(),
        "data": {"fingerprint": ", ".join(filter(None, dict.fromkeys(fingerprints)))},
        "versions": gathered.environments(),
    }
    return _plain(values), {arm.name: list(arm.runs.values()) for arm in gathered.arms}


def _compare_arms(
    gathered: Gathered, title: str, costs: Costs, contrasts: Sequence[Pair]
) -> Numbers:
    """What a study and other runs have in common."""
    baseline = gathered.baseline
    compared, left_out = runs_to_compare(gathered)
    curves = draw_curves(gathered, compared, costs)
    tasks = [
        _loss_task(task, loss, baseline, contrasts, gathered.losses_compare)
        for task, loss in last_losses(compared).items()
    ]
    tasks += [_task(results, baseline, contrasts) for results in gathered.final]
    _correct(tasks, declared=len(contrasts))
    finished = {arm.name for arm in gathered.arms if arm.complete}
    compared_curves = [
        curve for curve in curves if gathered.losses_compare or curve["quantity"] not in LOSSES
    ]
    notices = [
        *gathered.notices,
        *left_out,
        *_not_tested(tasks, contrasts, gathered, compared),
    ]
    return {
        "schema_version": SCHEMA_VERSION,
        "chronomask_version": __version__,
        "name": title,
        "baseline": baseline,
        "contrasts": [list(pair) for pair in contrasts],
        "seeds": [],
        "task_seeds": [],
        "notices": notices,
        "losses_compare": gathered.losses_compare,
        "arms": [_arm(arm, costs.get(arm.name)) for arm in gathered.arms],
        "tasks": tasks,
        "p_values": P_VALUES,
        "yardsticks": list_yardsticks(compared),
        "reach": [
            reach(curve, baseline, compared if curve["quantity"] in LOSSES else finished)
            for curve in compared_curves
        ],
        "curves": curves,
    }


def _not_tested(
    tasks: Sequence[Numbers], contrasts: Sequence[Pair], gathered: Gathered, compared: RunsByArm
) -> list[str]:
    """Notices of declared contrasts that are not tested on some measure or on none, with the reason."""
    found = []
    for pair in contrasts:
        tested = {
            task["task"]
            for task in tasks
            for one in task["contrasts"]
            if (one["arm"], one["other"]) == pair and one["p"] is not None
        }
        without = [task for task in tasks if task["task"] not in tested]
        missing = [task["task"] for task in without]
        if tasks and not missing:
            continue
        on = "" if not tested else f" on {join_words([task_title(task) for task in without])}"
        found.append(
            f"The declared contrast of “{pair[0]}” and “{pair[1]}” is not tested{on}: "
            f"{_why_not_tested(pair, missing, gathered, compared)}."
        )
    return found


def _why_not_tested(
    pair: Pair, missing: Sequence[str], gathered: Gathered, compared: RunsByArm
) -> str:
    """The reason that a contrast has no p value on the tasks that are missing."""
    involved = (*pair, gathered.baseline)
    for name in involved:
        if name not in compared:
            runs = gathered.arm(name).runs
            return f"no run of “{name}” is {'left to compare' if runs else 'complete'}"
    shared = set.intersection(*(set(compared[name]) for name in involved))
    if len(shared) < 2:
        has = "no seed" if not shared else f"only seed {shared.pop()}"
        return f"{has} is complete in all arms, and a test needs two"
    unlike = set() if gathered.losses_compare else LOSSES.keys() & set(missing)
    reasons = ["validation did not ask all runs the same"] if unlike else []
    if set(missing) - unlike or not missing:
        reasons.append("its results are there for fewer than two seeds that all arms share")
    return ", and ".join(reasons)


def _loss_task(
    task: str,
    loss: Loss,
    baseline: str,
    contrasts: Sequence[Pair],
    losses_compare: bool,
) -> Numbers:
    """A loss of validation as a task: a sample of pre-training seeds and, where the losses of rows were kept,
    of held-out rows.
    """
    losses, predicted = loss.values, loss.predictions
    results: dict[str, Results] = {
        arm: {
            (seed, 0): {"loss": np.array([value]) if loss.rows is None else loss.rows[arm][seed]}
            for seed, value in own.items()
        }
        for arm, own in losses.items()
    }
    covers = ["pre-training seeds", *(["held-out rows"] if loss.rows is not None else [])]
    arms, tested = _numbers_of_arms(results, baseline, contrasts, "loss", task)
    for name, numbers in arms.items():
        several = len(losses[name]) > 1
        numbers["covers"] = covers if several else []
        if not several:
            numbers |= {key: None for key in numbers if key.endswith(("low", "high"))}
            numbers["p"] = None
        if not losses_compare and name != baseline:
            numbers |= {"difference_low": None, "difference_high": None, "p": None}
    if not losses_compare or any(len(own) < 2 for own in losses.values()):
        tested = []  # no interval: nothing is said of a contrast
    return {
        "task": task,
        "family": "intrinsic",
        "metric": "loss",
        "unit": "nats",
        "higher_is_better": False,
        "seeds": sorted(losses[baseline]),
        "task_seeds": [],
        "num_examples": {"held-out predictions": int(predicted)} if predicted == predicted else {},
        "arms": arms,
        "contrasts": tested,
    }


def _task(results: TaskResults, baseline: str, contrasts: Sequence[Pair]) -> Numbers:
    """One task's numbers of every arm."""
    order = [baseline, *(name for name in results.arms if name != baseline)]
    any_result = next(iter(results.arms[baseline].values()))
    sets: dict[str, Results] = {
        name: {pair: result.examples for pair, result in results.arms[name].items()}
        for name in order
    }
    pairs = sorted(results.arms[baseline])
    arms, tested = _numbers_of_arms(sets, baseline, contrasts, any_result.primary, results.task)
    return {
        "task": results.task,
        "title": any_result.title,
        "family": any_result.family,
        "trains_model": any_result.trains_model,
        "metric": any_result.primary,
        "unit": any_result.unit,
        "higher_is_better": any_result.higher_is_better,
        "seeds": sorted({seed for seed, _ in pairs}),
        "task_seeds": sorted({seed for _, seed in pairs}),
        "num_examples": dict(any_result.num_examples),
        "recipe": dict(any_result.recipe),
        "data_sha256": any_result.data_sha256,
        "arms": arms,
        "contrasts": tested,
        "other_metrics": {
            name: _other_metrics(list(results.arms[name].values())) for name in order
        },
    }


def _numbers_of_arms(
    sets: Mapping[str, Results], baseline: str, contrasts: Sequence[Pair], metric: str, task: str
) -> tuple[dict[str, Numbers], list[Numbers]]:
    """Every arm's numbers, and the declared contrasts of arms that are there.

    Differences have no interval, and contrasts are left out, where arms do not have the same seeds.
    """
    key = zlib.crc32(task.encode())
    tested: list[Numbers] = []
    if all(set(results) == set(sets[baseline]) for results in sets.values()):
        there = [pair for pair in contrasts if set(pair) <= set(sets)]
        found, differences = compare_pairs(sets, baseline, there, metric, key=key)
        tested = [_contrast(pair, difference) for pair, difference in differences.items()]
    else:
        found = {}
        for name, results in sets.items():
            found |= compare({name: results}, None, metric, key=key)
    arms = {name: _numbers(found[name], results, metric) for name, results in sets.items()}
    for name, numbers in arms.items():
        if name != baseline and "difference" not in numbers:
            gap = numbers["mean"] - arms[baseline]["mean"]
            numbers |= {"difference": gap, "difference_low": None, "difference_high": None}
            numbers["p"] = None
    return arms, tested


def _contrast(pair: Pair, found: Difference) -> Numbers:
    """A declared contrast; ``detectable``: the smallest true difference that these seeds would have shown
    in four studies of five by itself; :func:`_correct` adds ``detectable_holm``, as a first one corrected.
    Both are None where nothing scatters, as where every model gives the same answer to all examples.
    """
    spread = mean_and_spread(found.units)[1] if found.p_value is not None else None
    detectable = None
    if spread is not None and (spread > 0 or found.examples_spread > 0):
        of_examples = found.examples_spread
        detectable = smallest_difference(spread, len(found.units), examples_spread=of_examples)
    return {
        "arm": pair[0],
        "other": pair[1],
        "difference": found.interval.estimate,
        "difference_low": found.interval.low,
        "difference_high": found.interval.high,
        "p": found.p_value,
        "by_unit": list(found.units),
        "spread": spread,
        "examples_spread": found.examples_spread,
        "detectable": detectable,
    }


def _numbers(found: Comparison, results: Results, metric: str) -> Numbers:
    """An arm's numbers of one task; ``spread`` is over the means of pre-training seeds."""
    by_seed: dict[int, list[float]] = {}
    for (seed, _), examples in sorted(results.items()):
        by_seed.setdefault(seed, []).append(metric_of(metric, examples))
    means = {seed: float(np.mean(values)) for seed, values in by_seed.items()}
    numbers: Numbers = {
        "mean": found.own.estimate,
        "spread": mean_and_spread(means.values())[1],
        "low": found.own.low,
        "high": found.own.high,
        "covers": list(found.own.covers),
        "by_seed": {str(seed): values for seed, values in by_seed.items()},
    }
    if found.difference is not None:
        numbers |= {
            "difference": found.difference.estimate,
            "difference_low": found.difference.low,
            "difference_high": found.difference.high,
            "p": found.p_value,
            "examples_spread": found.examples_spread,
        }
    return numbers


def _other_metrics(results: Sequence[Any]) -> dict[str, float]:
    return {
        metric: mean_and_spread(result.metrics[metric] for result in results)[0]
        for metric in results[0].metrics
        if metric != results[0].primary
    }


def _correct(tasks: Sequence[Numbers], *, declared: int) -> None:
    """Put Holm's adjusted p beside every p that is tested: over the ``declared`` contrasts, or, where there
    are none, over all arms; of the headline by itself, and of all other measures together.

    A contrast that cannot be tested, as where a run is missing, counts among the declared ones all the same.
    """
    for family in families(tasks):
        by_task = [
            [
                numbers
                for numbers in (task["contrasts"] if declared else task["arms"].values())
                if numbers.get("p") is not None
            ]
            for task in family
        ]
        tested = [numbers for own in by_task for numbers in own]
        tests = declared * sum(map(bool, by_task)) or len(tested)
        for numbers, adjusted in zip(tested, holm([n["p"] for n in tested], tests), strict=True):
            numbers["p_holm"] = adjusted
            if declared:
                numbers["detectable_holm"] = numbers["detectable"] and smallest_difference(
                    numbers["spread"],
                    len(numbers["by_unit"]),
                    examples_spread=numbers["examples_spread"],
                    alpha=0.05 / tests,
                )


def _arm(arm: ArmRuns, cost: Cost | None) -> Numbers:
    """An arm's config and what its runs came to and spent, as means over its seeds."""
    values: Numbers = {
        "name": arm.name,
        "differs": {key: list(pair) for key, pair in arm.differs.items()},
        "equal_labels": arm.equal_labels,
        "masking": dict(arm.masking),
        "runs": [{"seed": seed, "folder": str(run.path)} for seed, run in sorted(arm.runs.items())],
    }
    if not arm.runs:
        return values
    rows = [arm_row(run) for run in arm.runs.values()]
    values |= {"complete": arm.complete, **mean_row(rows)}
    values["tokens_per_second_by_seed"] = [row.tokens_per_second for row in rows]
    if cost is not None:
        spent = (np.array(values[key]) for key in ("steps", "tokens_seen", "masked_tokens"))
        values["flops"] = float(cost.flops(*spent))
    values["parameters"] = next(iter(arm.runs.values())).total("parameters")
    return values


def _data(data: PreparedData) -> Numbers:
    """What the data is, for people."""
    return {
        "fingerprint": data.fingerprint,
        "row_length": data.row_length,
        "rows": data.split("train").num_rows,
        "statistics": {k: v for k, v in data.statistics.items() if k != "sources"},
    }


def _plain(value: Any) -> Any:
    """JSON's own values; what is no number is null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [_plain(item) for item in value]
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    return int(value) if isinstance(value, np.integer) else value
