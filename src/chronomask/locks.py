"""Locks of files and of folders: who writes there, and who waits for it.

They are the system's own, so that of a process which was killed is gone with it.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from chronomask.errors import RunError, UsageError

__all__ = ["LOCK", "hold", "in_turn", "lock", "lock_of"]

logger = logging.getLogger(__name__)

LOCK = ".lock"
"""The file in a folder whose lock says who writes the folder."""
_SECONDS_BETWEEN_TRIES = 0.1


@contextmanager
def lock(file: Path, *, together: bool = False, seconds: float = 0.0) -> Iterator[bool]:
    """Have the lock of a file while the block runs; yields False if another process keeps it.

    ``together``: others may have it as well, who ask for it so. ``seconds``: how long to wait for it. The
    lock of a killed process is gone with it. Raises :class:`RunError` where the disk has no locks.
    """
    import fcntl  # not there on Windows, where nothing else of this file would fail

    deadline = time.monotonic() + seconds
    while True:
        with file.open("a") as handle:
            try:
                fcntl.flock(handle, (fcntl.LOCK_SH if together else fcntl.LOCK_EX) | fcntl.LOCK_NB)
                mine = (
                    os.fstat(handle.fileno()).st_nlink > 0
                )  # else its last owner removed it meanwhile
            except BlockingIOError:
                mine = False
            except OSError as error:
                raise RunError(
                    f"{file} cannot be locked ({error.strerror}): use a folder on a file system with locks"
                ) from None
            if mine or time.monotonic() >= deadline:
                yield mine
                return
        time.sleep(_SECONDS_BETWEEN_TRIES)


def lock_of(out: Path) -> Path:
    """The file whose lock says who writes ``out``; the folder is made. Raises :class:`UsageError`."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / LOCK).touch()
    except OSError as error:
        raise UsageError(f"{out} cannot be used as a folder: {error.strerror}") from None
    return out / LOCK


@contextmanager
def in_turn(folder: Path) -> Iterator[None]:
    """Nobody else writes ``folder`` while the block runs; who does so now is waited for, and that is said.

    Where the disk has no locks that is said too, and the block runs without. Raises as :func:`lock_of` does.
    """
    with ExitStack() as held:
        try:
            if not held.enter_context(lock(lock_of(folder))):
                logger.warning("another process writes %s: waiting until it has ended", folder)
                held.enter_context(lock(folder / LOCK, seconds=math.inf))
        except RunError as error:
            logger.warning("%s, or start no second command that writes this one meanwhile", error)
        try:
            yield
        finally:
            (folder / LOCK).unlink(missing_ok=True)


def hold(draft: Path, *, folder: bool = False) -> int | None:
    """Make a draft, a file or a ``folder``, and keep it locked until the returned descriptor is closed; None
    where another process has it. What an earlier writer left in it stays.

    So the name of a draft can be one that the next writer takes over where this one is killed. Raises
    OSError.
    """
    import fcntl

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
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(held)
            return None
        except OSError:
            return held  # a file system without locks
        try:
            if draft.stat().st_ino == os.fstat(held).st_ino:
                return held
        except FileNotFoundError:
            pass  # it took its place meanwhile, and what is held is no draft any more
        os.close(held)
