"""Checkpoints: all the state there is, in safetensors and JSON, complete or not there at all.

A checkpoint is written into a temporary folder, every file and folder is flushed to the disk,
``hashes.json`` goes last, and one rename makes it visible. So a process killed at any moment leaves
the checkpoints before it as they were, and whatever happens to a file later is found by its hash.
docs/contracts.md draws the folder. No random state is saved: everything random is keyed by step.
"""

from __future__ import annotations

import errno
import json
import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from chronomask.errors import ChronomaskError, DataError, RunError, UsageError
from chronomask.model.export import export
from chronomask.runs.layout import HASHES, MODEL, STATE, checkpoints_in, damage, step_name
from chronomask.runs.rules import unchangeable
from chronomask.storage import file_sha256, flush, write_json
from chronomask.train.config import RunConfig
from chronomask.train.sharding import like
from chronomask.train.snapshot import Snapshot

__all__ = ["Checkpoint", "check_same_run", "latest", "save", "tidy"]

FORMAT_VERSION = 1
_UNFINISHED, _DISCARDED = ".writing-", ".discarded-"

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A complete checkpoint whose hashes were verified; ``state`` is its ``state.json``."""

    path: Path
    state: dict[str, Any]

    @property
    def step(self) -> int:
        """Number of optimiser steps done."""
        return self.state["step"]

    @property
    def model_path(self) -> Path:
        """Folder that ``AutoModelForMaskedLM.from_pretrained`` opens."""
        return self.path / MODEL

    def content(self) -> dict[str, torch.Tensor]:
        """Tensors of the masker and of the log, as given to :func:`save`."""
        return _load(self.path / "content.safetensors")

    def load_optimiser(self, optimiser: torch.optim.Optimizer, model: nn.Module) -> None:
        """Fill the optimiser's state; raises DataError if it is of other parameters."""
        parameters = dict(model.named_parameters())
        saved = _load(self.path / "optimiser.safetensors")
        for key, tensor in saved.items():
            slot, _, name = key.partition("/")
            parameter = parameters.get(name)
            if parameter is None or (tensor.ndim and tensor.shape != parameter.shape):
                raise DataError(
                    f"{self.path}: optimiser state '{key}' fits no parameter of the model"
                )
            optimiser.state[parameter][slot] = like(tensor, parameter)


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
    writing = folder / f"{_UNFINISHED}{final.name}"
    try:
        shutil.rmtree(writing, ignore_errors=True)
        writing.mkdir(parents=True)
        export(model, tokenizer, writing / MODEL, snapshot.card, snapshot.weights)
        save_file(snapshot.optimiser, writing / "optimiser.safetensors")
        save_file(snapshot.content, writing / "content.safetensors")
        write_json(writing / STATE, {"format_version": FORMAT_VERSION, **snapshot.state})
        write_json(writing / HASHES, _hash_and_flush(writing))
        flush(writing)
        writing.rename(final)
        flush(folder)
    except (OSError, SafetensorError, RunError) as error:
        shutil.rmtree(writing, ignore_errors=True)
        before = [path.name for path in checkpoints_in(folder)]
        raise RunError(_describe_failure(final, error.__cause__ or error, before)) from error
    for old in [] if keep is None else checkpoints_in(folder)[keep:]:
        _remove(old)
    return final


def latest(folder: Path) -> Checkpoint | None:
    """The newest complete checkpoint whose files match their hashes; None if there is no checkpoint.

    A damaged one is reported loudly and the one before is taken. Raises RunError if all are damaged.
    """
    found = checkpoints_in(folder)
    for path in found:
        wrong = damage(path)
        if wrong is None:
            state = json.loads((path / STATE).read_text(encoding="utf-8"))
            if state.get("format_version") != FORMAT_VERSION:
                raise RunError(
                    f"{path} has checkpoint format {state.get('format_version')!r}; this version of "
                    f"chronomask reads format {FORMAT_VERSION}: resume with the version that wrote it"
                )
            return Checkpoint(path, state)
        logger.warning("checkpoint %s is damaged (%s): using the one before it", path, wrong)
    if found:
        names = ", ".join(path.name for path in found)
        raise RunError(
            f"no checkpoint in {folder} is whole (damaged: {names}); "
            "start again in another folder, or restore one of them from a copy"
        )
    return None


def check_same_run(checkpoint: Checkpoint, config: RunConfig, fingerprint: str) -> None:
    """Refuse a checkpoint of another run; raises UsageError that names every field that differs."""
    problems = []
    if checkpoint.state["data_fingerprint"] != fingerprint:
        problems.append(
            f"data fingerprint (checkpoint {checkpoint.state['data_fingerprint'][:12]}…, "
            f"now {fingerprint[:12]}…)"
        )
    try:
        before = RunConfig.parse(checkpoint.state["config"], where=str(checkpoint.path / STATE))
    except ChronomaskError as error:
        raise RunError(f"the checkpoint's config cannot be read: {error}") from None
    for key, (old, new) in unchangeable(before, config).items():
        problems.append(f"{key} (checkpoint {old!r}, now {new!r})")
    if problems:
        raise UsageError(
            f"{checkpoint.path} belongs to another run; these differ: {'; '.join(problems)}. "
            "Resume with the run's own config.yaml, or give another output folder"
        )


def tidy(folder: Path, step: int) -> None:
    """Prepare ``folder`` to continue after ``step``, the step of the newest whole checkpoint.

    What a killed process left half-written or half-removed is deleted; checkpoints of later steps, which
    are damaged or they would be the newest, are renamed to damaged-step-….
    """
    for prefix in (_UNFINISHED, _DISCARDED):
        for path in folder.glob(f"{prefix}*"):
            shutil.rmtree(path, ignore_errors=True)
    for path in checkpoints_in(folder):
        if path.name > step_name(step):
            aside = path.with_name(f"damaged-{path.name}")
            shutil.rmtree(aside, ignore_errors=True)
            path.rename(aside)


def _load(path: Path) -> dict[str, torch.Tensor]:
    """Tensors of a file, each in aligned memory of its own (see ``model.open.open_model``)."""
    return {name: tensor.clone() for name, tensor in load_file(path).items()}


def _remove(path: Path) -> None:
    """Remove a checkpoint so that at no moment a part of it passes for the whole."""
    discarded = path.with_name(f"{_DISCARDED}{path.name}")
    path.rename(discarded)
    shutil.rmtree(discarded, ignore_errors=True)


def _hash_and_flush(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below ``folder`` by relative path, each flushed to the disk."""
    hashes = {}
    for path in sorted(folder.rglob("*")):
        flush(path)
        if path.is_file():
            hashes[path.relative_to(folder).as_posix()] = file_sha256(path)
    return hashes


def _describe_failure(final: Path, error: BaseException, before: list[str]) -> str:
    full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "os error 28" in str(
        error
    )
    why = "no space left on the device" if full else str(error)
    intact = (
        f"earlier checkpoints are intact ({', '.join(before)})"
        if before
        else "there is no earlier one"
    )
    return (
        f"{final} could not be saved: {why}; {intact}. "
        "Make room or choose another disk, then continue with --resume"
    )
