"""The model under evaluation: found once, opened as often as a task needs a fresh copy, on its device.

It is a run folder of ours (its newest checkpoint), one of its checkpoints, any folder that transformers
opens, or a model hub's name. Weights are read from safetensors only; no code comes with them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chronomask.errors import DataError, UsageError
from chronomask.model.hub import download
from chronomask.runs.layout import (
    MODEL,
    STATE,
    RunFolder,
    checkpoints_in,
    damage,
    run_of,
    step_of,
)
from chronomask.storage import files_sha256

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["Subject", "find_subject"]


@dataclass(frozen=True)
class Subject:
    """A model folder and what is known of it; tokenizer, config and hash are read when first asked for."""

    name: str
    """as it was given: a folder or a hub name"""
    path: Path
    """the local folder that transformers opens"""
    step: int | None = None
    """optimiser steps of pre-training, if it is a checkpoint of a run"""
    run: Path | None = None
    """the run folder it belongs to, if it does"""

    @cached_property
    def sha256(self) -> str:
        """SHA-256 over the weights' files in the order of their names."""
        return files_sha256(_weights(self.path))

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer beside the weights; raises DataError."""
        from chronomask.model.build import load_tokenizer

        return load_tokenizer(self.path)

    @cached_property
    def config(self) -> PretrainedConfig:
        """The architecture's config; raises DataError."""
        from transformers import AutoConfig

        try:
            return AutoConfig.from_pretrained(
                self.path, local_files_only=True, trust_remote_code=False
            )
        except (OSError, ValueError, KeyError) as error:
            raise DataError(f"{self.path}/config.json cannot be read: {error}") from None

    @property
    def max_length(self) -> int:
        """Tokens a row may hold, special ones included; a large number if the model sets no bound."""
        positions = getattr(self.config, "max_position_embeddings", None)
        # RoBERTa and its kin count positions from the padding id + 1.
        offset = self.config.pad_token_id if _counts_from_padding(self.config) else None
        bound = 1_000_000 if positions is None or positions < 1 else int(positions)
        return bound if offset is None else bound - offset - 1

    def masked_lm(self, device: torch.device | None = None) -> PreTrainedModel:
        """A fresh masked language model in float32, for evaluation; raises UsageError without a head."""
        model, missing = self.open_as("AutoModelForMaskedLM", device)
        if missing:
            raise UsageError(
                f"{self.name} has no masked-language-model head ({', '.join(sorted(missing)[:3])} "
                "not among its weights): tasks that predict masked tokens need one"
            )
        return model.eval()

    def check_head(self, auto: str) -> None:
        """Raise UsageError if transformers' auto class of that name has no model of this architecture."""
        import transformers

        if type(self.config) not in getattr(transformers, auto)._model_mapping:
            kind = auto.removeprefix("AutoModelFor")
            raise UsageError(
                f"{self.name} is of type '{self.config.model_type}', of which transformers has no "
                f"model for {kind}: choose other tasks or another model"
            )

    def open_as(
        self, auto: str, device: torch.device | None = None, **changes: Any
    ) -> tuple[PreTrainedModel, set[str]]:
        """A fresh float32 model and the names of the parameters that were not stored.

        Those are drawn from torch's generator, on the host. ``auto``: the name of one of transformers'
        auto classes, such as ``AutoModelForMaskedLM``. ``device``: where the model is moved to.
        ``changes``: keywords of ``from_pretrained`` such as ``num_labels``. Raises UsageError if the
        architecture has no such head, DataError for damage.
        """
        import torch
        import transformers
        from safetensors import SafetensorError

        from chronomask.model.export import without_bars

        self.check_head(auto)
        try:
            with without_bars(), _without_notes():
                model, info = getattr(transformers, auto).from_pretrained(
                    self.path,
                    local_files_only=True,
                    trust_remote_code=False,
                    use_safetensors=True,
                    dtype=torch.float32,
                    output_loading_info=True,
                    **changes,
                )
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise DataError(f"{self.path} cannot be opened: {error}") from None
        # Loaded tensors lie anywhere in the mapped file; products round differently where not aligned.
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.data = tensor.data.clone()
        return model if device is None else model.to(device), set(info["missing_keys"])


def find_subject(model: str) -> Subject:
    """The model that a path or a hub name stands for; raises UsageError or DataError.

    A run folder stands for its newest checkpoint, whose model's files are checked against their hashes.
    """
    path = Path(model)
    run = RunFolder(path)
    if run.checkpoints.is_dir():
        checkpoints = checkpoints_in(run.checkpoints)
        if not checkpoints:
            raise UsageError(
                f"{run.path} has no checkpoint yet; let it train until its first, or name a model"
            )
        return _checkpoint(checkpoints[0], model)
    if (path / STATE).is_file() and (path / MODEL).is_dir():
        return _checkpoint(path, model)
    if (path / "config.json").is_file():
        if path.name == MODEL and (path.parent / STATE).is_file():
            return _checkpoint(path.parent, model)
        _weights(path)
        return Subject(model, path)
    if path.exists():
        raise UsageError(
            f"{path} is neither a run (no checkpoints/) nor a model folder (no config.json)"
        )
    if model.startswith((".", "/", "~")) or model.count("/") > 1:
        raise UsageError(f"{path} does not exist: name a run folder, a model folder or a hub model")
    folder = download(model)
    _weights(folder)
    return Subject(model, folder)


def _checkpoint(path: Path, name: str) -> Subject:
    """One checkpoint of a run, its model's files verified; raises DataError for a damaged one."""
    if wrong := damage(path, below=f"{MODEL}/"):
        raise DataError(
            f"{path} is not a whole checkpoint: {wrong}; name another checkpoint of the run"
        )
    _weights(path / MODEL)
    run = run_of(path)
    return Subject(name, path / MODEL, step_of(path), None if run is None else run.path)


def _weights(folder: Path) -> list[Path]:
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise UsageError(
            f"{folder} has no .safetensors weights; open it once with transformers and save it again "
            "(save_pretrained): other formats can run code when they are read"
        )
    return files


def _counts_from_padding(config: PretrainedConfig) -> bool:
    kin = ("roberta", "camembert", "data2vec-text", "ibert", "mpnet", "luke", "longformer", "esm")
    return config.pad_token_id is not None and any(part in config.model_type for part in kin)


@contextlib.contextmanager
def _without_notes() -> Iterator[None]:
    """Keep transformers from noting new heads, which are meant."""
    from transformers.utils import logging as transformers_logging

    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(before)
