"""A command whose workers take something in hand, say so, and wait: ``killed_parent.py FOLDER prepare …``.

Each worker holds a shared lock of ``FOLDER/alive`` as long as it lives, and writes ``ready-PID`` once it
waits; that of a preparation in the middle of writing a file of the work folder.
"""

from __future__ import annotations

import fcntl
import os
import signal
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

from chronomask.cli import main
from chronomask.evaluate import curve
from chronomask.prepare import executors
from chronomask.prepare.executors import Stage
from chronomask.storage import replacing
from chronomask.study import execute
from tests.support.processes import HANG

_FOLDER = "FOLDER_OF_KILLED_PARENT"
"""The variable by which workers know it, whose arguments are those of the command."""


def wait(folder: str) -> None:
    """Say that this worker lives, and wait."""
    alive = (Path(folder) / "alive").open("a")
    fcntl.flock(alive, fcntl.LOCK_SH)
    (Path(folder) / f"ready-{os.getpid()}").touch()
    time.sleep(HANG)


def write_and_wait(folder: str, stage: Stage, number: int) -> bool:
    """Runs in a worker instead of the stage's task."""
    with replacing(
        stage.work / f"{stage.name}-{number:06d}.json", writer=str(os.getpid())
    ) as draft:
        draft.write_text("half of")
        wait(folder)
    return False


def evaluate_and_wait(folder: str, *_: Any) -> None:
    """Runs in a worker instead of the evaluation."""
    wait(folder)


def work_and_wait(*_: Any, **__: Any) -> None:
    """Runs in a worker instead of the work of a unit."""
    wait(os.environ[_FOLDER])


if __name__ == "__main__":
    # A process of a shell's background, and all that it starts, ignores Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ[_FOLDER] = folder = sys.argv[1]
    executors.run_task = partial(write_and_wait, folder)
    curve._evaluate_one = partial(evaluate_and_wait, folder)  # pyright: ignore
    sys.argv = ["chronomask", *sys.argv[2:]]
    main()
elif __name__ == "__mp_main__":
    execute.do_unit = work_and_wait
