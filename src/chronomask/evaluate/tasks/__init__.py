"""The registry of tasks: a line each, with the config that decides its numbers and what makes it.

Names and families on the command line become tasks here; overrides are addressed to a task, to a family,
or to every task that has the key.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from chronomask.config import Config
from chronomask.errors import UsageError, nearest
from chronomask.evaluate.pseudo import PseudoLikelihood
from chronomask.evaluate.task import Task
from chronomask.evaluate.tasks.blimp import BlimpTask
from chronomask.evaluate.tasks.glue import GLUE_TASKS, GlueTask
from chronomask.evaluate.tasks.intrinsic import (
    MaskedLoss,
    MaskedLossTask,
    PseudoPerplexity,
    PseudoPerplexityTask,
)
from chronomask.evaluate.tasks.probe import ProbeConfig, ProbeTask
from chronomask.evaluate.tasks.squad import SquadConfig, SquadTask

__all__ = ["REGISTRY", "Entry", "make_tasks"]


@dataclass(frozen=True, slots=True)
class Entry:
    """A task that can be asked for."""

    family: str
    config: Config
    """its recipe by default"""
    make: Callable[[Any], Task]
    """the task with a recipe of that class"""


REGISTRY: dict[str, Entry] = {
    **{name: Entry("glue", recipe, partial(GlueTask, name)) for name, recipe in GLUE_TASKS.items()},
    "squad": Entry("squad", SquadConfig(), SquadTask),
    "blimp": Entry("blimp", PseudoLikelihood(), BlimpTask),
    "upos_probe": Entry("probe", ProbeConfig(), ProbeTask),
    "mlm": Entry("intrinsic", MaskedLoss(), MaskedLossTask),
    "pseudo_perplexity": Entry("intrinsic", PseudoPerplexity(), PseudoPerplexityTask),
}
"""Every task by name."""


def make_tasks(
    names: Iterable[str], overrides: Sequence[str] = (), limit: int | None = None
) -> list[Task]:
    """The tasks of names and families, once each, in the order asked.

    ``overrides``: ``key=value`` changes every task that has the key, ``name.key=value`` a task or the
    tasks of a family. ``limit``: examples of each part, where a task has such a setting. Raises
    UsageError for unknown names, and for overrides that reach no task.
    """
    chosen = _chosen(names)
    applied: dict[str, list[str]] = {name: [] for name in chosen}
    families = {entry.family for entry in REGISTRY.values()}
    for override in overrides:
        head, dot, rest = override.partition("=")[0].partition(".")
        if dot and head not in REGISTRY and head not in families:
            raise UsageError(
                f"override {override!r}: '{head}' is no task and no family; "
                f"{nearest(head, [*families, *REGISTRY])}"
            )
        key = rest if dot else head
        value = override.removeprefix(f"{head}.") if dot else override
        meant = [name for name in chosen if not dot or head in (name, REGISTRY[name].family)]
        if not meant:
            raise UsageError(f"override {override!r}: '{head}' is not among the tasks asked for")
        # A key of everybody's need not be known to each; one addressed to a task must be.
        reached = [name for name in meant if dot or _has(REGISTRY[name].config, key)]
        if not reached:
            keys = sorted({k for name in meant for k in type(REGISTRY[name].config).model_fields})
            raise UsageError(f"override {override!r}: no task has '{key}'; {nearest(key, keys)}")
        for name in reached:
            applied[name].append(value)
    if limit is not None:
        for name in chosen:
            if _has(REGISTRY[name].config, "limit"):
                applied[name].append(f"limit={limit}")
    return [
        REGISTRY[name].make(
            type(REGISTRY[name].config).parse_with(
                REGISTRY[name].config.to_dict(), applied[name], where=f"the recipe of {name}"
            )
        )
        for name in chosen
    ]


def _chosen(names: Iterable[str]) -> list[str]:
    found: dict[str, None] = {}
    for name in names:
        of_family = [key for key, entry in REGISTRY.items() if entry.family == name]
        if name not in REGISTRY and not of_family:
            families = {entry.family for entry in REGISTRY.values()}
            raise UsageError(
                f"unknown task '{name}'; {nearest(name, [*sorted(families), *REGISTRY])}"
            )
        found |= dict.fromkeys([name] if name in REGISTRY else of_family)
    if not found:
        raise UsageError("no task was asked for: name tasks or families, such as glue,squad")
    return list(found)


def _has(config: Config, key: str) -> bool:
    return key.partition(".")[0] in type(config).model_fields
