"""Every number of a report: arms beside their baseline, with intervals, as one object of plain values.

Per task and arm: mean, spread, interval, paired difference from the baseline, permutation p and Holm's
correction over all arms and tasks together. Per arm: what it is and spent, and what reaching the baseline's
final quality cost. Curves over seeds. A study keeps the object as ``comparison.json``, which docs/studies.md
describes; a report of other runs is made from it at once.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from chronomask import __version__
from chronomask.report.arms import arm_row, mean_row
from chronomask.report.comparison import AXIS_NAMES, FILE, LOSS, SCHEMA_VERSION, flatten
from chronomask.runs.layout import MODEL
from chronomask.runs.read import Run
from chronomask.storage import write_json
from chronomask.study.gather import ArmRuns, Gathered, TaskResults, from_runs, from_study
from chronomask.study.statistics import (
    Comparison,
    Results,
    compare,
    holm,
    mean_and_spread,
    mean_intervals,
    metric_of,
    reach_interval,
    smallest_p,
    value_to_reach,
)
from chronomask.study.units import START_KEYS, Study

if TYPE_CHECKING:
    from chronomask.data.folder import PreparedData

__all__ = ["compare_runs", "compare_study"]

Numbers = dict[str, Any]
Costs = Mapping[str, "Cost"]


def compare_study(study: Study) -> Path:
    """Write ``comparison.json`` into the study's folder. Raises as :func:`gather.from_study` does."""
    from chronomask.data.folder import PreparedData

    gathered = from_study(study)
    data = PreparedData.open(study.data)
    costs = {arm.name: Cost.of(arm, data.row_length) for arm in gathered.arms if arm.runs}
    values = _compare_arms(gathered, study.config.name, costs)
    values |= {
        "seeds": list(study.config.seeds),
        "task_seeds": list(study.config.task_seeds),
        "shared_start": True,  # or from_study had refused
        "data": _data(data),
        "versions": _versions(gathered),
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
    values = _compare_arms(gathered, title, {})
    values |= {
        "seeds": sorted({seed for arm in gathered.arms for seed in arm.runs}),
        "task_seeds": sorted(
            {pair[1] for task in gathered.final for by in task.arms.values() for pair in by}
        ),
        "shared_start": _share_start(gathered),
        "data": {"fingerprint": ", ".join(filter(None, dict.fromkeys(fingerprints)))},
        "versions": _environments(gathered.runs),
    }
    return _plain(values), {arm.name: list(arm.runs.values()) for arm in gathered.arms}


class Cost:
    """The operations of one architecture on rows of one length.

    Operations are those of :mod:`chronomask.model.flops`: 6 × matrix entries × tokens, the head for
    predicted tokens alone, and 12 × layers × width × pairs for attention, with every token seeing its whole
    row (an upper bound where documents are kept apart; the same for all arms).
    """

    def __init__(self, model: Path, row_length: int) -> None:
        import torch
        from transformers import AutoConfig, AutoModelForMaskedLM

        from chronomask.model.flops import count_flops

        config = AutoConfig.from_pretrained(model, local_files_only=True, trust_remote_code=False)
        with torch.device("meta"):
            flops = count_flops(AutoModelForMaskedLM.from_config(config))
        self._per_token = flops.per_token + flops.of_attention(np.array([row_length])) / row_length
        self._per_prediction = flops.per_prediction

    @classmethod
    def of(cls, arm: ArmRuns, row_length: int) -> Cost:
        """That of an arm with complete runs."""
        run = next(iter(arm.runs.values()))
        assert run.summary is not None
        return cls(run.path / run.summary["checkpoint"] / MODEL, row_length)

    def flops(self, tokens: np.ndarray, predicted: np.ndarray) -> np.ndarray:
        """Floating-point operations of training on so many tokens, so many of them predicted."""
        return self._per_token * tokens + self._per_prediction * predicted


def _compare_arms(gathered: Gathered, title: str, costs: Costs) -> Numbers:
    """What a study and other runs have in common."""
    baseline = gathered.baseline
    compared = _runs_to_compare(gathered)
    curves = _curves(gathered, compared, costs)
    tasks = [_loss_task(compared, baseline)] if compared else []
    tasks += [_task(results, baseline) for results in gathered.final]
    _correct(tasks)
    return {
        "schema_version": SCHEMA_VERSION,
        "chronomask_version": __version__,
        "name": title,
        "baseline": baseline,
        "seeds": [],
        "task_seeds": [],
        "notices": gathered.notices,
        "arms": [_arm(arm, costs.get(arm.name)) for arm in gathered.arms],
        "tasks": tasks,
        "smallest_p": smallest_p(max((len(task["seeds"]) for task in tasks), default=1)),
        "reach": [_reach(curve, baseline) for curve in curves],
        "curves": curves,
    }


def _runs_to_compare(gathered: Gathered) -> dict[str, dict[int, Run]]:
    """Complete arms on the seeds that all of them validated, the baseline first among them.

    With no seed in common each has its own: then their means are shown, and no difference is paired.
    """
    arms = {}
    for arm in gathered.arms:
        runs = {s: run for s, run in arm.runs.items() if np.isfinite(run.validation["loss"]).any()}
        if runs and arm.complete:
            arms[arm.name] = runs
    if gathered.baseline not in arms:
        return {}
    common = set.intersection(*(set(runs) for runs in arms.values()))
    return {
        name: {seed: runs[seed] for seed in sorted(common or runs)} for name, runs in arms.items()
    }


def _loss_task(runs: Mapping[str, Mapping[int, Run]], baseline: str) -> Numbers:
    """Validation loss as a task whose only sample are the pre-training seeds."""
    results: dict[str, Results] = {
        arm: {
            (seed, 0): {"loss": np.array([run.validation.last("loss")])}
            for seed, run in own.items()
        }
        for arm, own in runs.items()
    }
    arms = _numbers_of_arms(results, baseline, "loss", LOSS)
    seeds = sorted(runs[baseline])
    predicted = runs[baseline][seeds[0]].validation.last("num_predicted")
    for name, numbers in arms.items():
        several = len(runs[name]) > 1
        numbers["covers"] = ["pre-training seeds"] if several else []
        if not several:
            numbers |= {key: None for key in numbers if key.endswith(("low", "high"))}
            numbers["p"] = None
    return {
        "task": LOSS,
        "family": "intrinsic",
        "metric": "loss",
        "higher_is_better": False,
        "seeds": seeds,
        "task_seeds": [],
        "num_examples": {"held-out predictions": int(predicted)} if predicted == predicted else {},
        "arms": arms,
    }


def _task(results: TaskResults, baseline: str) -> Numbers:
    """One task's numbers of every arm."""
    order = [baseline, *(name for name in results.arms if name != baseline)]
    any_result = next(iter(results.arms[baseline].values()))
    sets: dict[str, Results] = {
        name: {pair: result.examples for pair, result in results.arms[name].items()}
        for name in order
    }
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
        "arms": _numbers_of_arms(sets, baseline, any_result.primary, results.task),
        "other_metrics": {
            name: _other_metrics(list(results.arms[name].values())) for name in order
        },
    }


