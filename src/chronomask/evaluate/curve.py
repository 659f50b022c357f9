"""A run's quality over training: every k-th checkpoint evaluated, by several processes if wanted.

Results lie in ``<out>/step-<8 digits>/<task>-seed<k>.json``. What is there already is kept, so a curve
that was interrupted, or whose run has trained on since, is completed by the same call.
"""

from __future__ import annotations

import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

from chronomask.errors import ChronomaskError, RunError, UsageError
from chronomask.evaluate.evaluate import check_tasks, evaluate
from chronomask.evaluate.subject import Subject, find_subject
from chronomask.evaluate.tasks import make_tasks
from chronomask.machine import available_cores, can_share_work
from chronomask.runs.layout import RunFolder, checkpoints_in, step_of
from chronomask.runs.result import TaskResult
from chronomask.storage import refuse_file

__all__ = ["Plan", "checkpoints_of", "evaluate_curve"]


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
    lets processes share work. A checkpoint
    that fails does not stop the others: RunError names those that failed when all are done.
    """
    for name, number in (("workers", workers), ("seeds", plan.seeds)):
        if number < 1:
            raise UsageError(f"{name} is {number}; it must be 1 or more")
    checkpoints = checkpoints_of(run, every)
    tasks = make_tasks(plan.tasks, plan.overrides, plan.limit)
    refuse_file(out, "what an evaluation writes")
    check_tasks(_newest_whole(checkpoints), tasks, plan.task_data, progress=progress)
    jobs = {path: out / path.name for path in checkpoints}
    found: dict[Path, list[TaskResult]] = {}
    failed: dict[Path, ChronomaskError] = {}
    num_workers = min(workers, len(checkpoints))
    if num_workers == 1 or not can_share_work():
        for path, folder in jobs.items():
            try:
                found[path] = _evaluate_one(path, plan, folder, progress)
            except ChronomaskError as error:
                failed[path] = error
            _print_state(path, found, failed, len(jobs), progress)
    else:
        threads = max(1, available_cores() // num_workers)
        with ProcessPoolExecutor(
            num_workers, get_context("spawn"), initializer=_begin_worker, initargs=(threads,)
        ) as pool:
            running = {
                pool.submit(_evaluate_one, path, plan, folder, False): path
                for path, folder in jobs.items()
            }
            for future in as_completed(running):
                path = running[future]
                try:
                    found[path] = future.result()
                except ChronomaskError as error:
                    failed[path] = error
                _print_state(path, found, failed, len(jobs), progress)
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


def _begin_worker(threads: int) -> None:
    import torch

    torch.set_num_threads(threads)


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


def _print_state(
    path: Path,
    found: dict[Path, list[TaskResult]],
    failed: dict[Path, ChronomaskError],
    total: int,
    progress: bool,
) -> None:
    if not progress:
        return
    done = len(found) + len(failed)
    scores = [f"{one.task} {one.metrics[one.primary]:.4f}" for one in found.get(path, ())]
    state = "  ".join(scores) if path in found else "failed"
    print(f"[{done}/{total}] {path.name}: {state}", file=sys.stderr, flush=True)
