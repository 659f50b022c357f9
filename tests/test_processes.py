"""Worker processes are deaf to Ctrl-C from their first moment on; requests to stop, and the environment."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from threading import Thread

import pytest

from chronomask.processes import environment, listen
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


def test_listening_puts_handlers_back_and_hears_nothing_in_another_thread() -> None:
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = [signal.getsignal(number) for number in numbers]
    heard: list[int] = []

    def elsewhere() -> None:
        with listen() as asked:
            heard.append(asked.signal_number)

    with listen() as asked:
        signal.raise_signal(signal.SIGTERM)
        assert asked.signal_number == signal.SIGTERM
    thread = Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert heard == [0]
    assert [signal.getsignal(number) for number in numbers] == before


def test_variables_of_the_environment_are_put_back_one_by_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What another thread sets meanwhile stays, and it never meets an environment without the rest."""
    monkeypatch.setenv("CHRONOMASK_THERE", "before")
    monkeypatch.delenv("CHRONOMASK_NEW", raising=False)
    monkeypatch.delenv("CHRONOMASK_OTHER", raising=False)
    with environment(CHRONOMASK_THERE="now", CHRONOMASK_NEW="now"):
        assert (os.environ["CHRONOMASK_THERE"], os.environ["CHRONOMASK_NEW"]) == ("now", "now")
        os.environ["CHRONOMASK_OTHER"] = "of another thread"
    assert os.environ["CHRONOMASK_THERE"] == "before"
    assert "CHRONOMASK_NEW" not in os.environ
    assert os.environ.pop("CHRONOMASK_OTHER") == "of another thread"
