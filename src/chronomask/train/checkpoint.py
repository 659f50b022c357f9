"""Reading checkpoints back: the newest whole one, whether it is of this run, and its state.

``saving`` writes them; docs/contracts.md draws the folder. No random state is saved: everything random is
keyed by step.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from chronomask.errors import ChronomaskError, DataError, RunError, UsageError
from chronomask.folders import what_it_is
from chronomask.model.config import FromCheckpoint, FromConfig
from chronomask.runs.layout import (
    AVERAGED,
    CONTENT,
    DISCARDED,
    FORMAT_VERSION,
    HASHES,
    MODEL,
    OPTIMISER,
    STATE,
    UNFINISHED,
    RunFolder,
    branch_folder,
    checkpoints_in,
    damage,
    remove,
    step_name,
    step_of,
)
from chronomask.runs.rules import unchangeable
from chronomask.storage import file_sha256, read_object, remove_all
from chronomask.train.config import RunConfig
from chronomask.train.sharding import like

__all__ = [
    "Checkpoint",
    "OtherRun",
    "branch_point",
    "check_same_run",
    "config_of",
    "latest",
    "model_of",
    "tidy",
]

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
    def first_step(self) -> int:
        """Number of steps of the runs from which its run branched; 0 in checkpoints of older versions."""
        return self.state.get("first_step", 0)

    @property
    def sha256(self) -> str:
        """Of the hashes of all its files."""
        return file_sha256(self.path / HASHES)

    @property
    def model_path(self) -> Path:
        """Folder that ``AutoModelForMaskedLM.from_pretrained`` opens."""
        return self.path / MODEL

    @property
    def averaged_path(self) -> Path | None:
        """Folder of the averaged model; None where there is none."""
        path = self.path / AVERAGED
        return path if path.is_dir() else None

    def content(self) -> dict[str, torch.Tensor]:
        """Every other tensor of the state: masker, outliers, averaging, foresight, sums for the log."""
        return _load(self.path / CONTENT)

    def load_optimiser(self, optimiser: torch.optim.Optimizer, model: nn.Module) -> None:
        """Fill the optimiser's state; raises DataError if it is of other parameters."""
        parameters = dict(model.named_parameters())
        saved = _load(self.path / OPTIMISER)
        for key, tensor in saved.items():
            slot, _, name = key.partition("/")
            parameter = parameters.get(name)
            if parameter is None or (tensor.ndim and tensor.shape != parameter.shape):
                raise DataError(
                    f"{self.path}: optimiser state '{key}' fits no parameter of the model"
                )
            optimiser.state[parameter][slot] = like(tensor, parameter)


def latest(folder: Path) -> Checkpoint | None:
    """The newest complete checkpoint whose files match their hashes; None if there is no checkpoint.

    A damaged one is reported loudly and the one before is taken. Raises RunError if all are damaged.
    """
    found, damaged = checkpoints_in(folder), []
    for path in found:
        wrong = damage(path)
        if wrong is None:
            return read(path)
        damaged.append(f"{path.name}: {wrong}")
        if path != found[-1]:
            logger.warning("checkpoint %s is damaged (%s): using the one before it", path, wrong)
    if found:
        raise RunError(
            f"no checkpoint in {folder} is whole ({'; '.join(damaged)}); "
            "start again in another folder, or restore one of them from a copy"
        )
    return None


def read(path: Path) -> Checkpoint:
    """The checkpoint in a folder that is known to be whole; raises RunError for another format."""
    state = read_object(path / STATE) or {}
    if state.get("format_version") != FORMAT_VERSION:
        raise RunError(
            f"{path} has checkpoint format {state.get('format_version')!r}; this version of "
            f"chronomask reads format {FORMAT_VERSION}: resume with the version that wrote it"
        )
    return Checkpoint(path, state)


