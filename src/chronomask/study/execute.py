"""Doing the units of a study: one after the other here, or by several processes, each with its device.

A unit that fails is named with its log and what needs it is left out; everything else goes on. A call may be
given a time: units then run in processes even if there is one alone, which are asked to stop before that time
is up.
"""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path

from chronomask.errors import RunError, Stopped, UsageError
from chronomask.machine import available_cores
from chronomask.processes import (
    StopRequest,
    deaf_to_interrupts,
    end_with_parent,
    environment,
    listen,
)
from chronomask.study.config import StudyConfig
from chronomask.study.open import open_study
from chronomask.study.times import Allowance, longest_of_tasks, note_time
from chronomask.study.units import Study, Unit
from chronomask.study.work import ELSEWHERE, THERE, do_unit, note_failure, write_in_log

__all__ = [
    "Outcome",
    "cuda_devices",
    "run_one",
    "run_study",
    "share_of",
]

Tell = Callable[[str], None]
_PAUSE = 2.0
"""Seconds until a unit that another process was at is looked at again."""
_TICK = 0.5
"""Seconds that whoever waits for a unit waits at once."""


@dataclass(slots=True)
class Outcome:
    """What became of the units."""

    done: list[Unit] = field(default_factory=list)
    """those that were done now"""
    there: list[Unit] = field(default_factory=list)
    """those that were complete before"""
    failed: list[tuple[Unit, str]] = field(default_factory=list)
    left_out: list[Unit] = field(default_factory=list)
    """those that need what failed"""
    stopped: list[Unit] = field(default_factory=list)
    """those that were begun, and asked to stop when the time was up"""
    too_long: list[tuple[Unit, float]] = field(default_factory=list)
    """evaluations expected to take longer than a whole call may, with their seconds"""


def run_study(
    study: Study,
    units: Sequence[Unit],
    *,
    workers: int = 1,
    tell: Tell = lambda text: None,
    shown: bool = False,
    allowance: Allowance | None = None,
) -> Outcome:
    """Do these units, given in an order that has what is needed first.

    ``workers`` > 1 does them by so many processes; with CUDA devices, worker k has device k modulo
    their number for its own. ``shown``: a single worker's units print to the terminal. Raises Stopped
    after SIGINT or SIGTERM, with the state of every run saved. What another process is at is waited for once
    nothing else can be done, and done here if that process ends without it.

    ``allowance``: the time that the call may take. An evaluation is begun only if those of its task took no
    longer than what is left. When no time for work is left, runs save their state and stop, and evaluations
    end without a result; what is at work still shortly before the end is killed, and a run then goes on from
    its last checkpoint.
    """
    outcome = Outcome()
    waiting = []
    for unit in units:
        (outcome.there if study.is_complete(unit) else waiting).append(unit)
    if outcome.there:
        tell(f"{len(outcome.there)} of {len(units)} units are complete already")
    queue = _Queue(outcome, waiting, study, tell, min(workers, max(1, len(waiting))))
    if allowance is not None or min(workers, len(waiting)) > 1:
        _run_with_processes(study, queue, allowance)
        return outcome
    while (unit := queue.next()) or queue.look_again():
        if unit is None:
            with listen() as stop:
                time.sleep(min(_TICK, _PAUSE))
            if stop.signal_number:
                raise _stop_of(study, stop)
            continue
        if shown:
            tell(str(unit))
        began = time.perf_counter()
        try:
            failure = do_unit(study, unit, shown=shown)
        except Stopped:
            queue.stop(unit, time.perf_counter() - began)
            raise
        queue.finish(unit, failure, time.perf_counter() - began)
    return outcome


def run_one(study: Study, number: int, tell: Tell = lambda text: None) -> None:
    """Do the unit of a number, here, once no other process is at it.

    Raises UsageError if there is none; RunError if it fails.
    """
    if not 0 <= number < len(study.units):
        raise UsageError(f"--unit {number}: this study has units 0 to {len(study.units) - 1}")
    unit = study.units[number]
    for needed in unit.needs:
        if not study.is_complete(study.units[needed]):
            raise RunError(
                f"{unit} needs unit {needed}, {study.units[needed]}, which is not complete"
            )
    for failed, why in run_study(study, [unit], tell=tell).failed:
        raise RunError(f"{failed}: {why} (log: {study.log(failed)})")


