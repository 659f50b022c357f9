"""``chronomask replay``: a step that met a number that is not finite, computed again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from chronomask.errors import UsageError


def replay(
    dump: Annotated[
        Path,
        typer.Argument(
            metavar="DUMP", help="Folder dump/step-… of a run that met a number that is not finite."
        ),
    ],
    device: Annotated[str, typer.Option(help="Where to compute it: cpu or cuda.")] = "cpu",
) -> None:
    """Compute again the step at which a run met a loss or gradient that was not finite."""
    if not dump.is_dir():
        raise UsageError(f"{dump} is not a folder; a run's dumps are in RUN/dump/step-…")

    from chronomask.train.dump import replay as replay_step

    step = replay_step(dump, device)
    print(f"step {step.step:,}: loss {step.loss}, gradient norm {step.gradient_norm}")
    rows = ", ".join(map(str, step.rows)) or "none: a gradient overflowed"
    print(f"rows with a loss that is not finite: {rows}")
