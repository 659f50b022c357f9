"""Models side by side: a table of what ``evaluate`` wrote for each, tasks down and models across.

Results are put in one line where they are of the same files and the same recipe; where they are not,
the table says so instead.
"""

from __future__ import annotations

import math
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev

from chronomask.errors import UsageError, printable
from chronomask.folders import what_it_is
from chronomask.report.comparison import ABSENT, mean_text, task_title, unit_of
from chronomask.report.render import csv_text
from chronomask.runs.layout import RunFolder, step_of
from chronomask.runs.result import TaskResult, read_results
from chronomask.storage import as_a_shell_has_it

__all__ = ["ModelTable", "compare"]


@dataclass(frozen=True, slots=True)
class Line:
    """One metric of one task, for each model: the values of its seeds, none where it was not evaluated."""

    task: str
    title: str
    metric: str
    unit: str
    values: tuple[tuple[float, ...], ...]

    def cells(self) -> list[str]:
        """Task, metric with its unit, and of each model the mean ± standard deviation (number of seeds)."""
        told = {"task": self.task, "title": self.title, "metric": self.metric, "unit": self.unit}
        numbers = []
        for own in self.values:
            text = mean_text(told, fmean(own)) if own else ABSENT
            spread = f" ± {mean_text(told, stdev(own))} ({len(own)})" if len(own) > 1 else ""
            numbers.append(text + spread)
        return [task_title(told), unit_of(told), *numbers]


@dataclass(frozen=True, slots=True)
class ModelTable:
    """Models side by side; ``notes`` are sentences on what could not be put there."""

    models: tuple[str, ...]
    lines: tuple[Line, ...]
    notes: tuple[str, ...]

    def __str__(self) -> str:
        """The table with columns of equal width."""
        rows = self._rows()
        widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        ]
        return "\n".join([*lines, *self.notes])

    def markdown(self) -> str:
        """The same as a table of Markdown."""
        rows = [[cell.replace("|", "\\|") for cell in row] for row in self._rows()]
        rows.insert(1, ["---"] * len(rows[0]))
        lines = [f"| {' | '.join(row)} |" for row in rows]
        return "\n".join([*lines, *(f"\n{note}" for note in self.notes)])

    def csv(self) -> str:
        """A row for each model and metric, in the units of the result files, spread empty for one seed."""
        rows = [
            (
                model, line.task, line.metric, line.unit, fmean(own),
                stdev(own) if len(own) > 1 else "", len(own),
            )
            for line in self.lines
            for model, own in zip(self.models, line.values, strict=True)
            if own
        ]  # fmt: skip
        columns = ("model", "task", "metric", "unit", "mean", "standard_deviation", "seeds")
        return csv_text(columns, rows).rstrip("\n")

    def _rows(self) -> list[list[str]]:
        return [["task", "measure", *self.models], *(line.cells() for line in self.lines)]


def compare(
    results: str | Path | Sequence[str | Path], *, every_metric: bool = False
) -> ModelTable:
    """The table of several models, in the order given.

    ``results``: folders, or one, that ``evaluate`` wrote, or runs, which stand for the newest of theirs;
    ``every_metric``: not the primary one of each task alone. Raises UsageError where a folder has no results
    or those of several models, DataError for damaged ones.
    """
    given = [results] if isinstance(results, str | Path) else list(results)
    if not given:
        raise UsageError(
            "no results were named: give folders that chronomask evaluate wrote, or runs"
        )
    folders = [_folder_of_results(as_a_shell_has_it(path)) for path in given]
    for folder, times in Counter(folder.resolve() for folder in folders).items():
        if times > 1:
            raise UsageError(f"results {folder} are given {times} times")
    found = [_read(folder) for folder in folders]
    lines, notes = [], []
    for task in dict.fromkeys(result.task for own in found for result in own):
        of_task = [[result for result in own if result.task == task] for own in found]
        of_all = [result for own in of_task for result in own]
        if differing := _differing(of_all):
            notes.append(
                f"{task} is not compared: its results are of other {', '.join(differing)}{_way_out(of_all)}"
            )
            continue
        of_line = _lines(of_task, every_metric)
        if _differ_in_tokens(of_all):
            of_line = [line for line in _lines(of_task, True) if "_per_" in line.metric]
            metrics = ", ".join(line.metric for line in of_line)
            notes.append(
                f"{task} is compared by {metrics}: these models cut the text into different tokens, so that "
                "their losses per token have no common measure"
            )
        lines += of_line
        notes += _without_number(folders, of_task)
    return ModelTable(tuple(_names(folders)), tuple(lines), tuple(notes))


