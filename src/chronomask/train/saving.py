"""Writes checkpoints at once or in the background, one at a time, and never claims one too early.

A checkpoint in the background is a snapshot and a thread. It appears under its name when every byte is
on the disk (see ``checkpoint``), a failure ends the run at the next step boundary or at the end, and
nothing that relies on a checkpoint (a stop, the summary) comes before the thread is done.
"""

from __future__ import annotations

import logging
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from chronomask.errors import RunError
from chronomask.train import checkpoint
from chronomask.train.snapshot import Snapshot

__all__ = ["Saver"]

logger = logging.getLogger(__name__)


class Saver:
    """Writes the snapshots of one run into ``folder`` and keeps the ``keep`` newest."""

    def __init__(
        self,
        folder: Path,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        keep: int | None,
    ) -> None:
        self._folder = folder
        self._model = model
        self._tokenizer = tokenizer
        self._keep = keep
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[Path] | None = None

    def save(self, snapshot: Snapshot, *, background: bool) -> None:
        """Write ``snapshot``, after the one before it; raises RunError if either fails.

        With ``background`` it returns once the one before is done, and ``snapshot`` must be a copy.
        """
        self.finish()
        if background:
            self._writing = self._pool.submit(self._write, snapshot)
        else:
            self._write(snapshot)

    def check(self) -> None:
        """Raise the RunError of a write that failed in the background; does not wait."""
        if self._writing is not None and self._writing.done():
            self.finish()

    def finish(self) -> None:
        """Wait until nothing is being written; raises RunError if that failed."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def close(self) -> None:
        """Wait for the thread to end; a failure that nobody asked for is logged."""
        try:
            self.finish()
        except RunError as error:
            logger.error("%s", error)
        finally:
            self._pool.shutdown()

    def write_to(self, folder: Path, snapshot: Snapshot) -> Path:
        """Write ``snapshot`` as the only checkpoint of another folder, now."""
        return checkpoint.save(
            folder, snapshot, model=self._model, tokenizer=self._tokenizer, keep=1
        )

    def _write(self, snapshot: Snapshot) -> Path:
        return checkpoint.save(
            self._folder, snapshot, model=self._model, tokenizer=self._tokenizer, keep=self._keep
        )
