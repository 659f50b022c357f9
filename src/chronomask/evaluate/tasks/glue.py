"""GLUE: nine tasks of one sentence or two, each by fine-tuning a classification head.

MNLI is scored on both of its dev sets and answers the diagnostic pairs where they are there.
"""

from __future__ import annotations

import math
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

from chronomask.errors import DataError, UsageError
from chronomask.evaluate.batches import Encoded, check_pairs, encode
from chronomask.evaluate.finetune import (
    FineTuning,
    Loss,
    Prepared,
    at_most,
    check_fine_tuning,
    choose_rate,
    fine_tune,
    open_seeded,
    outputs,
)
from chronomask.evaluate.hub import content_sha256, is_hub, load_split
from chronomask.evaluate.metrics import classification_metrics, regression_metrics
from chronomask.evaluate.subject import Subject
from chronomask.evaluate.task import Kept, folder_of, recipe_of, result_of, sha256_of
from chronomask.runs.result import TaskResult

__all__ = [
    "FORMATS",
    "GLUE_TASKS",
    "Examples",
    "Format",
    "GlueTask",
    "Part",
    "diagnostic",
    "read_split",
    "source_sha256",
]

HUB_NAME = "nyu-mll/glue"
BINARY = {"0": 0, "1": 1}
ENTAILMENT = {"entailment": 0, "not_entailment": 1}
MNLI = {"entailment": 0, "neutral": 1, "contradiction": 2}


@dataclass(frozen=True, slots=True)
class Format:
    """Where a task's texts and labels stand, in its files and on the hub."""

    folder: str
    texts: tuple[str, ...]
    """names of the text columns; of CoLA, whose files have no header, of the positions below"""
    label: str
    classes: dict[str, int] | None
    """class number of each label in the files; None: a score from 0 to 5"""
    class_names: tuple[str, ...] = ()
    """the hub's names of the classes, by number"""
    hub_texts: tuple[str, ...] = ()
    """names of the text columns on the hub, where they differ"""
    header: tuple[str, ...] | None = None
    """the columns of files that do not name them"""
    dev: tuple[str, ...] = ("dev",)
    """names of the dev sets; the first is the one that comparisons use"""
    skips_short_rows: bool = False
    """QQP's official train file holds a few rows that are cut off"""


PAIR = ("sentence1", "sentence2")
NLI_NAMES = ("entailment", "not_entailment")
FORMATS = {
    "cola": Format(
        "CoLA",
        ("sentence",),
        "label",
        BINARY,
        ("unacceptable", "acceptable"),
        header=("source", "label", "mark", "sentence"),
    ),
    "sst2": Format("SST-2", ("sentence",), "label", BINARY, ("negative", "positive")),
    "mrpc": Format(
        "MRPC",
        ("#1 String", "#2 String"),
        "Quality",
        BINARY,
        ("not_equivalent", "equivalent"),
        hub_texts=PAIR,
    ),
    "stsb": Format("STS-B", PAIR, "score", None),
    "qqp": Format(
        "QQP",
        ("question1", "question2"),
        "is_duplicate",
        BINARY,
        ("not_duplicate", "duplicate"),
        skips_short_rows=True,
    ),
    "mnli": Format(
        "MNLI",
        PAIR,
        "gold_label",
        MNLI,
        tuple(MNLI),
        hub_texts=("premise", "hypothesis"),
        dev=("dev_matched", "dev_mismatched"),
    ),
    "qnli": Format("QNLI", ("question", "sentence"), "label", ENTAILMENT, NLI_NAMES),
    "rte": Format("RTE", PAIR, "label", ENTAILMENT, NLI_NAMES),
    "wnli": Format("WNLI", PAIR, "label", BINARY, ("not_entailment", "entailment")),
}
"""The nine tasks by name."""
_DIAGNOSTIC = Format(
    "AX", PAIR, "", MNLI, class_names=tuple(MNLI), hub_texts=("premise", "hypothesis")
)
_LABELLED_DIAGNOSTIC = Format("AX", ("Premise", "Hypothesis"), "Label", MNLI)


@dataclass(frozen=True, slots=True)
class Examples:
    """Texts and labels in file order. ``labels``: int64 class numbers or float64 scores [N]."""

    texts: list[str]
    pairs: list[str] | None
    labels: NDArray[Any]
    skipped: int = 0
    """rows left out because they are cut off"""

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, index: NDArray[np.int64]) -> Examples:
        """Some of them, in the order of ``index``."""
        pairs = None if self.pairs is None else [self.pairs[i] for i in index]
        return Examples([self.texts[i] for i in index], pairs, self.labels[index], self.skipped)


