"""Reads ``comparison.json``, and says its numbers as people do: units, names, signs, verdicts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from chronomask.errors import DataError, UsageError

__all__ = [
    "AXIS_NAMES",
    "Numbers",
    "interval_text",
    "mean_text",
    "read_comparison",
    "shown",
    "signed",
    "task_title",
    "unit_of",
    "verdict",
]

Numbers = dict[str, Any]
"""A JSON object of the file; docs/studies.md names its keys."""

SCHEMA_VERSION = 1
AXIS_NAMES = {
    "step": "steps",
    "tokens_seen": "tokens seen",
    "masked_tokens": "masked tokens predicted",
    "flops": "FLOPs",
    "seconds": "seconds",
}
_TITLES = {
    "validation_loss": "validation loss",
    "cola": "CoLA",
    "sst2": "SST-2",
    "mrpc": "MRPC",
    "rte": "RTE",
    "stsb": "STS-B",
    "qnli": "QNLI",
    "mnli": "MNLI",
    "qqp": "QQP",
    "wnli": "WNLI",
    "squad": "SQuAD",
    "blimp": "BLiMP",
    "upos_probe": "UPOS probe",
}
_METRICS = {"mcc": "MCC", "f1": "F1", "em": "EM", "loss": "nats"}


def read_comparison(folder: Path) -> Numbers:
    """The comparison in a study's folder; raises UsageError if there is none, DataError for another."""
    path = folder / "comparison.json"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(
            f"{folder} holds no comparison.json: is it the folder of a study?"
        ) from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as JSON: {error}") from None
    found = values.get("schema_version") if isinstance(values, dict) else None
    if found != SCHEMA_VERSION:
        raise DataError(
            f"{path} has schema version {found}; this chronomask reads {SCHEMA_VERSION}: make it again "
            "with chronomask study report"
        )
    return values


def task_title(task: Numbers) -> str:
    """Such as ``CoLA``."""
    name = str(task.get("task", task.get("quantity")))
    return _TITLES.get(name, name.replace("_", " "))


def unit_of(task: Numbers) -> str:
    """What the task's numbers are, as they are shown: ``accuracy, %``."""
    metric = str(task["metric"])
    name = _METRICS.get(metric, metric.replace("_", " "))
    return name if metric == "loss" else f"{name}, ×100" if _is_signed(metric) else f"{name}, %"


def shown(task: Numbers, value: float) -> float:
    """A value in the unit of :func:`unit_of`."""
    return value if task["metric"] == "loss" or task.get("family") == "squad" else 100 * value


def signed(task: Numbers, value: float) -> str:
    """A difference with its sign and the digits that its unit deserves."""
    text = f"{shown(task, value):+.{_digits(task)}f}"
    zero = text.strip("+-0.") == ""
    return text.lstrip("+-") if zero else text.replace("-", "−")


def interval_text(task: Numbers, low: float | None, high: float | None, *, sign: bool) -> str:
    """``−0.3 to +0.8``; a dash where there is no interval."""
    if low is None or high is None:
        return "–"
    if sign:
        return f"{signed(task, low)} to {signed(task, high)}"
    low_text, high_text = (
        f"{shown(task, v):.{_digits(task)}f}".replace("-", "−") for v in (low, high)
    )
    return f"{low_text} to {high_text}"


def verdict(task: Numbers, numbers: Numbers) -> Literal["better", "worse", "open", "unknown"]:
    """What the interval of an arm's difference carries; ``unknown`` where there is no interval."""
    low, high = numbers.get("difference_low"), numbers.get("difference_high")
    if low is None or high is None:
        return "unknown"
    if low <= 0 <= high:
        return "open"
    return "better" if (low > 0) == task["higher_is_better"] else "worse"


def mean_text(task: Numbers, value: float) -> str:
    """A mean in its unit."""
    return f"{shown(task, value):.{_digits(task)}f}".replace("-", "−")


def _digits(task: Numbers) -> int:
    return 3 if task["metric"] == "loss" else 1


def _is_signed(metric: str) -> bool:
    return metric in ("mcc", "spearman", "pearson")
