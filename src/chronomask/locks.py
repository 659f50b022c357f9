"""Locks of files and of folders: who writes there, and who waits for it.

They are the system's own, so that of a process which was killed is gone with it.
"""

from __future__ import annotations

import functools
import logging
import math
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from chronomask.errors import RunError

__all__ = ["LOCK", "hold", "in_turn", "lock"]

logger = logging.getLogger(__name__)

LOCK = ".lock"
"""The file in a folder whose lock says who writes the folder."""
_SECONDS_BETWEEN_TRIES = 0.1


@contextmanager
def lock(
    file: Path,
    *,
    together: bool = False,
    seconds: float = 0.0,
    guards: Path | None = None,
    needed: bool = False,
) -> Iterator[bool]:
    """Have the lock of a file while the block runs; yields False if another process keeps it.

    ``together``: others may have it as well, who ask for it so. ``seconds``: how long to wait for it. The
    lock of a killed process is gone with it.

    Where the file system has no locks the block runs without one, and once a warning says so. It names the
    folder that the lock ``guards``, by default that of the file. Where work without a lock would do harm the
    lock is ``needed``: then :class:`RunError` is raised.
    """
    deadline = time.monotonic() + seconds
    while True:
        with ExitStack() as opened:
            removed = False
            try:
                descriptor = opened.enter_context(file.open("a")).fileno()
                if mine := _take(descriptor, together=together):
                    opened.callback(_give_back, descriptor)
                    removed = not _is_at(file, descriptor)  # by its last owner, between the two
            except FileNotFoundError:
                raise
            except OSError as error:
                why = error.strerror or str(error)
                if needed:
                    raise RunError(
                        f"{file} cannot be locked ({why}): use a folder on a file system with locks"
                    ) from None
                _warn(guards or file.parent, why)
                mine = True
            if removed:
                continue
            if mine or time.monotonic() >= deadline:
                yield mine
                return
        time.sleep(_SECONDS_BETWEEN_TRIES)


def _is_at(path: Path, descriptor: int) -> bool:
    """Whether an open file is the one at a path, which may have been removed or replaced."""
    try:
        return path.stat().st_ino == os.fstat(descriptor).st_ino
    except FileNotFoundError:
        return False


def _take(descriptor: int, *, together: bool = False) -> bool:
    """Lock an open file, unless another process has it; raises OSError where that is not possible."""
    import fcntl  # not there on Windows, where nothing else of this file would fail

    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if together else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # the second is what a few file systems say
        return False
    return True


def _give_back(descriptor: int) -> None:
    """Unlock an open file, also for processes that were forked meanwhile and have it open too."""
    import fcntl

    with suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_UN)


@functools.cache
def _warn(folder: Path, why: str) -> None:
    """Say once what people must see to where there are no locks."""
    logger.warning(
        "%s cannot be locked (%s): start no second command that writes there while one is at work",
        folder, why,
    )  # fmt: skip


@contextmanager
def in_turn(file: Path) -> Iterator[None]:
    """Nobody else writes the folder of a lock file while the block runs; the file is removed at the end.

    Who writes there now is waited for, and that is said.
    """
    with ExitStack() as held:
        if not held.enter_context(lock(file)):
            logger.warning("another process writes %s: waiting until it has ended", file.parent)
            held.enter_context(lock(file, seconds=math.inf))
        try:
            yield
        finally:
            file.unlink(missing_ok=True)


def hold(draft: Path, *, folder: bool = False) -> int | None:
    """Make a draft, a file or a ``folder``, and keep it locked until the returned descriptor is closed; None
    where another process has it. What an earlier writer left in it stays.

    So the name of a draft can be one that the next writer takes over where this one is killed. Raises
    OSError.
    """
    while True:
        if folder:
            try:
                draft.mkdir(parents=True, exist_ok=True)
                held = os.open(draft, os.O_RDONLY)
            except FileNotFoundError:
                continue  # it took its place between the two
            except FileExistsError:
                if draft.is_file() or draft.is_symlink():
                    raise
                continue  # it was there, and took its place before pathlib looked what it is
        else:
            held = os.open(draft, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            mine = _take(held)
        except OSError:
            return held  # a file system without locks
        if not mine:
            os.close(held)
            return None
        if _is_at(draft, held):
            return held
        os.close(held)  # it took its place meanwhile, and is no draft any more