def read_split(task: str, data: Path, split: str) -> Examples:
    """One of ``train`` and the task's dev sets, from files or from the hub.

    Raises UsageError for what is not there; DataError naming the line of what is wrong.
    """
    form = FORMATS[task]
    if is_hub(data):
        return _from_hub(task, form, split)
    return _from_file(_file(data, form.folder, f"{split}.tsv"), form)


def diagnostic(data: Path) -> tuple[Examples, Path | None]:
    """GLUE's diagnostic pairs, which an MNLI model answers; none of them if they are not there.

    ``diagnostic-full.tsv`` has labels; with ``diagnostic.tsv``, and from the hub, they are −1.
    """
    if is_hub(data):
        return _from_hub("ax", _DIAGNOSTIC, "test"), None
    for folder in (folder_of(data, "glue") / name for name in ("AX", "diagnostic")):
        if (path := folder / "diagnostic-full.tsv").is_file():
            return _from_file(path, _LABELLED_DIAGNOSTIC), path
        if (path := folder / "diagnostic.tsv").is_file():
            return _from_file(path, _DIAGNOSTIC), path
    return Examples([], [], np.zeros(0, np.int64)), None


def source_sha256(task: str, data: Path, *, with_diagnostic: bool) -> str:
    """SHA-256 of what a task reads."""
    form = FORMATS[task]
    if is_hub(data):
        splits = [read_split(task, data, split) for split in ("train", *form.dev)]
        return content_sha256(*([e.texts, e.pairs, e.labels.tolist()] for e in splits))
    files = [_file(data, form.folder, f"{split}.tsv") for split in ("train", *form.dev)]
    extra = diagnostic(data)[1] if with_diagnostic else None
    return sha256_of(files if extra is None else [*files, extra])


def _file(data: Path, folder: str, name: str) -> Path:
    path = folder_of(data, "glue") / folder / name
    if not path.is_file():
        raise UsageError(f"{path} does not exist")
    return path


def _from_file(path: Path, form: Format) -> Examples:
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}") from None
    if lines[-1] == "":
        lines.pop()
    rows = [line.rstrip("\r").split("\t") for line in lines]
    header = form.header
    first = 1
    if header is None:
        if not rows:
            raise DataError(f"{path} is empty")
        header, rows, first = tuple(rows[0]), rows[1:], 2
    if not rows:
        raise DataError(f"{path} holds no examples")
    wanted = (*form.texts, *([form.label] if form.label else []))
    if missing := [name for name in wanted if name not in header]:
        raise DataError(
            f"{path} has no column {', '.join(map(repr, missing))}; its columns are: {', '.join(header)}"
        )
    places = [header.index(name) for name in form.texts]
    label_at = header.index(form.label) if form.label else None
    texts: list[list[str]] = []
    labels: list[float] = []
    skipped = 0
    for number, row in enumerate(rows, first):
        if len(row) != len(header):
            if form.skips_short_rows and len(row) < len(header):
                skipped += 1
                continue
            raise DataError(
                f"{path}, line {number}: {len(row)} columns instead of {len(header)} "
                "(tab-separated, no quoting)"
            )
        texts.append([row[place] for place in places])
        labels.append(-1 if label_at is None else _label(row[label_at], form, path, number))
    if not texts:
        raise DataError(f"{path} holds no whole example")
    return _examples(texts, labels, form, skipped)


def _label(text: str, form: Format, path: Path, line: int) -> float:
    if form.classes is not None:
        number = form.classes.get(text.strip())
        if number is None:
            raise DataError(
                f"{path}, line {line}: label {text!r}; valid: {', '.join(form.classes)}"
            )
        return number
    try:
        score = float(text)
    except ValueError:
        score = math.nan
    if not 0 <= score <= 5:
        raise DataError(f"{path}, line {line}: score {text!r}; valid: a number from 0 to 5")
    return score


def _from_hub(task: str, form: Format, split: str) -> Examples:
    hub_split = split.replace("dev", "validation")
    rows = load_split(HUB_NAME, task, hub_split)
    names = form.hub_texts or form.texts
    if missing := [name for name in (*names, "label") if name not in rows.column_names]:
        raise DataError(f"{HUB_NAME} ({task}) has no column {', '.join(missing)}")
    there = tuple(getattr(rows.features["label"], "names", ()))
    if there != form.class_names:
        raise DataError(
            f"{HUB_NAME} ({task}) has the labels {there}, not {form.class_names}: "
            "its class numbers mean something else"
        )
    texts = [list(pair) for pair in zip(*(rows[name] for name in names), strict=True)]
    return _examples(texts, list(rows["label"]), form, 0)


def _examples(texts: list[list[str]], labels: list[float], form: Format, skipped: int) -> Examples:
    kind = np.float64 if form.classes is None else np.int64
    pairs = [row[1] for row in texts] if len(form.texts) == 2 else None
    return Examples([row[0] for row in texts], pairs, np.asarray(labels, kind), skipped)


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
