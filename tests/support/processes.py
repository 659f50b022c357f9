"""What tests that start other processes, or wait for another thread, need."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

HANG = 3600
"""Seconds after which something is taken to hang: so long that no busy machine makes a test fail."""


def python_path() -> str:
    """``PYTHONPATH`` under which another process imports what this one does."""
    return os.pathsep.join(filter(None, sys.path))


def end_while_workers_wait(folder: Path, words: Sequence[str], number: int) -> int:
    """The exit code of a command with two workers that gets a signal while both wait, once they have ended.

    ``words``: of the command, without its name; ``folder``: what :mod:`tests.support.killed_parent` writes.
    """
    (folder / "alive").touch()
    parent = subprocess.Popen(
        [sys.executable, "-m", "tests.support.killed_parent", str(folder), *words],
        env=os.environ | {"PYTHONPATH": python_path()},
    )
    try:
        while len(list(folder.glob("ready-*"))) < 2:
            assert parent.poll() is None, "it ended before its workers began"
            time.sleep(0.05)
    finally:
        parent.send_signal(number)
        code = parent.wait(HANG)
    with (folder / "alive").open("a") as alive:
        fcntl.flock(alive, fcntl.LOCK_EX)  # held by every worker that lives
    return code