def _lines(of_task: Sequence[Sequence[TaskResult]], every_metric: bool) -> list[Line]:
    """The metrics of one task, the primary one first."""
    first = next(result for own in of_task for result in own)
    others = dict.fromkeys(name for own in of_task for result in own for name in result.metrics)
    metrics = [first.primary, *(name for name in others if every_metric and name != first.primary)]
    return [
        Line(
            first.task,
            first.title,
            metric,
            first.unit if metric == first.primary else _unit_beside(first, metric),
            tuple(
                tuple(
                    r.metrics[metric] for r in own if math.isfinite(r.metrics.get(metric, math.nan))
                )
                for own in of_task
            ),
        )
        for metric in metrics
    ]


def _without_number(
    folders: Sequence[Path], of_task: Sequence[Sequence[TaskResult]]
) -> Iterator[str]:
    """A sentence on each result whose primary metric is no number, so that no mean can hold it."""
    for name, own in zip(_names(folders), of_task, strict=True):
        for result in own:
            if not math.isfinite(value := result.metrics[result.primary]):
                yield (
                    f"{name}: {result.task} of seed {result.seed} is left out, for its {result.primary} is "
                    f"{value}"
                )


def _unit_beside(result: TaskResult, metric: str) -> str:
    """The unit of a metric that is not the primary one: a task declares that of its primary one alone."""
    if result.unit in ("fraction", "percent"):
        return result.unit
    if metric.startswith("accuracy"):
        return "fraction"
    # The name of a metric as its unit: it is shown as it is.
    return "nats" if "loss" in metric else metric


def _differing(results: Sequence[TaskResult]) -> list[str]:
    """What results of one task are not alike in: ``data``, or settings as ``recipe.epochs``."""
    first = results[0]
    names = ["data"] if any(r.data_sha256 != first.data_sha256 for r in results) else []
    keys = sorted({key for result in results for key in result.recipe})
    recipes: list[Mapping[str, object]] = [result.recipe for result in results]
    return names + [
        f"recipe.{key}" for key in keys if any(r.get(key) != recipes[0].get(key) for r in recipes)
    ]


def _way_out(results: Sequence[TaskResult]) -> str:
    """How losses on prepared data, which are of one tokenizer, are compared after all, behind a note."""
    if not all(r.family == "intrinsic" and "rows" in r.num_examples for r in results):
        return ""
    return "; models of other tokenizers are compared by evaluate --tasks pseudo_perplexity on one text file"


def _differ_in_tokens(results: Sequence[TaskResult]) -> bool:
    """Whether models saw other numbers of tokens in the same files: their tokenizers differ."""
    return len({result.num_examples.get("tokens") for result in results}) > 1


def _folder_of_results(path: Path) -> Path:
    """The folder with result files: itself, or the newest of a run's."""
    if not path.is_dir():
        why = "is not a folder" if path.exists() else "does not exist"
        raise UsageError(f"{path} {why}: name a folder that chronomask evaluate wrote, or a run")
    places = [path, *sorted(RunFolder(path).results.glob("step-*"), reverse=True)]
    for place in places:
        if any(place.glob("*-seed*.json")):
            return place
    beside = Path("results") / path.resolve().name  # where those of a model folder are written
    if any(beside.glob("*-seed*.json")):
        raise UsageError(f"{path} holds no results: name {beside}, where those of a model are")
    if RunFolder(path).is_run() or (path / "config.json").is_file():
        raise UsageError(
            f"{path} holds no results: chronomask evaluate {shlex.quote(str(path))} --tasks … --task-data … "
            "writes them"
        )
    raise UsageError(
        f"{path} holds no results, and is neither a run nor a model that could be evaluated: name a folder "
        f"that chronomask evaluate wrote, or a run{what_it_is(path)}"
    )


def _read(folder: Path) -> list[TaskResult]:
    found = read_results([folder])
    if len({result.model_sha256 for result in found}) > 1:
        raise UsageError(f"{folder} holds results of several models: name a folder for each")
    return found


def _names(folders: Sequence[Path]) -> list[str]:
    """What the folders are called for people: ``bert-base``, or ``mine, step 2,000`` of a run."""
    names = []
    for folder in folders:
        whole = folder.resolve()
        step = step_of(whole)
        run = whole.parent.parent.name if step is not None else whole.name
        names.append(printable(run if step is None else f"{run}, step {step:,}"))
    known = Counter(names)
    return [
        name if known[name] == 1 else printable(str(folder))
        for name, folder in zip(names, folders, strict=True)
    ]
