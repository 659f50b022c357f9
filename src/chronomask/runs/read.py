"""Reads run folders back: results files in, arrays out. Nothing here needs the code that trained.

Files and keys are described in ``docs/contracts.md``.
"""

from __future__ import annotations

import json
import math
import sys
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from chronomask.config_layers import read_yaml
from chronomask.errors import DataError, UsageError, shown
from chronomask.folders import what_it_is
from chronomask.progress import NOT_SHOWN, Progress
from chronomask.runs.layout import RunFolder
from chronomask.storage import as_a_shell_has_it, read_object
from chronomask.text_files import text_of

__all__ = ["Run", "Series", "progress_of_reading", "read_log", "read_run", "read_runs"]


@dataclass(frozen=True, slots=True)
class Series:
    """The lines of one results file as columns of N values, NaN where a line lacks the key.

    ``columns``: key → float64 [N]; ``per_class``: key → class name → float64 [N]. Lists are left out.
    """

    columns: dict[str, np.ndarray]
    per_class: dict[str, dict[str, np.ndarray]]

    def __len__(self) -> int:
        return len(self.columns["step"])

    def __iter__(self) -> Iterator[str]:
        """The keys of the columns."""
        return iter(self.columns)

    def __contains__(self, key: object) -> bool:
        """Whether a line has the key."""
        return key in self.columns

    def __getitem__(self, key: str) -> np.ndarray:
        """The column ``key``, all NaN if no line has it."""
        missing = np.full(len(self), np.nan)
        return self.columns.get(key, missing)

    def last(self, key: str) -> float:
        """The last value of ``key`` that is there, NaN if none is."""
        values = self[key]
        there = values[~np.isnan(values)]
        return float(there[-1]) if len(there) else float("nan")


@dataclass(frozen=True, slots=True)
class Run:
    """One run as its results files tell it.

    ``summary`` is None while the run is unfinished; ``environment`` is empty if the run has none;
    ``notices`` are sentences a reader of the results must know.
    """

    path: Path
    name: str
    config: dict[str, Any]
    metrics: Series
    validation: Series
    summary: dict[str, Any] | None
    environment: dict[str, Any]
    notices: tuple[str, ...]

    def total(self, key: str, validation_key: str | None = None) -> float:
        """``key`` of the finished run, or its last logged value; NaN if it was never written.

        ``validation_key`` names the column of ``validation.jsonl`` to fall back on; without it
        the column ``key`` of ``metrics.jsonl`` is used.
        """
        if self.summary is not None and isinstance(self.summary.get(key), int | float):
            return float(self.summary[key])
        if validation_key is not None:
            return self.validation.last(validation_key)
        return self.metrics.last(key)


def read_runs(paths: str | Path | Sequence[str | Path], *, progress: bool = False) -> list[Run]:
    """The runs in the order given; a path alone is one of them.

    ``progress``: show how far it is where that takes longer.
    Raises :class:`UsageError` for no folder, a folder given twice or one that is no run, and
    :class:`DataError` for results files that cannot be read.
    """
    if isinstance(paths, str | Path):
        paths = [paths]
    if not paths:
        raise UsageError("no run folder given; name at least one folder written by pretrain")
    folders = [as_a_shell_has_it(path) for path in paths]
    for folder, count in Counter(folder.resolve() for folder in folders).items():
        if count > 1:
            raise UsageError(f"run folder {folder} is given {count} times")
    for folder in folders:  # all of them before the first is read, which may take long
        _check_is_run(folder)
    with progress_of_reading(folders, shown=progress) as shown:
        return [read_run(folder, shown) for folder in folders]


def progress_of_reading(folders: Iterable[Path], *, shown: bool) -> Progress:
    """What shows how many bytes of the logs of these runs :func:`read_run` has read."""
    logs = (log for run in map(RunFolder, folders) for log in (run.metrics, run.validation))
    size = sum(log.stat().st_size for log in logs if log.is_file())
    return Progress("reading runs", size, "bytes", shown=shown, brief=True)


