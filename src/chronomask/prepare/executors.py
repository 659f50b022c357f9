"""Stages: what is done with every part of the text, and where: processes here, or tasks of a Ray cluster.

A task is a function of the work folder and a part's number. What it makes lies in the work folder, whole
or not at all, and its mark is written last; so it does not matter where a task runs, nor whether it runs
twice. An executor runs the parts it is given and says which raised an error; parts of a killed process are
simply not done, and :func:`run_stage` runs them again. Machines that share a preparation (``--only 2/8``)
each run their own parts, here or there.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import sys
import time
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from chronomask.config import Alternative
from chronomask.errors import ChronomaskError, RunError, UsageError
from chronomask.locks import lock
from chronomask.machine import can_share_work
from chronomask.prepare.work import mark_file
from chronomask.processes import deaf_to_interrupts, end_with_parent, environment

if TYPE_CHECKING:
    from concurrent.futures import Future

__all__ = [
    "Executor",
    "LocalExecutor",
    "RayExecutor",
    "Share",
    "Stage",
    "Task",
    "as_message",
    "begin_worker",
    "run_stage",
    "run_task",
    "run_tasks",
]

Task = Callable[[Path, int], None]
"""Does a part in a work folder and marks it as done, last."""


@dataclass(frozen=True, slots=True)
class Share:
    """The parts that one of several machines does: every ``of``-th one, from the ``number``-th on."""

    number: int
    of: int

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"

    @classmethod
    def parse(cls, text: str) -> Share:
        """A share such as ``2/8``; raises :class:`UsageError` for anything that is none."""
        number, slash, of = text.partition("/")
        if not (slash and number.isdecimal() and of.isdecimal() and 1 <= int(number) <= int(of)):
            raise UsageError(
                f"--only {text!r} is not a share; give one such as 2/8, from 1/8 to 8/8"
            )
        return cls(int(number), int(of))

    def has(self, part: int) -> bool:
        """Whether a part is one of this share."""
        return part % self.of == self.number - 1


@dataclass(frozen=True, slots=True)
class Stage:
    """A task for every part; ``name`` stands in its marks and in messages.

    ``task`` is handed to other processes, so it is a function of a module, or one with values bound to it.
    ``runs_on_torch``: its model does. ``shared``: other machines may be at the same parts, so a process
    claims a part before it does it.
    """

    name: str
    work: Path
    task: Task
    runs_on_torch: bool = False
    shared: bool = False

    def is_done(self, number: int) -> bool:
        """Whether a part has been through the stage."""
        return mark_file(self.work, self.name, number).is_file()

    def is_claimed(self, number: int) -> bool:
        """Whether a process that shares the work has a part in hand."""
        with self.claim(number) as mine:
            return not mine

    def claim(self, number: int) -> AbstractContextManager[bool]:
        """Have a part for oneself, False if another process has it in hand."""
        file = self.work / "claims" / f"{self.name}-{number:06d}"
        file.parent.mkdir(exist_ok=True)
        return lock(file, needed=True)


def run_task(stage: Stage, number: int) -> bool:
    """Do one part, unless it is done; False if another process that shares the work is at it."""
    if not stage.shared:
        if not stage.is_done(number):
            stage.task(stage.work, number)
        return True
    with stage.claim(number) as mine:
        if mine and not stage.is_done(number):
            stage.task(stage.work, number)
        return mine


def run_tasks(stage: Stage, numbers: Sequence[int], done: Callable[[int], None]) -> dict[int, str]:
    """Do parts one after the other, in this process; returns number and message of those that failed."""
    failures = {}
    for number in numbers:
        try:
            mine = run_task(stage, number)
        except Exception as error:
            failures[number] = as_message(error)
        else:
            if mine:
                done(number)
    return failures


def as_message(error: BaseException) -> str:
    """An error on one line: our own as it is, any other with its kind."""
    text = str(error).strip().replace("\n", " ")
    return text if isinstance(error, ChronomaskError) else f"{type(error).__name__}: {text}"


def begin_worker(runs_on_torch: bool) -> None:
    """Prepare a worker process. What it writes is a draft under another name until a part is done."""
    end_with_parent()
    if not runs_on_torch:
        # spaCy imports torch if it is there, for models other than the bundled one: two seconds and
        # 190 MB for every worker.
        sys.modules.setdefault("torch", None)  # type: ignore[arg-type]


Failures = dict[int, str]
"""Part number and message of every task that raised an error."""
Done = Callable[[int], None]
"""Is told, in any order, which parts are finished."""

_ATTEMPTS = 3
_SECONDS_BETWEEN_LOOKS = 0.5
"""How long a share waits before it looks again for what other machines have in hand."""


class Executor(Alternative):
    """Where the workers are. The result is the same anywhere."""

    def check(self) -> None:
        """Raises :class:`UsageError`, before any work, where it cannot run here."""

    @abstractmethod
    def run(self, stage: Stage, numbers: Sequence[int], workers: int, done: Done) -> Failures:
        """Run the parts with so many workers, each once, whatever becomes of the others."""


class LocalExecutor(Executor):
    """Processes on this machine."""

    kind: Literal["local"] = "local"

    def run(self, stage: Stage, numbers: Sequence[int], workers: int, done: Done) -> Failures:
        """One worker is this process; more are started fresh for the stage, where the machine can."""
        with _single_threaded():
            if min(workers, len(numbers)) > 1 and can_share_work():
                return _run_in_processes(stage, numbers, workers, done)
            return run_tasks(stage, numbers, done)


class RayExecutor(Executor):
    """A Ray cluster, or Ray on this machine; every node must see the prepared folder."""

    kind: Literal["ray"] = "ray"
    address: str | None = None
    """Address of a running cluster; None: what ``RAY_ADDRESS`` names, else an instance of its own."""

    def check(self) -> None:
        """Raises :class:`UsageError` without the package."""
        if importlib.util.find_spec("ray") is None:
            raise UsageError(
                "executor.kind=ray needs the package ray; pip install 'chronomask[ray]', or choose "
                "--set executor.kind=local"
            )

    def run(self, stage: Stage, numbers: Sequence[int], workers: int, done: Done) -> Failures:
        """Tasks of one core each, as many at a time as there are workers."""
        import ray

        started = not ray.is_initialized()
        if started:
            _start_ray(self.address or os.environ.get("RAY_ADDRESS"), workers)
        try:
            return _run_with_ray(stage, numbers, workers, done)
        finally:
            if started:
                ray.shutdown()


def run_stage(
    stage: Stage, numbers: Sequence[int], workers: int, executor: Executor, done: Done
) -> None:
    """Run those of a stage's parts that are not done; ``done`` is told of every one that is finished then.

    A process that is killed costs the parts it had in hand: they are run again with fresh processes.
    Parts that another machine has in hand are waited for. Raises :class:`RunError` naming the parts
    that raised an error, or that still are not done.
    """
    reported = set(filter(stage.is_done, numbers))

    def report(number: int) -> None:
        if number not in reported:
            reported.add(number)
            done(number)

    attempts = 0
    while todo := [number for number in numbers if not stage.is_done(number)]:
        if attempts == _ATTEMPTS:
            raise RunError(
                f"worker processes were killed {_ATTEMPTS} times in stage {stage.name}, parts "
                f'{_listing(todo)}. In a script of yours, put the call below  if __name__ == "__main__":  '
                "first. If memory ran out, run the same command again to continue, with fewer "
                "workers (--set workers=NUMBER) or a smaller part_characters"
            )
        if stage.shared and all(map(stage.is_claimed, todo)):
            time.sleep(_SECONDS_BETWEEN_LOOKS)
            continue
        failures = executor.run(stage, todo, workers, report)
        if failures:
            first = min(failures)
            raise RunError(
                f"stage {stage.name} failed for parts {_listing(sorted(failures))}; part {first}: "
                f"{failures[first]}. What is done is kept: the same command then does these parts alone"
            )
        left = [number for number in todo if not stage.is_done(number)]
        attempts += not stage.shared or not all(map(stage.is_claimed, left))
    for number in numbers:  # also what other machines did meanwhile
        report(number)


def _listing(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers[:10])) + (", …" if len(numbers) > 10 else "")


def _run_in_processes(stage: Stage, numbers: Sequence[int], workers: int, done: Done) -> Failures:
    """Run parts in processes started for them; where one is killed the rest stays undone."""
    failures: Failures = {}
    # Spawned, not forked: the parent may hold threads of the tokenizer or of torch.
    pool = ProcessPoolExecutor(
        min(workers, len(numbers)),
        get_context("spawn"),
        initializer=begin_worker,
        initargs=(stage.runs_on_torch,),
    )
    try:
        for number, future in _as_handed_in(pool, stage, numbers, 2 * workers):
            error = future.exception()
            if isinstance(error, BrokenProcessPool):
                break  # a worker was killed, and the others with it: what is not done is run again
            if error is not None:
                failures[number] = as_message(error)
            elif future.result():
                done(number)
    except BrokenProcessPool:  # raised by handing in
        pass
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    return failures


def _as_handed_in(
    pool: ProcessPoolExecutor, stage: Stage, numbers: Sequence[int], ahead: int
) -> Iterator[tuple[int, Future[bool]]]:
    """Tasks as they finish; never more than ``ahead`` are waiting, however many parts there are."""
    waiting: dict[Future[bool], int] = {}
    rest = iter(numbers)
    while True:
        for number in rest:
            # Ctrl-C reaches this process, which lets the parts in hand finish and hands out no more.
            with deaf_to_interrupts():  # the first of them starts the workers
                waiting[pool.submit(run_task, stage, number)] = number
            if len(waiting) >= ahead:
                break
        if not waiting:
            return
        for future in wait(waiting, return_when=FIRST_COMPLETED).done:
            yield waiting.pop(future), future


def _single_threaded() -> AbstractContextManager[None]:
    """One thread a process, here and in children: the processes are the parallelism."""
    return environment(TOKENIZERS_PARALLELISM="false", OMP_NUM_THREADS="1")


_OBJECT_STORE_BYTES = 100_000_000
"""Ray's store of a local instance: tasks hand over numbers only."""


