"""Tasks: what a stage does with one part, in whichever process it is asked to.

A task is a function of the work folder and a part's number. What it makes lies in the work folder, whole
or not at all, and its mark is written last; so it does not matter where a task runs, nor whether it runs
twice.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from multiprocessing import connection, parent_process
from pathlib import Path
from threading import Thread

from chronomask.errors import ChronomaskError, UsageError
from chronomask.prepare.work import lock, mark_file

__all__ = ["Share", "Stage", "Task", "as_message", "begin_worker", "run_task", "run_tasks"]

Task = Callable[[Path, int], None]
"""Does a part in a work folder and marks it as done, last."""


@dataclass(frozen=True, slots=True)
class Share:
    """The parts that one of several machines does: every ``of``-th one, from the ``number``-th on."""

    number: int
    of: int

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"

    @classmethod
    def parse(cls, text: str) -> Share:
        """A share such as ``2/8``; raises :class:`UsageError` for anything that is none."""
        number, slash, of = text.partition("/")
        if not (slash and number.isdecimal() and of.isdecimal() and 1 <= int(number) <= int(of)):
            raise UsageError(f"--only {text!r} is no share; give one such as 2/8, from 1/8 to 8/8")
        return cls(int(number), int(of))

    def has(self, part: int) -> bool:
        """Whether a part is one of this share."""
        return part % self.of == self.number - 1


@dataclass(frozen=True, slots=True)
class Stage:
    """A task for every part; ``name`` stands in its marks and in messages.

    ``task`` is handed to other processes, so it is a function of a module, or one with values bound to it.
    ``runs_on_torch``: its model does. ``shared``: other machines
    may be at the same parts, so a process claims a part before it does it.
    """

    name: str
    work: Path
    task: Task
    runs_on_torch: bool = False
    shared: bool = False

    def is_done(self, number: int) -> bool:
        """Whether a part has been through the stage."""
        return mark_file(self.work, self.name, number).is_file()

    def is_claimed(self, number: int) -> bool:
        """Whether a process that shares the work has a part in hand."""
        with self.claim(number) as mine:
            return not mine

    def claim(self, number: int) -> AbstractContextManager[bool]:
        """Have a part for oneself, False if another process has it in hand."""
        file = self.work / "claims" / f"{self.name}-{number:06d}"
        file.parent.mkdir(exist_ok=True)
        return lock(file)


def run_task(stage: Stage, number: int) -> bool:
    """Do one part, unless it is done; False if another process that shares the work is at it."""
    if not stage.shared:
        if not stage.is_done(number):
            stage.task(stage.work, number)
        return True
    with stage.claim(number) as mine:
        if mine and not stage.is_done(number):
            stage.task(stage.work, number)
        return mine


def run_tasks(stage: Stage, numbers: Sequence[int], done: Callable[[int], None]) -> dict[int, str]:
    """Do parts one after the other, in this process; returns number and message of those that failed."""
    failures = {}
    for number in numbers:
        try:
            mine = run_task(stage, number)
        except Exception as error:
            failures[number] = as_message(error)
        else:
            if mine:
                done(number)
    return failures


def as_message(error: BaseException) -> str:
    """An error on one line: our own as it is, any other with its kind."""
    text = str(error).strip().replace("\n", " ")
    return text if isinstance(error, ChronomaskError) else f"{type(error).__name__}: {text}"


def begin_worker(runs_on_torch: bool) -> None:
    """Prepare a worker process, which ends with its parent, however that ends."""
    Thread(target=_end_with_parent, daemon=True).start()
    # Ctrl-C reaches the parent, which lets the parts in hand finish and hands out no more.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if not runs_on_torch:
        # spaCy imports torch if it is there, for models other than the bundled one: two seconds and
        # 190 MB for every worker.
        sys.modules.setdefault("torch", None)  # type: ignore[arg-type]


def _end_with_parent() -> None:
    """Wait for the end of the process that started this one, then end at once.

    A parent that is killed cannot say goodbye, and a worker that waits for it would wait for ever: its end of
    the queue stays open, because the workers hold the other end too. What is being written then is a draft
    under another name, and no mark says that the part is done.
    """
    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)
