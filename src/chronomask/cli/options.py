"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

__all__ = ["Overrides", "Quiet"]

Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change one value of the config, such as masking.ratio.kind=cosine_decay; repeatable.",
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", help="Show no progress.")]
