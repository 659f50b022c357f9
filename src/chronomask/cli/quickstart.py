"""``chronomask quickstart``: the whole road on text that every machine has."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from chronomask.cli.options import Quiet


def quickstart(
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="FOLDER", help="Folder to write everything to.")
    ] = Path("runs/quickstart"),
    steps: Annotated[int, typer.Option(min=20, help="Optimiser steps of each arm.")] = 360,
    quiet: Quiet = False,
) -> None:
    """Train four arms on English text that is already on this machine, and compare them."""
    from chronomask.study import command

    print(command.quickstart(out, steps, quiet))