def _numbers_of_arms(
    sets: Mapping[str, Results], baseline: str, metric: str, task: str
) -> dict[str, Numbers]:
    """Every arm's numbers; differences without interval where arms do not have the same seeds."""
    key = zlib.crc32(task.encode())
    if all(set(results) == set(sets[baseline]) for results in sets.values()):
        found = compare(sets, baseline, metric, key=key)
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
    return arms


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
        }
    return numbers


def _other_metrics(results: Sequence[Any]) -> dict[str, float]:
    return {
        metric: mean_and_spread(result.metrics[metric] for result in results)[0]
        for metric in results[0].metrics
        if metric != results[0].primary
    }


def _correct(tasks: Sequence[Numbers]) -> None:
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
    gathered: Gathered, compared: Mapping[str, Mapping[int, Run]], costs: Costs
) -> list[Numbers]:
    """Validation loss over training, and each task that several checkpoints were evaluated on."""
    shown = {arm.name: compared.get(arm.name, arm.runs) for arm in gathered.arms}
    loss = _loss_curve(shown, costs)
    tasks = dict.fromkeys(results.task for results in gathered.curves)
    curves = [*([loss] if loss["arms"] else []), *(_task_curve(t, gathered, costs) for t in tasks)]
    for curve in curves:
        _add_differences(curve, gathered.baseline)
    return curves