def branch_point(config: RunConfig) -> Checkpoint | None:
    """The checkpoint that a config branches from; None where it does not.

    Raises UsageError where there is none, or one of another model or kind of optimiser; RunError where it
    is damaged.
    """
    if config.branch is None:
        return None
    path = Path(config.branch)
    if step_of(path) is None:
        found = latest(RunFolder(path).checkpoints)
        if found is None:
            raise UsageError(
                f"branch: {path} is neither a run with a checkpoint nor a checkpoint of one{what_it_is(path)}"
            )
    elif not path.is_dir():
        raise UsageError(f"branch: {path} does not exist")
    else:
        wrong = damage(path)
        if wrong is not None:
            raise RunError(f"branch: {path} is damaged ({wrong}); name another checkpoint")
        found = read(path)
    before = config_of(found)
    for key in ("model", "optimiser"):
        old, new = getattr(before, key), getattr(config, key)
        same = old == new if key == "model" else type(old) is type(new)
        if not same:
            raise UsageError(
                f"branch: {found.path} has another {key} ({old.to_dict()}) than this config "
                f"({new.to_dict()}); a branch keeps it: begin with {branch_folder(path).config}"
            )
    return found


def model_of(config: RunConfig, origin: Checkpoint | None) -> FromConfig | FromCheckpoint:
    """The model that a run begins with: its config's, or that of the checkpoint it branches from."""
    return config.model if origin is None else FromCheckpoint(path=str(origin.model_path))


def config_of(checkpoint: Checkpoint) -> RunConfig:
    """The config that a checkpoint was saved with; raises RunError where it cannot be read."""
    try:
        return RunConfig.parse_stored(checkpoint.state["config"], str(checkpoint.path / STATE))
    except ChronomaskError as error:
        raise RunError(f"the checkpoint's config cannot be read: {error}") from None


_OWN_SETTINGS = "Resume with the run's own config.yaml and data"
_OWN_DATA = (
    "Scores or collocations were added to the data since, or it was prepared otherwise: make it again as it "
    "was in another folder (chronomask prepare --config DATA/config.yaml --out FOLDER) and name that with "
    "--data"
)


class OtherRun(UsageError):
    """A run was to go on with other settings or data: what differs, and how it goes on."""

    def __init__(self, difference: str, way_out: str) -> None:
        self.difference = difference
        super().__init__(
            f"{difference}. {way_out}; to go on otherwise, give pretrain --branch and another output folder"
        )


def check_same_run(
    checkpoint: Checkpoint, config: RunConfig, fingerprint: str
) -> tuple[RunConfig, RunConfig]:
    """The config it was saved with, and that with which the run goes on: ``config``, on the same held-out
    rows unless it names others. Refuses another run: OtherRun names every field that differs.
    """
    problems, way_out = [], _OWN_SETTINGS
    if checkpoint.state["data_fingerprint"] != fingerprint:
        way_out = _OWN_DATA
        problems.append(
            f"data fingerprint (checkpoint {checkpoint.state['data_fingerprint'][:12]}…, "
            f"now {fingerprint[:12]}…)"
        )
    before = config_of(checkpoint)
    validation = config.validation
    if validation.order is None:
        validation = validation.model_copy(update={"order": before.validation.order})
    config = config.model_copy(update={"validation": validation})
    for key, (old, new) in unchangeable(before, config).items():
        problems.append(f"{key} (checkpoint {old!r}, now {new!r})")
        way_out = _OWN_SETTINGS
    if problems:
        raise OtherRun(
            f"{checkpoint.path} belongs to another run; these differ: {'; '.join(problems)}",
            way_out,
        )
    return before, config


def tidy(folder: Path, step: int, keep: int | None) -> None:
    """Prepare ``folder`` to continue after ``step``, the step of the newest whole checkpoint.

    What a killed process left half-written or half-removed is deleted; checkpoints of later steps, which
    are damaged or they would be the newest, are renamed to damaged-step-…. Of the others the ``keep`` newest
    stay (None: all): a process killed at the end of a save left one more.
    """
    for prefix in (UNFINISHED, DISCARDED):
        for path in folder.glob(f"{prefix}*"):
            remove_all(path, ignore_errors=True)
    for path in checkpoints_in(folder):
        if path.name > step_name(step):
            aside = path.with_name(f"damaged-{path.name}")
            remove_all(aside, ignore_errors=True)
            path.rename(aside)
    for old in [] if keep is None else checkpoints_in(folder)[keep:]:
        remove(old)


def _load(path: Path) -> dict[str, torch.Tensor]:
    """Tensors of a file, each in aligned memory of its own (see ``model.open.open_model``)."""
    return {name: tensor.clone() for name, tensor in load_file(path).items()}