def share_of(study: Study, only: str) -> list[Unit]:
    """The units of share ``i/n``: every n-th run with its evaluations, and the preparation.

    Runs that take the weights of another are in the share of that one, so that no share waits for another.
    """
    first, slash, second = only.partition("/")
    if not (slash and first.isdecimal() and second.isdecimal() and 1 <= int(first) <= int(second)):
        raise UsageError(f"--only {only!r}: give a share such as 1/4, from 1/4 to 4/4")
    units = study.in_order()
    groups = {
        unit.number: (study.lineage(unit.arm)[0], unit.seed)
        for unit in units
        if unit.kind != "prepare"
    }
    mine = set(list(dict.fromkeys(groups.values()))[int(first) - 1 :: int(second)])
    return [unit for unit in units if unit.kind == "prepare" or groups[unit.number] in mine]


class _Queue:
    """Which unit comes next, and what became of the others."""

    def __init__(
        self, outcome: Outcome, waiting: list[Unit], study: Study, tell: Tell, workers: int
    ) -> None:
        self.workers = workers
        """processes that do the units"""
        self._outcome = outcome
        self._waiting = waiting
        self._study = study
        self._tell = tell
        self._open = {unit.number for unit in waiting}
        """units not complete, failed ones among them"""
        self._lost: set[int] = set()
        self._elsewhere: dict[Unit, bool] = {}
        """units that another process was at; whether it was so when they were last looked at"""
        self._looked = 0.0
        """when they were, by :func:`time.monotonic`"""
        self._total = len(waiting)
        self._before = len(outcome.there)
        self._longest = longest_of_tasks(study.folder)

    def next(self, left: float = math.inf) -> Unit | None:
        """A unit that can be done now, in the ``left`` seconds if it is known to be lost otherwise; None if
        there is none (yet).
        """
        for unit in list(self._waiting):
            if any(number in self._lost for number in unit.needs):
                self._waiting.remove(unit)
                self._lost.add(unit.number)
                self._outcome.left_out.append(unit)
            elif self._expect(unit) <= left and self._open.isdisjoint(unit.needs):
                self._waiting.remove(unit)
                return unit
        return None

    def _expect(self, unit: Unit) -> float:
        """Seconds that a unit must have so that they are not lost: 0 for runs and the preparation, which go
        on where they stop, and for a task of which nothing is known.
        """
        return self._longest.get(unit.task, 0.0)

    def name_too_long(self, seconds: float) -> None:
        """Note what is not begun because it takes longer than ``seconds``, all that a call has for work."""
        found = [(unit, self._expect(unit)) for unit in self._waiting]
        self._outcome.too_long = [(unit, own) for unit, own in found if own > seconds]

    def look_again(self) -> bool:
        """Take up what other processes were at, unless that was just looked at; False: there is nothing."""
        found = [unit for unit, still in self._elsewhere.items() if still]
        if found and time.monotonic() - self._looked >= _PAUSE:
            for unit in found:
                self._elsewhere[unit] = False
                if self._study.is_complete(unit):
                    self.finish(unit, THERE, 0.0)
                else:
                    self._waiting.append(unit)
        return bool(found)

    def _count(self) -> str:
        """How many of all are dealt with."""
        outcome = self._outcome
        there = len(outcome.there) - self._before
        count = len(outcome.done) + len(outcome.failed) + len(outcome.left_out) + there
        return f"[{count}/{self._total}]"

    def finish(self, unit: Unit, failure: str | None, seconds: float) -> None:
        """Note that a unit is done, or why not."""
        if failure == ELSEWHERE:
            if unit not in self._elsewhere:
                self._tell(f"{unit}: {ELSEWHERE} (log: {self._study.log(unit)}), and is waited for")
            self._elsewhere[unit] = True
            self._looked = time.monotonic()
            return
        if failure == THERE:
            self._open.discard(unit.number)
            self._outcome.there.append(unit)
            self._tell(f"{self._count()} {unit}: done by another process")
            return
        if failure is None:
            self._open.discard(unit.number)
            self._outcome.done.append(unit)
            note_time(self._study, unit, seconds, workers=self.workers, complete=True)
            if unit.task:
                self._longest[unit.task] = max(self._longest.get(unit.task, 0.0), seconds)
        else:
            self._lost.add(unit.number)
            self._outcome.failed.append((unit, failure))
        what = f"{seconds:.0f} s" if failure is None else f"FAILED: {failure}"
        log = "" if failure is None else f" (log: {self._study.log(unit)})"
        self._tell(f"{self._count()} {unit}: {what}{log}")

    def stop(self, unit: Unit, seconds: float) -> None:
        """Note that a unit was asked to stop before it was done."""
        self._outcome.stopped.append(unit)
        write_in_log(self._study, unit, "stopped on request")
        note_time(self._study, unit, seconds, workers=self.workers, complete=False)


