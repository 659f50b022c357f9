"""GLUE (Wang et al., ICLR 2019): nine tasks of one sentence or two, by fine-tuning a classification head.

Its files are read as they are handed out: one folder a task, tab-separated, no quoting, sometimes a byte
order mark. Class numbers are the hub data set's, whichever way the examples came. MNLI is scored on both of
its dev sets and answers the diagnostic pairs where they are there.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from chronomask.errors import DataError, check_installed, need, shown
from chronomask.evaluate.batches import Encoded, check_pairs, encode
from chronomask.evaluate.finetune import NOT_TOLD, FineTuning, Loss, Telling, outputs
from chronomask.evaluate.finetuned_task import FineTunedTask, Part, Prepared
from chronomask.evaluate.subject import Subject
from chronomask.evaluate.task import (
    content_sha256,
    folder_of,
    is_hub,
    is_there,
    load_split,
    one_file,
    register,
    task_folder,
)
from chronomask.progress import NOT_SHOWN, Progress
from chronomask.runs.result import TaskResult
from chronomask.storage import files_sha256
from chronomask.text_files import read_lines

if TYPE_CHECKING:
    import torch

__all__ = [
    "FORMATS",
    "FOR_SCORES",
    "Examples",
    "Format",
    "GlueTask",
    "classification_metrics",
    "diagnostic",
    "read_split",
    "regression_metrics",
    "source_sha256",
]

HUB_NAME = "nyu-mll/glue"
BINARY = {"0": 0, "1": 1}
ENTAILMENT = {"entailment": 0, "not_entailment": 1}
MNLI = {"entailment": 0, "neutral": 1, "contradiction": 2}


@dataclass(frozen=True, slots=True)
class Format:
    """Where a task's texts and labels stand, in its files and on the hub, and how it is scored."""

    folder: str
    """also its title, unless it has one of its own"""
    texts: tuple[str, ...]
    """names of the text columns; of CoLA, whose files have no header, of the positions below"""
    label: str
    classes: dict[str, int] | None
    """class number of each label in the files; None: a score from 0 to 5"""
    class_names: tuple[str, ...] = ()
    """the hub's names of the classes, by number"""
    metrics: tuple[str, ...] = ("accuracy",)
    """the primary one first"""
    epochs: int = 3
    """of the recipe by default"""
    hub_texts: tuple[str, ...] = ()
    """names of the text columns on the hub, where they differ"""
    header: tuple[str, ...] | None = None
    """the columns of files that do not name them"""
    dev: tuple[str, ...] = ("dev",)
    """names of the dev sets; the first is the one that comparisons use"""
    diagnostic: bool = False
    """whether the diagnostic pairs have its classes"""
    title: str = ""
    """where it is not the folder"""
    skips_short_rows: bool = False
    """QQP's official train file holds a few rows that are cut off"""


PAIR = ("sentence1", "sentence2")
NLI_NAMES = ("entailment", "not_entailment")
F1_FIRST = ("f1", "accuracy")
FORMATS = {
    "cola": Format(
        "CoLA",
        ("sentence",),
        "label",
        BINARY,
        ("unacceptable", "acceptable"),
        metrics=("mcc",),
        header=("source", "label", "mark", "sentence"),
    ),
    "sst2": Format("SST-2", ("sentence",), "label", BINARY, ("negative", "positive")),
    "mrpc": Format(
        "MRPC",
        ("#1 String", "#2 String"),
        "Quality",
        BINARY,
        ("not_equivalent", "equivalent"),
        metrics=F1_FIRST,
        epochs=5,
        hub_texts=PAIR,
    ),
    "stsb": Format("STS-B", PAIR, "score", None, metrics=("spearman", "pearson")),
    "qqp": Format(
        "QQP",
        ("question1", "question2"),
        "is_duplicate",
        BINARY,
        ("not_duplicate", "duplicate"),
        metrics=F1_FIRST,
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
        diagnostic=True,
    ),
    "qnli": Format("QNLI", ("question", "sentence"), "label", ENTAILMENT, NLI_NAMES),
    "rte": Format("RTE", PAIR, "label", ENTAILMENT, NLI_NAMES),
    "wnli": Format("WNLI", PAIR, "label", BINARY, ("not_entailment", "entailment"), epochs=5),
}
"""The nine tasks by name."""
_DIAGNOSTIC = Format(
    "AX", PAIR, "", MNLI, class_names=tuple(MNLI), hub_texts=("premise", "hypothesis")
)
_LABELLED_DIAGNOSTIC = Format("AX", ("Premise", "Hypothesis"), "Label", MNLI)
FOR_SCORES = ("evaluate", "Scoring GLUE")
"""The extra that brings the metrics' packages, and what it is needed for."""


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


