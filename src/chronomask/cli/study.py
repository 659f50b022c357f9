"""``chronomask study``: run, follow and report a study."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from chronomask.cli.options import Overrides, Quiet

__all__ = ["app"]

app = typer.Typer(
    help="Compare ways to mask: arms, seeds, tasks, and how sure the differences are.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
StudyFolder = Annotated[Path, typer.Argument(metavar="DIR", help="Folder of the study.")]


@app.command("run")
def study_run(
    out: Annotated[Path, typer.Option(help="Folder of the study.")],
    config: Annotated[
        Path | None,
        typer.Argument(
            metavar="[STUDY.yaml]",
            help="What to compare (configs/study/); else that of the folder.",
        ),
    ] = None,
    overrides: Overrides = None,
    workers: Annotated[
        int, typer.Option(min=1, help="Processes; with GPUs each has one of its own, in turn.")
    ] = 1,
    only: Annotated[
        str | None, typer.Option(metavar="I/N", help="Do the I-th of N shares of the runs.")
    ] = None,
    unit: Annotated[int | None, typer.Option(min=0, help="Do the one unit of this number.")] = None,
    slurm: Annotated[
        bool, typer.Option("--slurm", help="Do nothing; write scripts that submit all units.")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Do what is left of a study; a unit that fails is named, the others go on."""
    from chronomask.study import command

    text = command.run(
        config,
        out,
        overrides=overrides or [],
        workers=workers,
        only=only,
        unit=unit,
        slurm=slurm,
        quiet=quiet,
    )
    print(text)


@app.command("status")
def study_status(folder: StudyFolder) -> None:
    """Print how far a study is."""
    from chronomask.study import command

    print(command.status(folder))


@app.command("report")
def study_report(folder: StudyFolder) -> None:
    """Compare what is complete: comparison.json, report.html and every number as CSV."""
    from chronomask.study import command

    print(f"report: {command.report(folder)}")
