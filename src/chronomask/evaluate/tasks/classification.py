"""Your own labelled texts, or pairs of texts: a classification head, fine-tuned as for GLUE.

A folder holds a file of training examples and one that is scored, as ``.jsonl``, ``.csv`` or ``.tsv``. The
classes are the labels of the training examples.
"""

from __future__ import annotations

import csv
import json
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from chronomask.errors import DataError, UsageError, amount, nearest, need, shown
from chronomask.evaluate.finetune import FineTuning
from chronomask.evaluate.task import (
    file_of_part,
    folder_of,
    json_lines,
    name_inside,
    no_file_of_part,
    texts_in,
)
from chronomask.evaluate.tasks.glue import FOR_SCORES, Examples, Format, GlueTask
from chronomask.storage import files_sha256
from chronomask.text_files import check_text, read_lines

__all__ = ["Classification", "ClassificationTask", "classification_files", "read_labelled"]

_ENDS = (".jsonl", ".csv", ".tsv")
_MANY = 50
"""Classes above which labels may be no classes at all, but scores or identifiers."""
_SEPARATORS = ";\t,|"
_ANY_SIZE = 2**31 - 1
"""Of a field of .csv: by default 131,072 characters are refused."""
_LONGEST = 200
"""Characters of a label; what is longer is a text."""


class Classification(FineTuning):
    """The recipe, GLUE's otherwise, and where texts and labels stand."""

    dataset: str | None = None
    """its folder in DATA/classification; none: that itself, the only folder in it, or DATA"""
    text: str = "text"
    """the column, or key, of the text"""
    pair: str | None = None
    """that of a second text, for pairs; none: one text an example"""
    label: str = "label"
    """that of the class"""
    part: Literal["dev", "test"] = "dev"
    """the part that is scored"""


class ClassificationTask(GlueTask):
    """Accuracy, macro-averaged F1 and Matthews' correlation, and the F1 of each class."""

    name = "classification"
    family = "classification"
    formats: ClassVar[Mapping[str, Format]] = {
        "classification": Format("", (), "", {}, metrics=("accuracy", "macro_f1", "mcc"))
    }
    outside_recipe = ("dataset",)
    config: Classification

    def __init__(self, name: str = "classification", config: FineTuning | None = None) -> None:
        super().__init__(name, config or Classification())

    @property
    def recipe(self) -> dict[str, Any]:
        """Every setting that decides the numbers; the classes are the data's, and not a setting."""
        return {name: value for name, value in super().recipe.items() if name != "classes"}

    def data_sha256(self, task_data: Path) -> str:
        """Of the two files."""
        return files_sha256(classification_files(task_data, self.config))

    def read(self, task_data: Path) -> tuple[Examples, dict[str, Examples]]:
        """The training examples, and those that are scored."""
        files = classification_files(task_data, self.config)
        (texts, names), (scored, others) = (read_labelled(path, self.config) for path in files)
        classes = _classes(names, files[0])
        if {*others} == {"-1"} and "-1" not in classes:
            raise DataError(
                f"{files[1]} has the label -1 throughout, as a part whose labels are secret: score one that "
                "has labels"
            )
        for name in sorted({*others} - classes.keys()):
            raise DataError(
                f"{files[1]} has the label {shown(name)}, which {files[0]} never has; "
                f"{nearest(name, classes)}"
            )
        self.format = replace(self.format, classes=classes, class_names=tuple(classes))
        train, dev = (
            Examples(
                [row[0] for row in rows],
                None if self.config.pair is None else [row[1] for row in rows],
                np.array([classes[name] for name in labels], np.int64),
            )
            for rows, labels in ((texts, names), (scored, others))
        )
        return train, {self.config.part: dev}

    def details(self, labels: NDArray[Any], answers: NDArray[Any]) -> dict[str, float]:
        """``f1/CLASS`` of every class among labels or answers, in [0, 1], in the order of their numbers.

        Their mean is ``macro_f1``.
        """
        names = self.format.class_names
        metrics = need("sklearn.metrics", *FOR_SCORES)
        there = np.union1d(labels, answers)
        scores = metrics.f1_score(labels, answers, labels=there, average=None, zero_division=0.0)
        return {f"f1/{names[k]}": float(score) for k, score in zip(there, scores, strict=True)}


def classification_files(task_data: Path, config: Classification) -> tuple[Path, Path]:
    """The training file and the scored one, as :func:`chronomask.evaluate.task.file_of_part` finds them.

    They lie in ``task_data``/classification or ``task_data``, or in the folder ``dataset`` there, which need
    not be named where ``classification`` holds one alone. Raises UsageError where it is not clear which they
    are.
    """
    place = folder_of(task_data, "classification")
    if config.dataset is not None:
        if place.is_dir() and not (place / config.dataset).is_dir():
            raise UsageError(
                f"{place} holds no folder {shown(config.dataset)}: {nearest(config.dataset, _folders(place))}"
            )
        place = place / config.dataset
    elif place.resolve().name == "classification" and not file_of_part(place, "train", _ENDS):
        inner = [name for name in _folders(place) if file_of_part(place / name, "train", _ENDS)]
        if len(inner) > 1:
            raise UsageError(
                f"{place} holds several data sets ({', '.join(inner)}): choose one, such as "
                f"--set {shlex.quote(f'classification.dataset={inner[0]}')}"
            )
        place = place.joinpath(*inner)
    found = {part: file_of_part(place, part, _ENDS) for part in ("train", config.part)}
    for part, path in found.items():
        if path is not None:
            continue
        other = {"dev": "test", "test": "dev"}.get(part)
        way_out = "name a folder that holds one"
        if other and file_of_part(place, other, _ENDS):
            way_out = (
                f"score the {other} file with --set classification.part={other}, or add {part}.csv"
            )
        raise no_file_of_part(place, part, _ENDS, way_out)
    train, scored = found.values()
    assert train is not None
    assert scored is not None
    return train, scored


