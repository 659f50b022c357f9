"""``chronomask study``, ``report`` and ``quickstart``: run, follow and draw a comparison."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from chronomask.cli.options import (
    HELP_FLAGS,
    Commands,
    Device,
    Precision,
    PricePerHour,
    Quiet,
    config_flag,
    of_group,
    of_overrides,
    of_text,
    of_value,
    recipe_names,
    show_help,
)
from chronomask.cli.output import tell
from chronomask.config_layers import Layer

__all__ = ["app", "quickstart", "report"]

app = Commands(
    help="Compare ways to mask: arms, seeds, tasks, and an interval for every difference.",
    context_settings=HELP_FLAGS,
    rich_markup_mode="rich",
    invoke_without_command=True,
    callback=show_help,
)
"""The commands on studies."""
StudyFolder = Annotated[Path, typer.Argument(metavar="DIR", help="Folder of the study.")]


Recipe = Annotated[
    str | None,
    typer.Argument(
        metavar="[STUDY]",
        help="What to compare: a recipe, such as tiny, or a YAML file; by default the folder's study.",
        autocompletion=recipe_names("study"),
    ),
]
Out = Annotated[Path, typer.Option("--out", "-o", metavar="FOLDER", help="Folder of the study.")]
Data = Annotated[
    Path | None,
    config_flag("FOLDER", "Prepared data, instead of what the study prepares.", "--data", "-d"),
]
TaskData = Annotated[Path | None, config_flag("FOLDER", "Files of the tasks.")]
Steps = Annotated[str | None, config_flag("N", "Optimiser steps of every run.")]
Changes = Annotated[
    list[str] | None,
    config_flag(
        "KEY=VALUE",
        "Change any other value by its path, such as base.rows_per_step=64; repeatable.",
        "--set",
    ),
]
Workers = Annotated[int, typer.Option(min=1, help="Processes; GPUs are assigned to them in turn.")]
Only = Annotated[
    str | None, typer.Option(metavar="I/N", help="Only the I-th of N shares of the runs.")
]
Minutes = Annotated[
    float | None,
    typer.Option(
        metavar="N",
        help="A call ends within N minutes with its work saved (exit code 75 if some is left); the same "
        "command goes on.",
    ),
]
Rate = Annotated[
    str | None,
    typer.Option(
        metavar="N|FOLDER",
        help="Tokens a second of one device, all processes on it together, or the folder of a like run or "
        "study, whose seeds say what can be seen as well: what the plan reckons with until a run has ended "
        "here.",
    ),
]


@app.command("run", context_settings=HELP_FLAGS)
def study_run(
    out: Out,
    recipe: Recipe = None,
    data: Data = None,
    task_data: TaskData = None,
    steps: Steps = None,
    device: Device = None,
    precision: Precision = None,
    overrides: Changes = None,
    workers: Workers = 1,
    only: Only = None,
    unit: Annotated[
        int | None, typer.Option(min=0, help="Run only the unit with this number.")
    ] = None,
    minutes: Minutes = None,
    price_per_hour: PricePerHour = None,
    rate: Rate = None,
    quiet: Quiet = False,
) -> None:
    """Run what a study still lacks; a unit that fails is named, and the others continue."""
    path = _find(recipe)
    changes = _changes(data, task_data, steps, device, precision, overrides)

    from chronomask.study import command

    text = command.run(
        path,
        out,
        changes=changes,
        workers=workers,
        only=only,
        unit=unit,
        minutes=minutes,
        price_per_hour=price_per_hour,
        rate=rate,
        quiet=quiet,
    )
    tell(text)


@app.command("plan", context_settings=HELP_FLAGS)
def study_plan(
    out: Out,
    recipe: Recipe = None,
    data: Data = None,
    task_data: TaskData = None,
    steps: Steps = None,
    device: Device = None,
    precision: Precision = None,
    overrides: Changes = None,
    workers: Workers = 1,
    only: Only = None,
    minutes: Minutes = None,
    price_per_hour: PricePerHour = None,
    rate: Rate = None,
) -> None:
    """Print the units that are left, their time and cost, and the smallest differences they can show."""
    path = _find(recipe)
    changes = _changes(data, task_data, steps, device, precision, overrides)

    from chronomask.study import command

    tell(
        command.plan(
            path,
            out,
            changes=changes,
            workers=workers,
            only=only,
            minutes=minutes,
            price_per_hour=price_per_hour,
            rate=rate,
        )
    )


def _find(recipe: str | None) -> Path | None:
    from chronomask.recipes import find_recipe

    return None if recipe is None else find_recipe(recipe, "study")


def _changes(
    data: Path | None,
    task_data: Path | None,
    steps: str | None,
    device: str | None,
    precision: str | None,
    overrides: list[str] | None,
) -> list[Layer]:
    """What the flags change of the study."""
    return [
        *of_text("--data", "base.data", data),
        *([] if data is None else of_group("--data", str(data), "prepare", None)),
        *of_text("--task-data", "task_data", task_data),
        *of_value("--steps", "base.steps", steps),
        *of_text("--device", "base.device", device),
        *of_text("--precision", "base.precision", precision),
        *of_overrides(overrides),
    ]


@app.command("status", context_settings=HELP_FLAGS)
def study_status(folder: StudyFolder) -> None:
    """Print which parts of a study are complete."""
    from chronomask.study import command

    tell(command.status(folder))


@app.command("report", context_settings=HELP_FLAGS)
def study_report(folder: StudyFolder) -> None:
    """Compare what is complete: comparison.json, report.html and every number as CSV."""
    from chronomask.study import command

    tell(f"report: {command.report_of_study(folder)}")


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN",
            help="Run folders, the baseline first; runs of one arm with several seeds are one line. Or "
            "the folder of a study.",
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="FOLDER", help="Folder to write the report to.")
    ] = Path("report"),
    title: Annotated[
        str | None,
        typer.Option(help="Title of the page; else the study's name, or Masking over training."),
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|shipped",
            help="Lay curves under the loss: those shipped, or a CSV with name, tokens_seen and loss, "
            "such as curve-validation_loss.csv of a report.",
        ),
    ] = None,
) -> None:
    """Draw runs or a study: one self-contained HTML page, and every plotted number as CSV."""
    from chronomask.study import command

    tell(command.report_in_words(runs, out, title, reference))


def quickstart(
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="FOLDER", help="Folder to write everything to.")
    ] = Path("runs/quickstart"),
    steps: Annotated[
        int | None,
        typer.Option(min=20, help="Optimiser steps of each arm: 510, or those of what is there."),
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Train four arms on English text that is already on this machine, and compare them."""
    from chronomask.study import command

    tell(command.quickstart(out, steps, quiet))
