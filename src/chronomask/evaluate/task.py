"""What a task is to the rest: a name, a check of everything beforehand, and a run that gives one result.

A new task is a class of this shape and a line in ``tasks.py``. What most tasks need stands here too.
"""

from __future__ import annotations

import hashlib
import platform
import time
from collections.abc import Callable, Hashable, Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

from numpy.typing import NDArray

from chronomask import __version__
from chronomask.config import Config
from chronomask.evaluate.subject import Subject
from chronomask.runs.result import TaskResult

__all__ = [
    "Identified",
    "Kept",
    "Task",
    "folder_of",
    "recipe_of",
    "result_of",
    "sha256_of",
    "versions",
]

T = TypeVar("T")


class Task(Protocol):
    """One number about one model, with what is needed to get it."""

    name: str
    """unique; the name of the result files: ``cola``, ``squad``, ``blimp``, …"""
    family: str
    """``glue``, ``squad``, ``blimp``, ``probe`` or ``intrinsic``"""
    draws: bool
    """False: the seed changes nothing, so it is run once, with seed 0"""

    def check(self, model: Subject, data: Path) -> None:
        """Raise UsageError or DataError for all that would fail later: files, columns, labels, heads."""
        ...

    def run(self, model: Subject, data: Path, seed: int, progress: bool) -> TaskResult:
        """Do the work; ``progress`` allows it to show how far it is."""
        ...


@runtime_checkable
class Identified(Task, Protocol):
    """A task that can say beforehand what its result will be of: so that it is known to be there."""

    @property
    def recipe(self) -> Mapping[str, Any]:
        """The result's ``recipe``."""
        ...

    def data_sha256(self, data: Path) -> str:
        """The result's ``data_sha256``."""
        ...


class Kept(Generic[T]):
    """What was made last, such as files that were read; made anew when asked for with another key."""

    def __init__(self) -> None:
        self._last: tuple[Hashable, T] | None = None

    def of(self, key: Hashable, make: Callable[[], T]) -> T:
        """The value of ``key``."""
        if self._last is None or self._last[0] != key:
            self._last = key, make()
        return self._last[1]


def recipe_of(config: Config, *left_out: str) -> dict[str, Any]:
    """A result's recipe: every setting but those that decide no number, such as the size of a batch."""
    return {name: value for name, value in config.to_dict().items() if name not in left_out}


def result_of(
    task: Identified,
    model: Subject,
    seed: int,
    started: float,
    *,
    metrics: Mapping[str, float],
    primary: str,
    higher_is_better: bool = True,
    num_examples: Mapping[str, int],
    data_sha256: str,
    packages: Iterable[str] = (),
    details: Mapping[str, float] | None = None,
    examples: Mapping[str, NDArray[Any]],
) -> TaskResult:
    """The result of a task that has just ended.

    ``started``: ``time.monotonic()`` when it began. ``packages``: those the numbers rest on beside what
    every task rests on. The rest is as in :class:`TaskResult`.
    """
    return TaskResult(
        task=task.name,
        family=task.family,
        seed=seed,
        model=model.name,
        model_sha256=model.sha256,
        step=model.step,
        metrics=metrics,
        primary=primary,
        higher_is_better=higher_is_better,
        num_examples=num_examples,
        recipe=task.recipe,
        data_sha256=data_sha256,
        versions=versions(*packages),
        seconds=time.monotonic() - started,
        details=details or {},
        examples=examples,
    )


def folder_of(data: Path, family: str) -> Path:
    """Where a family's files lie: in the folder of that name, or in ``data`` itself."""
    inner = data / family
    return inner if inner.is_dir() else data


def sha256_of(files: Iterable[Path]) -> str:
    """SHA-256 over the content of files, in order; names and places do not enter."""
    total = hashlib.sha256()
    for path in files:
        with path.open("rb") as handle:
            total.update(hashlib.file_digest(handle, "sha256").digest())
    return total.hexdigest()


def versions(*others: str) -> dict[str, str]:
    """Versions for a result: our own, those every task rests on, and ``others`` by package name."""
    found = {"chronomask": __version__, "python": platform.python_version()}
    for name in ("torch", "transformers", "tokenizers", "numpy", *others):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found
