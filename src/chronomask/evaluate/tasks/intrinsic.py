"""Intrinsic quality: the loss on held-out rows, at a fixed 15 % and on every yardstick, and the
pseudo-perplexity of a text.

The masks are those of validation during training, keyed by row and by nothing of the run, so that every
model meets the same predictions.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from chronomask.config import Config
from chronomask.config_layers import read_yaml
from chronomask.errors import DataError, UsageError
from chronomask.evaluate.pseudo import (
    PseudoLikelihood,
    Score,
    Sentences,
    check_pseudo,
    encode_sentences,
    pseudo_log_likelihood,
)
from chronomask.evaluate.subject import Subject
from chronomask.evaluate.task import Task, files_in, folder_of
from chronomask.progress import Progress
from chronomask.runs.layout import RunFolder
from chronomask.runs.result import TaskResult
from chronomask.storage import files_sha256
from chronomask.text_files import read_lines
from chronomask.types import Device, MaskedBatch, Precision, Rows
from chronomask.vocabulary import unknown_id
from chronomask.yardsticks import VALIDATION_RATIO, YARDSTICKS, results_of

if TYPE_CHECKING:
    from chronomask.data.folder import PreparedData

__all__ = ["MaskedLoss", "MaskedLossTask", "PseudoPerplexity", "PseudoPerplexityTask"]

Predictions = tuple[
    NDArray[np.float64],
    NDArray[np.float64],
    NDArray[np.uint8],
    NDArray[np.int64],
    NDArray[np.int64],
]
"""Of each predicted token: its loss in nats, whether it was found (0 or 1), its class, its row, and the
number of its word in the row."""
_OF_WORDS = "words-15"
"""The yardstick whose loss is also told per word."""
_TEXTS = (".txt", ".txt.gz", ".txt.xz")


class MaskedLoss(Config):
    """What the loss is measured on."""

    prepared: str | None = None
    """folder of prepared data; none: DATA/intrinsic or DATA itself, and the run's own where no DATA is
    named"""
    rows: Annotated[int, Field(ge=1)] | None = None
    """held-out rows, a fixed sample of all documents; none: all"""
    attention: Literal["documents", "row"] | None = None
    """what a token sees: its own document, or its whole row; none: as in training, ``documents`` for a model
    of no run"""
    batch_rows: Annotated[int, Field(ge=1)] | None = None
    """rows of a forward pass; none: 64, or fewer of long rows, so that they have at most 32,768 tokens"""
    precision: Precision = "fp32"
    """of matrix products, weights and sums are float32; auto: bf16 where the device is
    faster with it"""
    device: Device = "auto"
    """auto: a CUDA device if there is one"""
    limit: Annotated[int, Field(ge=1)] | None = None
    """at most so many rows, for a quick look; none: ``rows``"""


class MaskedLossTask(Task[MaskedLoss]):
    """Mean loss in nats and accuracy of predicted tokens, over all and per class, and the yardsticks."""

    name = "mlm"
    title = "masked-token loss"
    family = "intrinsic"
    unit = "nats"
    draws = False
    of_prepared_data = True
    data_setting = "prepared"
    outside_recipe = ("batch_rows", "prepared")

    @property
    def recipe(self) -> dict[str, Any]:
        """Every setting that decides the numbers, ratio, yardsticks and rows; not where the data lies."""
        names = [yardstick.name for yardstick in YARDSTICKS]
        fixed = {"masking_ratio": VALIDATION_RATIO, "yardsticks": names, "row_order": "shuffled"}
        return {**super().recipe, **fixed}

    def data_sha256(self, task_data: Path) -> str:
        """The prepared data's fingerprint."""
        return self._open(task_data).fingerprint

    def check(self, model: Subject, task_data: Path) -> None:
        """Raise UsageError for a model of other tokens, DataError for damaged data."""
        prepared = self._open(task_data)
        if not prepared.split("held_out").num_rows:
            raise UsageError(
                f"{prepared.path} has no held-out rows: prepare data with held_out above 0"
            )
        from chronomask.data.summary import summarise
        from chronomask.model.attention import check_supported  # brings torch
        from chronomask.model.open import open_model, open_tokenizer

        check_pseudo(model, PseudoLikelihood(device=self.config.device))
        if open_tokenizer(prepared.tokenizer_path).get_vocab() != model.tokenizer.get_vocab():
            raise UsageError(
                f"{prepared.path} was prepared with another tokenizer than {model.name} has: the loss per "
                "token cannot be compared; prepare the text with this model's tokenizer"
            )
        held_out = summarise(prepared.split("held_out"), len(prepared.class_names))
        if not held_out.num_maskable:
            raise _nothing_to_predict(model, prepared)
        model.check_tokens()
        if prepared.row_length > model.max_length:
            raise UsageError(
                f"{model.name} has positions for {model.max_length} tokens, and {prepared.path} has rows of "
                f"{prepared.row_length}: prepare shorter rows"
            )
        check_supported(open_model(model.path), self._attention(model))

    def run(self, model: Subject, task_data: Path, seed: int, progress: bool) -> TaskResult:
        """One pass over the rows at the fixed ratio, and one for each yardstick."""
        from chronomask.masking.masker import Vocabulary, fixed_masker
        from chronomask.masking.yardsticks import masker_of
        from chronomask.model.open import open_tokenizer

        started = time.monotonic()
        prepared = self._open(task_data)
        bounds = (prepared.split("held_out").num_rows, self.config.rows, self.config.limit)
        num_rows = min(bound for bound in bounds if bound is not None)
        vocabulary = Vocabulary.from_tokenizer(open_tokenizer(prepared.tokenizer_path))
        passes = [(num_rows, partial(fixed_masker(vocabulary), progress=0.0))]
        passes += [(own.num_rows(num_rows), masker_of(own, vocabulary)) for own in YARDSTICKS]
        names = prepared.class_names
        with Progress(self.name, sum(size for size, _ in passes), "rows", shown=progress) as shown:
            score = self._scorer(model, prepared, shown)
            loss, right, token_class, row, _ = score(*passes[0])
            if not loss.size:
                raise _nothing_to_predict(model, prepared)
            scores = [score(*one) for one in passes[1:]]
        sums = [_class_sums(*each[:3], len(names)) for each in scores]
        of_words = scores[[own.name for own in YARDSTICKS].index(_OF_WORDS)]
        count = np.bincount(row, minlength=num_rows)
        found = results_of(sums, names)
        return self.result(
            model,
            seed,
            started,
            metrics={
                "loss": float(loss.mean()),
                "accuracy": float(right.mean()),
                **({"mean_loss": found["mean_loss"]} if "mean_loss" in found else {}),
                **{
                    f"loss_{y.name}": found["yardstick_loss"][y.name]
                    for y in YARDSTICKS
                    if y.name in found["yardstick_loss"]
                },
                **_loss_per_word(of_words),
            },
            primary="loss",
            higher_is_better=False,
            num_examples={
                "rows": num_rows,
                "tokens": loss.size,
                **{y.name: found["yardstick_count"].get(y.name, 0) for y in YARDSTICKS},
            },
            data_sha256=prepared.fingerprint,
            details={
                "attention_is_row": float(self._attention(model) == "row"),
                **dict(_by_class(loss, right, token_class, names)),
                **{
                    f"yardstick_{kind}/{name}": value
                    for kind in ("loss", "accuracy", "count")
                    for name, value in found[f"yardstick_{kind}"].items()
                },
            },
            examples={
                "loss": np.bincount(row, loss, num_rows) / np.maximum(count, 1),
                "accuracy": np.bincount(row, right, num_rows) / np.maximum(count, 1),
                "weight": count,
            },
        )

    def _scorer(
        self, model: Subject, prepared: PreparedData, shown: Progress
    ) -> Callable[[int, Callable[[Rows], MaskedBatch]], Predictions]:
        """What scores so many held-out rows, hidden as a function of rows says: of each predicted
        token its loss in nats, whether it was found (0 or 1), its class, its row and its word; all [N].
        """
        import torch

        from chronomask.data.loader import validation_batches
        from chronomask.model.device import autocast, choose_device
        from chronomask.model.documents import (
            attends_by_documents,
            backbone_inputs,
            position_offset,
        )
        from chronomask.model.head import logits_at, token_losses
        from chronomask.model.open import open_model

        config, attention = self.config, self._attention(model)
        device = choose_device(config.device)
        opened: Any = open_model(model.path).eval()
        opened.to(device)
        padding, offset = prepared.manifest.pad_token_id, position_offset(opened)
        ours = attends_by_documents(opened)

        @torch.inference_mode()
        def score(num_rows: int, hide: Callable[[Rows], MaskedBatch]) -> Predictions:
            """The predictions of ``num_rows`` held-out rows."""
            found, first = [], 0
            for rows in validation_batches(prepared.split("held_out"), num_rows, config.batch_rows):
                batch = hide(rows)
                inputs = backbone_inputs(rows, attention, padding, offset, device, ours=ours)
                sent = batch.to(device)
                with autocast(device, config.precision):
                    logits = logits_at(opened, sent.input_ids, sent.positions, inputs)
                loss, right, _ = token_losses(logits.float(), sent.targets)
                places = np.asarray(batch.positions)
                found.append(
                    (
                        loss.double().cpu().numpy(),
                        right.double().cpu().numpy(),
                        np.asarray(batch.target_class),
                        first + places // rows.row_length,
                        np.asarray(rows.word_id).ravel()[places],
                    )
                )
                first += rows.num_rows
                shown.advance(rows.num_rows)
            losses, rights, classes, of_row, words = map(np.concatenate, zip(*found, strict=True))
            return losses, rights, classes, of_row, words

        return score

    def _attention(self, model: Subject) -> Literal["documents", "row"]:
        """What is asked for, or what the model's run was trained with."""
        if self.config.attention is not None or model.run is None:
            return self.config.attention or "documents"
        return read_yaml(RunFolder(model.run).config).get("attention", "documents")

    def _open(self, task_data: Path) -> PreparedData:
        from chronomask.data.folder import PreparedData

        if self.config.prepared is not None:
            return PreparedData.open(self.config.prepared)
        return PreparedData.open(folder_of(task_data, self.family))


