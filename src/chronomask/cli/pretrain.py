"""``chronomask pretrain``: a run from recipes, flags and ``--set``, each laid over those before."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from chronomask.cli.options import (
    AHEAD,
    Content,
    Device,
    Overrides,
    Precision,
    PricePerHour,
    Quiet,
    Ratio,
    config_flag,
    of_group,
    of_kind,
    of_overrides,
    of_ratio,
    of_text,
    of_value,
    recipe_names,
)
from chronomask.cli.output import tell
from chronomask.errors import UsageError, amount, nearest
from chronomask.folders import what_it_is

if TYPE_CHECKING:
    from chronomask.config_layers import Layer
    from chronomask.train.config import RunConfig

logger = logging.getLogger(__name__)

_ASSUMED = "--dry-run"
"""Where data come from that nobody has named."""


def pretrain(
    recipes: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="RECIPE",
            help="Recipes by name (chronomask recipes lists them), or YAML files; each changes those before "
            "it: bert-small arms/mrd-cosine. Without one: the defaults, or with --resume the config of the "
            "run.",
            autocompletion=recipe_names("", "arms"),
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            "--data",
            "-d",
            metavar="FOLDER",
            help="Prepared data; --set 'data=[A, B]' mixes several, and {path: A, weight: 3} in A's place "
            "takes three rows of it for one of B.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", metavar="FOLDER", help="The run; required except with --dry-run."
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue from the newest whole checkpoint.")
    ] = False,
    branch: Annotated[
        Path | None,
        typer.Option(
            "--branch",
            metavar="RUN|CHECKPOINT",
            help="Begin a new run from a run's newest checkpoint, or from one of its checkpoints, with its "
            "optimiser state and config; give new schedules and steps with it.",
        ),
    ] = None,
    model: Annotated[
        str | None,
        config_flag(
            "TYPE|FOLDER|NAME",
            "An architecture of transformers, such as bert or modernbert, in its own sizes where a recipe's "
            "are of another (--set model.model_type=TYPE keeps them); or a model to train further: its "
            "folder, or its name on the hub.",
        ),
    ] = None,
    steps: Annotated[str | None, config_flag("N", "Optimiser steps.")] = None,
    hours: Annotated[
        str | None, config_flag("H", "Wall-clock hours in place of steps: as many as fit.")
    ] = None,
    rows: Annotated[str | None, config_flag("N", "Rows of a step.")] = None,
    ratio: Ratio = None,
    content: Content = None,
    seed: Annotated[
        str | None, config_flag("N", "Keys initial weights, row order, masks and dropout.")
    ] = None,
    device: Device = None,
    precision: Precision = None,
    overrides: Overrides = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Print size, work, memory, time and first masks; train and write nothing.",
            rich_help_panel=AHEAD,
        ),
    ] = False,
    devices: Annotated[
        int, typer.Option(min=1, help="Devices that share a step.", rich_help_panel=AHEAD)
    ] = 1,
    flops: Annotated[
        float | None,
        typer.Option(
            min=1,
            help="FLOP/s that a device sustains; measured here if not given.",
            rich_help_panel=AHEAD,
        ),
    ] = None,
    row_length: Annotated[
        int | None,
        typer.Option(
            min=8,
            help="Tokens of a row, if there are no data yet (512).",
            rich_help_panel=AHEAD,
        ),
    ] = None,
    price_per_hour: PricePerHour = None,
    quiet: Quiet = False,
) -> None:
    """Pre-train a masked language model."""
    from chronomask.train.config import RunConfig

    layers = _first_layers(recipes or [], out if resume else None, branch)
    layers += of_text("--data", "data", data)
    layers += _model(model, layers)
    layers += of_value("--steps", "steps", steps)
    if steps and hours:
        raise UsageError("--steps and --hours both say how long the run is: leave one of them out")
    layers += of_value("--hours", "hours", hours)
    # Hours may stand in a recipe, or in the config of the run that is branched from.
    if steps and any("hours" in layer.values for layer in layers):
        layers += of_value("--steps", "hours", "null")
    layers += of_value("--rows", "rows_per_step", rows)
    layers += of_ratio(ratio)
    layers += of_kind("--content", "masking.content", content)
    layers += of_value("--seed", "seed", seed)
    layers += of_text("--device", "device", device)
    layers += of_text("--precision", "precision", precision)
    layers += of_overrides(overrides)
    if not any("data" in layer.values for layer in layers):
        layers += _no_data(dry_run, out if resume else None)
    config = RunConfig.from_layers(layers)
    if dry_run:
        from chronomask.train.dry_run import as_text
        from chronomask.train.dry_run import dry_run as look_ahead

        ahead = look_ahead(
            config,
            devices=devices,
            flops_per_second=flops,
            row_length=row_length,
            without_data=not _name_data(layers),
        )
        tell(as_text(ahead, price_per_hour))
        return
    for flag, value in (
        ("--devices", None if devices == 1 else devices), ("--flops", flops),
        ("--row-length", row_length), ("--price-per-hour", price_per_hour),
    ):  # fmt: skip
        if value is not None:
            raise UsageError(f"{flag} belongs to --dry-run: give both, or leave it out")
    if out is None:
        raise UsageError("give a folder for the run: --out RUN")

    from chronomask.runs.continuation import begun_by

    with begun_by("command", "--resume"):
        _train(config, out, resume, quiet)


def _first_layers(recipes: list[str], resumed: Path | None, branch: Path | None) -> list[Layer]:
    """The recipes' values; those of the run that goes on, or that is branched from; or nothing."""
    from chronomask.config_layers import Layer
    from chronomask.recipes import find_recipe

    if branch is not None:
        from chronomask.runs.layout import branch_folder

        run = branch_folder(branch)
        run.check_config()
        if not run.is_run():
            raise UsageError(
                f"--branch {branch}: there is no run{what_it_is(branch)}; give a run's folder or a "
                "checkpoint's"
            )
        return [
            Layer.of_file(run.config),
            Layer("--branch", {"name": None}),
            *(Layer.of_file(find_recipe(recipe, "", "arms")) for recipe in recipes),
            Layer("--branch", {"branch": str(branch)}),  # a recipe may be the config of a run
        ]
    if recipes:
        return [Layer.of_file(find_recipe(recipe, "", "arms")) for recipe in recipes]
    if resumed is not None:
        from chronomask.runs.layout import RunFolder

        run = RunFolder(resumed)
        run.check_config()
        if run.is_run():
            return [Layer.of_file(run.config)]
    return [Layer("the defaults", {})]


