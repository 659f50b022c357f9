"""``chronomask report``: runs side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders to compare.")],
    out: Annotated[
        Path,
        typer.Option(
            "--out", "-o", metavar="FOLDER", help="Folder (or .html file) to write the report to."
        ),
    ] = Path("report"),
    title: Annotated[str, typer.Option(help="Title of the page.")] = "Masking over training",
) -> None:
    """Draw runs: one self-contained HTML page, and every plotted number as CSV."""
    from chronomask.report.page import write_report
    from chronomask.report.tables import arms_table

    page = write_report(list(runs), out, title)
    print(arms_table(list(runs)))
    print(f"report: {page}")