def _nothing_to_predict(model: Subject, prepared: PreparedData) -> UsageError:
    return UsageError(
        f"{prepared.path}: nothing held out is known to the tokenizer of {model.name} and could be "
        "predicted; measure it on more text, of its language"
    )


class PseudoPerplexity(PseudoLikelihood):
    """Which text, and how it is scored."""

    score: Score = "original"
    """which tokens are masked while one is predicted; the name stands for ``original``"""
    text: str | None = None
    """text file; none: the only one in DATA/intrinsic or DATA"""


class PseudoPerplexityTask(Task[PseudoPerplexity]):
    """exp of the mean pseudo-log-loss per token (Salazar et al., ACL 2020), each line by itself."""

    name = "pseudo_perplexity"
    title = "pseudo-perplexity"
    family = "intrinsic"
    unit = "nats"
    draws = False
    data_setting = "text"
    outside_recipe = ("batch_tokens", "text")

    def data_sha256(self, task_data: Path) -> str:
        """Of the text file."""
        return files_sha256([self._file(task_data)])

    def check(self, model: Subject, task_data: Path) -> None:
        """Read and encode the text; raises UsageError or DataError."""
        self.check_long(model, task_data, progress=False)

    def check_long(self, model: Subject, task_data: Path, progress: bool) -> None:
        """:meth:`check`; ``progress``: show how far the encoding is."""
        texts = self._lines(task_data)
        check_pseudo(model, self.config)
        if not self._encode(model, texts, progress)[0].num_scored.sum():
            raise DataError(f"{self._file(task_data)} has no token that {model.name} could predict")

    def run(self, model: Subject, task_data: Path, seed: int, progress: bool) -> TaskResult:
        """Score every line."""
        from chronomask.model.device import choose_device

        started = time.monotonic()
        texts = self._lines(task_data)
        sentences, source = self._encode(model, texts, progress)
        opened = model.masked_lm(choose_device(self.config.device))
        log_p = pseudo_log_likelihood(
            opened, sentences, model.tokenizer, self.config, label=self.name, progress=progress
        )
        cut = int((np.bincount(source, minlength=len(texts)) > 1).sum())
        unknown = sentences.ids[sentences.word >= 0] == unknown_id(model.tokenizer)
        count = np.bincount(source, sentences.num_scored, len(texts))
        total = -np.bincount(source, log_p, len(texts))
        loss = float(total.sum() / count.sum())
        return self.result(
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
            data_sha256=self.data_sha256(task_data),
            examples={"loss": total / np.maximum(count, 1), "weight": count},
            left_out={
                "lines without a token to predict": int((count == 0).sum()),
                f"lines cut into parts of {model.max_length} tokens": cut,
                "tokens that the vocabulary lacks, predicted as unknown": int(np.sum(unknown)),
            },
        )

    def _encode(
        self, model: Subject, texts: list[str], progress: bool
    ) -> tuple[Sentences, NDArray[np.int64]]:
        tokenizer, config, label = model.tokenizer, self.config, f"{self.name} encoding"
        with Progress(label, len(texts), "lines", shown=progress, brief=True) as bar:
            return encode_sentences(
                tokenizer, texts, model.max_length, config.score, self.name, shown=bar
            )

    def _file(self, task_data: Path) -> Path:
        """The text file; raises UsageError where it is not clear which."""
        if self.config.text is not None:
            path = Path(self.config.text)
            if not path.is_file():
                raise UsageError(f"{path} does not exist or is not a file: name a text file")
            return path
        if task_data.is_file():
            return task_data
        place = folder_of(task_data, self.family)
        found = files_in(place, _TEXTS)
        if len(found) != 1:
            raise UsageError(
                f"{place} holds {len(found)} text files: choose one with "
                f"--set {self.name}.text=FILE ({', '.join(_TEXTS)})"
            )
        return found[0]

    def _lines(self, task_data: Path) -> list[str]:
        """The lines that hold something, at most ``limit``."""
        path = self._file(task_data)
        found = [line.strip() for line in read_lines(path) if line.strip()]
        if not found:
            raise DataError(f"{path} holds no text")
        return found[: self.config.limit]


def _class_sums(
    loss: NDArray[np.float64],
    right: NDArray[np.float64],
    token_class: NDArray[np.uint8],
    num_classes: int,
) -> NDArray[np.float64]:
    """float64 [3, classes]: sums of the losses, numbers of predictions and of right ones."""
    return np.stack(
        [np.bincount(token_class, weights, num_classes) for weights in (loss, None, right)]
    ).astype(float)


def _loss_per_word(predictions: Predictions) -> dict[str, float]:
    """``loss_per_word``: nats per hidden word, which models of different tokenizers can be compared by.

    The losses of a word's tokens are added up: its tokens are hidden together. Empty without predictions.
    """
    loss, _, _, row, word = predictions
    if not loss.size:
        return {}
    num_words = np.unique(np.stack([row, word]), axis=1).shape[1]
    return {"loss_per_word": float(loss.sum() / num_words)}


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