def _folders(place: Path) -> list[str]:
    return sorted(path.name for path in place.glob("[!.]*/"))


def read_labelled(path: Path, config: Classification) -> tuple[list[list[str]], list[str]]:
    """The text or two texts of each example, and its label.

    Whole numbers, true and false are labels in ``.jsonl`` too, as they are spelt there but for 1.0, which is
    1. Raises DataError naming the line of what is wrong.
    """
    keys = [key for key in (config.text, config.pair) if key is not None]
    read = _of_json if name_inside(path).endswith(".jsonl") else _of_table
    texts: list[list[str]] = []
    labels: list[str] = []
    for where, values in read(path, [*keys, config.label]):
        texts.append(texts_in(values, keys, where))
        label = check_text(values[config.label].strip(), where)
        if not label:
            raise DataError(f"{where}: the label is empty")
        if len(label) > _LONGEST:
            raise DataError(
                f"{where}: the label has {len(label):,} characters, {shown(label)}: this is no class; name "
                "what holds it with --set classification.label=NAME"
            )
        labels.append(label)
    if not texts:
        raise DataError(f"{path} holds no examples")
    return texts, labels


def _of_json(path: Path, keys: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Where each object of a ``.jsonl`` file is, and its values; the last of ``keys``, the label, is text."""
    for where, values in json_lines(read_lines(path), path):
        _require(keys, [*values], where, "key")
        label = values[keys[-1]]
        if isinstance(label, float) and label.is_integer():
            label = int(label)  # pandas writes every class so where one is missing
        if isinstance(label, bool | int):
            label = json.dumps(label)
        if not isinstance(label, str):
            raise DataError(
                f"{where}: the label is {shown(label)}; a class is text, a whole number, true or false"
            )
        yield where, {**values, keys[-1]: label}


def _of_table(path: Path, keys: list[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Where each record of a table is, and its values; the first line names the columns.

    In ``.csv`` fields may be quoted with ``"``; in ``.tsv`` a quotation mark is text.
    """
    records = _records_of_csv(path) if name_inside(path).endswith(".csv") else _records_of_tsv(path)
    names: list[str] = []
    for number, values in records:
        where = f"{path}, line {number}"
        if not "".join(values).strip() and len(values) < 2:
            continue
        if not names:
            names = [name.strip() for name in values]
            _require(keys, names, where, "column")
            continue
        if len(values) != len(names):
            raise DataError(
                f"{where}: {amount(len(values), 'columns')} instead of {len(names)}; a text with commas "
                'stands in quotation marks (") in .csv, and one with tabs cannot be in .tsv'
            )
        yield where, dict(zip(names, values, strict=True))
    if not names:
        raise DataError(f"{path} is empty")


def _records_of_tsv(path: Path) -> Iterator[tuple[int, list[str]]]:
    """The number and the fields of each line."""
    for number, line in enumerate(read_lines(path), 1):
        yield number, line.split("\t")


def _records_of_csv(path: Path) -> Iterator[tuple[int, list[str]]]:
    """The number of the last line of each record, and its fields without blanks before them."""
    lines = (f"{line}\n" for line in read_lines(path))
    reader = csv.reader(lines, strict=True, skipinitialspace=True)
    usual = csv.field_size_limit(_ANY_SIZE)
    try:
        for values in reader:
            yield reader.line_num, values
    except csv.Error as error:
        raise DataError(
            f"{path}, line {reader.line_num}: no record of .csv ({error}); a quotation mark that ends a text "
            "has a comma or nothing behind it, and one within the text is doubled"
        ) from None
    finally:
        csv.field_size_limit(usual)


def _require(keys: list[str], there: list[str], where: str, kind: str) -> None:
    """Raise DataError for a column, or key, that is not there, or is there twice."""
    settings = ["text", *(["pair"] if len(keys) > 2 else []), "label"]
    for key, setting in zip(keys, settings, strict=True):
        if key in there:
            if there.count(key) > 1:
                raise DataError(f"{where}: two columns are called {shown(key)}: rename one of them")
            continue
        found = [mark for mark in _SEPARATORS if mark in there[0]] if len(there) == 1 else []
        if found and kind == "column":
            raise DataError(
                f"{where}: the columns are separated by {shown(found[0])}: save the file as .csv, with "
                "commas, or as .tsv, with tabs"
            )
        names = ", ".join(map(shown, there))[:300] or "none"
        known = f"the first line names {names}" if kind == "column" else f"there are {names}"
        needed = ", without which nothing can be scored" if setting == "label" else ""
        raise DataError(
            f"{where}: no {kind} {shown(key)}{needed}; {known}; name the right one, of both files, with "
            f"--set classification.{setting}=NAME"
        )


def _classes(labels: list[str], path: Path) -> dict[str, int]:
    """The number of each class: whole numbers in their order, other labels in that of the alphabet."""
    names = sorted({*labels})
    if all(name.removeprefix("-").isdecimal() for name in names):
        names.sort(key=int)
    if len(names) < 2:
        raise DataError(f"{path} has one class, {shown(names[0])}: examples of two are needed")
    if len(names) > max(_MANY, len(labels) / 2):
        raise DataError(
            f"{path} has {len(names):,} different labels in {len(labels):,} examples, such as "
            f"{shown(names[0])}: these are no classes; name the column of the class with "
            "--set classification.label=NAME"
        )
    return {name: number for number, name in enumerate(names)}