GluePart = Part[Examples, Encoded]


class GlueTask(FineTunedTask[FineTuning, Examples, Encoded]):
    """One of the nine."""

    family = "glue"
    head = "AutoModelForSequenceClassification"
    formats: ClassVar[Mapping[str, Format]] = FORMATS
    """of the tasks that the class knows, by name"""

    def __init__(self, name: str, config: FineTuning | None = None) -> None:
        self.name = name
        self.format = self.formats[name]
        self.title = self.format.title or self.format.folder
        super().__init__(config or FineTuning(epochs=self.format.epochs))

    def with_config(self, config: FineTuning) -> Self:
        """The same task with other settings."""
        return type(self)(self.name, config)

    @property
    def head_options(self) -> dict[str, Any]:
        """As many outputs as classes; one for a score."""
        return {"num_labels": len(self.format.class_names) or 1}

    @property
    def recipe(self) -> dict[str, Any]:
        """Every setting that decides the numbers, and the classes by number."""
        return {**super().recipe, "classes": list(self.format.class_names)}

    def data_sha256(self, task_data: Path) -> str:
        """Of the files, in the order train, dev sets, diagnostic pairs."""
        return source_sha256(self.name, task_data)

    def read(self, task_data: Path) -> tuple[Examples, dict[str, Examples]]:
        """The training examples, and the dev sets by name; ``ax`` are the diagnostic pairs."""
        train = read_split(self.name, task_data, "train")
        dev = {name: read_split(self.name, task_data, name) for name in self.format.dev}
        if self.format.diagnostic and len(pairs := diagnostic(task_data)[0]):
            dev["ax"] = pairs
        return train, dev

    def check_packages(self) -> None:
        for package in ("sklearn", "scipy"):
            check_installed(package, *FOR_SCORES)

    def check(self, model: Subject, task_data: Path) -> None:
        """Read everything once; raises UsageError or DataError."""
        super().check(model, task_data)
        self.check_packages()

    def run(self, model: Subject, task_data: Path, seed: int, progress: bool) -> TaskResult:
        """Fine-tune with the recipe and score the dev sets."""
        started = time.monotonic()
        prepared = self.prepare(model, task_data, progress)
        train, dev = prepared.train, prepared.dev
        tuned = self.tune(model, prepared, seed, progress)
        metrics: dict[str, float] = {}
        details: dict[str, float] = {}
        arrays: dict[str, NDArray[Any]] = {}
        for number, (name, part) in enumerate(dev.items()):
            suffix = "" if number == 0 else f"_{name.removeprefix('dev_')}"
            labels = part.examples.labels
            arrays[f"prediction{suffix}"] = tuned.answers[name]
            if labels.min() >= 0:  # the diagnostic pairs may come without
                arrays[f"label{suffix}"] = labels
                wanted = ("mcc",) if name == "ax" else self.format.metrics
                scores = self._scores(wanted, tuned.answers[name], labels)
                metrics |= {f"{metric}{suffix}": value for metric, value in scores.items()}
                details |= self.details(labels, tuned.answers[name])
        counts = {"train": len(train.examples)}
        counts |= {name: len(part.examples) for name, part in dev.items()}
        if train.examples.skipped:
            counts["train_skipped"] = train.examples.skipped
        return self.result(
            model,
            seed,
            started,
            metrics=metrics,
            primary=self.format.metrics[0],
            num_examples=counts,
            data_sha256=prepared.data_sha256,
            packages=("scikit-learn", "scipy"),
            details=tuned.details | details,
            examples=arrays,
            left_out=self.left_out(prepared),
        )

    def encode(self, model: Subject, examples: Examples, shown: Progress = NOT_SHOWN) -> Encoded:
        """A row of tokens for each example."""
        if examples.pairs is not None:
            check_pairs(model.tokenizer)
        longest = self.config.max_length
        return encode(model.tokenizer, examples.texts, examples.pairs, longest, shown)

    def left_out(self, prepared: Prepared[Examples, Encoded]) -> dict[str, int]:
        """Rows of the files that are cut off, too."""
        parts = {"training": prepared.train, **prepared.dev}
        rows = {f"{name} rows that are cut off": p.examples.skipped for name, p in parts.items()}
        return rows | super().left_out(prepared)

    def groups(self, examples: Examples) -> NDArray[np.int64]:
        """Every example by itself."""
        return np.arange(len(examples))

    def loss(self, part: GluePart, device: torch.device) -> Loss:
        """Cross entropy with the examples' classes, squared distance from their scores."""
        import torch
        from torch.nn import functional

        scores = self.format.classes is None
        labels = torch.from_numpy(part.examples.labels).to(
            device, torch.float32 if scores else torch.int64
        )

        def loss_of(output: Any, _: Any, index: torch.Tensor) -> torch.Tensor:
            logits = self.logits(output)
            if scores:
                return functional.mse_loss(logits[:, 0], labels[index])
            return functional.cross_entropy(logits, labels[index])

        return loss_of

    def logits(self, output: Any) -> torch.Tensor:
        """float32 [B, classes], or [B, 1] of a score, of the model's output."""
        return output.logits.float()

    def answers(self, model: Any, part: GluePart, telling: Telling = NOT_TOLD) -> NDArray[Any]:
        """Class numbers int64, or scores float64, [N] in file order, of a fine-tuned model."""
        scores = self.format.classes is None
        encoded = part.encoded
        result = np.zeros(len(encoded), np.float64 if scores else np.int64)
        for index, output in outputs(model, encoded, self.config, telling):
            logits = self.logits(output)
            result[index] = (logits[:, 0] if scores else logits.argmax(-1)).cpu().numpy()
        return result

    def details(self, labels: NDArray[Any], answers: NDArray[Any]) -> dict[str, float]:
        """What the result says beside the metrics, of the answers [N] to one dev set."""
        return {}

    def score(self, part: GluePart, answers: NDArray[Any]) -> float:
        """The primary metric."""
        first = self.format.metrics[0]
        return self._scores((first,), answers, part.examples.labels)[first]

    def _scores(
        self, names: tuple[str, ...], prediction: NDArray[Any], label: NDArray[Any]
    ) -> dict[str, float]:
        score = regression_metrics if self.format.classes is None else classification_metrics
        return score(names, prediction, label)


