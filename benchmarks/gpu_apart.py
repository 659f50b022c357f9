"""A figure in a process of its own: what it tells is heard at once, and it ends when its time is over."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from benchmarks.gpu_work import ROOT, Setting, Tell

__all__ = ["Told", "command_of", "measure_apart", "plain", "tell_into"]

LAST_LINES = 20
"""Lines of its log that are shown of a figure that failed."""


def plain(value: Any) -> Any:
    """As JSON takes it: no infinity and no NaN."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def tell_into(file: Path) -> Tell:
    """What adds a line to ``file`` for every figure told, in which :class:`Told` finds it."""

    def tell(name: str, value: Any) -> None:
        with file.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps([name, plain(value)]) + "\n")

    return tell


class Told:
    """What another process tells into a file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._read = 0

    def more(self) -> list[tuple[str, Any]]:
        """Names and values told since the last call. A line that is being written is left for the next."""
        if not self.path.exists():
            return []
        with self.path.open("rb") as lines:
            lines.seek(self._read)
            new = lines.read()
        whole = new[: new.rfind(b"\n") + 1]
        self._read += len(whole)
        return [tuple(json.loads(line)) for line in whole.splitlines()]


def command_of(setting: Setting, figure: str, told: Told) -> list[str]:
    """The command that measures ``figure`` in a process of its own, which tells into ``told``."""
    command = [
        sys.executable, "-m", "benchmarks.gpu", "--figure", figure,
        "--runs", str(setting.runs), "--tell", str(told.path),
    ]  # fmt: skip
    command += ["--toy"] if setting.toy else []
    return command + (["--steps", str(setting.steps)] if setting.steps else [])


def measure_apart(
    command: Sequence[str], name: str, seconds: float, told: Told, log: Path, note: Tell
) -> None:
    """Measure figure ``name`` by a command that tells into ``told``, for at most ``seconds``.

    Whatever it prints goes to the end of ``log``. Notes each figure when it is told; then, where the command
    was cut off or failed, how it ended and the last lines it printed. A process that the command started is
    ended with it, unless it left the group.
    """
    with log.open("ab") as printed:
        printed.write(f"\n===== {name}\n".encode())
        printed.flush()
        began = printed.tell()
        child = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=printed, stderr=printed,
            process_group=0,
        )  # fmt: skip
    deadline = time.monotonic() + seconds
    try:
        while child.poll() is None and time.monotonic() < deadline:
            _pass_on(told, note)
            time.sleep(0.05)
        cut_off = child.poll() is None
    finally:
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)  # and the processes it started
        child.wait()
    _pass_on(told, note)
    if cut_off:
        note(f"{name}_cut_off", f"after {seconds:.0f} s")
    elif child.returncode != 0:
        note(f"{name}_failed", _how_it_ended(child.returncode))
        note(f"{name}_failed_end", _last_lines(log, began))


def _pass_on(told: Told, note: Tell) -> None:
    for name, value in told.more():
        note(name, value)


def _how_it_ended(status: int) -> str:
    if status > 0:
        return f"exit status {status}"
    name = signal.Signals(-status).name if -status in set(signal.Signals) else f"signal {-status}"
    return f"{name}, perhaps for want of memory" if name == "SIGKILL" else name


def _last_lines(log: Path, began: int) -> list[str]:
    """What was printed at the end of what stands in the file from byte ``began`` on."""
    with log.open("rb") as printed:
        printed.seek(began)
        text = printed.read().decode(errors="replace")
    return text.rstrip().splitlines()[-LAST_LINES:]
