"""A preparation whose workers take a part in hand, say so, and wait: ``killed_parent.py FOLDER prepare …``.

Each worker holds a shared lock of ``FOLDER/alive`` as long as it lives, and writes ``ready-PID`` once it
waits, in the middle of writing a file of the work folder.
"""

from __future__ import annotations

import fcntl
import os
import sys
import time
from functools import partial
from pathlib import Path

from chronomask.cli import main
from chronomask.prepare import executors
from chronomask.prepare.executors import Stage
from chronomask.storage import replacing
from tests.support.processes import HANG


def report_and_wait(folder: str, stage: Stage, number: int) -> bool:
    """Runs in a worker instead of the stage's task."""
    alive = (Path(folder) / "alive").open("a")
    fcntl.flock(alive, fcntl.LOCK_SH)
    with replacing(
        stage.work / f"{stage.name}-{number:06d}.json", writer=str(os.getpid())
    ) as draft:
        draft.write_text("half of")
        (Path(folder) / f"ready-{os.getpid()}").touch()
        time.sleep(HANG)
    return False


if __name__ == "__main__":
    folder = sys.argv[1]
    executors.run_task = partial(report_and_wait, folder)
    sys.argv = ["chronomask", *sys.argv[2:]]
    main()
