"""What a run writes for people and reports: metrics, validations, environment, summary, progress."""

from __future__ import annotations

import json
import logging
import os
import platform
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from types import TracebackType
from typing import IO, Any, Self

import torch

from chronomask.errors import RunError, amount
from chronomask.progress import Progress
from chronomask.runs.layout import RunFolder
from chronomask.runs.read import read_log
from chronomask.runs.result import versions_here
from chronomask.storage import said_by_system, way_on, write_text
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
        self._progress = Progress(
            name, steps, "steps", shown=progress and active, done=max(0, step)
        )
        self._done = max(0, step)
        if not active:
            return
        self._sinks = open_sinks(loggers, folder, step=step, name=name, config=config or {})
        for path in (self.folder.metrics, self.folder.validation):
            kept = _lines_up_to(path, step)
            if path == self.folder.metrics and logged_every is not None:
                _tell_missing(path, kept, step, logged_every)
            write_text(path, "".join(f"{json.dumps(line, ensure_ascii=False)}\n" for line in kept))
            self._files[path.stem] = path.open("a", encoding="utf-8")

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

    def median_speed(self) -> float | None:
        """Median of the logged tokens per second; None without a line or where nothing is written."""
        if not self.active:
            return None
        lines = filter(None, read_log(self.folder.metrics))
        speeds = [json.loads(line)["tokens_per_second"] for line in lines]
        return median(speeds) if speeds else None

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
        raise RunError(f"{path} cannot be written: {why}. {way_on(why)}") from error


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


def _lines_up_to(path: Path, step: int) -> list[dict[str, Any]]:
    """Lines of a log whose step is at most ``step``; how many others go, and why, is logged.

    A last line that was cut short belongs to a later step. Raises DataError for a file that is not UTF-8.
    """
    if not path.is_file():
        return []
    kept, later, damaged = [], 0, 0
    texts = read_log(path)
    for number, text in enumerate(texts, start=1):
        try:
            line = json.loads(text)
            is_later = line["step"] > step
        except (ValueError, RecursionError, TypeError, KeyError):
            if not text:
                continue
            torn = number == len(texts)
            later, damaged = later + torn, damaged + (not torn)
            continue
        later += is_later
        if not is_later:
            kept.append(line)
    if later:
        logger.info(
            "%s: lines after step %s are written again: %s", path, f"{max(0, step):,}", later
        )
    if damaged:
        logger.warning("%s: lines that cannot be read are left out: %s", path, damaged)
    return kept


def _tell_missing(path: Path, lines: Sequence[Mapping[str, Any]], step: int, every: int) -> None:
    """Say how many lines a log should have up to ``step`` and has not."""
    due = set(range(every, step + 1, every))
    missing = sorted(due - {line["step"] for line in lines})
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