def read_run(path: str | Path, shown: Progress = NOT_SHOWN) -> Run:
    """The run in folder ``path``; raises UsageError if it is no run, DataError if it is damaged.

    ``shown``: counts the bytes of its logs.
    """
    path = as_a_shell_has_it(path)
    _check_is_run(path)
    folder = RunFolder(path)
    config = read_yaml(folder.config)
    _check_groups(config, folder.config)
    metrics, metric_notices = _read_series(folder.metrics, shown)
    if not len(metrics):
        raise DataError(f"{folder.metrics} is empty: the run has not logged a step yet")
    validation, validation_notices = Series({"step": np.empty(0)}, {}), []
    if folder.validation.is_file():
        validation, validation_notices = _read_series(folder.validation, shown)
    summary = folder.read_summary()

    notices = [*metric_notices, *validation_notices]
    if summary is None:
        step = int(metrics.last("step"))
        notices.append(
            f"unfinished: no complete summary; shown up to its last logged step, {step:,}"
        )
    if not len(validation):
        notices.append("not validated yet: it is missing from the validation figures")
    name = (summary or {}).get("name") or config.get("name") or path.resolve().name
    try:
        environment = read_object(folder.environment) or {}
    except DataError as error:
        way_out = "put it back from a copy, or remove it to read the run alone, without it"
        raise DataError(f"{error}; {way_out}") from None
    return Run(path, str(name), config, metrics, validation, summary, environment, tuple(notices))


_GROUPS = ("masking", "masking.ratio", "masking.content", "masking.strategy", "model", "validation")
"""Groups of a run's config that are shown, which was written with all of its groups."""
_WITHOUT_KIND = ("masking", "validation")


def _check_groups(config: Mapping[str, Any], file: Path) -> None:
    """Raise DataError where a group of a run's config, or its kind, is none, as where it was edited."""
    for path in _GROUPS:
        value: Any = config
        for key in path.split("."):
            value = value.get(key, {})
        without = "" if not value or path in _WITHOUT_KIND else None
        kind = value.get("kind", without) if isinstance(value, Mapping) else None
        if not isinstance(kind, str):
            wrong = f"{path} is {shown(value)}" if kind is None else f"{path}.kind is {shown(kind)}"
            raise DataError(
                f"{file}: {wrong}, which no run writes; put the file back as it was, or take the run out"
            )


def _check_is_run(path: Path) -> None:
    """Raise UsageError, with what to do, where there is no run with a config and a log."""
    if not path.is_dir():
        raise UsageError(f"run folder {path} {'is a file' if path.exists() else 'does not exist'}")
    folder = RunFolder(path)
    folder.check_config()
    absent = [file.name for file in (folder.config, folder.metrics) if not file.is_file()]
    if absent and folder.is_run():
        raise UsageError(
            f"{path} has no {folder.metrics.name}: the run has not logged a step yet, or the file was lost; "
            "wait, put it back from a copy, or remove the folder to train the run again"
        )
    if absent:
        raise UsageError(
            f"{path} is not a run folder: it has no {' and no '.join(absent)}"
            f"{what_it_is(path) or '; a run folder is what pretrain writes'}"
        )


def read_log(path: Path) -> Iterator[tuple[str, bool]]:
    """The lines of a log one after the other, and whether each has its line end: the last one has none where
    a writer was cut off.

    A character that was cut in half there becomes U+FFFD. Raises DataError for a file that cannot be read
    or is not UTF-8.
    """
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                whole = line.endswith(b"\n")
                text = text_of(line[:-1], path, number) if whole else line.decode(errors="replace")
                yield text, whole
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None


_WITHOUT_LINE = "remove the line to read the run without it"
_LARGEST = sys.float_info.max
_LISTS = ("skipped_steps",)
"""Keys of a log whose values are lists of steps, and no column."""
_LINES_BETWEEN = 256
"""Lines of a log after which it is shown how much is read."""


