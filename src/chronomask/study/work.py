"""Doing one unit of a study: under a lock, with what it prints in a log of its own."""

from __future__ import annotations

import contextlib
import fcntl
import time
import traceback
from collections.abc import Iterator
from typing import TextIO

from chronomask.errors import ChronomaskError, RunError
from chronomask.evaluate.evaluate import evaluate
from chronomask.evaluate.subject import find_subject
from chronomask.prepare.pipeline import prepare
from chronomask.study.units import Study, Unit, weights_mark
from chronomask.train.loop import pretrain
from chronomask.train.signals import Stopped

__all__ = ["check_shared_start", "do_unit"]


def do_unit(study: Study, unit: Unit, *, shown: bool = False) -> str | None:
    """Do a unit unless it is complete; returns None, or why it failed in one line.

    ``shown``: it prints to the terminal instead of its log. Raises Stopped if it was asked to stop, with
    its state saved. Another process that does the same unit is a failure, but for the preparation,
    which is waited for.
    """
    log = study.log(unit)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8", buffering=1) as file:
        try:
            with _claimed(unit, file), _into(None if shown else file):
                if study.is_complete(unit):
                    return None
                print(f"{_now()} {unit}")
                _do(study, unit, shown)
                print(f"{_now()} done")
                return None
        except Stopped:
            print(f"{_now()} stopped as asked", file=file)
            raise
        except Exception as error:  # whatever it is, the other units go on
            if isinstance(error, ChronomaskError):
                print(f"{_now()} failed: {error}", file=file)
                return str(error)
            traceback.print_exc(file=file)
            return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"


def check_shared_start(study: Study, seed: int) -> None:
    """Raise RunError if runs of a seed did not start alike: from other weights, or on other data.

    Arms that declare ``model`` may start from weights of their own.
    """
    found: dict[str, tuple[str, str]] = {}
    for name, arm in study.arms.items():
        mark = weights_mark(study.run_folder(name, seed))
        own_model = any(field == "model" or field.startswith("model.") for field in arm.declared)
        for what, value in mark.items():
            if value is None or (own_model and what == "initial_weights_sha256"):
                continue
            first, expected = found.setdefault(what, (name, value))
            if value != expected:
                raise RunError(
                    f"arms '{first}' and '{name}' of seed {seed} do not start alike: {what} is "
                    f"{expected[:12]}… and {value[:12]}…. Remove the run made elsewhere, with another "
                    "version or on other data, and train it again"
                )


def _do(study: Study, unit: Unit, shown: bool) -> None:
    if unit.kind == "prepare":
        assert study.config.prepare is not None  # else it is complete
        prepare(study.config.prepare, study.data, progress=shown)
    elif unit.kind == "pretrain":
        folder = study.run_folder(unit.arm, unit.seed)
        config = study.arms[unit.arm].run_config(unit.seed)
        started = (folder / "config.yaml").is_file()
        pretrain(config, folder, resume=started, progress=shown)
        check_shared_start(study, unit.seed)
    else:
        run = study.run_folder(unit.arm, unit.seed)
        subject = find_subject(str(run / "checkpoints" / f"step-{unit.step:08d}"))
        evaluate(
            subject,
            [study.tasks[unit.task]],
            study.config.data_of(unit.task),
            [unit.task_seed],
            study.results_folder(unit),
            progress=shown,
        )


@contextlib.contextmanager
def _claimed(unit: Unit, file: TextIO) -> Iterator[None]:
    """Keep other processes from doing the unit as well."""
    wait = unit.kind == "prepare"
    try:
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise RunError(f"another process is at it; its log is {file.name}") from None
    try:
        yield
    finally:
        fcntl.flock(file, fcntl.LOCK_UN)


@contextlib.contextmanager
def _into(file: TextIO | None) -> Iterator[None]:
    if file is None:
        yield
        return
    with contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        yield


def _now() -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S")
