"""Writing checkpoints: all the state there is, in safetensors and JSON, complete or not there at all.

A checkpoint is written from a :class:`Snapshot` into a temporary folder, every file and folder is flushed to
the disk, ``hashes.json`` goes last, and one rename makes it visible. So a process killed at any moment leaves
the checkpoints before it as they were, and whatever happens to a file later is found by its hash.

In the background (:class:`Saver`) a thread does this, and taking the snapshot is all that training waits
for. A failure ends the run at the next step boundary or at the end, and nothing that relies on a checkpoint
(a stop, the summary) comes before the thread is done.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from chronomask.errors import RunError
from chronomask.model.export import export
from chronomask.runs.continuation import goes_on
from chronomask.runs.layout import (
    AVERAGED,
    CONTENT,
    FORMAT_VERSION,
    HASHES,
    MODEL,
    OPTIMISER,
    STATE,
    UNFINISHED,
    checkpoints_in,
    remove,
    step_name,
)
from chronomask.storage import (
    file_sha256,
    flush,
    remove_all,
    said_by_system,
    share,
    way_to_write,
    write_json,
)
from chronomask.train.sharding import whole

__all__ = ["Saver", "Snapshot", "save", "take"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """``state``: what ``state.json`` will hold; ``models``: by folder, a model's card and weights.

    Tensors are whole: weights by the names of the model's ``state_dict``, tied ones sharing memory;
    ``optimiser`` by ``slot/parameter name``; ``content`` by the masker's and the log's own names.
    """

    state: dict[str, Any]
    models: dict[str, tuple[str, dict[str, torch.Tensor]]]
    optimiser: dict[str, torch.Tensor]
    content: dict[str, torch.Tensor]

    @property
    def step(self) -> int:
        """Number of optimiser steps done."""
        return self.state["step"]


def take(
    state: dict[str, Any],
    cards: Mapping[str, str],
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    content: dict[str, torch.Tensor],
    *,
    averaged: Mapping[int, torch.Tensor],
    copied: bool,
    kept: bool,
) -> Snapshot | None:
    """A snapshot on the host, or None where it is not ``kept``; all processes must call this together.

    ``averaged``: the mean of each parameter by its ``id``; empty where there is no averaged model.
    ``cards``: of the models, by folder. ``copied``: it keeps its values while training goes on; otherwise
    tensors of the host are shared with the model, and it holds until the next update.
    """

    def on_host(tensor: torch.Tensor) -> torch.Tensor | None:
        full = whole(tensor.detach())
        if not kept:
            return None
        host = full.cpu()
        return host.clone() if copied and host is full else host

    def weights(instead: Mapping[int, torch.Tensor]) -> dict[str, torch.Tensor | None]:
        seen: dict[int, torch.Tensor | None] = {}
        named: dict[str, torch.Tensor | None] = {}
        for name, tensor in model.state_dict(keep_vars=True).items():
            if id(tensor) not in seen:
                seen[id(tensor)] = on_host(instead.get(id(tensor), tensor))
            named[name] = seen[id(tensor)]
        return named

    found = {MODEL: weights({})} | ({AVERAGED: weights(averaged)} if averaged else {})
    slots = {
        f"{slot}/{name}": on_host(value)
        for name, parameter in model.named_parameters()
        for slot, value in optimiser.state.get(parameter, {}).items()
    }
    if not kept:
        return None
    return Snapshot(
        state,
        {folder: (cards[folder], _there(tensors)) for folder, tensors in found.items()},
        {name: tensor.contiguous() for name, tensor in _there(slots).items()},
        {name: tensor.detach().cpu().clone() for name, tensor in content.items()},
    )


def _there(tensors: Mapping[str, torch.Tensor | None]) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in tensors.items() if tensor is not None}


def save(
    folder: Path,
    snapshot: Snapshot,
    *,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    keep: int | None,
) -> Path:
    """Write ``folder``/step-…, then remove all but the ``keep`` newest (None: none); returns the new folder.

    ``model`` gives its class and config alone. Saving a step that is there already changes nothing.
    Raises RunError when the disk is full or fails; earlier checkpoints stay and nothing half-written
    is left.
    """
    final = folder / step_name(snapshot.step)
    if (final / HASHES).is_file():
        return final
    writing = folder / f"{UNFINISHED}{final.name}"
    try:
        remove_all(writing, ignore_errors=True)
        writing.mkdir(parents=True)
        for name, (card, weights) in snapshot.models.items():
            export(model, tokenizer, writing / name, card, weights)
        save_file(snapshot.optimiser, writing / OPTIMISER)
        save_file(snapshot.content, writing / CONTENT)
        write_json(writing / STATE, {"format_version": FORMAT_VERSION, **snapshot.state})
        write_json(writing / HASHES, _hash_and_flush(writing))
        flush(writing)
        writing.rename(final)
        flush(folder)
    except Exception as error:
        remove_all(writing, ignore_errors=True)
        cause = error.__cause__ or error
        why = said_by_system(cause)
        if why is None and not isinstance(error, SafetensorError | RunError):
            raise
        before = [path.name for path in checkpoints_in(folder)]
        raise RunError(_describe_failure(final, why or str(cause), before)) from error
    for old in [] if keep is None else checkpoints_in(folder)[keep:]:
        remove(old)
    return final


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
            self._writing = self._pool.submit(copy_context().run, self._write, snapshot)
        else:
            self._write(snapshot)

    @property
    def failed(self) -> bool:
        """Whether a write in the background is known to have failed; :meth:`save` then says how."""
        writing = self._writing
        return writing is not None and writing.done() and writing.exception() is not None

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
        return save(folder, snapshot, model=self._model, tokenizer=self._tokenizer, keep=1)

    def _write(self, snapshot: Snapshot) -> Path:
        return save(
            self._folder, snapshot, model=self._model, tokenizer=self._tokenizer, keep=self._keep
        )


def _hash_and_flush(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below ``folder`` by relative path, each shared and flushed to the disk."""
    hashes = {}
    for path in sorted(folder.rglob("*")):
        share(path)
        flush(path)
        if path.is_file():
            hashes[path.relative_to(folder).as_posix()] = file_sha256(path)
    return hashes


def _describe_failure(final: Path, why: str, before: list[str]) -> str:
    intact = (
        f"earlier checkpoints are intact ({', '.join(before)})"
        if before
        else "there is no earlier one"
    )
    return f"{final} could not be saved: {why}; {intact}. {way_to_write(why)}; then {goes_on()}"