def _start_ray(address: str | None, workers: int) -> None:
    """Join the cluster at an address, or begin an instance of so many cores here."""
    import ray

    here: dict[str, Any] = {
        "num_cpus": workers,
        "object_store_memory": _OBJECT_STORE_BYTES,
        "include_dashboard": False,
    }
    with _single_threaded():
        ray.init(
            address=address or "local",
            log_to_driver=False,
            logging_level=logging.ERROR,
            configure_logging=False,
            **({} if address else here),
        )


def _run_with_ray(stage: Stage, numbers: Sequence[int], workers: int, done: Done) -> Failures:
    """Run parts as tasks of the Ray that this process is connected to."""
    import ray
    from ray.exceptions import RayError, RayTaskError

    # Retries are the caller's: what is missing afterwards is run again.
    task = ray.remote(num_cpus=1, max_retries=0)(run_task)
    failures: Failures = {}
    waiting: dict[Any, int] = {}
    rest = iter(numbers)
    while True:
        for number in rest:
            waiting[task.remote(stage, number)] = number
            if len(waiting) >= workers:
                break
        if not waiting:
            return failures
        (finished,), _ = ray.wait(list(waiting), num_returns=1)
        number = waiting.pop(finished)
        try:
            mine = ray.get(finished)
        except RayTaskError as error:
            failures[number] = as_message(error.cause or error)
        except RayError:
            continue  # the process or its node was lost: not done, so it is run again
        else:
            if mine:
                done(number)
