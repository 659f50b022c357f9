"""What a study's folder holds for a comparison, and what may not be compared.

Runs and results enter only if they can stand side by side: one version of everything, one data set, one
recipe a task, one start a seed. What is not there yet is said, and the rest is compared on the seeds
that all arms have.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from chronomask.errors import DataError, RunError
from chronomask.runs.read import Run, read_run
from chronomask.runs.result import TaskResult
from chronomask.study.units import Study, Unit, steps_of
from chronomask.study.work import check_shared_start

__all__ = ["Collected", "Pair", "TaskResults", "collect"]

Pair = tuple[int, int]
"""(pre-training seed, fine-tuning seed)"""


@dataclass(frozen=True, slots=True)
class TaskResults:
    """A task's results of one checkpoint step: arm → seeds → result; the same seeds for every arm."""

    task: str
    step: int | None
    """None: each arm's last"""
    arms: dict[str, dict[Pair, TaskResult]]


@dataclass(frozen=True, slots=True)
class Collected:
    """Complete runs by arm and seed, and results."""

    runs: dict[str, dict[int, Run]]
    final: list[TaskResults]
    curves: list[TaskResults]
    notices: list[str] = field(default_factory=list)


def collect(study: Study) -> Collected:
    """Read everything that is complete. Raises DataError or RunError for what cannot be compared."""
    runs: dict[str, dict[int, Run]] = {arm: {} for arm in study.arms}
    open_runs = []
    for unit in study.units:
        if unit.kind == "pretrain":
            if study.is_complete(unit):
                runs[unit.arm][unit.seed] = read_run(study.run_folder(unit.arm, unit.seed))
            else:
                open_runs.append(unit)
    if not any(runs.values()):
        raise RunError(f"no run of {study.folder} is complete: there is nothing to compare yet")
    for seed in study.config.seeds:
        check_shared_start(study, seed)
    everything = [run for by_seed in runs.values() for run in by_seed.values()]
    _check_runs(everything)
    notices = []
    if open_runs:
        notices.append(
            f"{len(open_runs)} of {len(open_runs) + len(everything)} runs are not complete and left out."
        )
    found, missing = _results(study, runs)
    if missing:
        notices.append(
            f"{missing} results are not there yet; tasks are compared on the seeds that all arms have."
        )
    final, curves = [], []
    for name in study.tasks:
        of_task = [results for (task, _), results in found.items() if task == name]
        _check_results(name, [r for arms in of_task for by in arms.values() for r in by.values()])
        for (task, step), arms in found.items():
            common = _common(arms, study.config.baseline) if task == name else {}
            if common:
                (final if step is None else curves).append(TaskResults(task, step, common))
    return Collected(runs, final, curves, notices)


def _results(
    study: Study, runs: dict[str, dict[int, Run]]
) -> tuple[dict[tuple[str, int | None], dict[str, dict[Pair, TaskResult]]], int]:
    """(task, step, or None for the last) → arm → seeds → result; and how many are missing."""
    found: dict[tuple[str, int | None], dict[str, dict[Pair, TaskResult]]] = {}
    missing = 0
    for unit in study.units:
        if unit.kind != "evaluate":
            continue
        if unit.seed not in runs[unit.arm] or not study.is_complete(unit):
            missing += 1
            continue
        result = TaskResult.load(
            TaskResult.path_in(study.results_folder(unit), unit.task, unit.task_seed)
        )
        for step in _places(study, unit):
            by_arm = found.setdefault((unit.task, step), {})
            by_arm.setdefault(unit.arm, {})[unit.seed, unit.task_seed] = result
    return found, missing


def _places(study: Study, unit: Unit) -> Iterable[int | None]:
    """Where a result belongs: to the curve, to the final comparison, or to both."""
    last = unit.step == study.arms[unit.arm].config.steps
    on_curve = len(steps_of(study.config, study.arms[unit.arm], unit.task)) > 1
    return ([unit.step] if on_curve else []) + ([None] if last else [])


def _common(
    arms: dict[str, dict[Pair, TaskResult]], baseline: str
) -> dict[str, dict[Pair, TaskResult]]:
    """The arms on the seeds that all have, whole pre-training seeds alone; empty if there are none."""
    if baseline not in arms:
        return {}
    full = max(_task_seeds(by).__len__() for by in arms.values())

    def whole(by: dict[Pair, TaskResult]) -> set[int]:
        seeds = {seed for seed, _ in by}
        return {seed for seed in seeds if sum(own == seed for own, _ in by) == full}

    kept = {name: whole(by) for name, by in arms.items()}
    kept = {name: seeds for name, seeds in kept.items() if seeds & kept[baseline]}
    if not kept:
        return {}
    common = set.intersection(*kept.values())
    return {
        name: {pair: result for pair, result in arms[name].items() if pair[0] in common}
        for name in kept
        if common
    }


def _task_seeds(by: dict[Pair, TaskResult]) -> set[int]:
    return {task_seed for _, task_seed in by}


def _check_runs(runs: list[Run]) -> None:
    """Refuse runs of several versions or data sets."""
    _same([(str(run.path), run.environment.get("versions")) for run in runs], "versions")
    fingerprints = [(str(run.path), (run.summary or {}).get("data_fingerprint")) for run in runs]
    _same(fingerprints, "prepared data")


def _check_results(task: str, results: list[TaskResult]) -> None:
    """Refuse results of one task that were not made alike."""
    for what in ("versions", "data_sha256", "recipe", "primary", "num_examples"):
        _same([(f"{r.model}, seed {r.seed}", getattr(r, what)) for r in results], what, task)


def _same(values: list[tuple[str, Any]], what: str, task: str | None = None) -> None:
    """Raise DataError unless all values are equal."""
    if not values:
        return
    first, expected = values[0]
    for name, value in values[1:]:
        if _text(value) != _text(expected):
            subject = f"results of task '{task}'" if task else "runs"
            raise DataError(
                f"{subject} of different {what} cannot be compared: {_differing(expected, value)} "
                f"({first} against {name}). Remove those made otherwise and make them again"
            )


def _differing(left: Any, right: Any) -> str:
    if isinstance(left, dict) and isinstance(right, dict):
        keys = [key for key in left.keys() | right.keys() if left.get(key) != right.get(key)]
        return "; ".join(f"{k} is {left.get(k)!r} and {right.get(k)!r}" for k in sorted(keys))
    return f"{left!r} and {right!r}"


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)