def _name_data(layers: list[Layer]) -> bool:
    """Whether a flag, a file of one's own, or a run names data; in a packaged recipe they are an example."""
    from chronomask.recipes import is_recipe

    own = [layer for layer in layers if layer.file is None or not is_recipe(layer.file)]
    given = (layer for layer in own if layer.origin != _ASSUMED)
    return any("data" in layer.values for layer in given)


def _no_data(dry_run: bool, resumed: Path | None) -> list[Layer]:
    """A dry run may assume data; training needs some."""
    if not dry_run:
        why = ""
        if resumed is not None:
            why = f"{resumed} holds no run to resume"
            if instead := what_it_is(resumed):
                raise UsageError(f"{why}{instead}; name the folder of a run with --out")
            why += ", and a new one needs data: "
        raise UsageError(
            f"{why}give prepared data: --data DATA (chronomask prepare makes it of text)"
        )
    return of_group(_ASSUMED, "", "data", "data")


def _model(text: str | None, layers: list[Layer]) -> list[Layer]:
    """``--model``: a type of transformers, or the folder or hub name of a model to train further.

    Sizes that the recipes give belong to their own type of model, so another type drops them.
    """
    from chronomask.config_layers import merge, nested
    from chronomask.folders import what_it_is
    from chronomask.model.config import masked_lm_types

    if text is None:
        return []
    known, folder = masked_lm_types(), Path(text)
    named = text in known and not (folder / "config.json").is_file() and not what_it_is(folder)
    is_folder = folder.is_dir() and not named
    if "/" in text or is_folder:
        return of_group("--model", text, "model", {"kind": "checkpoint", "path": text})
    if known and text not in known:
        raise UsageError(
            f"--model {text}: there is no such type of model, and no such folder; {nearest(text, known)}; "
            "a model of the hub is named OWNER/NAME"
        )
    chosen: dict[str, object] = {"kind": "config", "model_type": text}
    before: dict = {}
    for layer in layers:
        given = nested(layer.values).get("model", {})
        before = merge(before, given) if isinstance(given, Mapping) else {}
    # Without sizes of its own type, a model that is named has its architecture's.
    if not before or before.get("model_type", text) != text:
        chosen["overrides"] = {}
        _tell_sizes(text, before)
    return of_group("--model", text, "model", chosen)


