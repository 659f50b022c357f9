"""The configs that come with the package, each known by its name.

``bert-small`` is a run, ``arms/mrd-cosine`` changes its masking, ``prepare/english`` is a preparation,
``study/tiny`` a study, ``slurm/pretrain`` a script for a cluster. A name stands wherever a config's path may.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from chronomask.errors import UsageError, nearest, shown
from chronomask.storage import as_a_shell_has_it

__all__ = ["Recipe", "find_recipe", "is_recipe", "recipes"]

FOLDER = Path(__file__).parent / "configs"
"""Where they are."""
_ENDINGS = (".yaml", ".sbatch")


@dataclass(frozen=True, slots=True)
class Recipe:
    """A config of the package."""

    name: str
    """its path without the ending: ``arms/mrd-cosine``"""
    path: Path
    summary: str
    """the first line of its first comment"""


def recipes(group: str | None = None) -> list[Recipe]:
    """All recipes in the order of their groups and names; of one group, the runs being ``""``."""
    files = [path for path in FOLDER.rglob("*") if path.suffix in _ENDINGS]
    names = {path.relative_to(FOLDER).with_suffix("").as_posix(): path for path in files}
    ordered = sorted(names, key=lambda name: ("/" in name, name))
    return [
        Recipe(name, names[name], _summary(names[name]))
        for name in ordered
        if group is None or name.rpartition("/")[0] == group
    ]


def find_recipe(name: str | Path, *groups: str) -> Path:
    """The file of a recipe by its name, or a path as it is; ``groups`` may be left out of the name.

    Raises UsageError for a name that is neither a recipe nor a file, with the nearest names.
    """
    text = str(name)
    known = {recipe.name: recipe.path for recipe in recipes()}
    for full in (text, *(f"{group}/{text}" for group in groups)):
        if full in known:
            return known[full]
    path = as_a_shell_has_it(text)
    if path.exists():
        return path
    if "=" in text:  # a common way to give settings, but not that of these commands
        raise UsageError(
            f"no recipe is called {shown(text)}; a setting of the command line follows --set: --set {text}"
        )
    wanted = [name for name in known if not groups or name.rpartition("/")[0] in groups]
    stem = path.name.removesuffix(".yaml")
    same = [name for name in wanted if name.rpartition("/")[2] == stem]
    advice = f"did you mean '{same[0]}'?" if same else nearest(text, wanted)
    is_file = path.suffix in (".yaml", ".yml", ".json")
    missing = (
        f"config file {text} does not exist" if is_file else f"no recipe is called {shown(text)}"
    )
    raise UsageError(f"{missing}; {advice} (chronomask recipes lists them)")


def is_recipe(path: str | Path) -> bool:
    """Whether a file is a recipe of the package: the folders that one names are examples."""
    return FOLDER in Path(path).parents


def _summary(path: Path) -> str:
    with path.open(encoding="utf-8") as lines:
        comments = (line for line in lines if line.startswith("# "))
        return next(comments, "").removeprefix("# ").strip()
