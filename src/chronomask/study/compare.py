"""``comparison.json``: every number of a study that its report shows, with its interval.

Per task and arm: mean, spread, interval, paired difference from the baseline, permutation p and Holm's
correction over all arms and tasks of the study together. Per arm: what reaching the baseline's final
quality cost. Curves over seeds. docs/studies.md describes the file.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from chronomask import __version__
from chronomask.data.folder import PreparedData
from chronomask.report.tables import arm_row
from chronomask.runs.read import Run
from chronomask.storage import write_text
from chronomask.study.collect import Collected, TaskResults, collect
from chronomask.study.cost import AXES, Cost, spent
from chronomask.study.statistics import (
    Comparison,
    Results,
    compare,
    holm,
    mean_and_spread,
    metric_of,
    reach_interval,
    smallest_p,
    value_to_reach,
)
from chronomask.study.units import Study

__all__ = ["SCHEMA_VERSION", "compare_study"]

SCHEMA_VERSION = 1
LOSS = "validation_loss"


def compare_study(study: Study) -> Path:
    """Write ``comparison.json`` into the study's folder. Raises as :func:`collect` does."""
    collected = collect(study)
    data = PreparedData.open(study.data)
    seeded = _complete_seeds(collected, study)
    costs = {arm: _cost(runs, data.row_length) for arm, runs in collected.runs.items() if runs}
    curves = _curves(collected, seeded, costs)
    tasks = [_loss_task(seeded)] if seeded else []
    tasks += [_task(results, study.config.baseline) for results in collected.final]
    _correct(tasks)
    values = {
        "schema_version": SCHEMA_VERSION,
        "chronomask_version": __version__,
        "name": study.config.name,
        "baseline": study.config.baseline,
        "seeds": list(study.config.seeds),
        "task_seeds": list(study.config.task_seeds),
        "notices": [*collected.notices, *_devices(collected)],
        "arms": [_arm(study, name, collected, costs) for name in study.arms],
        "tasks": tasks,
        "smallest_p": smallest_p(max((len(task["seeds"]) for task in tasks), default=1)),
        "reach": [_reach(curve, study.config.baseline) for curve in curves],
        "curves": curves,
        "data": _data(data),
        "versions": _versions(collected),
    }
    path = study.folder / "comparison.json"
    write_text(
        path, json.dumps(_plain(values), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    )
    return path


def _complete_seeds(collected: Collected, study: Study) -> dict[str, dict[int, Run]]:
    """Arms on the seeds that all of them completed and validated, the baseline first among them."""
    validated = {
        arm: {seed: run for seed, run in runs.items() if np.isfinite(run.validation["loss"]).any()}
        for arm, runs in collected.runs.items()
    }
    arms = {arm: runs for arm, runs in validated.items() if runs}
    if study.config.baseline not in arms:
        return {}
    common = set.intersection(*(set(runs) for runs in arms.values()))
    return {
        arm: {seed: runs[seed] for seed in sorted(common)} for arm, runs in arms.items() if common
    }


def _loss_task(runs: Mapping[str, Mapping[int, Run]]) -> dict[str, Any]:
    """Validation loss as a task whose only sample are the pre-training seeds."""
    baseline = next(iter(runs))
    results = {
        arm: {
            (seed, 0): {"loss": np.array([run.validation.last("loss")])}
            for seed, run in own.items()
        }
        for arm, own in runs.items()
    }
    found = compare(results, baseline, "loss", key=zlib.crc32(LOSS.encode()))
    arms = {name: _numbers(found[name], results[name], "loss") for name in results}
    seeds = sorted(runs[baseline])
    predicted = int(runs[baseline][seeds[0]].validation.last("num_predicted"))
    for numbers in arms.values():
        numbers["covers"] = ["pre-training seeds"] if len(seeds) > 1 else []
        if len(seeds) == 1:
            numbers |= {key: None for key in numbers if key.endswith(("low", "high"))}
            numbers["p"] = None
    return {
        "task": LOSS,
        "family": "intrinsic",
        "metric": "loss",
        "higher_is_better": False,
        "seeds": seeds,
        "task_seeds": [],
        "num_examples": {"held-out predictions": predicted},
        "arms": arms,
    }


def _task(results: TaskResults, baseline: str) -> dict[str, Any]:
    """One task's numbers of every arm."""
    order = [baseline, *(name for name in results.arms if name != baseline)]
    any_result = next(iter(results.arms[baseline].values()))
    sets: dict[str, Results] = {
        name: {pair: result.examples for pair, result in results.arms[name].items()}
        for name in order
    }
    found = compare(sets, baseline, any_result.primary, key=zlib.crc32(results.task.encode()))
    pairs = sorted(results.arms[baseline])
    return {
        "task": results.task,
        "family": any_result.family,
        "metric": any_result.primary,
        "higher_is_better": any_result.higher_is_better,
        "seeds": sorted({seed for seed, _ in pairs}),
        "task_seeds": sorted({seed for _, seed in pairs}),
        "num_examples": dict(any_result.num_examples),
        "recipe": dict(any_result.recipe),
        "data_sha256": any_result.data_sha256,
        "arms": {name: _numbers(found[name], sets[name], any_result.primary) for name in order},
        "other_metrics": {
            name: _other_metrics(list(results.arms[name].values())) for name in order
        },
    }


def _numbers(found: Comparison, results: Results, metric: str) -> dict[str, Any]:
    """An arm's numbers of one task; ``spread`` is over the means of pre-training seeds."""
    by_seed: dict[int, list[float]] = {}
    for (seed, _), examples in sorted(results.items()):
        by_seed.setdefault(seed, []).append(metric_of(metric, examples))
    means = {seed: float(np.mean(values)) for seed, values in by_seed.items()}
    numbers: dict[str, Any] = {
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
        }
    return numbers


def _other_metrics(results: Sequence[Any]) -> dict[str, float]:
    return {
        metric: mean_and_spread(result.metrics[metric] for result in results)[0]
        for metric in results[0].metrics
        if metric != results[0].primary
    }


def _correct(tasks: list[dict[str, Any]]) -> None:
    """Put Holm's adjusted p beside every p, over all tasks and arms together."""
    tested = [
        numbers
        for task in tasks
        for numbers in task["arms"].values()
        if numbers.get("p") is not None
    ]
    for numbers, adjusted in zip(tested, holm([n["p"] for n in tested]), strict=True):
        numbers["p_holm"] = adjusted


def _curves(
    collected: Collected, runs: Mapping[str, Mapping[int, Run]], costs: Mapping[str, Cost]
) -> list[dict[str, Any]]:
    """Validation loss over training, and each task that was asked of several checkpoints."""
    found = []
    if runs:
        arms = {}
        for name, by_seed in runs.items():
            steps = next(iter(by_seed.values())).validation["step"]
            values = {
                seed: np.interp(steps, run.validation["step"], run.validation["loss"])
                for seed, run in by_seed.items()
            }
            arms[name] = _curve(by_seed, costs[name], steps, values)
        found.append({"quantity": LOSS, "metric": "loss", "higher_is_better": False, "arms": arms})
    tasks = dict.fromkeys(results.task for results in collected.curves)
    return found + [_task_curve(task, collected, costs) for task in tasks]


def _task_curve(task: str, collected: Collected, costs: Mapping[str, Cost]) -> dict[str, Any]:
    at_steps = [results for results in collected.curves if results.task == task]
    by_arm: dict[str, dict[int, dict[int, float]]] = {}
    primary, higher = "", True
    for results in at_steps:
        assert results.step is not None  # those are the final ones
        for name, by_pair in results.arms.items():
            for (seed, _), result in by_pair.items():
                primary, higher = result.primary, result.higher_is_better
                values = [r.metrics[primary] for (own, _), r in by_pair.items() if own == seed]
                by_arm.setdefault(name, {}).setdefault(seed, {})[results.step] = float(
                    np.mean(values)
                )
    arms = {}
    for name, by_seed in by_arm.items():
        common = sorted(set.intersection(*(set(curve) for curve in by_seed.values())))
        values = {seed: np.array([curve[s] for s in common]) for seed, curve in by_seed.items()}
        runs = {seed: collected.runs[name][seed] for seed in by_seed}
        arms[name] = _curve(runs, costs[name], np.array(common, dtype=float), values)
    return {"quantity": task, "metric": primary, "higher_is_better": higher, "arms": arms}


def _curve(
    runs: Mapping[int, Run], cost: Cost, steps: np.ndarray, values: Mapping[int, np.ndarray]
) -> dict[str, Any]:
    """An arm's curve: every axis as the mean over seeds, the values of each seed and their mean."""
    axes = {seed: spent(run, cost, steps) for seed, run in runs.items()}
    stacked = np.stack(list(values.values()))
    return {
        **{axis: np.mean([axes[seed][axis] for seed in runs], axis=0) for axis in AXES},
        "mean": stacked.mean(0),
        "low": stacked.min(0),
        "high": stacked.max(0),
        "by_seed": {
            str(seed): {**{axis: axes[seed][axis] for axis in AXES}, "value": values[seed]}
            for seed in runs
        },
    }


def _reach(curve: Mapping[str, Any], baseline: str) -> dict[str, Any]:
    """What it cost each arm to be as good as the baseline ended, seed by seed.

    Found in steps; what an arm had spent at a step is the mean over its seeds. None: not reached.
    """
    theirs = curve["arms"].get(baseline)
    arms: dict[str, Any] = {}
    for name, own in curve["arms"].items() if theirs else ():
        seeds = [seed for seed in own["by_seed"] if seed in theirs["by_seed"]]
        found = _reached_step(
            {int(seed): (own["step"], own["by_seed"][seed]["value"]) for seed in seeds},
            {int(seed): float(theirs["by_seed"][seed]["value"][-1]) for seed in seeds},
            curve["higher_is_better"],
        )
        arms[name] = {"seeds": len(seeds)}
        for axis in AXES:
            total = float(theirs[axis][-1])
            spent_at = {
                key: None if step is None else float(np.interp(step, own["step"], own[axis]))
                for key, step in found.items()
            }
            shares = {
                key.replace("estimate", "share"): None if value is None else value / total
                for key, value in spent_at.items()
            }
            arms[name][axis] = {
                **spent_at,
                "share": shares["share"],
                **{f"share_{key}": shares[key] for key in ("low", "high") if key in shares},
                "baseline": total,
            }
    return {"quantity": curve["quantity"], "metric": curve["metric"], "arms": arms}


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


def _arm(
    study: Study, name: str, collected: Collected, costs: Mapping[str, Cost]
) -> dict[str, Any]:
    """An arm's config and what its runs spent, as means over its complete seeds."""
    arm, runs = study.arms[name], collected.runs[name]
    values: dict[str, Any] = {
        "name": name,
        "differs": {key: list(pair) for key, pair in arm.differs.items()},
        "equal_labels": arm.equal_labels,
        "masking": arm.config.masking.to_dict(),
        "runs": [
            {"seed": seed, "folder": str(run.path.relative_to(study.folder))}
            for seed, run in sorted(runs.items())
        ],
    }
    if not runs:
        return values
    rows = [arm_row(run) for run in runs.values()]
    for key in (
        "steps", "tokens_seen", "masked_tokens", "seconds", "tokens_per_second",
        "mean_ratio_asked", "mean_ratio_achieved",
    ):  # fmt: skip
        values[key] = float(np.mean([getattr(row, key) for row in rows]))
    values["tokens_per_second_by_seed"] = [row.tokens_per_second for row in rows]
    tokens, predicted = (np.array(values[key]) for key in ("tokens_seen", "masked_tokens"))
    values["flops"] = float(costs[name].flops(tokens, predicted))
    values["parameters"] = next(iter(runs.values())).total("parameters")
    return values


def _cost(runs: Mapping[int, Run], row_length: int) -> Cost:
    run = next(iter(runs.values()))
    assert run.summary is not None  # complete runs alone are compared
    return Cost(run.path / run.summary["checkpoint"] / "transformers", row_length)


def _devices(collected: Collected) -> list[str]:
    """A notice if runs were made on unlike devices: their times do not compare."""
    runs = [run for by_seed in collected.runs.values() for run in by_seed.values()]
    names = {
        str(run.environment.get("device_name") or run.environment.get("processor")) for run in runs
    }
    if len(names) < 2:
        return []
    return [f"Runs were made on {' and '.join(sorted(names))}: do not compare their times."]


def _data(data: PreparedData) -> dict[str, Any]:
    """What the data is, for people."""
    return {
        "fingerprint": data.fingerprint,
        "row_length": data.row_length,
        "rows": data.split("train").num_rows,
        "statistics": {k: v for k, v in data.statistics.items() if k != "sources"},
    }


def _versions(collected: Collected) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for by_seed in collected.runs.values():
        for run in by_seed.values():
            found |= run.environment.get("versions", {})
            for key in ("platform", "processor", "device", "device_name", "threads"):
                found.setdefault(key, run.environment.get(key))
    for results in collected.final:
        for by_pair in results.arms.values():
            for result in by_pair.values():
                found |= result.versions
    return {key: value for key, value in found.items() if value is not None}


def _plain(value: Any) -> Any:
    """JSON's own values; what is no number is null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [_plain(item) for item in value]
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    return int(value) if isinstance(value, np.integer) else value