def _tell_sizes(model_type: str, before: Mapping[str, object]) -> None:
    """Say which sizes of another type of model no longer count, and how to have them."""
    from chronomask.model.config import fields_of

    sizes = before.get("overrides")
    if not isinstance(sizes, Mapping) or not sizes:
        return
    fields = fields_of(model_type)
    if fields is None or sizes.keys() <= fields.accepted:
        way = f"to keep them, give  --set model.model_type={model_type}  in place of --model"
    else:
        way = "to change that, name its own with  --set model.overrides.KEY=VALUE"
    logger.warning(
        "--model %s takes the sizes of its architecture and not those given for %s (%s); %s",
        model_type, before["model_type"], ", ".join(map(str, sizes)), way,
    )  # fmt: skip


def _train(config: RunConfig, out: Path, resume: bool, quiet: bool) -> None:
    """Check what can be checked in an instant, train, and say what came of it."""
    from chronomask.data.mixture import open_data
    from chronomask.model.config import FromCheckpoint
    from chronomask.model.open import is_hub_name, model_folder
    from chronomask.runs.layout import RunFolder, model_in

    RunFolder(out).check_free(resume)
    config = config.model_copy(update={"data": config.at(RunFolder(out)).data})
    gone = next((path for path in config.data_paths if not Path(path).exists()), None)
    if resume and gone is not None:
        raise UsageError(
            f"{gone}, which the run in {out} trains on, is not there: if it was moved, give --data FOLDER, "
            "or --set 'data=[FOLDER, …]' for a mixture"
        )
    open_data(config.data)
    if isinstance(config.model, FromCheckpoint) and not is_hub_name(config.model.path):
        model_folder(config.model.path)

    from chronomask.train.loop import pretrain as run_pretrain

    summary = run_pretrain(config, out, resume=resume, progress=not quiet)
    if summary and os.environ.get("RANK", "0") == "0":  # torchrun starts several
        loss = summary["validation_loss"]
        shown = "no held-out rows" if loss is None else f"{loss:.4f}"
        mean = summary.get("validation_mean_loss")
        before = "" if mean is None else f"mean loss of five yardsticks: {mean:.4f}; "
        tell(
            f"{out}: {amount(summary['steps'], 'steps')}; {before}validation loss at 15 %: {shown}"
        )
        tell(f"model: {model_in(out / summary['checkpoint'])}")


def replay(
    dump: Annotated[
        Path,
        typer.Argument(
            metavar="DUMP", help="Folder dump/step-… of a run that met a number that is not finite."
        ),
    ],
    device: Annotated[str, typer.Option(help="Where to compute it: auto, cpu or cuda.")] = "cpu",
) -> None:
    """Compute again the step at which a run met a loss or gradient that was not finite."""
    if not dump.is_dir():
        raise UsageError(f"{dump} is not a folder; a run's dumps are in RUN/dump/step-…")

    from chronomask.train.dump import replay as replay_step

    step = replay_step(dump, device)
    tell(f"step {step.step:,}: loss {step.loss}, gradient norm {step.gradient_norm}")
    rows = ", ".join(map(str, step.rows)) or "none: a gradient overflowed"
    tell(f"rows with a loss that is not finite: {rows}")
