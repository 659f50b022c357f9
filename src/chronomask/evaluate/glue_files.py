"""GLUE as it is handed out: one folder a task, tab-separated, no quoting, sometimes a byte order mark.

Every task's columns and labels are in :data:`FORMATS`; class numbers are the hub data set's, whichever
way the examples came. Wang et al., "GLUE" (ICLR 2019).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chronomask.errors import DataError, UsageError
from chronomask.evaluate.hub import content_sha256, is_hub, load_split
from chronomask.evaluate.task import folder_of, sha256_of

__all__ = ["FORMATS", "Examples", "Format", "diagnostic", "read_split", "source_sha256"]

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
