"""GLUE: nine tasks of one sentence or two, each by fine-tuning a classification head.

MNLI is scored on both of its dev sets and answers the diagnostic pairs where they are there.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional
from transformers import AutoModelForSequenceClassification

from chronomask.evaluate.batches import Encoded, encode
from chronomask.evaluate.finetune import (
    FineTuning,
    Loss,
    check_length,
    device_of,
    fine_tune,
    open_seeded,
    outputs,
)
from chronomask.evaluate.glue_files import (
    FORMATS,
    Examples,
    diagnostic,
    read_split,
    source_sha256,
)
from chronomask.evaluate.metrics import classification_metrics, regression_metrics
from chronomask.evaluate.selection import choose_rate
from chronomask.evaluate.subject import Subject
from chronomask.evaluate.task import versions
from chronomask.keyed import Stream, permute, row_keys
from chronomask.results import TaskResult

__all__ = ["GLUE_TASKS", "GlueTask", "Part"]

_METRICS = {
    "cola": ("mcc",),
    "mrpc": ("f1", "accuracy"),
    "qqp": ("f1", "accuracy"),
    "stsb": ("spearman", "pearson"),
}
"""Metrics by task, the primary one first; accuracy elsewhere."""
_EPOCHS = {"mrpc": 5, "wnli": 5}
GLUE_TASKS = {name: FineTuning(epochs=_EPOCHS.get(name, FineTuning().epochs)) for name in FORMATS}
"""The nine tasks and their recipes."""


@dataclass(frozen=True, slots=True)
class Part:
    """A split as text and as tokens."""

    examples: Examples
    encoded: Encoded


@dataclass(frozen=True, slots=True)
class _Prepared:
    """What all seeds share."""

    train: Part
    dev: dict[str, Part]
    """by name; the first is the one that comparisons use"""
    data_sha256: str
    rate: float
    choice: dict[str, float]
    """how the rate was chosen"""


class GlueTask:
    """One of the nine."""

    family = "glue"
    draws = True

    def __init__(self, name: str, config: FineTuning | None = None) -> None:
        self.name = name
        self.config = config or GLUE_TASKS[name]
        self._format = FORMATS[name]
        self._metrics = _METRICS.get(name, ("accuracy",))
        self._prepared: tuple[tuple[Path, Path], _Prepared] | None = None

    @property
    def recipe(self) -> Mapping[str, Any]:
        """Every setting that decides the numbers, and the classes by number."""
        return {**self.config.to_dict(), "classes": list(self._format.class_names)}

    def data_sha256(self, data: Path) -> str:
        """Of the files, in the order train, dev sets, diagnostic pairs."""
        return source_sha256(self.name, data, with_diagnostic=self.name == "mnli")

    def check(self, model: Subject, data: Path) -> None:
        """Read everything once; raises UsageError or DataError."""
        device_of(self.config)
        check_length(model, self.config.max_length, self.name)
        model.check_head(AutoModelForSequenceClassification)
        encode(model.tokenizer, ["a"], None, self.config.max_length)
        for split in ("train", *self._format.dev):
            read_split(self.name, data, split)
        if self.name == "mnli":
            diagnostic(data)

    def run(self, model: Subject, data: Path, seed: int, progress: bool) -> TaskResult:
        """Fine-tune with the recipe and score the dev sets."""
        started = time.monotonic()
        prepared = self._prepare(model, data, progress)
        predicted = self._tuned(
            model, prepared.train, prepared.dev, prepared.rate, seed, f"{self.name} seed {seed}",
            progress,
        )  # fmt: skip
        metrics: dict[str, float] = {}
        arrays: dict[str, NDArray[Any]] = {}
        for number, (name, part) in enumerate(prepared.dev.items()):
            suffix = "" if number == 0 else f"_{name.removeprefix('dev_')}"
            labels = part.examples.labels
            arrays[f"prediction{suffix}"] = predicted[name]
            if labels.min() >= 0:  # the diagnostic pairs may come without
                arrays[f"label{suffix}"] = labels
                wanted = ("mcc",) if name == "ax" else self._metrics
                scores = self._scores(wanted, predicted[name], labels)
                metrics |= {f"{metric}{suffix}": value for metric, value in scores.items()}
        counts = {"train": len(prepared.train.examples)}
        counts |= {name: len(part.examples) for name, part in prepared.dev.items()}
        if prepared.train.examples.skipped:
            counts["train_skipped"] = prepared.train.examples.skipped
        return TaskResult(
            task=self.name,
            family=self.family,
            seed=seed,
            model=model.name,
            model_sha256=model.sha256,
            step=model.step,
            metrics=metrics,
            primary=self._metrics[0],
            higher_is_better=True,
            num_examples=counts,
            recipe=self.recipe,
            data_sha256=prepared.data_sha256,
            versions=versions("scikit-learn", "scipy"),
            seconds=time.monotonic() - started,
            details=prepared.choice,
            examples=arrays,
        )

    def _prepare(self, model: Subject, data: Path, progress: bool) -> _Prepared:
        """Texts as tokens and the learning rate; kept from one seed to the next."""
        key = (model.path, data)
        if self._prepared is None or self._prepared[0] != key:
            train = self.part(model, read_split(self.name, data, "train"))
            dev = {
                name: self.part(model, read_split(self.name, data, name))
                for name in self._format.dev
            }
            if self.name == "mnli" and len(pairs := diagnostic(data)[0]):
                dev["ax"] = self.part(model, pairs)
            rate, choice = self._choose(model, train, progress)
            digest = self.data_sha256(data)
            self._prepared = key, _Prepared(train, dev, digest, rate, choice)
        return self._prepared[1]

    def part(self, model: Subject, examples: Examples) -> Part:
        """Examples and their tokens: at most ``limit``, spread over the file, in its order."""
        limit, size = self.config.limit, len(examples)
        if limit is not None and limit < size:
            key = int(row_keys(0, Stream.SELECT, 0, 1)) >> 2
            examples = examples.take(np.sort(permute(np.arange(limit), size, key)))
        return self._encoded(model, examples)

    def _encoded(self, model: Subject, examples: Examples) -> Part:
        length = self.config.max_length
        return Part(examples, encode(model.tokenizer, examples.texts, examples.pairs, length))

    def _choose(
        self, model: Subject, train: Part, progress: bool
    ) -> tuple[float, dict[str, float]]:
        def score(rate: float, kept: NDArray[np.int64], held_out: NDArray[np.int64]) -> float:
            inside = self._encoded(model, train.examples.take(kept))
            outside = self._encoded(model, train.examples.take(held_out))
            label = f"{self.name} at {rate:g}"
            predicted = self._tuned(model, inside, {"": outside}, rate, 0, label, progress)[""]
            first = self._metrics[:1]
            return self._scores(first, predicted, outside.examples.labels)[first[0]]

        return choose_rate(self.config, np.arange(len(train.examples)), score)

    def _tuned(
        self,
        model: Subject,
        train: Part,
        dev: Mapping[str, Part],
        rate: float,
        seed: int,
        label: str,
        progress: bool,
    ) -> dict[str, NDArray[Any]]:
        """Predictions for each of ``dev`` of a model fine-tuned on ``train``."""
        auto = AutoModelForSequenceClassification
        with open_seeded(model, auto, self.config, seed, num_labels=self.num_labels) as opened:
            loss_of = self.loss(train.examples, opened.device)
            fine_tune(
                opened, train.encoded, loss_of, self.config, rate, seed,
                label=label, progress=progress,
            )  # fmt: skip
            return {
                name: self.predictions(opened, part.encoded, label, progress)
                for name, part in dev.items()
            }

    @property
    def num_labels(self) -> int:
        """Outputs of the head: one for a score."""
        return len(self._format.class_names) or 1

    def loss(self, examples: Examples, device: torch.device) -> Loss:
        """Cross entropy with the examples' classes, squared distance from their scores."""
        scores = self._format.classes is None
        labels = torch.from_numpy(examples.labels).to(
            device, torch.float32 if scores else torch.int64
        )

        def loss_of(output: Any, _: Any, index: torch.Tensor) -> torch.Tensor:
            logits = output.logits.float()
            if scores:
                return functional.mse_loss(logits[:, 0], labels[index])
            return functional.cross_entropy(logits, labels[index])

        return loss_of

    def predictions(
        self, model: Any, encoded: Encoded, label: str = "", progress: bool = False
    ) -> NDArray[Any]:
        """Class numbers int64, or scores float64, [N] in file order, of a fine-tuned model."""
        scores = self._format.classes is None
        result = np.zeros(len(encoded), np.float64 if scores else np.int64)
        for index, output, _ in outputs(
            model, encoded, self.config, label=label, progress=progress
        ):
            logits = output.logits.float()
            result[index] = (logits[:, 0] if scores else logits.argmax(-1)).cpu().numpy()
        return result

    def _scores(
        self, names: tuple[str, ...], predicted: NDArray[Any], labels: NDArray[Any]
    ) -> dict[str, float]:
        score = regression_metrics if self._format.classes is None else classification_metrics
        return score(names, predicted, labels)