@dataclass(slots=True)
class _Worker:
    """A process and what it is at."""

    process: BaseProcess
    pipe: Connection
    unit: Unit | None = None
    began: float = 0.0


def _run_with_processes(study: Study, queue: _Queue, allowance: Allowance | None) -> None:
    """Keep the queue's processes at work until it is empty, its time is up or a signal asks to stop."""
    devices, number = cuda_devices(), queue.workers
    with listen() as stop:

        def left() -> float:
            """Seconds in which a unit may be begun; none once the processes are asked to stop."""
            if stop.signal_number:
                return 0.0
            return math.inf if allowance is None else max(0.0, allowance.left)

        workers = [_start(study, k, number, devices) for k in range(number)]
        try:
            while True:
                for worker in workers:
                    seconds = left()
                    if worker.unit is None and seconds and (unit := queue.next(seconds)):
                        worker.unit, worker.began = unit, time.perf_counter()
                        worker.pipe.send(unit.number)
                busy = {worker.pipe: worker for worker in workers if worker.unit is not None}
                waits = left() > 0 and len(busy) < len(workers) and queue.look_again()
                if not busy:
                    if not waits:
                        break
                    time.sleep(min(_TICK, _PAUSE))
                for pipe in wait(list(busy), timeout=_TICK) if busy else ():
                    worker = busy[pipe]  # pyright: ignore[reportArgumentType]
                    unit, took = worker.unit, time.perf_counter() - worker.began
                    assert unit is not None
                    worker.unit = None
                    try:
                        failure = worker.pipe.recv()
                    except (EOFError, OSError):
                        worker.process.join()
                        if not left():
                            queue.stop(unit, took)
                            continue
                        failure = f"its process ended with exit code {worker.process.exitcode}"
                        note_failure(study, unit, failure)
                        k = workers.index(worker)
                        workers[k] = _start(study, k, number, devices)
                    queue.finish(unit, failure, took)
                if not left():
                    _ask_to_stop(workers, kill=allowance is not None and allowance.is_over)
        except BaseException:
            _ask_to_stop(workers)
            raise
        finally:
            for worker in workers:
                worker.pipe.close()  # an idle worker ends with its pipe
            for worker in workers:
                worker.process.join()
        if stop.signal_number:
            raise _stop_of(study, stop)
        if allowance is not None:
            queue.name_too_long(allowance.of_work)


def _stop_of(study: Study, stop: StopRequest) -> Stopped:
    """The end of a call that was asked to stop."""
    return Stopped(
        f"the study in {study.folder} was stopped on request; the same command continues it",
        stop.signal_number,
    )


def _ask_to_stop(workers: Sequence[_Worker], *, kill: bool = False) -> None:
    for worker in workers:
        if worker.process.is_alive():
            (worker.process.kill if kill else worker.process.terminate)()


def _start(study: Study, k: int, number: int, devices: Sequence[str]) -> _Worker:
    """A process that does the units whose numbers come over its pipe."""
    here, there = multiprocessing.Pipe()
    own: dict[str, str] = {}
    if devices:
        own["CUDA_VISIBLE_DEVICES"] = devices[k % len(devices)]
    if number > 1:  # else each computes and compiles as if all cores were its own
        share = max(1, available_cores() // number)
        threads = {"OMP_NUM_THREADS": share, "TORCHINDUCTOR_COMPILE_THREADS": min(32, share)}
        own |= {name: str(n) for name, n in threads.items() if name not in os.environ}
    process = multiprocessing.get_context("spawn").Process(
        target=_serve, args=(there, study.config.to_dict(), study.folder), daemon=False
    )
    # Libraries read the environment while they are imported. This process says when to stop.
    with environment(**own), deaf_to_interrupts():
        process.start()
    there.close()
    return _Worker(process, here)


def _serve(pipe: Connection, values: dict[str, object], folder: Path) -> None:
    """A worker process: unit numbers in, None or a failure out."""
    end_with_parent(partial(os.kill, os.getpid(), signal.SIGTERM))  # which saves the state of a run
    study = open_study(StudyConfig.parse(values), folder)
    with contextlib.suppress(EOFError, OSError, Stopped):
        while True:
            pipe.send(do_unit(study, study.units[pipe.recv()]))


def cuda_devices() -> list[str]:
    """The CUDA devices there are, as ``CUDA_VISIBLE_DEVICES`` names them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name for name in named.split(",") if name.strip()]
    import torch

    return [str(k) for k in range(torch.cuda.device_count())]
