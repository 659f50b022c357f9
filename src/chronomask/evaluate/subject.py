"""The model under evaluation: found once, opened as often as a task needs a fresh copy, on its device.

It is a run folder of ours (its newest checkpoint), one of its checkpoints, any folder that transformers
opens, or a model hub's name. Weights are read from safetensors only; no code comes with them.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chronomask.errors import DataError, UsageError
from chronomask.evaluate.batches import padding_of
from chronomask.folders import what_it_is
from chronomask.model.open import (
    MissingHead,
    check_architecture,
    check_tokens,
    download,
    open_config,
    open_model,
    open_tokenizer,
    snapshot_within,
    weight_files,
)
from chronomask.runs.layout import (
    AVERAGED,
    MODEL,
    STATE,
    RunFolder,
    checkpoints_in,
    damage,
    model_in,
    run_of,
    step_of,
)
from chronomask.storage import as_a_shell_has_it, bytes_sha256, files_sha256
from chronomask.vocabulary import vocabulary_size

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["Subject", "find_subject"]

_SETUP = re.compile(
    r"(config|tokenizer|tokenizer_config|special_tokens_map|added_tokens|vocab)\.json"
    r"|(vocab|merges)\.txt|.+\.model"
)
"""Files of a model folder that say how its weights and a text are read."""
_KIN_OF_ROBERTA = (
    "roberta", "camembert", "data2vec-text", "ibert", "mpnet", "luke", "longformer", "esm", "xmod",
)  # fmt: skip
"""Parts of the names of types that count positions from the padding id + 1."""


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
        return files_sha256(weight_files(self.path))

    @cached_property
    def setup_sha256(self) -> str:
        """SHA-256 over the files of its config and tokenizer in the order of their names.

        Another one where the tokenizer is that of its tokenizer.json and not the class's, which results of
        earlier versions were made with.
        """
        found = sorted(file for file in self.path.iterdir() if _SETUP.fullmatch(file.name))
        files = files_sha256(found)
        if type(self.tokenizer) is type(open_tokenizer(self.path, as_class=True)):
            return files
        return bytes_sha256(f"{files}, tokenizer.json".encode())

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer beside the weights; raises DataError."""
        return open_tokenizer(self.path)

    @cached_property
    def config(self) -> PretrainedConfig:
        """The architecture's config; raises DataError."""
        return open_config(self.path)

    @property
    def max_length(self) -> int:
        """Tokens a row may hold, special ones included; a large number if the model sets no bound."""
        positions = getattr(self.config, "max_position_embeddings", None)
        # RoBERTa and its kin count positions from the padding id + 1.
        offset = _padding_in(self.config) if _counts_from_padding(self.config) else None
        bound = 1_000_000 if positions is None or positions < 1 else int(positions)
        return bound if offset is None else bound - offset - 1

    def masked_lm(self, device: torch.device | None = None) -> PreTrainedModel:
        """A fresh masked language model in float32, for evaluation; raises UsageError without a head."""
        try:
            model = open_model(self.path)
        except MissingHead as error:
            quoted = shlex.quote(str(self.path))
            raise UsageError(
                f"{error}: predicting masked tokens needs one. Train one first: chronomask prepare TEXT "
                f"--out DATA --tokenizer {quoted}; chronomask pretrain --model {quoted} --data DATA "
                "--set model.new_head=true"
            ) from None
        return self._guard(model, device).eval()

    def check_head(self, auto: str) -> None:
        """Raise UsageError if transformers' auto class of that name has no model of this architecture."""
        check_architecture(self.name, self.config, auto)

    def check_offsets(self) -> None:
        """Raise UsageError for a tokenizer that does not say which characters a token stands for."""
        if not self.tokenizer.is_fast:
            raise UsageError(
                f"the tokenizer of {self.name} gives no character offsets, which find a word's "
                "pieces: save it as a fast tokenizer (tokenizer.json)"
            )

    def open_as(
        self, auto: str, device: torch.device | None = None, **changes: Any
    ) -> PreTrainedModel:
        """A fresh float32 model; parts of its head that were not stored are drawn anew.

        They come from torch's generator, on the host. ``auto``: the name of one of transformers' auto
        classes; ``device``: where the model is moved to; ``changes``: fields of its config, such as
        ``num_labels``. Raises UsageError if the architecture has no such head, DataError for damage.
        """
        model = open_model(self.path, auto, new_head=True, **changes)
        if _padding_in(model.config) is None:
            # Decoders classify a text by its last token that is no padding.
            model.config.pad_token_id = padding_of(self.tokenizer)
        return self._guard(model, device)

    def check_tokens(self) -> None:
        """Raise UsageError if the tokenizer has tokens that the model has no weights for."""
        check_tokens(self.path, self.config, vocabulary_size(self.tokenizer))

    def _guard(self, model: PreTrainedModel, device: torch.device | None) -> PreTrainedModel:
        """The model on its device. If its tokenizer has tokens that it has no weights for, a text that has
        one is refused as ``check_tokens`` does; other texts can be measured.
        """
        try:
            embeddings: Any = model.get_input_embeddings()
        except NotImplementedError:  # of a model that hashes characters, as CANINE does
            embeddings = None
        known = getattr(embeddings, "num_embeddings", None)
        if known is not None and known < vocabulary_size(self.tokenizer):

            def refuse(_: Any, inputs: tuple[Any, ...]) -> None:
                if inputs and int(inputs[0].max()) >= known:
                    self.check_tokens()

            embeddings.register_forward_pre_hook(refuse)
        return model if device is None else model.to(device)  # pyright: ignore[reportArgumentType]


