"""How long the units of a study took, what those that are left will take, and how long a call may.

Whoever does a unit notes its wall time in the study's ``times.jsonl``. Plans and calls of limited length read
it. Whether a unit is complete, its own mark alone says.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import mean
from typing import Any

from chronomask.errors import RunError, UsageError, shown
from chronomask.report.comparison import FILE, read_comparison
from chronomask.runs.layout import STATE, RunFolder, checkpoints_in
from chronomask.storage import read_object
from chronomask.study.units import Study, Unit
from chronomask.text_files import read_lines

__all__ = [
    "NOTED",
    "Allowance",
    "Rates",
    "given_rates",
    "longest_of_tasks",
    "note_time",
    "rates_in",
]

NOTED = "times.jsonl"
"""In a study's folder: a line for every time that a process was at a unit."""
_MORE_THAN_CUT = 1.1
"""How much longer than it was given an evaluation is expected to take that was cut off."""


@dataclass(frozen=True, slots=True)
class Rates:
    """Seconds that the units of a folder took."""

    place: str
    """where that was, for sentences: ``here``, ``in runs/other``"""
    token: float | None = None
    """a token of training, of one process; None: of no run anything is saved"""
    runs: Mapping[str, float] = field(default_factory=dict)
    """a whole run of each arm, where one has ended"""
    tasks: Mapping[str, float] = field(default_factory=dict)
    """a result of each task, where there is one"""
    num_runs: int = 0
    """that ended, or if none has, of which something is saved; 0 with ``token``: it was given, for a whole
    device"""
    runs_ended: bool = True
    num_results: int = 0
    runs_are_wall: bool = False
    """whether the times are those from start to end; else of training steps alone"""
    results_are_wall: bool = False
    """whether the times have the start and the loading of the model in them"""
    workers: frozenset[int] = frozenset()
    """how many processes were at work, as far as that is noted"""
    folder: Path | None = None
    """where they come from; None: they were given"""


@dataclass(slots=True)
class Allowance:
    """The time that a call may take, counted from when this is made."""

    seconds: float
    clock: Callable[[], float] = time.monotonic
    began: float = field(init=False)

    def __post_init__(self) -> None:
        self.began = self.clock()

    @property
    def length(self) -> str:
        """``9 minutes``, ``1 minute``"""
        minutes = self.seconds / 60
        return f"{minutes:g} minute{'' if minutes == 1 else 's'}"

    @property
    def of_ending(self) -> float:
        """Seconds for saving and ending: a twentieth, but at most a minute."""
        return min(60.0, self.seconds / 20)

    @property
    def of_work(self) -> float:
        """Seconds for units, the rest."""
        return self.seconds - self.of_ending

    @property
    def used(self) -> float:
        """Seconds since the call began."""
        return self.clock() - self.began

    @property
    def left(self) -> float:
        """Seconds of work that are left; none at 0 and below."""
        return self.of_work - self.used

    @property
    def is_over(self) -> bool:
        """Whether nothing may go on: a quarter of the time for ending is that of the call itself."""
        return self.used >= self.seconds - self.of_ending / 4


def note_time(study: Study, unit: Unit, seconds: float, *, workers: int, complete: bool) -> None:
    """Note how long a process was at a unit, one of ``workers``, until it was done or stopped.

    Raises RunError where that cannot be written.
    """
    line: dict[str, Any] = {"unit": str(unit), "seconds": round(seconds, 3)}
    if unit.task:
        line["task"] = unit.task
    line |= {"workers": workers, "complete": complete}
    path = study.folder / NOTED
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
    except OSError as error:
        raise RunError(
            f"{path} cannot be written ({error.strerror}): mend that, and the same command goes on"
        ) from None


@dataclass(frozen=True, slots=True)
class _Noted:
    """What is noted of a unit: its seconds since it was begun, over all calls."""

    seconds: float
    workers: int
    complete: bool
    task: str


def _read_notes(folder: Path) -> dict[str, _Noted]:
    """What is noted of each unit.

    The times of a run that was stopped are added up, since it went on. Of an evaluation only the last counts,
    since it began anew.
    """
    found: dict[str, _Noted] = {}
    path = folder / NOTED
    for line in read_lines(path) if path.is_file() else ():
        try:
            told = json.loads(line)
            seconds, workers = float(told["seconds"]), int(told["workers"])
            own = _Noted(seconds, workers, bool(told["complete"]), str(told.get("task", "")))
            name = str(told["unit"])
        except (ValueError, TypeError, KeyError, AttributeError):
            continue  # half a line, such as two machines may leave that write at once
        before = found.get(name)
        if before is not None and not before.complete and not own.task:
            own = replace(own, seconds=before.seconds + own.seconds)
        found[name] = own
    return found


