"""Worker processes: deaf to Ctrl-C from their first moment on."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.support.processes import python_path

_SCRIPT = """
import multiprocessing, signal
from chronomask.processes import deaf_to_interrupts

def is_deaf():
    return signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, [])

def tell(number):
    print(number, is_deaf(), flush=True)

if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    for number in range(2):
        with deaf_to_interrupts():
            process = context.Process(target=tell, args=(number,))
            process.start()
        process.join()
    print("parent", is_deaf())
"""


def test_no_worker_hears_ctrl_c_not_even_the_first(tmp_path: Path) -> None:
    """With the first one multiprocessing starts another process, whose start unblocks signals."""
    script = tmp_path / "script.py"
    script.write_text(_SCRIPT, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(script)],
        env=os.environ | {"PYTHONPATH": python_path()},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "0 True\n1 True\nparent False\n"
