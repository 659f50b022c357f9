"""Intrinsic quality: the loss at a fixed 15 % on held-out rows, and the pseudo-perplexity of a text.

The masks are those of validation during training: uniform over tokens, keyed by row and by nothing of
the run, so that every model meets the same predictions.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from chronomask.config import Config
from chronomask.data.folder import PreparedData
from chronomask.data.loader import validation_batches
from chronomask.errors import DataError, UsageError
from chronomask.evaluate.device import Device, Precision, autocast, device_of, placed
from chronomask.evaluate.progress import Progress
from chronomask.evaluate.pseudo import (
    PseudoLikelihood,
    Score,
    check_pseudo,
    encode_sentences,
    pseudo_log_likelihood,
)
from chronomask.evaluate.subject import Subject
from chronomask.evaluate.task import folder_of, recipe_of, result_of, sha256_of
from chronomask.evaluate.text_files import UNREADABLE, open_text
from chronomask.masking.masker import Vocabulary, fixed_masker
from chronomask.model.attention import (
    AttentionScope,
    backbone_inputs,
    check_supported,
    position_offset,
)
from chronomask.model.build import load_tokenizer, open_model
from chronomask.model.head import logits_at, token_losses
from chronomask.runs.result import TaskResult

__all__ = ["MaskedLoss", "MaskedLossTask", "PseudoPerplexity", "PseudoPerplexityTask"]

_RATIO = 0.15
_TEXTS = (".txt", ".txt.gz", ".txt.xz")


class MaskedLoss(Config):
    """What the loss is measured on."""

    prepared: str | None = None
    """folder of prepared data; none: DATA/intrinsic, or DATA itself"""
    rows: Annotated[int, Field(ge=1)] | None = None
    """held-out rows, from the first on; none: all"""
    attention: AttentionScope = "documents"
    """what a token sees: its own document, or its whole row; as in training, to be fair to the model"""
    batch_rows: Annotated[int, Field(ge=1)] = 64
    """rows of a forward pass"""
    precision: Precision = "float32"
    """bfloat16: matrix products in half precision"""
    device: Device = "auto"
    """auto: a CUDA device if there is one"""
    limit: Annotated[int, Field(ge=1)] | None = None
    """at most so many rows, for a quick look; none: ``rows``"""


class MaskedLossTask:
    """Mean loss in nats and accuracy of predicted tokens, over all and per class."""

    name = "mlm"
    family = "intrinsic"
    draws = False

    def __init__(self, config: MaskedLoss | None = None) -> None:
        self.config = config or MaskedLoss()

    @property
    def recipe(self) -> Mapping[str, Any]:
        """Every setting that decides the numbers; not where the data lies."""
        return {**recipe_of(self.config, "batch_rows", "prepared"), "masking_ratio": _RATIO}

    def data_sha256(self, data: Path) -> str:
        """The prepared data's fingerprint."""
        return self._open(data).fingerprint

    def check(self, model: Subject, data: Path) -> None:
        """Raise UsageError for a model of other tokens, DataError for damaged data."""
        check_pseudo(model, PseudoLikelihood(device=self.config.device))
        prepared = self._open(data)
        if not prepared.split("held_out").num_rows:
            raise UsageError(
                f"{prepared.path} has no held-out rows: prepare data with held_out above 0"
            )
        if load_tokenizer(prepared.tokenizer_path).get_vocab() != model.tokenizer.get_vocab():
            raise UsageError(
                f"{prepared.path} was prepared with another tokenizer than {model.name} has: the loss per "
                "token means nothing then; prepare the text with this model's tokenizer"
            )
        if prepared.row_length > model.max_length:
            raise UsageError(
                f"{model.name} has room for {model.max_length} tokens, and {prepared.path} has rows of "
                f"{prepared.row_length}: prepare shorter rows"
            )
        check_supported(open_model(model.path, self.config.attention), self.config.attention)

    @torch.inference_mode()
    def run(self, model: Subject, data: Path, seed: int, progress: bool) -> TaskResult:
        """One pass over the rows."""
        started = time.monotonic()
        config, prepared = self.config, self._open(data)
        split = prepared.split("held_out")
        num_rows = min(split.num_rows, *(n for n in (config.rows, config.limit) if n is not None))
        device = device_of(config.device)
        opened = placed(open_model(model.path, config.attention).eval(), device)
        masker = fixed_masker(
            Vocabulary.from_tokenizer(load_tokenizer(prepared.tokenizer_path)), _RATIO
        )
        of_row, of_class, losses, rights = [], [], [], []
        with Progress(self.name, num_rows, "rows", progress) as shown:
            for rows in validation_batches(split, num_rows, config.batch_rows):
                batch = masker(rows, 0.0)
                inputs = backbone_inputs(
                    rows,
                    config.attention,
                    prepared.manifest.pad_token_id,
                    position_offset(opened),
                    device,
                )
                ids, positions, targets = (
                    torch.as_tensor(array).to(device)
                    for array in (batch.input_ids, batch.positions, batch.targets)
                )
                with autocast(device, config.precision):
                    logits = logits_at(opened, ids, positions, inputs)
                loss, right = token_losses(logits.float(), targets)
                of_row.append(rows.row_id[np.asarray(batch.positions) // rows.row_length])
                of_class.append(np.asarray(batch.target_class))
                losses.append(loss.double().cpu().numpy())
                rights.append(right.double().cpu().numpy())
                shown.advance(rows.num_rows)
        loss, right = np.concatenate(losses), np.concatenate(rights)
        row, token_class = np.concatenate(of_row), np.concatenate(of_class)
        count = np.bincount(row, minlength=num_rows)
        return result_of(
            self,
            model,
            seed,
            started,
            metrics={"loss": float(loss.mean()), "accuracy": float(right.mean())},
            primary="loss",
            higher_is_better=False,
            num_examples={"rows": num_rows, "tokens": loss.size},
            data_sha256=prepared.fingerprint,
            details=dict(_by_class(loss, right, token_class, prepared.class_names)),
            examples={
                "loss": np.bincount(row, loss, num_rows) / np.maximum(count, 1),
                "accuracy": np.bincount(row, right, num_rows) / np.maximum(count, 1),
                "weight": count,
            },
        )

    def _open(self, data: Path) -> PreparedData:
        if self.config.prepared is not None:
            return PreparedData.open(self.config.prepared)
        return PreparedData.open(folder_of(data, self.family))


class PseudoPerplexity(PseudoLikelihood):
    """Which text, and how it is scored."""

    score: Score = "original"
    """which tokens are masked while one is predicted; the name stands for ``original``"""
    text: str | None = None
    """text file; none: the only one in DATA/intrinsic or DATA"""


class PseudoPerplexityTask:
    """exp of the mean pseudo-log-loss per token (Salazar et al., ACL 2020), each line by itself."""

    name = "pseudo_perplexity"
    family = "intrinsic"
    draws = False

    def __init__(self, config: PseudoPerplexity | None = None) -> None:
        self.config = config or PseudoPerplexity()

    @property
    def recipe(self) -> Mapping[str, Any]:
        """Every setting that decides the numbers; not where the text lies."""
        return recipe_of(self.config, "batch_tokens", "text")

    def data_sha256(self, data: Path) -> str:
        """Of the text file."""
        return sha256_of([self._file(data)])

    def check(self, model: Subject, data: Path) -> None:
        """Read the text; raises UsageError or DataError."""
        check_pseudo(model, self.config)
        self._lines(data)

    def run(self, model: Subject, data: Path, seed: int, progress: bool) -> TaskResult:
        """Score every line."""
        started = time.monotonic()
        texts = self._lines(data)
        sentences, source = encode_sentences(model.tokenizer, texts, model.max_length)
        opened = placed(model.masked_lm(), device_of(self.config.device))
        log_p = pseudo_log_likelihood(
            opened, sentences, model.tokenizer, self.config, label=self.name, progress=progress
        )
        count = np.bincount(source, sentences.num_scored, len(texts))
        total = -np.bincount(source, log_p, len(texts))
        if not count.sum():
            raise DataError(f"{self._file(data)} has no token that {model.name} could predict")
        loss = float(total.sum() / count.sum())
        return result_of(
            self,
            model,
            seed,
            started,
            metrics={
                "loss": loss,
                "pseudo_perplexity": math.exp(min(loss, 700.0)),
                "nats_per_character": float(total.sum() / sum(map(len, texts))),
            },
            primary="loss",
            higher_is_better=False,
            num_examples={"lines": len(texts), "tokens": int(count.sum())},
            data_sha256=self.data_sha256(data),
            examples={"loss": total / np.maximum(count, 1), "weight": count},
        )

    def _file(self, data: Path) -> Path:
        if self.config.text is not None:
            path = Path(self.config.text)
            if not path.is_file():
                raise UsageError(f"{path} does not exist or is no file: name a text file")
            return path
        if data.is_file():
            return data
        place = folder_of(data, self.family)
        found = sorted(path for suffix in _TEXTS for path in place.glob(f"*{suffix}"))
        if len(found) != 1:
            raise UsageError(
                f"{place} holds {len(found)} text files, and one is needed: name it with "
                f"--set {self.name}.text=FILE ({', '.join(_TEXTS)})"
            )
        return found[0]

    def _lines(self, data: Path) -> list[str]:
        """The lines that hold something, at most ``limit``."""
        path = self._file(data)
        try:
            with open_text(path) as lines:
                found = [line.strip() for line in lines if line.strip()]
        except UNREADABLE as error:
            raise DataError(f"{path} cannot be read as text ({error})") from None
        if not found:
            raise DataError(f"{path} holds no text")
        return found[: self.config.limit]


def _by_class(
    loss: NDArray[np.float64],
    right: NDArray[np.float64],
    token_class: NDArray[np.uint8],
    names: tuple[str, ...],
) -> Iterator[tuple[str, float]]:
    """``loss/…`` and ``accuracy/…`` of the classes that were predicted."""
    for number, name in enumerate(names):
        own = token_class == number
        if own.any():
            yield f"loss/{name}", float(loss[own].mean())
            yield f"accuracy/{name}", float(right[own].mean())
