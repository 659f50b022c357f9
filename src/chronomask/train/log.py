"""What a run writes for people and reports: metrics, validations, environment, summary, progress."""

from __future__ import annotations

import json
import logging
import os
import platform
import subprocess
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from types import TracebackType
from typing import IO, Any, Self

import torch

from chronomask.errors import RunError, amount
from chronomask.progress import Progress
from chronomask.runs.continuation import goes_on
from chronomask.runs.layout import RunFolder
from chronomask.runs.read import read_log
from chronomask.runs.result import versions_here
from chronomask.storage import replacing, said_by_system, way_to_write
from chronomask.train.loggers import Logger, Sink, open_sinks

__all__ = ["RunLog", "environment"]

logger = logging.getLogger(__name__)


class RunLog:
    """The log files of a run folder, opened to continue after ``step`` (−1: to begin), and its progress.

    Lines of later steps are removed, as their steps are done again; what else is gone from a log is said.
    ``active``: False for processes that leave writing to the first. ``logged_every``: steps between the lines
    that ``metrics.jsonl`` should have up to ``step``; None where that is not known.
    """

    def __init__(
        self,
        folder: Path,
        *,
        step: int,
        steps: int,
        name: str,
        active: bool,
        progress: bool,
        loggers: Sequence[Logger] = (),
        config: Mapping[str, Any] | None = None,
        logged_every: int | None = None,
    ) -> None:
        """Cut both logs off after ``step``, and open the loggers; raises RunError or DataError."""
        self.folder = RunFolder(folder)
        self.active = active
        self._files: dict[str, IO[str]] = {}
        self._sinks: list[Sink] = []
        self._speeds: list[float] = []
        self._done = max(0, step)
        if active:
            self._sinks = open_sinks(loggers, folder, step=step, name=name, config=config or {})
            for path in (self.folder.metrics, self.folder.validation):
                kept = _cut_off(path, step)
                if path == self.folder.metrics:
                    self._speeds += [speed for _, speed in kept if speed is not None]
                    if logged_every is not None:
                        _tell_missing(path, {at for at, _ in kept}, step, logged_every)
                self._files[path.stem] = path.open("a", encoding="utf-8")
        # Its clock starts at once, and a long log takes a while.
        self._shown = progress and active
        self._name = name
        self._progress = Progress(name, steps, "steps", shown=self._shown, done=self._done)

    def __enter__(self) -> Self:
        self._progress.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._progress.__exit__(kind, error, at)
        try:
            self.close()
        except RunError:
            if error is None:  # otherwise that one says what happened first
                raise

    def write(self, kind: str, values: Mapping[str, Any]) -> None:
        """Append one JSON object to ``metrics.jsonl`` or ``validation.jsonl``; loggers get it too."""
        if not self.active:
            return
        file = self._files[kind]
        if kind == "metrics":
            self._speeds += filter(None, [values.get("tokens_per_second")])
        with _writing(file.name):
            file.write(json.dumps(values, ensure_ascii=False) + "\n")
            file.flush()
        with _writing(self.folder.path):
            for sink in self._sinks:
                sink.write(kind, values)

    def sync(self) -> None:
        """Flush the files to the disk, so that no checkpoint is newer than its log."""
        for file in self._files.values():
            with _writing(file.name):
                os.fsync(file.fileno())

    def advance(self, step: int, metrics: Mapping[str, Any] | None) -> None:
        """Show that ``step`` steps are done; ``metrics`` when logged."""
        note = "" if metrics is None else _format_metrics(metrics)
        self._progress.advance(step - self._done, note)
        self._done = step

    def tell(self, text: str) -> None:
        """Print a line beside the progress, where that is shown."""
        self._progress.tell(text)

    def label_of(self, work: str) -> str | None:
        """What the progress of a part of the run is called, such as "validation"; None: it is not shown."""
        return f"{self._name} {work}" if self._shown else None

    def median_speed(self) -> float | None:
        """Median of the logged tokens per second; None without a line or where nothing is written."""
        return median(self._speeds) if self._speeds else None

    def close(self) -> None:
        """Close files and loggers; raises RunError where the last of them cannot be written."""
        with _writing(self.folder.path), ExitStack() as closing:
            for each in (*self._files.values(), *self._sinks):
                closing.callback(each.close)