def classification_metrics(
    names: tuple[str, ...], prediction: NDArray[Any], label: NDArray[Any]
) -> dict[str, float]:
    """Shares in [0, 1] (MCC in [−1, 1]) of class numbers [N]; ``names`` of accuracy, f1, macro_f1, mcc.

    ``f1`` is that of class 1, and 0 where neither side has it; ``macro_f1`` is the mean over all classes
    there are. Where one class alone is predicted, MCC is 0 by convention. Raises UsageError without
    scikit-learn.
    """
    metrics = need("sklearn.metrics", *FOR_SCORES)
    by_name = {
        "accuracy": lambda: metrics.accuracy_score(label, prediction),
        "f1": lambda: metrics.f1_score(label, prediction, zero_division=0.0),
        "macro_f1": lambda: metrics.f1_score(label, prediction, average="macro", zero_division=0.0),
        "mcc": lambda: metrics.matthews_corrcoef(label, prediction),
    }
    with warnings.catch_warnings():  # of one class on both sides, which MCC has a convention for
        warnings.simplefilter("ignore", UserWarning)
        return {name: float(by_name[name]()) for name in names}


def regression_metrics(
    names: tuple[str, ...], prediction: NDArray[Any], label: NDArray[Any]
) -> dict[str, float]:
    """Correlations of numbers [N]; ``names`` of pearson, spearman. 0 where one side is constant.

    Raises UsageError without scipy.
    """
    stats = need("scipy.stats", *FOR_SCORES)
    by_name = {"pearson": stats.pearsonr, "spearman": stats.spearmanr}
    if prediction.size < 2 or np.ptp(prediction) == 0 or np.ptp(label) == 0:
        return dict.fromkeys(names, 0.0)
    return {name: float(by_name[name](prediction, label).statistic) for name in names}


def read_split(task: str, task_data: Path, split: str) -> Examples:
    """One of ``train`` and the task's dev sets, from files or from the hub.

    Raises UsageError for what is not there; DataError naming the line of what is wrong.
    """
    form = FORMATS[task]
    if is_hub(task_data):
        return _from_hub(task, form, split)
    return _from_file(_file(task_data, form.folder, f"{split}.tsv"), form)


