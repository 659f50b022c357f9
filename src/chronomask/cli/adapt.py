"""``chronomask adapt`` and ``push``: continue a published encoder on your text, and publish it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from chronomask.cli.options import (
    Content,
    Device,
    Overrides,
    Precision,
    Quiet,
    Ratio,
    config_flag,
    of_kind,
    of_overrides,
    of_ratio,
    of_text,
    of_value,
)
from chronomask.cli.output import tell
from chronomask.cli.prepare import layers_of_tagger

if TYPE_CHECKING:
    from chronomask.config_layers import Layer

_MEASURES = "What is measured, before and after"


def adapt(
    checkpoint: Annotated[
        str,
        typer.Argument(
            metavar="CHECKPOINT", help="A model folder, a run, or the name of a model on the hub."
        ),
    ],
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="TEXT",
            help="Your text, as chronomask prepare takes it: files, folders, patterns.",
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="FOLDER", help="Where everything goes.")
    ],
    epochs: Annotated[
        float,
        typer.Option(metavar="NUMBER", help="Passes over your text, unless --steps is given."),
    ] = 1.0,
    steps: Annotated[str | None, config_flag("N", "Optimiser steps.")] = None,
    rows: Annotated[str | None, config_flag("N", "Rows of a step.")] = None,
    row_length: Annotated[
        str | None,
        config_flag(
            "N", "Tokens of a row; by default 256, or as many as the checkpoint has positions."
        ),
    ] = None,
    new_words: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="Words of your text to add to the vocabulary, at most."
        ),
    ] = None,
    min_count: Annotated[
        int, typer.Option(min=1, metavar="N", help="How often a new word must occur.")
    ] = 10,
    tagger: Annotated[
        str | None,
        config_flag("KIND|PIPELINE", "Where words and their classes come from, as in prepare."),
    ] = None,
    ratio: Ratio = None,
    content: Content = None,
    seed: Annotated[str | None, config_flag("N", "Keys row order, masks and dropout.")] = None,
    device: Device = None,
    precision: Precision = None,
    overrides: Overrides = None,
    also: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT|FOLDER",
            help="Other text, or prepared data, to measure on: it shows what is forgotten.",
            rich_help_panel=_MEASURES,
        ),
    ] = None,
    tasks: Annotated[
        str, typer.Option(metavar="LIST", help="Downstream tasks.", rich_help_panel=_MEASURES)
    ] = "",
    task_data: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Files of the tasks.", rich_help_panel=_MEASURES),
    ] = None,
    seeds: Annotated[
        int,
        typer.Option(
            min=1, max=1000, metavar="N", help="Fine-tuning seeds.", rich_help_panel=_MEASURES
        ),
    ] = 1,
    quiet: Quiet = False,
) -> None:
    """Continue an encoder on your text: prepare, train, and compare before and after."""
    from chronomask.adapt import Plan
    from chronomask.adapt import adapt as run_adapt

    names = tuple(filter(None, map(str.strip, tasks.split(","))))
    of_tasks = [text for text in overrides or () if _is_of_tasks(text, names)]
    changes = of_overrides(text for text in overrides or () if text not in of_tasks)
    of_text_alone = [change for change in changes if _is_of_preparation(change)]
    plan = Plan(
        epochs=epochs,
        layers=[
            *of_value("--steps", "steps", steps),
            *of_value("--rows", "rows_per_step", rows),
            *of_ratio(ratio),
            *of_kind("--content", "masking.content", content),
            *of_value("--seed", "seed", seed),
            *of_text("--device", "device", device),
            *of_text("--precision", "precision", precision),
            *(change for change in changes if change not in of_text_alone),
        ],
        preparation=[
            *of_value("--row-length", "row_length", row_length),
            *layers_of_tagger(tagger),
            *of_text_alone,
        ],
        also=also,
        tasks=names,
        task_data=task_data,
        task_settings=of_tasks,
        seeds=seeds,
        new_words=new_words,
        min_count=min_count,
    )
    done = run_adapt(checkpoint, sources, out, plan, progress=not quiet)
    tell(done)
    tell(f"model: {done.model}")


def _is_of_tasks(override: str, names: Sequence[str]) -> bool:
    """Whether ``--set NAME.KEY=VALUE`` is addressed to one of the tasks ``names``, or to its family, or to
    the loss that is measured of every text.
    """
    key = override.partition("=")[0].strip()
    head = key.partition(".")[0]
    if key.startswith("mlm.") or not names:
        return key.startswith("mlm.")
    from chronomask.evaluate.tasks import make_tasks

    return any(head in (task.name, task.family) for task in make_tasks(names))


def _is_of_preparation(change: Layer) -> bool:
    """Whether ``--set`` changes how the text is prepared; the checkpoint decides the tokenizer."""
    from chronomask.prepare.config import PrepareConfig

    keys = PrepareConfig.model_fields.keys() - {"sources", "tokenizer"}
    return all(path.partition(".")[0] in keys for path in change.values)


def push(
    run: Annotated[
        Path,
        typer.Argument(
            metavar="RUN",
            help="A run (its newest checkpoint), a checkpoint, a model, or a folder of adapt.",
        ),
    ],
    repo: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="The repository on the hub.")],
    revisions: Annotated[
        bool,
        typer.Option(
            "--revisions", help="Every checkpoint too, each as a branch named after its step."
        ),
    ] = False,
    private: Annotated[
        bool, typer.Option("--private", help="A new repository that only you can see.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be uploaded, and stop.")
    ] = False,
) -> None:
    """Upload a model with its tokenizer and card: no optimiser state, no data, no logs."""
    from chronomask.push import check_repo, plan_push
    from chronomask.push import push as upload

    check_repo(repo)
    uploads = plan_push(run, revisions=revisions)
    for each in uploads:
        tell(each)
    if not dry_run:
        tell(f"uploaded: {upload(uploads, repo, private=private)}")
