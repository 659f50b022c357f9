"""Reads ``comparison.json``, and says numbers as people do: units, names, signs, verdicts."""

from __future__ import annotations

import csv
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from chronomask.errors import DataError, UsageError, in_words, shown
from chronomask.runs.result import title_of_task, trains_model, unit_of_metric
from chronomask.storage import is_file_name, stays_below, way_to_read
from chronomask.text_files import read_lines

__all__ = [
    "ABSENT",
    "AXIS_NAMES",
    "FILE",
    "FREQUENCIES",
    "LOSS",
    "LOSSES",
    "MEAN_LOSS",
    "PAIRS",
    "P_VALUES",
    "SCHEMA_VERSION",
    "SINGLE_LOSS",
    "Curves",
    "Numbers",
    "count",
    "difference_text",
    "duration",
    "families",
    "first_few",
    "flatten",
    "gap_text",
    "in_unit",
    "interval_text",
    "is_downstream",
    "join_names",
    "join_words",
    "mean_text",
    "p_text",
    "percent",
    "power_of_ten",
    "raised_ten",
    "read_comparison",
    "read_curves",
    "task_title",
    "thousands",
    "told_as_damage",
    "unit_of",
    "verdict",
]

Numbers = dict[str, Any]
"""A JSON object of the file; docs/studies.md names its keys."""

Curves = dict[str, tuple[list[float], list[float]]]
"""Name of a reference curve → tokens seen, and the loss there, in the order of the file."""

_SHIPPED = "shipped"
"""The name of the curves that come with this package."""

FILE = "comparison.json"
"""Name of the file in a study's folder."""
SCHEMA_VERSION = 1
"""Version of the file's format."""
LOSS = "validation_loss"
"""The task and curve that every comparison has where runs were validated."""
MEAN_LOSS = "mean_loss"
"""The task that is the mean of the five yardsticks, where all runs were validated on them."""
FREQUENCIES = "words’ frequencies"
"""What a curve of the validation loss calls the loss that the frequencies of words alone would give."""
PAIRS = "pairs of words"
"""What it calls the loss of a table of neighbouring pairs of words."""
P_VALUES = "paired"
"""How a comparison says that its p values belong to its intervals; those of 0.2.0 and before do not."""
SINGLE_LOSS = "single_mask_loss"
"""The task that is the loss of one hidden token of every document, likewise."""
LOSSES = {
    LOSS: "validation loss",
    MEAN_LOSS: "mean loss of five yardsticks",
    SINGLE_LOSS: "single-mask loss",
}
"""The tasks that are losses of validation, in nats per predicted token → what they are called."""
_MOST_NAMED = 4
"""How many of a kind a sentence lists before it refers to the table."""
ABSENT = "–"
"""What stands where there is no number."""
_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
AXIS_NAMES = {
    "step": "steps",
    "tokens_seen": "tokens seen",
    "masked_tokens": "masked tokens predicted",
    "flops": "FLOPs",
    "seconds": "seconds",
}
"""What a curve may be drawn against: key → name."""
_METRICS = {"mcc": "MCC", "f1": "F1", "em": "EM", "loss": "nats", "ndcg_at_10": "nDCG@10"}


_NEEDED = ("name", "baseline", "arms", "tasks", "curves", "reach", "notices")
"""Keys of every comparison."""


