"""The result of one task with one seed, as a file: ``evaluate`` writes it, ``study`` and ``report`` read it.

``<task>-seed<k>.json`` holds the numbers and how they came about; ``<task>-seed<k>.examples.npz`` beside it
holds what the metric was computed from, an entry per example, so that intervals can resample examples.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import platform
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chronomask import __version__
from chronomask.errors import DataError, shown
from chronomask.runs.arrays import MOST_BYTES, read_arrays
from chronomask.storage import write_bytes, write_text

__all__ = [
    "SCHEMA_VERSION",
    "TaskResult",
    "read_results",
    "title_of_task",
    "trains_model",
    "unit_of_metric",
    "versions_here",
]

SCHEMA_VERSION = 1
"""Version of the result files that this package writes and reads."""
_BYTES_ANYWAY = 1 << 20
_BYTES_OF_EXAMPLE = 1 << 10
"""What the arrays of a result may take for each of the examples it counts, tens of times what they do."""
_RENAMED = {"float32": "fp32", "bfloat16": "bf16"}
"""Values of the setting ``precision`` as results written before version 0.1.0 spell them."""
_ONCE_IN_RECIPE = {"device": None, "treebank": "upos_probe", "dataset": "retrieval"}
"""Settings that earlier results name in their recipe, though they decide no number, by task; None: any."""


def versions_here(*others: str) -> dict[str, str]:
    """Versions that runs and results note: ours, what all rest on, and ``others`` by package name."""
    found = {"chronomask": __version__, "python": platform.python_version()}
    for name in ("torch", "transformers", "tokenizers", "numpy", *others):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


@dataclass(frozen=True, slots=True)
class TaskResult:
    """One task, one seed, one model. The pair (``task``, ``seed``) names it within a folder."""

    task: str
    """such as ``cola``, ``mnli``, ``squad``, ``blimp``, ``upos_probe``, ``mlm``"""
    family: str
    """``glue``, ``squad``, ``blimp``, ``probe`` or ``intrinsic``"""
    seed: int
    """of fine-tuning; 0 for what draws nothing"""
    model: str
    """the folder or hub name that was evaluated"""
    model_sha256: str
    """of its weights: results of different weights are never mixed"""
    step: int | None
    """optimiser steps of pre-training, if the model is a checkpoint of a run"""
    metrics: Mapping[str, float]
    """in the units of the literature: shares in [0, 1], SQuAD's in [0, 100], losses in nats"""
    primary: str
    """the metric that comparisons use"""
    higher_is_better: bool
    num_examples: Mapping[str, int]
    """such as ``{"train": 8551, "dev": 1043}``"""
    recipe: Mapping[str, Any]
    """every setting that decides the numbers"""
    data_sha256: str
    """of the files that were read: results on different files are never compared"""
    versions: Mapping[str, str]
    seconds: float
    details: Mapping[str, float] = field(default_factory=dict)
    """finer numbers, such as BLiMP's 67 paradigms or the loss of each part of speech"""
    examples: Mapping[str, NDArray[Any]] = field(default_factory=dict, repr=False, compare=False)
    """arrays [N] over the examples of the dev set in file order, of numbers: ``prediction`` and ``label``
    where the metric is computed from pairs, else one array per metric, named like it (its mean is the
    metric; weighted by the array ``weight`` if there is one); BLiMP's ``correct`` is its accuracy"""

    unit: str = ""
    """of the primary metric: ``fraction`` (shown as per cent), ``percent``, ``nats``, or another one's name;
    results written before tasks declared it have what :func:`unit_of_metric` says"""

    setup_sha256: str = ""
    """of the model's config and tokenizer, which decide the numbers as its weights do; empty in results that
    were written before it was stored"""

    title: str = ""
    """what reports call the task; results written before tasks stated it have :func:`title_of_task`"""

    trains_model: bool | None = None
    """whether the task trained the model; results written before tasks stated it have what
    :func:`trains_model` says of the family"""

    left_out: Mapping[str, int] = field(default_factory=dict)
    """what was left out of the files or cut: how many, by reason, such as
    ``{"training examples cut at 128 tokens": 12}``; not in the file where nothing was"""

    path: Path | None = field(default=None, repr=False, compare=False)
    """the file that it was read from; not in the file"""

    def __post_init__(self) -> None:
        if not self.unit:
            object.__setattr__(self, "unit", unit_of_metric(self.primary, self.family))
        if not self.title:
            object.__setattr__(self, "title", title_of_task(self.task))
        if self.trains_model is None:
            object.__setattr__(self, "trains_model", trains_model(self.family))

    @property
    def is_finite(self) -> bool:
        """Whether its number and those of its examples are numbers, neither NaN nor infinite."""
        arrays = [np.asarray(values) for values in self.examples.values()]
        return math.isfinite(self.metrics[self.primary]) and all(
            np.isfinite(values).all()
            for values in arrays
            if np.issubdtype(values.dtype, np.inexact)
        )

    @staticmethod
    def path_in(folder: Path, task: str, seed: int) -> Path:
        """Where the result of a task and seed lies."""
        return folder / f"{task}-seed{seed}.json"

    def save(self, folder: Path) -> Path:
        """Write both files, the numbers last: a result that can be read is whole. Raises RunError."""
        path = self.path_in(folder, self.task, self.seed)
        buffer = io.BytesIO()
        arrays: dict[str, Any] = dict(self.examples)
        np.savez_compressed(buffer, **arrays)
        content = buffer.getvalue()
        write_bytes(_examples_path(path), content)
        values = {k: v for k, v in asdict(self).items() if k not in ("examples", "path")}
        if not self.left_out:
            del values["left_out"]
        values = {"schema_version": SCHEMA_VERSION, **values}
        values["examples_sha256"] = hashlib.sha256(content).hexdigest()
        write_text(path, json.dumps(values, indent=2, ensure_ascii=False) + "\n")
        return path

    @classmethod
    def load(cls, path: Path) -> TaskResult:
        """Read both files; raises DataError for what is not a whole result of this schema version."""
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            version = values.pop("schema_version")
            if version != SCHEMA_VERSION:
                raise DataError(
                    f"{path} has schema version {version}; this chronomask reads {SCHEMA_VERSION}: "
                    "remove it and evaluate again, or use the version that wrote it"
                )
            digest = values.pop("examples_sha256")
            recipe = values["recipe"]
            for name, task in _ONCE_IN_RECIPE.items():
                if task in (None, values["task"]):
                    recipe.pop(name, None)
            if recipe.get("precision") in _RENAMED:
                recipe["precision"] = _RENAMED[recipe["precision"]]
            content = _examples_path(path).read_bytes()
            if hashlib.sha256(content).hexdigest() != digest:
                raise DataError(
                    f"{_examples_path(path)} is not the file that {path.name} was written with; "
                    "delete both and evaluate again"
                )
            found = cls(**values, path=path)
            _check(found)
            counted = sum(found.num_examples.values())
            most = min(_BYTES_ANYWAY + _BYTES_OF_EXAMPLE * int(counted), MOST_BYTES)
            object.__setattr__(found, "examples", read_arrays(content, most))
        except (
            OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError, OverflowError
        ) as error:  # fmt: skip
            raise DataError(
                f"{path} is not a whole result of a task ({error}); delete it and evaluate again"
            ) from error
        if (named := cls.path_in(path.parent, found.task, found.seed)) != path:
            raise DataError(
                f"{path} holds the result of {found.task} with seed {found.seed}: rename it to {named.name} "
                f"and its examples to {_examples_path(named).name}, or delete both if these are there too"
            )
        return found


