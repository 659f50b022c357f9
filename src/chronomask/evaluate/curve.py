"""A run's quality over training: every k-th checkpoint evaluated, by several processes if wanted.

Results lie in ``<out>/step-<8 digits>/<task>-seed<k>.json``. What is there already is kept, so a curve
that was interrupted, or whose run has trained on since, is completed by the same call.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from pathlib import Path
from threading import Thread

from chronomask.errors import ChronomaskError, RunError, UsageError
from chronomask.evaluate.evaluate import check_tasks, evaluate
from chronomask.evaluate.subject import Subject, find_subject
from chronomask.evaluate.tasks import make_tasks
from chronomask.machine import available_cores, can_share_work
from chronomask.processes import deaf_to_interrupts
from chronomask.progress import say
from chronomask.runs.layout import RunFolder, checkpoints_in, step_of
from chronomask.runs.result import TaskResult
from chronomask.storage import refuse_file

__all__ = ["Plan", "checkpoints_of", "evaluate_curve"]

_ATTEMPTS = 3
"""How often a checkpoint is evaluated whose process is killed."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What every checkpoint is evaluated on; small enough to be handed to another process."""

    tasks: tuple[str, ...]
    """names and families, as on the command line"""
    task_data: Path
    """folder with the tasks' files"""
    seeds: int
    """number of fine-tuning seeds; they are 0, 1, …"""
    overrides: tuple[str, ...] = ()
    limit: int | None = None
    force: bool = False


def checkpoints_of(run: Path, every: int) -> list[Path]:
    """Every ``every``-th checkpoint of a run by rising step, the last one always among them.

    Raises UsageError if ``run`` is not a run folder or has no checkpoint.
    """
    if every < 1:
        raise UsageError(f"every is {every}; it must be 1, for every checkpoint, or more")
    found = checkpoints_in(RunFolder(run).checkpoints)
    if not found:
        raise UsageError(
            f"{run} has no checkpoints: a curve needs a run folder trained with "
            "checkpoint.keep: all"
        )
    return found[::every][::-1]


def evaluate_curve(
    run: Path, plan: Plan, out: Path, *, every: int = 1, workers: int = 1, progress: bool = True
) -> dict[int, list[TaskResult]]:
    """Results by step. Raises UsageError or DataError before any work where a task cannot run.

    With ``workers`` above 1 each is a fresh process with its share of the processor cores, where the machine
    lets processes share work. A checkpoint that fails, or whose process is killed, does not stop the others:
    RunError names those that failed when all are done.
    """
    for name, number in (("workers", workers), ("seeds", plan.seeds)):
        if number < 1:
            raise UsageError(f"{name} is {number}; it must be 1 or more")
    checkpoints = checkpoints_of(run, every)
    tasks = make_tasks(plan.tasks, plan.overrides, plan.limit)
    refuse_file(out, "what an evaluation writes")
    check_tasks(_newest_whole(checkpoints), tasks, plan.task_data, progress=progress)
    jobs = {path: out / path.name for path in checkpoints}
    state = _State(len(jobs), progress)
    num_workers = min(workers, len(checkpoints))
    if num_workers == 1 or not can_share_work():
        for path, folder in jobs.items():
            with state.of(path) as done:
                done(_evaluate_one(path, plan, folder, progress))
    else:
        _evaluate_in_processes(jobs, plan, num_workers, state)
    found, failed = state.found, state.failed
    if failed:
        listing = "; ".join(f"{path.name}: {error}" for path, error in sorted(failed.items()))
        raise RunError(
            f"{len(failed)} of {len(jobs)} checkpoints could not be evaluated ({listing}); the results of "
            f"the others are in {out}: run the same command again once this is fixed"
        )
    return {step_of(path) or 0: found[path] for path in checkpoints}


def _newest_whole(checkpoints: list[Path]) -> Subject:
    """The last of the checkpoints that opens; raises what the last one of all has where none does."""
    for path in checkpoints[::-1]:
        try:
            return find_subject(str(path))
        except ChronomaskError:
            continue  # it is told when its turn comes
    return find_subject(str(checkpoints[-1]))


@dataclass(slots=True)
class _State:
    """What became of the checkpoints."""

    total: int
    shown: bool
    found: dict[Path, list[TaskResult]] = field(default_factory=dict)
    failed: dict[Path, ChronomaskError] = field(default_factory=dict)

    @contextmanager
    def of(self, path: Path) -> Iterator[Callable[[list[TaskResult]], None]]:
        """Note the results of a checkpoint, or why it has none, and print how far the whole is."""
        try:
            yield partial(self.found.__setitem__, path)
        except ChronomaskError as error:
            self.failed[path] = error
        if self.shown:
            done = len(self.found) + len(self.failed)
            scores = [
                f"{one.task} {one.metrics[one.primary]:.4f}" for one in self.found.get(path, ())
            ]
            what = "  ".join(scores) if path in self.found else "failed"
            line = f"[{done}/{self.total}] {path.name}: {what}"
            say(line)


def _evaluate_in_processes(
    jobs: Mapping[Path, Path], plan: Plan, num_workers: int, state: _State
) -> None:
    """Evaluate checkpoints in processes started for them; where one is killed, the others go on anew."""
    left = dict(jobs)
    for _ in range(_ATTEMPTS):
        context = get_context("spawn")
        until, stop = context.Pipe(duplex=False)
        threads = max(1, available_cores() // num_workers)
        pool = ProcessPoolExecutor(
            min(num_workers, len(left)),
            context,
            initializer=_begin_worker,
            initargs=(threads, until),
        )
        try:
            with deaf_to_interrupts():  # the first of them starts the workers
                running = {
                    pool.submit(_evaluate_one, path, plan, folder, False): path
                    for path, folder in left.items()
                }
            for future in as_completed(running):
                if isinstance(future.exception(), BrokenProcessPool):
                    continue  # a worker was killed, and the others with it
                path = running[future]
                with state.of(path) as done:
                    done(future.result())
                del left[path]
        except BrokenProcessPool:  # raised by handing in
            pass
        except BaseException:
            stop.close()  # whole results are on the disk, and what is at work is begun again
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
            stop.close()
            until.close()
        if not left:
            return
    for path in left:
        with state.of(path):
            raise RunError(
                f"its process was killed, or another beside it, {_ATTEMPTS} times. In a script of yours, put "
                'the call below  if __name__ == "__main__":  first. If memory ran out, give fewer --workers'
            )


def _begin_worker(threads: int, until: Connection) -> None:
    """Prepare a worker process, which ends once the other end of ``until`` is closed: by its parent, or with
    it, however that ends.
    """
    import torch

    Thread(target=_end_when_closed, args=(until,), daemon=True).start()
    torch.set_num_threads(threads)


def _end_when_closed(until: Connection) -> None:
    wait([until])
    os._exit(1)


def _evaluate_one(path: Path, plan: Plan, folder: Path, progress: bool) -> list[TaskResult]:
    return evaluate(
        find_subject(str(path)),
        make_tasks(plan.tasks, plan.overrides, plan.limit),
        plan.task_data,
        range(plan.seeds),
        folder,
        force=plan.force,
        progress=progress,
    )
