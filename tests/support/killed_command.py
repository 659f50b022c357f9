"""The command line in a process that kills itself: ``killed_command.py annotate- 3 prepare …``.

SIGKILL comes instead of the third file that would take its place under a name that begins with ``annotate-``.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

from chronomask.cli import main

if __name__ == "__main__":
    beginning, left = sys.argv[1], int(sys.argv[2])
    put_in_place = os.replace

    def replace_or_die(source: Any, target: Any) -> None:
        global left
        left -= os.path.basename(target).startswith(beginning)  # noqa: PTH119
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        put_in_place(source, target)

    os.replace = replace_or_die  # what pathlib calls
    sys.argv = ["chronomask", *sys.argv[3:]]
    main()
