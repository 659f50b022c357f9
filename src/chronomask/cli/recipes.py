"""``chronomask recipes``: what comes with the package, and what an editor is to know of such files."""

from __future__ import annotations

import json
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from chronomask.cli.options import recipe_names
from chronomask.cli.output import tell
from chronomask.errors import UsageError, shown

if TYPE_CHECKING:
    from chronomask.config import Config

_GROUPS = {
    "": "Runs: chronomask pretrain NAME --data DATA --out RUN",
    "arms": "Arms, which change a run's masking: chronomask pretrain RECIPE NAME …",
    "prepare": "Preparations: chronomask prepare TEXT --config NAME --out DATA",
    "study": "Studies: chronomask study run NAME --out FOLDER",
    "slurm": "Scripts for a cluster: chronomask recipes NAME > job.sbatch",
}


class _Command(StrEnum):
    """Commands that take YAML files."""

    PRETRAIN = "pretrain"
    PREPARE = "prepare"
    STUDY = "study"


def recipes(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[NAME]",
            help="The recipe to print; without a name, all are listed.",
            autocompletion=recipe_names(*_GROUPS),
        ),
    ] = None,
    schema: Annotated[
        _Command | None,
        typer.Option(
            help="Print the JSON Schema of this command's YAML files; editors complete and check them by it.",
        ),
    ] = None,
) -> None:
    """List the configs that come with the package, or print one to change it."""
    from chronomask.recipes import find_recipe
    from chronomask.recipes import recipes as all_recipes

    if schema is not None:
        from chronomask.config import json_schema

        if name is not None:
            raise UsageError(f"give a recipe's name, {shown(name)}, or --schema {schema}, not both")
        tell(json.dumps(json_schema(_config_of(schema)), indent=1))
        return
    if name is not None:
        tell(find_recipe(name, *_GROUPS).read_text(encoding="utf-8"), end="")
        return
    for group, use in _GROUPS.items():
        found = all_recipes(group)
        width = max(len(recipe.name) for recipe in found)
        tell(use)
        tell("".join(f"  {recipe.name:<{width}}  {recipe.summary}\n" for recipe in found))


def _config_of(command: _Command) -> type[Config]:
    """The class of a command's config files."""
    if command is _Command.PRETRAIN:
        from chronomask.train.config import RunConfig

        return RunConfig
    if command is _Command.PREPARE:
        from chronomask.prepare.config import PrepareConfig

        return PrepareConfig
    from chronomask.study.config import StudyConfig

    return StudyConfig
