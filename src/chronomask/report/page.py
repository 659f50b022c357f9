"""The one page of every report: of a run, of runs, of a study.

A section appears where there is something to show. ``report.html`` needs no other file; beside it
``csv/*.csv`` hold every number that it plots or lists.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from chronomask.errors import ChronomaskError, need
from chronomask.report.answer import answer
from chronomask.report.arms import ArmRow, arm_row, mean_row, mean_run
from chronomask.report.comparison import (
    AXIS_NAMES,
    LOSS,
    Curves,
    Numbers,
    families,
    flatten,
    read_comparison,
    task_title,
)
from chronomask.report.render import (
    Cell,
    Download,
    isolate_names,
    picture_values,
    render,
    write_csv,
)
from chronomask.report.sentences import findings
from chronomask.report.tables import (
    arms_table,
    class_shares,
    config_table,
    contrasts_table,
    data_rows,
    mark_of,
    overview,
    parameters,
    reach_table,
    task_table,
)
from chronomask.report.yardstick_tables import yardstick_tables, yardsticks_csv
from chronomask.runs.read import Run, progress_of_reading, read_run
from chronomask.storage import write_text

__all__ = ["write_page", "write_page_of_study"]

_MEANS = (
    "steps", "tokens_seen", "masked_tokens", "mean_loss", "validation_loss",
    "validation_accuracy", "raw_validation_loss",
    "mean_ratio_asked", "mean_ratio_achieved", "flops", "tokens_per_second", "seconds",
)  # fmt: skip
"""What an arm came to, in the order of the table of arms."""


def write_page_of_study(
    folder: Path,
    out: Path | None = None,
    known: Curves | None = None,
    title: str | None = None,
    *,
    read: Iterable[Run] = (),
    progress: bool = False,
) -> Path:
    """Write the page of a study that was compared, from its files alone, into its folder or ``out``.

    ``title``: of the page, else the study's name. Runs whose logs are not there are left out of the figures
    from inside the arms, and that is said. ``read``: runs of the study that are read already;
    ``progress``: show how far the reading of the others is.
    Returns the page's path. Raises UsageError or DataError for a folder without a comparison.
    """
    study = read_comparison(folder)
    there = {run.path: run for run in read}
    paths = {arm["name"]: [folder / run["folder"] for run in arm["runs"]] for arm in study["arms"]}
    runs: dict[str, list[Run]] = {}
    problems = []
    waiting = (path for own in paths.values() for path in own if path not in there)
    with progress_of_reading(waiting, shown=progress) as shown:
        for name, own in paths.items():
            try:
                runs[name] = [there.get(path) or read_run(path, shown) for path in own]
            except ChronomaskError:
                problems.append(f"“{name}”")
    if problems:
        study["notices"].append(
            f"The runs’ logs of {', '.join(problems)} are not beside this page or cannot be read: the "
            "figures from inside the arms are without them."
        )
    if title:
        study["name"] = title
    return write_page(study, runs, out or folder, known)


def write_page(
    study: Numbers, runs: Mapping[str, Sequence[Run]], out: Path, known: Curves | None = None
) -> Path:
    """Write ``out/report.html`` and ``out/csv/*.csv``; returns the page's path.

    ``study``: the comparison, as docs/studies.md describes it; ``runs``: arm → its runs, for what their
    logs hold; ``known``: curves to lay under the loss. The same input gives the same bytes. Raises
    UsageError where a package is missing or the folder cannot be made.
    """
    need("matplotlib", "report", "Drawing a report")
    study = {**study, "arms": _with_means(study, runs)}
    # The baseline first: it has the ink-grey colour and the first line everywhere.
    names = [arm["name"] for arm in study["arms"]]
    arms = {name: k for k, name in enumerate(sorted(names, key=study["baseline"].__ne__))}
    means = {
        k: mean_run(own, name) for name, k in arms.items() if (own := list(runs.get(name, ())))
    }
    tasks = [task_table(task, study, arms) for task in study["tasks"]]
    html = render(
        Path(__file__).with_name("page.html"),
        title=study["name"],
        answer=answer(study),
        findings=findings(study, means),
        notices=study["notices"],
        baseline=study["baseline"],
        arms=arms_table(study, arms),
        arms_download=_arms_csv(out, study),
        runs_download=_runs_csv(out, arms, runs),
        overview=overview(study, arms),
        contrasts=contrasts_table(study),
        tasks=tasks,
        compared=any(len(task["rows"]) > 1 for task in tasks),
        framed=any(row["best"] for task in tasks for row in task["rows"]),
        tasks_download=_tasks_csv(out, study) if study["tasks"] else None,
        tested=any(
            numbers.get("p") is not None
            for task in study["tasks"]
            for numbers in (*task["arms"].values(), *task.get("contrasts", ()))
        ),
        headline=task_title(families(study["tasks"])[0][0]) if study["tasks"] else "",
        yardsticks=yardstick_tables(study, arms),
        yardsticks_download=yardsticks_csv(out, study),
        losses_compare=study.get("losses_compare", True),
        marks={name: mark_of(arms, name) for name in arms},
        reach=[table for reach in study["reach"] if (table := reach_table(reach, arms))],
        reach_download=_reach_csv(out, study) if len(arms) > 1 and study["reach"] else None,
        figures=[picture_values(out, picture) for picture in _result_pictures(study, arms, known)],
        inside=[picture_values(out, picture) for picture in _inside_pictures(means)],
        differences=config_table(study, arms),
        data=data_rows(study["data"]),
        classes=class_shares(study["data"]),
        parameters=parameters(study),
        versions=[(key, str(value)) for key, value in study["versions"].items()],
    )
    path = out / "report.html"
    write_text(path, isolate_names(html))
    return path


def _with_means(study: Numbers, runs: Mapping[str, Sequence[Run]]) -> list[Numbers]:
    """The arms with what their logs say now, where these are there, beside what the comparison says."""
    return [
        {**arm, **mean_row([arm_row(run) for run in runs[arm["name"]]])}
        if runs.get(arm["name"])
        else arm
        for arm in study["arms"]
    ]


def _result_pictures(study: Numbers, arms: Mapping[str, int], known: Curves | None) -> list[Any]:
    """Figures of how well arms do: the loss, how far apart they are, differences in the end, other curves."""
    from chronomask.report import figures

    pictures = []
    for curve in study["curves"]:
        if not curve["arms"]:
            continue
        pictures.append(figures.curve_picture(curve, arms))
        if curve["quantity"] == LOSS:
            if known:
                pictures.append(figures.reference_picture(curve, arms, known))
            pictures.append(figures.distance_picture(curve, study["baseline"], arms))
            pictures.append(figures.difference_picture(study["tasks"], study["baseline"], arms))
    if not any(curve["quantity"] == LOSS for curve in study["curves"]):
        pictures.append(figures.difference_picture(study["tasks"], study["baseline"], arms))
    return [picture for picture in pictures if picture is not None]


def _inside_pictures(means: Mapping[int, Run]) -> list[Any]:
    """Figures from the logs of training and the classes of validation."""
    from chronomask.report import class_figures, training_figures

    draws = (
        training_figures.training_loss,
        training_figures.masking_ratio,
        training_figures.other_schedules,
        training_figures.predicted_tokens,
        class_figures.class_loss,
        class_figures.class_weight,
        class_figures.final_class_loss,
    )
    return [picture for draw in draws if means and (picture := draw(means)) is not None]


def _arms_csv(out: Path, study: Numbers) -> Download:
    columns = ["arm", "seeds", "complete", *_MEANS, "parameters", "masking"]
    rows: list[list[Cell]] = [
        [
            arm["name"],
            len(arm["runs"]),
            arm.get("complete", True),
            *(_cell(arm.get(key)) for key in (*_MEANS, "parameters")),
            json.dumps(dict(flatten(arm["masking"]))),
        ]
        for arm in study["arms"]
    ]
    return write_csv(out, "arms", columns, rows)


def _runs_csv(
    out: Path, arms: Mapping[str, int], runs: Mapping[str, Sequence[Run]]
) -> Download | None:
    """Every run by itself."""
    rows: list[list[Cell]] = []
    for name in arms:
        for run in runs.get(name, ()):
            values = {**asdict(arm_row(run)), "arm": name}
            rows.append([_cell(values[field.name]) for field in fields(ArmRow)])
    return write_csv(out, "runs", [field.name for field in fields(ArmRow)], rows) if rows else None


def _tasks_csv(out: Path, study: Numbers) -> Download:
    keys = (
        "mean", "spread", "low", "high", "difference", "difference_low", "difference_high", "p", "p_holm",
    )  # fmt: skip
    rows: list[list[Cell]] = [
        [
            task["task"],
            task["metric"],
            len(numbers["by_seed"]),
            name,
            *(numbers.get(key) for key in keys),
        ]
        for task in study["tasks"]
        for name, numbers in task["arms"].items()
    ]
    return write_csv(out, "tasks", ["task", "metric", "pre_training_seeds", "arm", *keys], rows)


def _reach_csv(out: Path, study: Numbers) -> Download:
    keys = ("estimate", "low", "high", "share", "share_low", "share_high", "baseline")
    rows: list[list[Cell]] = [
        [reach["quantity"], name, axis, *(axes[axis].get(key) for key in keys)]
        for reach in study["reach"]
        for name, axes in reach["arms"].items()
        for axis in AXIS_NAMES
        if axis in axes
    ]
    return write_csv(out, "reach", ["quantity", "arm", "axis", *keys], rows)


def _cell(value: Any) -> Cell:
    """A value for a CSV cell: whole numbers without a point, nothing where there is none."""
    if not isinstance(value, float):
        return value
    if value != value:
        return None
    return int(value) if value.is_integer() else value