def _loss_curve(runs: Mapping[str, Mapping[int, Run]], costs: Costs) -> Numbers:
    """The validations of each arm, at the steps of its first seed."""
    arms, ratios = {}, set()
    for name, by_seed in runs.items():
        lines = {seed: run.validation for seed, run in by_seed.items() if len(run.validation)}
        finite = {seed: np.isfinite(line["loss"]) for seed, line in lines.items()}
        lines = {seed: line for seed, line in lines.items() if finite[seed].any()}
        if not lines:
            continue
        first = next(iter(lines))
        steps = lines[first]["step"][finite[first]]
        values, accuracies = (
            {
                seed: np.interp(steps, line["step"][finite[seed]], line[key][finite[seed]])
                for seed, line in lines.items()
            }
            for key in ("loss", "accuracy")
        )
        arms[name] = _curve({s: by_seed[s] for s in lines}, costs.get(name), steps, values)
        for seed in lines:
            arms[name]["by_seed"][str(seed)]["accuracy"] = accuracies[seed]
        arms[name]["accuracy"] = np.mean(list(accuracies.values()), axis=0)
        ratios |= {float(r) for line in lines.values() for r in line["masking_ratio"] if r == r}
    return {
        "quantity": LOSS,
        "family": "intrinsic",
        "metric": "loss",
        "higher_is_better": False,
        "masking_ratios": sorted(ratios),
        "arms": arms,
    }


def _task_curve(task: str, gathered: Gathered, costs: Costs) -> Numbers:
    """A task at the checkpoints that all seeds of an arm have, as means over fine-tuning seeds."""
    by_arm: dict[str, dict[int, dict[int, float]]] = {}
    primary, higher, family = "", True, ""
    for results in gathered.curves:
        if results.task != task:
            continue
        assert results.step is not None  # those are the final ones
        for name, by_pair in results.arms.items():
            for (seed, _), result in by_pair.items():
                primary, higher, family = result.primary, result.higher_is_better, result.family
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
        "family": family,
        "metric": primary,
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
        spent["flops"] = cost.flops(spent["tokens_seen"], spent["masked_tokens"])
    return {axis: spent[axis] for axis in AXIS_NAMES if axis in spent}


def _add_differences(curve: Numbers, baseline: str) -> None:
    """Put beside every arm how far it is from the baseline at the steps and seeds that both have."""
    theirs = curve["arms"].get(baseline)
    for own in curve["arms"].values() if theirs else ():
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


def _reach(curve: Numbers, baseline: str) -> Numbers:
    """What it cost each arm to be as good as the baseline ended, seed by seed.

    Found in steps; what an arm had spent at a step is the mean over its seeds. None: not reached.
    """
    theirs = curve["arms"].get(baseline)
    arms: Numbers = {}
    for name, own in curve["arms"].items() if theirs else ():
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
    return {"quantity": curve["quantity"], "metric": curve["metric"], "arms": arms}


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
        tokens, predicted = (np.array(values[key]) for key in ("tokens_seen", "masked_tokens"))
        values["flops"] = float(cost.flops(tokens, predicted))
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


def _versions(gathered: Gathered) -> Numbers:
    """Versions and machine of a study, whose runs all have the same versions."""
    found: Numbers = {}
    for run in gathered.runs:
        found |= run.environment.get("versions", {})
        for key in ("platform", "processor", "device", "device_name", "threads"):
            found.setdefault(key, run.environment.get(key))
    for results in gathered.final:
        for by_pair in results.arms.values():
            for result in by_pair.values():
                found |= result.versions
    return {key: value for key, value in found.items() if value is not None}


def _share_start(gathered: Gathered) -> bool:
    """Whether runs of a seed began with the same weights on the same data, as they noted it."""
    starts: dict[int, set[tuple[str | None, ...]]] = {}
    for arm in gathered.arms:
        for seed, run in arm.runs.items():
            noted = tuple(run.environment.get(key) for key in START_KEYS)
            starts.setdefault(seed, set()).add(noted)
    return all(len(found) == 1 and None not in found.copy().pop() for found in starts.values())


def _environments(runs: Sequence[Run]) -> dict[str, str]:
    """What runs noted of versions and machines; values that differ between them are all listed."""
    flat = [dict(flatten(run.environment)) for run in runs]
    keys = dict.fromkeys(key for values in flat for key in values)
    return {
        key: " | ".join(dict.fromkeys(values[key] for values in flat if key in values))
        for key in keys
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
