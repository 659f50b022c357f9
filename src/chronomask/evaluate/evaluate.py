"""Evaluating a model: every task is checked before any runs, every result is written when it is there.

An evaluation that was interrupted goes on where it stopped: results that are there already, of the same
weights, data and recipe, are kept.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from chronomask.errors import ChronomaskError, DataError, UsageError
from chronomask.evaluate.subject import Subject
from chronomask.evaluate.task import Identified, Task
from chronomask.runs.result import TaskResult

__all__ = ["default_out", "evaluate", "results_table"]


def evaluate(
    model: Subject,
    tasks: Sequence[Task],
    data: Path,
    seeds: Iterable[int],
    out: Path,
    *,
    force: bool = False,
    progress: bool = True,
) -> list[TaskResult]:
    """Results of every task with every seed, those that were in ``out`` already included.

    Raises UsageError or DataError, naming everything that is wrong, before any work; UsageError for
    results in ``out`` of another model, data or recipe, unless ``force`` replaces them.
    """
    wanted = list(_units(tasks, seeds))
    _check(model, tasks, data)
    there = {} if force else _kept(model, tasks, data, wanted, out)
    results = []
    for number, (task, seed) in enumerate(wanted, 1):
        result = there.get((task.name, seed))
        kept = result is not None
        if result is None:
            result = task.run(model, data, seed, progress)
            result.save(out)
        results.append(result)
        if progress:
            done = "was there" if kept else f"{result.seconds:.0f} s"
            scores = "  ".join(f"{name} {value:.4f}" for name, value in result.metrics.items())
            line = f"[{number}/{len(wanted)}] {task.name} seed {seed}: {scores}  ({done})"
            print(line, file=sys.stderr, flush=True)
    return results


def default_out(model: Subject) -> Path:
    """``<run>/results/step-…`` for a checkpoint of a run, ``results/<model name>`` otherwise."""
    if model.run is not None:
        return model.run / "results" / f"step-{model.step or 0:08d}"
    return Path("results") / Path(model.name).resolve().name


def results_table(results: Sequence[TaskResult]) -> str:
    """Mean and, where there are several seeds, standard deviation of every metric, as text."""
    by_task: dict[str, list[TaskResult]] = {}
    for result in results:
        by_task.setdefault(result.task, []).append(result)
    lines = []
    for task, of_task in by_task.items():
        for metric in of_task[0].metrics:
            values = [result.metrics[metric] for result in of_task]
            mean = sum(values) / len(values)
            spread = ""
            if len(values) > 1:
                variance = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
                spread = f" ± {variance**0.5:.4f}"
            seeds = f"{len(values)} seeds" if len(values) > 1 else "1 run"
            lines.append((task, metric, f"{mean:.4f}{spread}", seeds))
    widths = [max(len(line[k]) for line in lines) for k in range(4)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def _units(tasks: Sequence[Task], seeds: Iterable[int]) -> Iterator[tuple[Task, int]]:
    """Each task with each seed; what draws nothing once."""
    seeds = list(seeds)
    for task in tasks:
        for seed in seeds if task.draws else [0]:
            yield task, seed


def _check(model: Subject, tasks: Sequence[Task], data: Path) -> None:
    """Check all tasks; raises one error that names the problem of each."""
    problems: dict[str, ChronomaskError] = {}
    for task in tasks:
        try:
            task.check(model, data)
        except (UsageError, DataError) as error:
            problems[task.name] = error
    if not problems:
        return
    fine = [task.name for task in tasks if task.name not in problems]
    told = "; ".join(f"{name}: {_without_name(name, error)}" for name, error in problems.items())
    way_out = f". Nothing is wrong with: --tasks {','.join(fine)}" if fine else ""
    kind = UsageError if any(isinstance(e, UsageError) for e in problems.values()) else DataError
    raise kind(told + way_out)


def _without_name(name: str, error: ChronomaskError) -> str:
    return str(error).removeprefix(f"{name}: ")


def _kept(
    model: Subject, tasks: Sequence[Task], data: Path, wanted: Sequence[tuple[Task, int]], out: Path
) -> dict[tuple[str, int], TaskResult]:
    """Results that are there and are what would be made; raises UsageError for others."""
    there = {}
    digests: dict[str, str] = {}
    for task, seed in wanted:
        path = TaskResult.path_in(out, task.name, seed)
        if not path.is_file():
            continue
        result = TaskResult.load(path)
        differing = [] if result.model_sha256 == model.sha256 else ["weights"]
        if isinstance(task, Identified):
            if task.name not in digests:
                digests[task.name] = task.data_sha256(data)
            if result.data_sha256 != digests[task.name]:
                differing.append("data")
            differing += _changed(result.recipe, task.recipe)
        if differing:
            raise UsageError(
                f"{path} is there already, made with other {', '.join(differing)} (of {result.model}): "
                "choose another --out, or replace it with --force"
            )
        there[task.name, seed] = result
    return there


def _changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Names of the settings that differ, compared as the result file would hold them."""
    now = json.loads(json.dumps(dict(now)))
    keys = sorted(before.keys() | now.keys())
    return [f"recipe.{key}" for key in keys if before.get(key) != now.get(key)]