@contextmanager
def _writing(path: str | Path) -> Iterator[None]:
    """Raise RunError where the system refuses to write ``path``."""
    try:
        yield
    except OSError as error:
        why = str(said_by_system(error))
        raise RunError(
            f"{path} cannot be written: {why}. {way_to_write(why)}; then {goes_on()}"
        ) from error


def environment(device: torch.device) -> dict[str, Any]:
    """Versions, hardware, and the git state of the working folder."""
    cuda = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {
        "versions": {**versions_here(), "torch": torch.__version__},  # the build it is, too
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "cpu_count": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": str(device),
        "device_name": cuda,
        "world_size": int(os.environ.get("WORLD_SIZE", "1")),
        "git": _git_state(),
    }


def _cut_off(path: Path, step: int) -> list[tuple[int, float | None]]:
    """Leave in a log the lines whose step is at most ``step``: the step of each, and its tokens per second.

    How many lines go, and why, is logged. A last line that was cut short belongs to a later step. A log may
    be long: its lines are read one by one, and it is written anew only where one of them goes. Raises
    DataError for a file that is not UTF-8.
    """
    if not path.is_file():
        return []
    kept: list[tuple[int, float | None]] = []
    gone: set[int] = set()
    later, damaged, whole = 0, 0, True
    for number, (text, whole) in enumerate(read_log(path), start=1):
        try:
            line = json.loads(text)
            if line["step"] <= step:
                kept.append((line["step"], line.get("tokens_per_second")))
                continue
            later += 1
        except (ValueError, RecursionError, TypeError, KeyError):
            later += not whole
            damaged += whole and bool(text)
        gone.add(number)
    if gone or not whole:
        with replacing(path) as writing, writing.open("w", encoding="utf-8") as file:
            for number, (text, _) in enumerate(read_log(path), start=1):
                if number not in gone:
                    file.write(f"{text}\n")
    if later:
        logger.info(
            "%s: lines after step %s are written again: %s", path, f"{max(0, step):,}", later
        )
    if damaged:
        logger.warning("%s: lines that cannot be read are left out: %s", path, damaged)
    return kept


def _tell_missing(path: Path, steps: Set[int], step: int, every: int) -> None:
    """Say how many lines a log should have up to ``step`` and has not."""
    missing = sorted(set(range(every, step + 1, every)) - steps)
    if missing:
        logger.warning(
            "%s lacks the lines of %s before the checkpoint, from step %s to step %s",
            path, amount(len(missing), "steps"), f"{missing[0]:,}", f"{missing[-1]:,}",
        )  # fmt: skip


def _git_state() -> dict[str, Any] | None:
    """Commit of the working folder and whether it has changes; None outside a repository."""

    def git(*arguments: str) -> str:
        command = ["git", *arguments]
        return subprocess.run(
            command, capture_output=True, text=True, timeout=10, check=True
        ).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "changed": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return None


def _format_metrics(metrics: Mapping[str, Any]) -> str:
    losses = [
        f"{name} {metrics[key]:.3f}"
        for key, name in (("loss", "loss"), ("causal_loss", "causal loss"))
        if metrics.get(key) is not None
    ]
    shown = [
        *(losses or ["nothing predicted"]),
        f"{metrics['tokens_per_second']:,.0f} tok/s",
        f"{metrics['predicted_tokens_per_second']:,.0f} predicted/s",
    ]
    if metrics["mfu"] is not None:
        shown.append(f"MFU {metrics['mfu']:.0%}")
    shown.append(f"{metrics['data_wait_share']:.0%} waiting for data")
    shown.append(f"{metrics['peak_memory_bytes'] / 1e9:.1f} GB")
    return "  ".join(shown)