def diagnostic(task_data: Path) -> tuple[Examples, Path | None]:
    """GLUE's diagnostic pairs, which an MNLI model answers; none of them if they are not there.

    ``diagnostic-full.tsv`` has labels; with ``diagnostic.tsv``, and from the hub, they are −1.
    """
    if is_hub(task_data):
        return _from_hub("ax", _DIAGNOSTIC, "test"), None
    for folder in (folder_of(task_data, "glue") / name for name in ("AX", "diagnostic")):
        for name, form in (("-full", _LABELLED_DIAGNOSTIC), ("", _DIAGNOSTIC)):
            if is_there(path := folder / f"diagnostic{name}.tsv"):
                path = one_file(path)
                return _from_file(path, form), path
    return Examples([], [], np.zeros(0, np.int64)), None


def source_sha256(task: str, task_data: Path, splits: Sequence[str] = ()) -> str:
    """SHA-256 of what a task reads: of ``splits``, or of all there are."""
    form = FORMATS[task]
    splits = splits or ("train", *form.dev)
    if is_hub(task_data):
        parts = [read_split(task, task_data, split) for split in splits]
        return content_sha256(*([e.texts, e.pairs, e.labels.tolist()] for e in parts))
    files = [_file(task_data, form.folder, f"{split}.tsv") for split in splits]
    extra = diagnostic(task_data)[1] if form.diagnostic else None
    return files_sha256(files if extra is None else [*files, extra])


def _file(task_data: Path, folder: str, name: str) -> Path:
    return one_file(
        task_folder(task_data, "glue", folder) / name,
        f"name the folder that holds {folder} or glue/{folder}, or hub to take data from the Hugging Face "
        "hub",
    )


def _from_file(path: Path, form: Format) -> Examples:
    """The examples in a file; raises DataError that names the line of what is wrong."""
    rows = [line.split("\t") for line in read_lines(path)]
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
            f"{path} has no column {', '.join(map(repr, missing))}; its columns are: "
            f"{', '.join(map(str.strip, header))[:300]}"
        )
    places = [header.index(name) for name in form.texts]
    label_at = header.index(form.label) if form.label else None
    texts: list[list[str]] = []
    labels: list[float] = []
    skipped = 0
    for number, row in enumerate(rows, first):
        if row == [""]:
            continue
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
        raise DataError(f"{path} holds no complete example")
    return _examples(texts, labels, form, skipped)


def _label(text: str, form: Format, path: Path, line: int) -> float:
    """A label as its class number, or a score; raises DataError for what is neither."""
    if form.classes is not None:
        number = form.classes.get(text.strip())
        if number is None:
            raise DataError(
                f"{path}, line {line}: label {shown(text)}; valid: {', '.join(form.classes)}"
            )
        return number
    try:
        score = float(text)
    except ValueError:
        score = math.nan
    if not 0 <= score <= 5:
        raise DataError(f"{path}, line {line}: score {shown(text)}; valid: a number from 0 to 5")
    return score


def _from_hub(task: str, form: Format, split: str) -> Examples:
    """A split of the hub's data set; raises DataError where its columns or classes are others."""
    hub_split = split.replace("dev", "validation")
    rows = load_split(HUB_NAME, task, hub_split)
    names = form.hub_texts or form.texts
    if missing := [name for name in (*names, "label") if name not in rows.column_names]:
        raise DataError(f"{HUB_NAME} ({task}) has no column {', '.join(missing)}")
    there = tuple(getattr(rows.features["label"], "names", ()))
    if there != form.class_names:
        raise DataError(
            f"{HUB_NAME} ({task}) has the labels {there}, not {form.class_names}: "
            "so its class numbers cannot be interpreted"
        )
    texts = [list(pair) for pair in zip(*(rows[name] for name in names), strict=True)]
    return _examples(texts, list(rows["label"]), form, 0)


def _examples(texts: list[list[str]], labels: list[float], form: Format, skipped: int) -> Examples:
    kind = np.float64 if form.classes is None else np.int64
    pairs = [row[1] for row in texts] if len(form.texts) == 2 else None
    return Examples([row[0] for row in texts], pairs, np.asarray(labels, kind), skipped)


for _name in FORMATS:
    register(GlueTask(_name))