def _read_series(path: Path, shown: Progress) -> tuple[Series, list[str]]:
    """The columns of a JSON-lines file, and what was left out of them."""
    columns, notices, count, size = _Columns(path), [], 0, 0
    for number, (text, whole) in enumerate(read_log(path), start=1):
        size += len(text.encode()) + 1
        if number % _LINES_BETWEEN == 0:
            shown.advance(size)
            size = 0
        if not text.strip():
            continue
        try:
            line = json.loads(text)
        except (ValueError, RecursionError) as error:
            if not whole:  # its writer was cut off
                notices.append(f"the last line of {path.name} is half-written: 1 line left out")
                continue
            raise DataError(
                f"{path} line {number} is not valid JSON: {error}; {_WITHOUT_LINE}"
            ) from None
        if not isinstance(line, dict) or not isinstance(line.get("step"), int):
            raise DataError(
                f"{path} line {number} is not a JSON object with a whole 'step'; {_WITHOUT_LINE}"
            )
        columns.add(number, line)
        count += 1

    shown.advance(size)
    if dropped := count - len(columns):
        notices.append(f"{path.name} repeats steps after a resume: {dropped} older lines left out")
    return columns.as_series(), notices


def _is_number(value: object) -> bool:
    """Whether float64 holds it."""
    return isinstance(value, float) or (isinstance(value, int) and abs(value) <= _LARGEST)


class _Columns:
    """The columns of a log, filled while its lines are read, so that no line is kept beside them.

    Their steps rise strictly: a resumed run writes again what it had not yet saved, and the older lines go.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._steps: list[int] = []
        self._filled: dict[tuple[str | None, ...], tuple[int, array[float]]] = {}
        """(key,) or (key, class) → the row where it begins, and its values from there on; (key, None) stands
        for all classes of a key, and has no values"""
        self._refused: list[tuple[int, str]] = []
        """row, and what is wrong with it"""

    def __len__(self) -> int:
        return len(self._steps)

    def add(self, number: int, line: Mapping[str, Any]) -> None:
        """Put line ``number`` of the file behind those of lower steps; the others go."""
        row = len(self._steps)
        while row and self._steps[row - 1] >= line["step"]:
            row -= 1
        self._drop_from(row)
        self._steps.append(line["step"])
        filled = self._filled
        for key, value in line.items():
            if key in _LISTS:
                continue
            items: Iterable[tuple[tuple[str | None, ...], Any]] = [((key,), value)]
            if isinstance(value, dict):
                filled.setdefault((key, None), (row, array("d")))
                items = [((key, name), item) for name, item in value.items()]
            for place, item in items:
                if item is None:
                    item = math.nan
                elif not _is_number(item):
                    name = ".".join(map(str, place))
                    self._refused.append(
                        (row, f"line {number}: {name} is {shown(item)}, not a number")
                    )
                    continue
                if place not in filled:
                    filled[place] = row, array("d")
                begin, values = filled[place]
                if absent := row - begin - len(values):
                    values.extend([math.nan] * absent)
                values.append(item)

    def _drop_from(self, row: int) -> None:
        """Forget the rows from ``row`` on, and what begins in them."""
        if row == len(self._steps):
            return
        del self._steps[row:]
        self._refused = [own for own in self._refused if own[0] < row]
        self._filled = {place: own for place, own in self._filled.items() if own[0] < row}
        for begin, values in self._filled.values():
            del values[row - begin :]

    def as_series(self) -> Series:
        """The columns as arrays; raises DataError for the first value that is no number."""
        for _, problem in self._refused[:1]:
            raise DataError(f"{self._path} {problem}; {_WITHOUT_LINE}")
        columns: dict[str, np.ndarray] = {"step": np.empty(0)}
        per_class: dict[str, dict[str, np.ndarray]] = {}
        for place in list(self._filled):
            begin, values = self._filled.pop(place)
            key, *names = map(str, place)
            if place[-1] is None:
                per_class[key] = {}
                continue
            column = np.full(len(self), np.nan)
            column[begin : begin + len(values)] = values
            group, name = (per_class[key], names[0]) if names else (columns, key)
            group[name] = column
        return Series(columns, per_class)
