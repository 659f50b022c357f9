"""Where a run's figures go beside its JSON Lines: TensorBoard, Weights & Biases. Each is an extra.

A resumed run continues where the checkpoint stands: TensorBoard is told to forget later points, Weights
& Biases, which cannot, is sent no point twice (``wandb.json`` in the run folder knows the last).
"""

from __future__ import annotations

import json
import os
import uuid
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from chronomask.config import Alternative, kind_of
from chronomask.errors import DataError, UsageError, check_installed
from chronomask.runs.continuation import goes_on
from chronomask.storage import read_object, way_to_read, write_text

__all__ = ["Logger", "Sink", "check_loggers", "open_sinks"]


class Sink(Protocol):
    """Takes lines of ``metrics.jsonl`` and ``validation.jsonl``."""

    def write(self, kind: str, values: Mapping[str, Any]) -> None:
        """One line; ``kind`` is ``metrics`` or ``validation``."""
        ...

    def close(self) -> None:
        """Hand over what is left."""
        ...


class Logger(Alternative):
    """The family of loggers, distinguished by ``kind``, which is also the package and the extra it needs."""

    @abstractmethod
    def open(self, folder: Path, *, step: int, name: str, config: Mapping[str, Any]) -> Sink:
        """Go on after ``step`` with the figures of the run in ``folder``; −1: from before its first."""


class TensorBoard(Logger):
    """Event files in ``RUN/tensorboard``; needs the extra ``tensorboard``."""

    kind: Literal["tensorboard"] = "tensorboard"

    def open(self, folder: Path, *, step: int, name: str, config: Mapping[str, Any]) -> Sink:
        """A writer of event files; readers drop what earlier files hold after ``step``."""
        return _TensorBoard(folder, step)


class WandB(Logger):
    """A run of Weights & Biases, its files in ``RUN/wandb``; needs the extra ``wandb``."""

    kind: Literal["wandb"] = "wandb"
    project: str | None = None
    """the project that the run appears in; none takes ``WANDB_PROJECT``, or "chronomask" without that"""
    entity: str | None = None
    """user or team; none takes the account's own"""
    mode: Literal["online", "offline"] | None = None
    """offline keeps everything in the run folder, for ``wandb sync`` later; none takes ``WANDB_MODE``, or
    online without that"""

    def open(self, folder: Path, *, step: int, name: str, config: Mapping[str, Any]) -> Sink:
        """The run that ``wandb.json`` in ``folder`` names, or a new one.

        Raises :class:`UsageError` where Weights & Biases refuses it, as without a key.
        """
        return _WandB(self, folder, name, config)


def check_loggers(loggers: Sequence[Logger]) -> None:
    """Raise UsageError naming the extra of a logger that is not installed."""
    for kind in map(kind_of, loggers):
        try:
            check_installed(kind, kind, f"logger '{kind}'")
        except UsageError as error:
            raise UsageError(f"{error}, or leave it out of loggers") from None


def open_sinks(
    loggers: Sequence[Logger],
    folder: Path,
    *,
    step: int,
    name: str,
    config: Mapping[str, Any],
) -> list[Sink]:
    """The loggers of the run in ``folder``, to go on after ``step``."""
    return [logger.open(folder, step=step, name=name, config=config) for logger in loggers]


class _TensorBoard:
    def __init__(self, folder: Path, step: int) -> None:
        from torch.utils.tensorboard.writer import SummaryWriter

        # Readers drop what earlier files hold from the purge step on.
        self._writer = SummaryWriter(folder / "tensorboard", purge_step=step + 1, flush_secs=10)

    def write(self, kind: str, values: Mapping[str, Any]) -> None:
        for name, value in _scalars(kind, values):
            self._writer.add_scalar(name, value, values["step"])

    def close(self) -> None:
        self._writer.close()


class _WandB:
    def __init__(self, logger: WandB, folder: Path, name: str, config: Mapping[str, Any]) -> None:
        """Begin or continue the run that ``wandb.json`` in ``folder`` names."""
        os.environ.setdefault("WANDB_SILENT", "true")
        import wandb

        self._path = folder / "wandb.json"
        self._sent: dict[str, int] = {"metrics": 0, "validation": 0}
        self._id = uuid.uuid4().hex[:12]
        if (before := self._read()) is not None:
            self._id, self._sent = before["id"], before["sent"]
        try:
            self._run = wandb.init(
                project=logger.project or os.environ.get("WANDB_PROJECT") or "chronomask",
                entity=logger.entity,
                name=name,
                id=self._id,
                resume="allow",
                dir=folder,
                mode=logger.mode,
                config=dict(config),
            )
        except wandb.Error as error:
            raise UsageError(
                f"logger 'wandb' does not begin ({error}): log in with `wandb login`, or give "
                "loggers=[{kind: wandb, mode: offline}] or loggers=[]; "
                f"then {goes_on()}, for {folder} is begun"
            ) from None
        for kind in ("train", "validation"):
            self._run.define_metric(f"{kind}/*", step_metric="step")
        self._remember()

    def write(self, kind: str, values: Mapping[str, Any]) -> None:
        if values["step"] <= self._sent[kind]:
            return
        self._run.log({"step": values["step"], **dict(_scalars(kind, values))})
        self._sent[kind] = values["step"]
        self._remember()

    def close(self) -> None:
        self._run.finish()

    def _read(self) -> dict[str, Any] | None:
        """What was remembered, None before that; raises DataError for a damaged file."""
        way_out = (
            "put it back from a copy, or remove it to have what follows as a new run of Weights & "
            f"Biases; then {goes_on()}"
        )
        try:
            found = read_object(self._path)
        except DataError as error:
            raise DataError(f"{error}; {way_to_read(error.__context__, way_out)}") from None
        if found is None:
            return None
        sent = found.get("sent")
        steps = [sent.get(kind) for kind in self._sent] if isinstance(sent, dict) else [None]
        if not (isinstance(found.get("id"), str) and all(isinstance(step, int) for step in steps)):
            raise DataError(f"{self._path} does not say what was sent; {way_out}")
        return found

    def _remember(self) -> None:
        write_text(self._path, json.dumps({"id": self._id, "sent": self._sent}) + "\n")


def _scalars(kind: str, values: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """``train/loss``, ``validation/class_loss/NOUN``, …: numbers of a line but its step."""
    group = "train" if kind == "metrics" else kind
    for name, value in values.items():
        if isinstance(value, Mapping):
            # Yardsticks of each class are in the file alone.
            if name.removeprefix("raw_").startswith("yardstick_"):
                value = {inner: number for inner, number in value.items() if "/" not in inner}
            for inner, number in value.items():
                yield f"{group}/{name}/{inner}", number
        elif isinstance(value, int | float) and name != "step":
            yield f"{group}/{name}", value
