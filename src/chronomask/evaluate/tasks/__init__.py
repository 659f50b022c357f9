"""Names and families of tasks on the command line become tasks here; all files with tasks are imported.

Overrides are addressed to a task, to a family, or to every task that has the key.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

from chronomask.config_layers import Layer, parse_override
from chronomask.errors import UsageError, nearest, shown
from chronomask.evaluate.task import REGISTRY, Task, families, register

__all__ = ["REGISTRY", "make_task", "make_tasks", "register"]

for _file in iter_modules(__path__, f"{__name__}."):
    import_module(_file.name)


def make_tasks(
    names: Iterable[str], overrides: Sequence[str] = (), limit: int | None = None
) -> list[Task[Any]]:
    """The tasks of names and families, once each, in the order asked.

    ``overrides``: ``key=value`` changes every task that has the key, ``name.key=value`` a task or the
    tasks of a family. ``limit``: examples of each part, where a task has such a setting. Raises
    UsageError for unknown names, and for overrides that reach no task.
    """
    chosen = _choose(names)
    changes: dict[str, list[Layer]] = {task.name: [] for task in chosen}
    for override in overrides:
        reached, layer = _address(override, chosen)
        for task in reached:
            changes[task.name].append(layer)
    if limit is not None:
        for task in chosen:
            if _has(task, "limit"):
                changes[task.name].append(Layer(f"--limit {limit}", {"limit": limit}))
    return [_with_changes(task, changes[task.name]) for task in chosen]


def make_task(name: str, settings: Mapping[str, Any], origin: str) -> Task[Any]:
    """One task with some settings of its recipe changed; ``origin`` is what a refusal blames for them.

    Raises UsageError for the name of a family, and for settings that the task does not have.
    """
    chosen = _choose([name])
    if [task.name for task in chosen] != [name]:
        names = ", ".join(task.name for task in chosen)
        raise UsageError(f"'{name}' is a family; name its tasks: {names}")
    return _with_changes(chosen[0], [Layer(origin, settings)] if settings else [])


def _with_changes(task: Task[Any], changes: Sequence[Layer]) -> Task[Any]:
    """A new task with other settings."""
    recipe = Layer(f"the recipe of {task.name}", task.config.to_dict())
    return task.with_config(type(task.config).from_layers([recipe, *changes]))


def _address(override: str, chosen: Sequence[Task[Any]]) -> tuple[list[Task[Any]], Layer]:
    """The tasks that an override is meant for, and what it changes in their recipes."""
    path, value = parse_override(override)
    head, dot, rest = path.partition(".")
    origin = f"--set {override if override.isprintable() else shown(override)}"
    if not dot:
        # A key of everybody's need not be known to each; one addressed to a task must be.
        if reached := [task for task in chosen if _has(task, path)]:
            return reached, Layer(origin, {path: value})
        keys = sorted({key for task in chosen for key in type(task.config).model_fields})
        raise UsageError(f"{origin}: no task has '{path}'; {nearest(path, keys)}")
    if head not in (names := _names()):
        raise UsageError(
            f"{origin}: '{head}' is neither a task nor a family; {nearest(head, names)}"
        )
    reached = [task for task in chosen if head in (task.name, task.family)]
    if not reached:
        raise UsageError(f"{origin}: '{head}' is not one of the tasks to run")
    return reached, Layer(origin, {rest: value})


def _choose(names: Iterable[str]) -> list[Task[Any]]:
    """The tasks of names and families, once each."""
    found: dict[str, Task[Any]] = {}
    for name in names:
        of_name = [REGISTRY[name]] if name in REGISTRY else []
        of_family = [task for task in REGISTRY.values() if task.family == name]
        if not (of_name or of_family):
            raise UsageError(f"unknown task '{name}'; {nearest(name, _names())}")
        found |= {task.name: task for task in of_name or of_family}
    if not found:
        raise UsageError("no task was named: give tasks or families, such as glue,squad")
    return list(found.values())


def _names() -> list[str]:
    """Whatever may be asked for: families, then tasks."""
    return [*dict.fromkeys([*families(), *REGISTRY])]


def _has(task: Task[Any], key: str) -> bool:
    return key in type(task.config).model_fields