def read_comparison(folder: Path) -> Numbers:
    """The comparison in a study's folder; raises UsageError if there is none, DataError for another."""
    path = folder / FILE
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(
            f"{folder} holds no {FILE}: it is not the folder of a study, or the study was not compared yet"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        way_out = way_to_read(error, "make it again with chronomask study report")
        raise DataError(f"{path} cannot be read as JSON: {error}; {way_out}") from None
    found = values.get("schema_version") if isinstance(values, dict) else None
    if found != SCHEMA_VERSION:
        raise DataError(
            f"{path} has schema version {found}; this chronomask reads {SCHEMA_VERSION}: make it again "
            "with chronomask study report"
        )
    if missing := [key for key in _NEEDED if key not in values]:
        raise DataError(
            f"{path} lacks {', '.join(missing)}, so it is not whole: make it again with "
            "chronomask study report"
        )
    with told_as_damage(path):
        _check_names(path, values)
        return values if values.get("p_values") == P_VALUES else _without_p_values(values)


@contextmanager
def told_as_damage(path: Path) -> Iterator[None]:
    """Raise DataError for what is raised meanwhile because the comparison in ``path`` has other values than
    ``study report`` writes, as where it was edited.
    """
    try:
        yield
    except (
        ArithmeticError, AssertionError, AttributeError, LookupError, RecursionError, TypeError, ValueError
    ) as error:  # fmt: skip
        raise DataError(
            f"{path} cannot be shown ({in_words(error)}): if it was changed, make it again with chronomask "
            "study report"
        ) from error


def _check_names(path: Path, values: Numbers) -> None:
    """Raise DataError for a name that becomes part of a path, and would lead out of its folder."""
    names = [task["task"] for task in values["tasks"]]
    names += [curve["quantity"] for curve in values["curves"]]
    folders = [run["folder"] for arm in values["arms"] for run in arm["runs"]]
    strange = [name for name in names if not is_file_name(name)]
    strange += [folder for folder in folders if not stays_below(folder)]
    if strange:
        raise DataError(
            f"{path} names {shown(strange[0])}, a file outside its folder: make it again with "
            "chronomask study report"
        )


def _without_p_values(values: Numbers) -> Numbers:
    """A comparison of 0.2.0 or before, whose p values came of a permutation of the seeds, without them."""
    shown = [
        numbers
        for task in values["tasks"]
        for numbers in (*task["arms"].values(), *task.get("contrasts", ()))
    ]
    for numbers in shown:
        if numbers.get("p") is not None:
            numbers |= {"p": None, "p_holm": None}
    notice = (
        "This comparison was made by an earlier version, whose p values came of permuted seeds and could not "
        "be small with few of them: they are left out. Where the runs are at hand, chronomask study report "
        "compares them again."
    )
    return {**values, "notices": [*values["notices"], notice]}


def families(tasks: Sequence[Numbers]) -> list[list[Numbers]]:
    """The tasks that are corrected for their number together: the headline by itself, then all others.

    The headline is the mean of the yardsticks, else the validation loss, else the first task.
    """
    names = [task["task"] for task in tasks]
    headline = next((name for name in (MEAN_LOSS, LOSS, *names) if name in names), "")
    found = [
        [task for task in tasks if (task["task"] == headline) == first] for first in (True, False)
    ]
    return [family for family in found if family]


def read_curves(given: str) -> Curves:
    """Reference curves by name, from a CSV file with the columns ``name``, ``tokens_seen`` and ``loss``.

    The ``curve-validation_loss.csv`` of a report serves too: with ``arm`` in place of ``name``, and ``seed``,
    by which an arm of several seeds is a curve for each. "shipped" stands for curves that were measured with
    recipes and studies of this package (docs/results). Raises DataError for a file that cannot be read or
    holds something else.
    """
    path = Path(__file__).with_name("reference.csv") if given == _SHIPPED else Path(given)
    if not path.is_file():
        raise DataError(
            f"there is no file {path}: give a CSV file, or {_SHIPPED} for the curves of this package"
        )
    found: dict[tuple[str, str], tuple[list[float], list[float]]] = {}
    lines = csv.DictReader(read_lines(path))
    try:
        for line in lines:
            own = (line["name"], "") if "name" in line else (line["arm"], line.get("seed", ""))
            tokens, losses = found.setdefault(own, ([], []))
            tokens.append(float(line["tokens_seen"]))
            losses.append(float(line["loss"]))
    except (KeyError, TypeError, ValueError, csv.Error):
        raise DataError(
            f"{path} line {lines.line_num}: a name, tokens_seen and a loss are expected, under a first line "
            "with these names, as in csv/reference.csv and csv/curve-validation_loss.csv of a report"
        ) from None
    if not found:
        raise DataError(f"{path} holds no curve")
    seeds = Counter(name for name, _ in found)
    return {
        name if seeds[name] == 1 else f"{name}, seed {seed}": curve
        for (name, seed), curve in found.items()
    }


def task_title(task: Numbers) -> str:
    """Such as ``CoLA``."""
    name = str(task.get("task", task.get("quantity")))
    return LOSSES.get(name) or str(task.get("title") or title_of_task(name))


def is_downstream(task: Numbers) -> bool:
    """Whether the models were trained for the task, and not measured as they are."""
    declared = task.get("trains_model")
    return trains_model(str(task["family"])) if declared is None else bool(declared)


def unit_of(task: Numbers) -> str:
    """What the task's numbers are, as they are shown: ``accuracy, %``."""
    metric = str(task["metric"])
    name = _METRICS.get(metric, metric.replace("_", " "))
    match _unit(task):
        case "nats":
            return name
        case "fraction" | "percent":
            return f"{name}, ×100" if _is_signed(metric) else f"{name}, %"
        case own:
            return name if own == metric else f"{name}, {own}"


def in_unit(task: Numbers, value: float) -> float:
    """A value in the unit of :func:`unit_of`: fractions as per cent, everything else as it is."""
    return 100 * value if _unit(task) == "fraction" else value


def _unit(task: Numbers) -> str:
    """What the task declares; comparisons of before tasks declared it are read by what they held."""
    if (declared := task.get("unit")) is not None:
        return str(declared)
    return unit_of_metric(str(task["metric"]), str(task.get("family", task.get("quantity"))))


def difference_text(task: Numbers, value: float) -> str:
    """A difference with its sign and the digits that its unit deserves."""
    text = f"{in_unit(task, value):+.{_digits(task)}f}"
    zero = text.strip("+-0.") == ""
    return text.lstrip("+-") if zero else text.replace("-", "−")


def interval_text(task: Numbers, low: float | None, high: float | None, *, sign: bool) -> str:
    """``−0.3 to +0.8``; a dash where there is no interval."""
    if low is None or high is None:
        return "–"
    if sign:
        ends = (
            _end_text(task, end) if low * high > 0 else difference_text(task, end)
            for end in (low, high)
        )
        return " to ".join(ends)
    low_text, high_text = (
        f"{in_unit(task, v):.{_digits(task)}f}".replace("-", "−") for v in (low, high)
    )
    return f"{low_text} to {high_text}"


def _end_text(task: Numbers, value: float) -> str:
    """An end of an interval that excludes zero, with as many digits as show that it does, within reason."""
    text = difference_text(task, value)
    for digits in range(_digits(task) + 1, 7):
        if text.strip("+−0."):
            break
        text = f"{in_unit(task, value):+.{digits}f}".replace("-", "−")
    return text


def gap_text(task: Numbers, numbers: Numbers) -> str:
    """The interval of a difference, with signs."""
    return interval_text(task, numbers["difference_low"], numbers["difference_high"], sign=True)


def verdict(task: Numbers, numbers: Numbers) -> Literal["better", "worse", "open", "unknown"]:
    """What the interval of an arm's difference carries; ``unknown`` where there is none, or no number."""
    low, high = numbers.get("difference_low"), numbers.get("difference_high")
    if low is None or high is None or math.isnan(low) or math.isnan(high):
        return "unknown"
    if low <= 0 <= high:
        return "open"
    return "better" if (low > 0) == task["higher_is_better"] else "worse"


def mean_text(task: Numbers, value: float) -> str:
    """A mean in its unit."""
    return f"{in_unit(task, value):.{_digits(task)}f}".replace("-", "−")


def _digits(task: Numbers) -> int:
    return 1 if _unit(task) in ("fraction", "percent") else 3


def _is_signed(metric: str) -> bool:
    return metric in ("mcc", "spearman", "pearson")


def count(value: float) -> str:
    """A count to three digits: ``1.23M``; a dash for NaN."""
    if math.isnan(value):
        return ABSENT
    for limit, suffix in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        # What rounds up to the limit is written with it: 999,600 is 1M.
        if abs(value) >= limit * 0.9995:
            return f"{float(f'{value:.3g}') / limit:g}{suffix}"
    return f"{value:.3g}"


def thousands(value: float) -> str:
    """A whole number with commas, a dash for NaN."""
    return ABSENT if math.isnan(value) else f"{value:,.0f}"


def percent(value: float) -> str:
    """A fraction as per cent, a dash for NaN."""
    return ABSENT if math.isnan(value) else f"{100 * value:.1f} %"


def p_text(p: float | None) -> str:
    """A p value to three places, or to as many more as say on which side of 0.05 it lies."""
    if p is None:
        return ABSENT
    if p < 0.001:
        return "< 0.001"
    places = next((n for n in range(3, 12) if round(p, n) != 0.05), 3)
    return f"{p:.{places}f}"


def power_of_ten(value: float) -> str:
    """``1.08 × 10¹⁰``; a dash for NaN."""
    if math.isnan(value):
        return ABSENT
    digits, _, exponent = f"{value:.2e}".partition("e")
    return f"{digits} × {raised_ten(int(exponent))}"


def raised_ten(exponent: int) -> str:
    """``10¹⁰``."""
    return f"10{str(exponent).translate(_RAISED)}"


def duration(seconds: float) -> str:
    """Time as people say it: ``48 s``, ``3 min 20 s``, ``5 h 07 min``."""
    if math.isnan(seconds):
        return ABSENT
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def join_words(parts: Sequence[str]) -> str:
    """``a, b and c``."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def join_names(names: Iterable[str]) -> str:
    """``“a”, “b” and “c”``: the commas of the list are not those of a name."""
    return join_words([f"“{name}”" for name in names])


def first_few(parts: Sequence[str]) -> list[str]:
    """The first four, and how many more there are."""
    more = len(parts) - _MOST_NAMED
    return [*parts[:_MOST_NAMED], f"{more} more in the table"] if more > 0 else list(parts)


def flatten(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Dotted key and value as text for every leaf of nested mappings, in their order."""
    leaves = []
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            leaves.extend(flatten(value, f"{prefix}{key}."))
        else:
            text = value if isinstance(value, str) else json.dumps(value, default=str)
            leaves.append((f"{prefix}{key}", text))
    return leaves
