"""The work of one unit of a study: under a lock, with what it prints in a log of its own."""

from __future__ import annotations

import contextlib
import math
import re
import time
import traceback
from collections.abc import Iterator
from typing import TextIO

from chronomask.errors import ChronomaskError, Stopped
from chronomask.locks import lock
from chronomask.runs.continuation import begun_by
from chronomask.storage import said_by_system, unwritten
from chronomask.study.settings import (
    naming_settings,
    naming_settings_of_preparation,
    naming_settings_of_task,
)
from chronomask.study.suitability import check_masking_of_arms
from chronomask.study.units import Study, Unit, check_shared_start

__all__ = ["ELSEWHERE", "THERE", "do_unit", "has_failed", "note_failure", "write_in_log"]

ELSEWHERE = "another process is working on it"
"""What :func:`do_unit` returns of a unit that another process is at."""
THERE = "another process has done it"
"""What :func:`do_unit` returns of a unit that is complete by now."""
_FAILED = "failed: "
"""How the line of a log goes on, behind its time, that says why a unit failed."""


def do_unit(study: Study, unit: Unit, *, shown: bool = False) -> str | None:
    """Do a unit unless it is complete; returns None, or why it failed in one line.

    ``shown``: it prints to the terminal instead of its log. Raises Stopped if it was asked to stop, with
    its state saved. Where another process is at the unit it returns ``ELSEWHERE``, but waits for the
    preparation; of a unit that is complete, ``THERE``.
    """
    log = study.log(unit)
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a", encoding="utf-8", buffering=1) as file:
            return _do_under_lock(study, unit, file, shown)
    except OSError as error:  # of the log; one of the work is in it
        return str(unwritten(log, said_by_system(error) or str(error)))


def _do_under_lock(study: Study, unit: Unit, file: TextIO, shown: bool) -> str | None:
    """As :func:`do_unit`, with the log open."""
    try:
        with _lock(study, unit) as is_mine, _printing_to(None if shown else file):
            if not is_mine:
                return ELSEWHERE
            if study.is_complete(unit):
                return THERE
            print(f"{_now()} {unit}", file=file)
            _do(study, unit, shown)
            print(f"{_now()} done", file=file)
            return None
    except Stopped:  # who waits for it writes that down, also of what is killed
        raise
    except Exception as error:  # whatever it is, the other units go on
        why = str(error)
        if not isinstance(error, ChronomaskError):
            traceback.print_exc(file=file)
            why = f"{type(error).__name__}: {why.strip().splitlines()[0] if why else ''}"
        print(f"{_now()} {_FAILED}{why}", file=file)
        return why


def has_failed(study: Study, unit: Unit) -> bool:
    """Whether a unit failed when it was last begun; neither one at work nor one that was killed has."""
    path = study.log(unit)
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    noted = re.findall(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d (.*)", text, re.MULTILINE)
    return bool(noted) and noted[-1].startswith(_FAILED)


def _do(study: Study, unit: Unit, shown: bool) -> None:
    """The work itself; each kind imports what it alone needs, so that who trains loads no tagger."""
    if unit.kind == "prepare":
        from chronomask.prepare.pipeline import prepare

        assert study.config.prepare is not None  # else it is complete
        with naming_settings_of_preparation():
            prepare(study.config.prepare, study.data, progress=shown)
        check_masking_of_arms(study)  # what it lacks is added before the first run, or too late
    elif unit.kind == "pretrain":
        from chronomask.train.loop import pretrain

        run, of_arm = study.run(unit), study.arms[unit.arm].own_fields
        with begun_by("command or call"), naming_settings(unit.arm, of_arm):
            pretrain(study.run_config(unit), run.path, resume=run.is_run(), progress=shown)
        check_shared_start(study, unit.seed)
    else:
        from chronomask.evaluate.evaluate import evaluate
        from chronomask.evaluate.subject import find_subject

        with naming_settings_of_task(unit.task):
            evaluate(
                find_subject(str(study.run(unit).checkpoint(unit.step))),
                [study.tasks[unit.task]],
                study.task_data(unit.task),
                [unit.task_seed],
                study.run(unit).results_of(unit.step),
                progress=shown,
            )


def _lock(study: Study, unit: Unit) -> contextlib.AbstractContextManager[bool]:
    """Keep other processes from doing the unit as well; False: another one is at it."""
    seconds = math.inf if unit.kind == "prepare" else 0.0
    return lock(study.log(unit), seconds=seconds, guards=study.folder)


@contextlib.contextmanager
def _printing_to(file: TextIO | None) -> Iterator[None]:
    """What is printed goes into a file; None changes nothing."""
    if file is None:
        yield
        return
    with contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        yield


def _now() -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S")


def write_in_log(study: Study, unit: Unit, text: str) -> None:
    """Write down of a unit what its own process could not; nothing where that cannot be written either."""
    log = study.log(unit)
    with contextlib.suppress(OSError):
        log.parent.mkdir(parents=True, exist_ok=True)  # its process may have just been started
        with log.open("a", encoding="utf-8") as file:
            print(f"{_now()} {text}", file=file)


def note_failure(study: Study, unit: Unit, why: str) -> None:
    """Write down that a unit failed, which :func:`has_failed` reads."""
    write_in_log(study, unit, f"{_FAILED}{why}")
