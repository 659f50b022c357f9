"""Checkpoints: all the state there is, in safetensors and JSON, complete or not there at all.

A checkpoint is written into a temporary folder, every file and folder is flushed to the disk,
``hashes.json`` goes last, and one rename makes it visible. So a process killed at any moment leaves
the checkpoints before it as they were, and whatever happens to a file later is found by its hash.
docs/contracts.md draws the folder. No random state is saved: everything random is keyed by step.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from chronomask.config import diff
from chronomask.errors import ChronomaskError, DataError, RunError, UsageError
from chronomask.model.export import export
from chronomask.train.config import CHANGEABLE, RunConfig

__all__ = ["Checkpoint", "check_same_run", "latest", "save", "tidy"]

FORMAT_VERSION = 1
_HASHES = "hashes.json"
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
        return self.path / "transformers"

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
            optimiser.state[parameter][slot] = tensor.to(parameter.device)


def save(
    folder: Path,
    state: dict[str, Any],
    *,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    card: str,
    optimiser: torch.optim.Optimizer,
    content: dict[str, torch.Tensor],
    keep: int | Literal["all"],
) -> Path:
    """Write ``folder``/step-…, then remove all but the ``keep`` newest, if any; returns the new folder.

    ``state`` needs ``step``. Saving a step that is there already changes nothing. Raises RunError
    when the disk is full or fails; earlier checkpoints stay and nothing half-written is left.
    """
    final = folder / _name(state["step"])
    if (final / _HASHES).is_file():
        return final
    writing = folder / f"{_UNFINISHED}{final.name}"
    try:
        shutil.rmtree(writing, ignore_errors=True)
        writing.mkdir(parents=True)
        export(model, tokenizer, writing / "transformers", card)
        save_file(_optimiser_tensors(optimiser, model), writing / "optimiser.safetensors")
        save_file(content, writing / "content.safetensors")
        _write_json(writing / "state.json", {"format_version": FORMAT_VERSION, **state})
        _write_json(writing / _HASHES, _hash_and_flush(writing))
        _flush(writing / _HASHES)
        _flush(writing)
        writing.rename(final)
        _flush(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(writing, ignore_errors=True)
        raise RunError(_why_not_saved(final, error, _names(folder))) from error
    for old in [] if keep == "all" else _folders(folder)[keep:]:
        _remove(old)
    return final


def latest(folder: Path) -> Checkpoint | None:
    """The newest complete checkpoint whose files match their hashes; None if there is no checkpoint.

    A damaged one is reported loudly and the one before is taken. Raises RunError if all are damaged.
    """
    found = _folders(folder)
    for path in found:
        damage = _damage(path)
        if damage is None:
            state = json.loads((path / "state.json").read_text(encoding="utf-8"))
            if state.get("format_version") != FORMAT_VERSION:
                raise RunError(
                    f"{path} has checkpoint format {state.get('format_version')!r}; this version of "
                    f"chronomask reads format {FORMAT_VERSION}: resume with the version that wrote it"
                )
            return Checkpoint(path, state)
        logger.warning("checkpoint %s is damaged (%s): taking the one before it", path, damage)
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
        before = RunConfig.parse(
            checkpoint.state["config"], where=str(checkpoint.path / "state.json")
        )
    except ChronomaskError as error:
        raise RunError(f"the checkpoint's config cannot be read: {error}") from None
    changeable = CHANGEABLE
    if getattr(config.masking.ratio, "watch", None) == "validation":
        changeable = tuple(key for key in CHANGEABLE if key != "validation.")
    for key, (old, new) in diff(before, config).items():
        if not any(
            key == free or (free[-1] == "." and key.startswith(free)) for free in changeable
        ):
            problems.append(f"{key} (checkpoint {old!r}, now {new!r})")
    if problems:
        raise UsageError(
            f"{checkpoint.path} belongs to another run; these differ: {'; '.join(problems)}. "
            "Resume with the run's own config.yaml, or give another output folder"
        )


def tidy(folder: Path, step: int) -> None:
    """Make ``folder`` fit to go on after ``step``, the step of the newest whole checkpoint.

    What a killed process left half-written or half-removed goes; checkpoints of later steps, which
    are damaged or they would be the newest, are renamed to damaged-step-….
    """
    for prefix in (_UNFINISHED, _DISCARDED):
        for path in folder.glob(f"{prefix}*"):
            shutil.rmtree(path, ignore_errors=True)
    for path in _folders(folder):
        if path.name > _name(step):
            aside = path.with_name(f"damaged-{path.name}")
            shutil.rmtree(aside, ignore_errors=True)
            path.rename(aside)


def _load(path: Path) -> dict[str, torch.Tensor]:
    """Tensors of a file, each in aligned memory of its own (see ``model.build.open_model``)."""
    return {name: tensor.clone() for name, tensor in load_file(path).items()}


def _name(step: int) -> str:
    return f"step-{step:08d}"


def _folders(folder: Path) -> list[Path]:
    """Checkpoint folders, newest first."""
    return sorted(folder.glob("step-*"), key=lambda path: path.name, reverse=True)


def _names(folder: Path) -> list[str]:
    return [path.name for path in _folders(folder)]


def _remove(path: Path) -> None:
    """Remove a checkpoint so that at no moment a part of it passes for the whole."""
    discarded = path.with_name(f"{_DISCARDED}{path.name}")
    path.rename(discarded)
    shutil.rmtree(discarded, ignore_errors=True)


def _damage(path: Path) -> str | None:
    """What is wrong with a checkpoint, or None."""
    try:
        hashes: dict[str, str] = json.loads((path / _HASHES).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return f"no {_HASHES}"
    except ValueError:
        return f"unreadable {_HASHES}"
    for name, expected in hashes.items():
        if not (path / name).is_file():
            return f"{name} is missing"
        if _sha256(path / name) != expected:
            return f"{name} does not match its hash"
    return None


def _optimiser_tensors(
    optimiser: torch.optim.Optimizer, model: nn.Module
) -> dict[str, torch.Tensor]:
    """Optimiser state under ``slot/parameter name``."""
    return {
        f"{slot}/{name}": value.contiguous()
        for name, parameter in model.named_parameters()
        for slot, value in optimiser.state.get(parameter, {}).items()
    }


def _hash_and_flush(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below ``folder`` by relative path, each flushed to the disk."""
    hashes = {}
    for path in sorted(folder.rglob("*")):
        _flush(path)
        if path.is_file():
            hashes[path.relative_to(folder).as_posix()] = _sha256(path)
    return hashes


def _sha256(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _flush(path: Path) -> None:
    """Make a file's bytes, or a folder's entries, outlive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _why_not_saved(final: Path, error: Exception, before: list[str]) -> str:
    full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "os error 28" in str(
        error
    )
    why = "no space left on the device" if full else str(error)
    intact = (
        f"earlier checkpoints are intact ({', '.join(before)})"
        if before
        else "there is none before"
    )
    return (
        f"{final} could not be saved: {why}; {intact}. "
        "Make room or choose another disk, then continue with --resume"
    )
