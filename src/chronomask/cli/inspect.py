"""``chronomask inspect``: what masking does to a text."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from chronomask.cli.options import Content, Overrides, Ratio, of_kind, of_overrides, of_ratio
from chronomask.cli.output import tell


def inspect(
    text: Annotated[
        str | None, typer.Argument(metavar="TEXT", help="Text to show masking on.")
    ] = None,
    file: Annotated[Path | None, typer.Option(help="Text file to show masking on.")] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            "--data",
            "-d",
            metavar="FOLDER",
            help="Prepared data: use its tokenizer; without a text, show its rows.",
        ),
    ] = None,
    rows: Annotated[
        int | None, typer.Option(min=1, help="How many rows of the data to show: 2, or so many.")
    ] = None,
    tokenizer: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="A tokenizer; without one every word is a token."),
    ] = None,
    config: Annotated[
        list[str] | None,
        typer.Option(
            metavar="RECIPE",
            help="Recipe, or YAML file of a run or of masking; repeatable to see several side by side.",
        ),
    ] = None,
    run: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Run folder: show its config and its class weights over time, and read the text as its data "
            "were read; without a text, rows of its data.",
        ),
    ] = None,
    ratio: Ratio = None,
    content: Content = None,
    overrides: Overrides = None,
    progress: Annotated[
        str, typer.Option(metavar="LIST", help="Moments of training to show, from 0 to 1.")
    ] = "0,0.5,1",
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="FILE", help="Also write it to this .html file."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the masks shown.")] = 0,
) -> None:
    """Show what masking does to a text, at the start, in the middle and at the end of training."""
    from chronomask.recipes import find_recipe
    from chronomask.report.render import page_path
    from chronomask.show.request import PAGE, Request, check

    changes = [
        *of_ratio(ratio),
        *of_kind("--content", "masking.content", content),
        *of_overrides(overrides),
    ]
    request = Request(
        text=text,
        file=file,
        data=data,
        rows=rows,
        tokenizer=tokenizer,
        configs=tuple(find_recipe(name, "arms") for name in config or ()),
        run=run,
        changes=tuple(changes),
        progress=progress,
        seed=seed,
    )
    if out is not None:
        page_path(out, PAGE)
    request = check(request)

    from chronomask.show.show import inspect_masking

    colour = sys.stdout.isatty()
    tell(inspect_masking(request, out, colour=colour), coloured=colour)
