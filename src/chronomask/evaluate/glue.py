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

from chronomask.evaluate.batches import Encoded, check_pairs, encode
from chronomask.evaluate.finetune import (
    FineTuning,
    Loss,
    check_fine_tuning,
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
from chronomask.evaluate.selection import Prepared, at_most, choose_rate
from chronomask.evaluate.subject import Subject
from chronomask.evaluate.task import Kept, recipe_of, result_of
from chronomask.runs.result import TaskResult

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


_Prepared = Prepared[Part, dict[str, Part]]
"""With the dev sets by name; the first is the one that comparisons use."""


class GlueTask:
    """One of the nine."""

    family = "glue"
    draws = True

    def __init__(self, name: str, config: FineTuning | None = None) -> None:
        self.name = name
        self.config = config or GLUE_TASKS[name]
        self._format = FORMATS[name]
        self._metrics = _METRICS.get(name, ("accuracy",))
        self._prepared = Kept[_Prepared]()

    @property
    def recipe(self) -> Mapping[str, Any]:
        """Every setting that decides the numbers, and the classes by number."""
        return {**recipe_of(self.config), "classes": list(self._format.class_names)}

    def data_sha256(self, data: Path) -> str:
        """Of the files, in the order train, dev sets, diagnostic pairs."""
        return source_sha256(self.name, data, with_diagnostic=self.name == "mnli")

    def check(self, model: Subject, data: Path) -> None:
        """Read everything once; raises UsageError or DataError."""
        check_fine_tuning(model, AutoModelForSequenceClassification, self.config, self.name)
        if len(self._format.texts) == 2:
            check_pairs(model.tokenizer)
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
        return result_of(
            self,
            model,
            seed,
            started,
            metrics=metrics,
            primary=self._metrics[0],
            num_examples=counts,
            data_sha256=prepared.data_sha256,
            packages=("scikit-learn", "scipy"),
            details=prepared.choice,
            examples=arrays,
        )

    def _prepare(self, model: Subject, data: Path, progress: bool) -> _Prepared:
        """Texts as tokens and the learning rate; kept from one seed to the next."""
        digest = self.data_sha256(data)

        def prepared() -> _Prepared:
            train = self.part(model, read_split(self.name, data, "train"))
            dev = {
                name: self.part(model, read_split(self.name, data, name))
                for name in self._format.dev
            }
            if self.name == "mnli" and len(pairs := diagnostic(data)[0]):
                dev["ax"] = self.part(model, pairs)
            rate, choice = self._choose(model, train, progress)
            return Prepared(train, dev, digest, rate, choice)

        return self._prepared.of((model.sha256, digest), prepared)

    def part(self, model: Subject, examples: Examples) -> Part:
        """Examples and their tokens: at most ``limit``, spread over the file, in its order."""
        return self._encoded(model, at_most(self.config.limit, examples))

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
