"""What a task is to the rest: a name, a check of everything beforehand, and a run that gives one result.

A new task is a class of this shape and a line in ``tasks.py``.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from chronomask import __version__
from chronomask.evaluate.subject import Subject
from chronomask.results import TaskResult

__all__ = ["Identified", "Task", "folder_of", "sha256_of", "versions"]


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
