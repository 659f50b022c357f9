"""A figure in a process of its own: what it tells is heard at once, and it ends when its time is over.

Getting ready takes a process much longer than measuring: it imports, compiles and warms up. So processes get
ready side by side, each says when it is, and then they measure one after the other, while the others wait.
"""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from benchmarks.gpu_work import BEGIN, ROOT, Setting, Tell, ready_file

__all__ = ["Apart", "Told", "command_of", "plain", "tell_into"]

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
        sys.executable, "-m", "benchmarks.gpu", "--figure", figure, "--peak", str(setting.peak),
        "--runs", str(setting.runs), "--tell", str(told.path),
    ]  # fmt: skip
    command += ["--toy"] if setting.toy else []
    command += ["--waits"] if setting.waits else []
    return command + (["--steps", str(setting.steps)] if setting.steps else [])


class Apart:
    """A figure's process, from its start on. It gets ready; then :meth:`begin` lets it measure.

    ``told``: what the command tells into; ``runs``: its folder, in which it says that it is ready; ``log``:
    the file to whose end goes whatever it prints. A process that the command started is ended with it, unless
    it left the group.
    """

    def __init__(
        self,
        command: Sequence[str],
        name: str,
        told: Told,
        runs: Path,
        log: Path,
        note: Tell,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self._told, self._runs, self._log, self._note = told, runs, log, note
        log.parent.mkdir(exist_ok=True)
        with log.open("ab") as printed:
            self._began = printed.tell()
            self._child = subprocess.Popen(
                command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=printed, stderr=printed,
                process_group=0, env=environment,
            )  # fmt: skip
        self._since = time.monotonic()
        self.is_over = False

    @property
    def is_ready(self) -> bool:
        """Whether it waits for its turn."""
        return not self.is_over and ready_file(self._runs, self._child.pid).exists()

    @property
    def seconds(self) -> float:
        """For how long it has been getting ready, or measuring."""
        return time.monotonic() - self._since

    def begin(self) -> None:
        """Let it measure."""
        self._since = time.monotonic()
        (self._runs / BEGIN).touch()

    def hear(self, seconds: float = math.inf) -> None:
        """Note what it has told. It is ended if it takes longer than so many seconds."""
        ended = self._child.poll() is not None  # asked before the last is read
        self._pass_on()
        if ended or self.seconds >= seconds:
            self.end(None if ended else f"after {self.seconds:.0f} s")

    def end(self, cut_off: str | None) -> None:
        """End what still runs, and note how it ended, with the last lines it printed where it failed.

        ``cut_off``: after how long, if it was still to go on.
        """
        if self.is_over:
            return
        self.is_over = True
        with suppress(ProcessLookupError):
            os.killpg(self._child.pid, signal.SIGKILL)  # and the processes it started
        status = self._child.wait()
        self._pass_on()
        if cut_off is not None:
            self._note(f"{self.name}_cut_off", cut_off)
        elif status != 0:
            self._note(f"{self.name}_failed", _how_it_ended(status))
            self._note(f"{self.name}_failed_end", self._last_lines())

    def _last_lines(self) -> list[str]:
        with self._log.open("rb") as printed:
            printed.seek(self._began)
            text = printed.read().decode(errors="replace")
        return text.rstrip().splitlines()[-LAST_LINES:]

    def _pass_on(self) -> None:
        for name, value in self._told.more():
            self._note(name, value)


def _how_it_ended(status: int) -> str:
    if status > 0:
        return f"exit status {status}"
    name = signal.Signals(-status).name if -status in set(signal.Signals) else f"signal {-status}"
    return f"{name}, perhaps for want of memory" if name == "SIGKILL" else name
