"""``chronomask recipes``: what comes with the package."""

from __future__ import annotations

from typing import Annotated

import typer

from chronomask.cli.options import recipe_names
from chronomask.cli.output import tell

_GROUPS = {
    "": "Runs: chronomask pretrain NAME --data DATA --out RUN",
    "arms": "Arms, which change a run's masking: chronomask pretrain RECIPE NAME …",
    "prepare": "Preparations: chronomask prepare TEXT --config NAME --out DATA",
    "study": "Studies: chronomask study run NAME --out FOLDER",
    "slurm": "Scripts for a cluster: chronomask recipes NAME > job.sbatch",
}


def recipes(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[NAME]",
            help="The recipe to print; without a name, all are listed.",
            autocompletion=recipe_names(*_GROUPS),
        ),
    ] = None,
) -> None:
    """List the configs that come with the package, or print one to change it."""
    from chronomask.recipes import find_recipe
    from chronomask.recipes import recipes as all_recipes

    if name is not None:
        tell(find_recipe(name, *_GROUPS).read_text(encoding="utf-8"), end="")
        return
    for group, use in _GROUPS.items():
        found = all_recipes(group)
        width = max(len(recipe.name) for recipe in found)
        tell(use)
        tell("".join(f"  {recipe.name:<{width}}  {recipe.summary}\n" for recipe in found))