def _check(result: TaskResult) -> None:
    """Raise TypeError, ValueError or OverflowError for values of another kind, as where a file was edited."""
    for name in (
        "task",
        "family",
        "model",
        "model_sha256",
        "primary",
        "data_sha256",
        "unit",
        "setup_sha256",
        "title",
    ):
        if not isinstance(value := getattr(result, name), str):
            raise TypeError(f"{name} is {shown(value)} and no text")
    if not isinstance(result.trains_model, bool):
        raise TypeError(f"trains_model is {shown(result.trains_model)}, neither true nor false")
    groups = ("metrics", "num_examples", "details", "left_out")
    numbers = {
        f"{group}.{key}": value for group in groups for key, value in getattr(result, group).items()
    }
    for name, value in {"seed": result.seed, "seconds": result.seconds, **numbers}.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise TypeError(f"{name} is {shown(value)} and no number")
        float(value)
    if result.primary not in result.metrics:
        raise ValueError(f"no metric is called {shown(result.primary)}, the primary one")


def unit_of_metric(metric: str, family: str) -> str:
    """The unit of a primary metric whose task did not declare one."""
    if metric == "loss":
        return "nats"
    return "percent" if family == "squad" else "fraction"


_TITLES = {
    "cola": "CoLA",
    "sst2": "SST-2",
    "mrpc": "MRPC",
    "rte": "RTE",
    "stsb": "STS-B",
    "qnli": "QNLI",
    "mnli": "MNLI",
    "qqp": "QQP",
    "wnli": "WNLI",
    "boolq": "BoolQ",
    "cb": "CB",
    "copa": "COPA",
    "superglue_rte": "RTE (SuperGLUE)",
    "wic": "WiC",
    "wsc": "WSC",
    "squad": "SQuAD",
    "squad_v2": "SQuAD 2.0",
    "blimp": "BLiMP",
    "blimp_supplement": "BLiMP supplement",
    "ewok": "EWoK",
    "ner": "named entities",
    "upos_probe": "UPOS probe",
    "mlm": "masked-token loss",
    "pseudo_perplexity": "pseudo-perplexity",
    "sts": "similarity (STS-B)",
}
"""Of the tasks there were before results and comparisons stated their titles; a new task states its own."""
_MEASURED = ("intrinsic", "probe", "blimp", "babylm", "sts", "retrieval")
"""Families of those tasks that did not train the model."""


def title_of_task(task: str) -> str:
    """The title of a task that did not state one."""
    return _TITLES.get(task, task.replace("_", " "))


def trains_model(family: str) -> bool:
    """Whether a task that did not state it trained the model."""
    return family not in _MEASURED


def read_results(folders: Iterable[Path]) -> list[TaskResult]:
    """All results in these folders (not below), by name; raises DataError for a damaged one."""
    paths = [path for folder in folders for path in sorted(folder.glob("*-seed*.json"))]
    return [TaskResult.load(path) for path in paths]


def _examples_path(path: Path) -> Path:
    return path.with_suffix(".examples.npz")