def find_subject(model: str) -> Subject:
    """The model that a path or a hub name stands for; raises UsageError or DataError.

    A run folder stands for its newest checkpoint, whose model's files are checked against their hashes; a
    checkpoint for its averaged model if it has one, and ``transformers`` in it for the weights as trained.
    """
    path = as_a_shell_has_it(model)
    run = RunFolder(path)
    if checkpoints := checkpoints_in(run.checkpoints):
        return _checkpoint(checkpoints[0], model)
    if (path / STATE).is_file() and (path / MODEL).is_dir():
        return _checkpoint(path, model)
    if (path / "config.json").is_file():
        if path.name in (MODEL, AVERAGED) and (path.parent / STATE).is_file():
            return _checkpoint(path.parent, model, path.name)
        weight_files(path)
        return Subject(model, path)
    if run.checkpoints.is_dir() or run.is_run():
        raise UsageError(
            f"{run.path} has no checkpoint yet; let it train until its first, or name a model"
        )
    if (path / "model" / "config.json").is_file():  # as adapt leaves it
        raise UsageError(f"{path} holds a model, and is none: name {path / 'model'}")
    if path.exists():
        raise UsageError(
            f"{path} is neither a run (no checkpoints/) nor a model folder (no config.json)"
            f"{snapshot_within(path) or what_it_is(path) or '; name the folder of one or the other'}"
        )
    if model.startswith((".", "/", "~")) or model.count("/") > 1:
        raise UsageError(f"{path} does not exist: name a run folder, a model folder or a hub model")
    folder = download(model)
    weight_files(folder)
    return Subject(model, folder)


def _checkpoint(path: Path, name: str, part: str | None = None) -> Subject:
    """One checkpoint of a run, its model's files verified; raises DataError for a damaged one.

    ``part``: which of its models, by the folder's name; None: the one that it stands for.
    """
    folder = path / part if part else model_in(path)
    if wrong := damage(path, below=f"{folder.name}/"):
        raise DataError(
            f"{path} is not a whole checkpoint: {wrong}; name another checkpoint of the run"
        )
    weight_files(folder)
    run = run_of(path)
    return Subject(name, folder, step_of(path), None if run is None else run.path)


def _counts_from_padding(config: PretrainedConfig) -> bool:
    return any(part in config.model_type for part in _KIN_OF_ROBERTA)


def _padding_in(config: PretrainedConfig) -> int | None:
    """The padding id that a config states; some have no such field."""
    return getattr(config, "pad_token_id", None)
