"""What a run writes for people and reports: metrics, validations, environment, summary, progress."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import IO, Any

import numpy
import tokenizers
import torch
import transformers
from tqdm import tqdm

from chronomask import __version__
from chronomask.errors import RunError
from chronomask.storage import write_text
from chronomask.train.loggers import Sink, TensorBoard, WandB, open_sinks

__all__ = ["RunLog", "environment"]

_SECONDS_BETWEEN_LINES = 10.0
"""Least time between plain progress lines, so that a log file of a long run stays readable."""


class RunLog:
    """The log files of a run folder, opened to continue after ``step``; lines of later steps are removed.

    ``active``: False for processes that leave writing to the first. Raises RunError when a file
    cannot be written.
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
        loggers: Sequence[TensorBoard | WandB] = (),
        config: Mapping[str, Any] | None = None,
    ) -> None:
        """Cut both logs off after ``step``, and open the loggers; raises RunError."""
        self.folder = folder
        self.active = active
        self._files: dict[str, IO[str]] = {}
        self._sinks: list[Sink] = []
        self._bar: tqdm[Any] | None = None
        self._lines = progress and active
        self._last_line = -_SECONDS_BETWEEN_LINES
        if not active:
            return
        for kind in ("metrics", "validation"):
            path = folder / f"{kind}.jsonl"
            write_text(path, "".join(_lines_up_to(path, step)))
            self._files[kind] = path.open("a", encoding="utf-8")
        self._sinks = open_sinks(loggers, folder, step=step, name=name, config=config or {})
        if progress and sys.stderr.isatty():
            self._bar = tqdm(total=steps, initial=step, desc=name, unit="step", dynamic_ncols=True)

    def write(self, kind: str, values: Mapping[str, Any]) -> None:
        """Append one JSON object to ``metrics.jsonl`` or ``validation.jsonl``; loggers get it too."""
        if not self.active:
            return
        file = self._files[kind]
        try:
            file.write(json.dumps(values, ensure_ascii=False) + "\n")
            file.flush()
        except OSError as error:
            raise RunError(f"{self.folder / f'{kind}.jsonl'} cannot be written: {error}") from error
        for sink in self._sinks:
            sink.write(kind, values)

    def sync(self) -> None:
        """Flush the files to the disk, so that no checkpoint is newer than its log."""
        for file in self._files.values():
            os.fsync(file.fileno())

    def advance(self, step: int, steps: int, metrics: Mapping[str, Any] | None) -> None:
        """Show progress: a bar on a terminal, else a line now and then; ``metrics`` when logged."""
        if self._bar is not None:
            if metrics is not None:
                self._bar.set_postfix_str(_format_metrics(metrics), refresh=False)
            self._bar.update(step - self._bar.n)
        elif self._lines and metrics is not None:
            now = time.monotonic()
            if now - self._last_line >= _SECONDS_BETWEEN_LINES or step == steps:
                self._last_line = now
                print(
                    f"step {step:,}/{steps:,}  {_format_metrics(metrics)}",
                    file=sys.stderr,
                    flush=True,
                )

    def median_speed(self) -> float | None:
        """Median of the logged tokens per second; None without a line or where nothing is written."""
        if not self.active:
            return None
        path = self.folder / "metrics.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines()
        speeds = [json.loads(line)["tokens_per_second"] for line in lines]
        return median(speeds) if speeds else None

    def close(self) -> None:
        """Close files, loggers and bar."""
        for sink in self._sinks:
            sink.close()
        for file in self._files.values():
            file.close()
        if self._bar is not None:
            self._bar.close()


def environment(device: torch.device) -> dict[str, Any]:
    """Versions, hardware, and the git state of the working folder."""
    cuda = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {
        "versions": {
            "chronomask": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "tokenizers": tokenizers.__version__,
            "numpy": numpy.__version__,
        },
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "cpu_count": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": str(device),
        "device_name": cuda,
        "world_size": int(os.environ.get("WORLD_SIZE", "1")),
        "git": _git_state(),
    }


def _lines_up_to(path: Path, step: int) -> list[str]:
    """Lines of a log whose step is at most ``step``; a line cut short by a kill counts as later."""
    kept = []
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
            try:
                if json.loads(line)["step"] > step:
                    break
            except ValueError:
                break
            kept.append(line)
    return kept


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
    loss = "nothing predicted" if metrics["loss"] is None else f"loss {metrics['loss']:.3f}"
    shown = [
        loss,
        f"{metrics['tokens_per_second']:,.0f} tok/s",
        f"{metrics['predicted_tokens_per_second']:,.0f} predicted/s",
    ]
    if metrics["mfu"] is not None:
        shown.append(f"MFU {metrics['mfu']:.0%}")
    shown.append(f"{metrics['data_wait_share']:.0%} waiting for data")
    shown.append(f"{metrics['peak_memory_bytes'] / 1e9:.1f} GB")
    if metrics["seconds_left"] is not None:
        shown.append(f"{_clock(metrics['seconds_left'])} left")
    return "  ".join(shown)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"