def longest_of_tasks(folder: Path) -> dict[str, float]:
    """The longest that an evaluation of each task took; if all were cut off, somewhat more than they had."""
    ended: dict[str, float] = {}
    cut: dict[str, float] = {}
    for own in _read_notes(folder).values():
        if own.task:
            kept, factor = (ended, 1.0) if own.complete else (cut, _MORE_THAN_CUT)
            kept[own.task] = max(kept.get(own.task, 0.0), factor * own.seconds)
    return cut | ended


@dataclass(frozen=True, slots=True)
class _Ended:
    """A run or a result that is there."""

    name: str
    """as its unit is called"""
    what: str
    """arm or task"""
    seconds: float
    tokens: float = 0.0
    complete: bool = True
    """False: a run that has begun, as far as it is saved"""


def rates_in(folder: Path, place: str = "here") -> Rates:
    """What the runs and results in a study's folder, or in that of a run, took.

    By wall time where that is noted of some of them; else by what they say of their own steps and work. Runs
    that have not ended count where none has.
    """
    noted = _read_notes(folder)
    alone = (folder / "summary.json").is_file()
    folders = [
        RunFolder(path) for path in ([folder] if alone else sorted(folder.glob("runs/*/seed-*")))
    ]
    begun = [one for run in folders for one in _run_in(run)]
    ended = [one for one in begun if one.complete]
    runs, runs_are_wall = _by_notes(ended or begun, noted)
    results, results_are_wall = _by_notes(
        [one for run in folders for one in _results_in(run)], noted
    )
    tokens = sum(run.tokens for run in runs)
    return Rates(
        place,
        token=sum(run.seconds for run in runs) / tokens if tokens else None,
        runs=_means(runs) if ended else {},
        tasks=_means(results),
        num_runs=len(runs),
        runs_ended=bool(ended),
        num_results=len(results),
        runs_are_wall=runs_are_wall,
        results_are_wall=results_are_wall,
        workers=frozenset(
            noted[one.name].workers for one in (*runs, *results) if one.name in noted
        ),
        folder=folder,
    )


def _run_in(run: RunFolder) -> Iterator[_Ended]:
    """A run that has ended, or what its newest checkpoint has of it."""
    told = read_object(run.summary)
    complete = told is not None
    if told is None and (newest := checkpoints_in(run.checkpoints)[:1]):
        told = read_object(newest[0] / STATE)
    if told is not None and told.get("tokens_seen"):
        arm, seed = _names(run)
        name, seconds = str(Unit(0, "pretrain", arm, seed)), float(told["seconds"])
        yield _Ended(name, arm, seconds, float(told["tokens_seen"]), complete)


def _results_in(run: RunFolder) -> Iterator[_Ended]:
    arm, seed = _names(run)
    for path in sorted(run.results.glob("*/*-seed*.json")):
        told = read_object(path) or {}
        if {"task", "seed", "step", "seconds"} <= told.keys():
            unit = Unit(0, "evaluate", arm, seed, told["task"], told["seed"], told["step"])
            yield _Ended(str(unit), unit.task, float(told["seconds"]))


def _names(run: RunFolder) -> tuple[str, int]:
    """Arm and seed of a run in a study's folder; of another run, of which nothing is noted, its folders'."""
    seed = run.path.name.removeprefix("seed-")
    return run.path.parent.name, int(seed) if seed.isdecimal() else 0


def _by_notes(ended: Sequence[_Ended], noted: Mapping[str, _Noted]) -> tuple[list[_Ended], bool]:
    """The runs or results whose wall time is noted, with that time, and True. If none is noted: all of them
    with the time they state themselves, and False.

    The time before a process was killed is not noted, so what a run states of its own steps is the least.
    """
    wall = [
        replace(one, seconds=max(one.seconds, noted[one.name].seconds))
        for one in ended
        if one.name in noted
    ]
    return (wall, True) if wall else (list(ended), False)


def _means(ended: Sequence[_Ended]) -> dict[str, float]:
    names = dict.fromkeys(one.what for one in ended)
    return {name: mean(one.seconds for one in ended if one.what == name) for name in names}


def given_rates(text: str) -> Rates:
    """What ``--rate`` says: tokens a second of a device, all processes on it together, or a folder's.

    A folder that was published without its runs has no rate, but its comparison says how seeds scatter.

    Raises UsageError for neither a number above 0 nor the folder of a run or a study, and ChronomaskError
    for a comparison that cannot be read where nothing is trained.
    """
    try:
        speed = float(text)
    except ValueError:
        folder = Path(text)
        if folder.is_dir():
            found = rates_in(folder, f"in {text}")
            if found.token is not None:
                return found
            if (folder / FILE).is_file():
                read_comparison(folder)
                return found
        speed = math.nan
    if not 0 < speed < math.inf:
        raise UsageError(
            f"--rate {shown(text)}: give tokens a second of a device, such as 250000, or the folder of a run "
            f"or a study in which something is trained, or that holds a {FILE}"
        )
    return Rates("as given", token=1 / speed)
