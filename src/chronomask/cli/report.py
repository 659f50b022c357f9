"""``chronomask report``: a run, runs side by side, or a study, as one page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN...",
            help="Run folders, the baseline first; runs of one arm with several seeds are one line. Or "
            "the folder of a study.",
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="FOLDER", help="Folder to write the report to.")
    ] = Path("report"),
    title: Annotated[str, typer.Option(help="Title of the page.")] = "Masking over training",
) -> None:
    """Draw runs or a study: one self-contained HTML page, and every plotted number as CSV."""
    from chronomask.study import command

    print(command.report_in_words(runs, out, title))
