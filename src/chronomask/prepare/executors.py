"""Ways to run a stage's tasks: here, on a Slurm cluster, on a Ray cluster.

A task is a stage and a part's number; what it makes lies in the work folder, whole or not at all, so it
does not matter where it runs, nor whether it runs twice. An executor runs the tasks it is given and tells
which raised an error; tasks of a killed process are simply not done. May enter: other executors.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chronomask.errors import RunError, UsageError
from chronomask.prepare.config import Executor, LocalExecutor, RayExecutor, SlurmExecutor
from chronomask.prepare.tasks import (
    as_message,
    begin_worker,
    failure_file,
    is_done,
    listing_file,
    run_task,
    run_tasks,
    write_listing,
)
from chronomask.storage import write_bytes

if TYPE_CHECKING:
    from concurrent.futures import Future

__all__ = ["Stage", "check_executor", "run_stage", "slurm_script"]

Failures = dict[int, str]
"""Part number and message of every task that raised an error."""


@dataclass(frozen=True, slots=True)
class Stage:
    """Tasks of one kind: ``name`` finds the function; ``needs_torch`` where its model runs on it."""

    work: Path
    name: str
    needs_torch: bool = False


def check_executor(executor: Executor) -> None:
    """Raises :class:`UsageError`, before any work, where an executor cannot run here."""
    if isinstance(executor, SlurmExecutor) and shutil.which("sbatch") is None:
        raise UsageError(
            "executor.kind=slurm needs the command sbatch, which is not on this machine's PATH; run it "
            "on a node that submits jobs, or choose --executor local"
        )
    if isinstance(executor, RayExecutor) and importlib.util.find_spec("ray") is None:
        raise UsageError(
            "executor.kind=ray needs the package ray; pip install 'chronomask[ray]', or choose "
            "--executor local"
        )


def run_stage(
    stage: Stage,
    num_parts: int,
    workers: int,
    executor: Executor,
    done: Callable[[int], None],
) -> None:
    """Run a stage's tasks that are not done; ``done`` is called, in any order, with what is finished.

    A process that is killed costs the parts it had in hand: they are run again with fresh processes.
    Raises :class:`RunError` naming the parts that raised an error, or that still are not done.
    """
    todo = []
    for number in range(num_parts):
        if is_done(stage.work, stage.name, number):
            done(number)
        else:
            todo.append(number)
    for _ in range(_ATTEMPTS):
        if not todo:
            return
        failures = _attempt(stage, todo, workers, executor, done)
        if failures:
            first = min(failures)
            raise RunError(
                f"stage {stage.name} failed for parts {_listing(sorted(failures))} of {num_parts}; part "
                f"{first}: {failures[first]}. Run the same command again to continue with these parts alone"
            )
        todo = [number for number in todo if not is_done(stage.work, stage.name, number)]
    if todo:
        raise RunError(
            f"worker processes were killed {_ATTEMPTS} times in stage {stage.name}, parts "
            f"{_listing(todo)} (out of memory?); run the same command again to continue, with fewer "
            "--workers or a smaller part_characters"
        )


_ATTEMPTS = 3


def _listing(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers[:10])) + (", …" if len(numbers) > 10 else "")


def _attempt(
    stage: Stage,
    numbers: Sequence[int],
    workers: int,
    executor: Executor,
    done: Callable[[int], None],
) -> Failures:
    if isinstance(executor, SlurmExecutor):
        return _run_with_slurm(stage, numbers, workers, executor, done)
    if isinstance(executor, RayExecutor):
        return _run_with_ray(stage, numbers, workers, executor, done)
    assert isinstance(executor, LocalExecutor)
    with _single_threaded():
        if min(workers, len(numbers)) > 1:
            return _run_in_processes(stage, numbers, workers, done)
        return run_tasks(stage.work, stage.name, numbers, done)


def _run_in_processes(
    stage: Stage, numbers: Sequence[int], workers: int, done: Callable[[int], None]
) -> Failures:
    # Spawned, not forked: the parent may hold threads of the tokenizer or of torch.
    failures: Failures = {}
    pool = ProcessPoolExecutor(
        min(workers, len(numbers)),
        get_context("spawn"),
        initializer=begin_worker,
        initargs=(stage.needs_torch,),
    )
    try:
        for number, future in _as_handed_in(pool, stage, numbers, 2 * workers):
            error = future.exception()
            if isinstance(error, BrokenProcessPool):
                break  # a worker was killed, and the others with it: what is not done is run again
            if error is None:
                done(number)
            else:
                failures[number] = as_message(error)
    except BrokenProcessPool:  # raised by handing in
        pass
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    return failures


def _as_handed_in(
    pool: ProcessPoolExecutor, stage: Stage, numbers: Sequence[int], ahead: int
) -> Iterator[tuple[int, Future[None]]]:
    """Tasks as they finish; never more than ``ahead`` are waiting, however many parts there are."""
    waiting: dict[Future[None], int] = {}
    rest = iter(numbers)
    while True:
        for number in rest:
            waiting[pool.submit(run_task, stage.work, stage.name, number)] = number
            if len(waiting) >= ahead:
                break
        if not waiting:
            return
        for future in wait(waiting, return_when=FIRST_COMPLETED).done:
            yield waiting.pop(future), future


@contextmanager
def _single_threaded() -> Iterator[None]:
    """One thread a process, here and in children: the processes are the parallelism."""
    wanted = {"TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
    before = {key: os.environ.get(key) for key in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value


_OBJECT_STORE_BYTES = 100_000_000
"""Ray's store of a local instance: tasks hand over numbers only."""


def _run_with_ray(
    stage: Stage,
    numbers: Sequence[int],
    workers: int,
    executor: RayExecutor,
    done: Callable[[int], None],
) -> Failures:
    import ray
    from ray.exceptions import RayError, RayTaskError

    started = not ray.is_initialized()
    if started:
        address = executor.address or os.environ.get("RAY_ADDRESS")
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
    failures: Failures = {}
    try:
        # Retries are the caller's: what is missing afterwards is run again.
        task = ray.remote(num_cpus=1, max_retries=0)(run_task)
        waiting: dict[Any, int] = {}
        rest = iter(numbers)
        work = stage.work.resolve()
        while True:
            for number in rest:
                waiting[task.remote(work, stage.name, number)] = number
                if len(waiting) >= workers:
                    break
            if not waiting:
                return failures
            (finished,), _ = ray.wait(list(waiting), num_returns=1)
            number = waiting.pop(finished)
            try:
                ray.get(finished)
            except RayTaskError as error:
                failures[number] = as_message(error.cause or error)
            except RayError:
                continue  # the process or its node was lost: not done, so it is run again
            else:
                done(number)
    finally:
        if started:
            ray.shutdown()


def slurm_script(stage: Stage, num_jobs: int, executor: SlurmExecutor) -> str:
    """The script that ``sbatch`` runs ``num_jobs`` times, each doing its share of the listed parts."""
    logs = stage.work / "slurm"
    options = [
        f"--job-name=chronomask-{stage.name}",
        f"--array=0-{num_jobs - 1}",
        "--ntasks=1",
        f"--cpus-per-task={executor.cpus_per_worker}",
        f"--mem={executor.memory_per_worker}",
        f"--time={executor.time}",
        f"--output={logs}/{stage.name}-%a.log",
        *([f"--partition={executor.partition}"] if executor.partition else []),
        *executor.options,
    ]
    command = [sys.executable, "-m", "chronomask.prepare.tasks", str(stage.work), stage.name]
    lines = [
        "#!/bin/bash",
        *(f"#SBATCH {option}" for option in options),
        "set -e",
        *executor.setup,
        "export OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false",
        f'exec {shlex.join(command)} "$SLURM_ARRAY_TASK_ID" {num_jobs}'
        + (" --torch" if stage.needs_torch else ""),
    ]
    return "\n".join(lines) + "\n"


def _run_with_slurm(
    stage: Stage,
    numbers: Sequence[int],
    workers: int,
    executor: SlurmExecutor,
    done: Callable[[int], None],
) -> Failures:
    """Submit one job array and wait for it; what its jobs say is in ``.work/slurm``."""
    stage = Stage(stage.work.resolve(), stage.name, stage.needs_torch)
    (stage.work / "slurm").mkdir(exist_ok=True)
    for number in numbers:
        failure_file(stage.work, stage.name, number).unlink(missing_ok=True)
    write_listing(listing_file(stage.work, stage.name), numbers)
    num_jobs = min(workers, len(numbers))
    script = stage.work / "slurm" / f"{stage.name}.sh"
    write_bytes(script, slurm_script(stage, num_jobs, executor).encode())
    job = ""
    with subprocess.Popen(
        ["sbatch", "--parsable", "--wait", str(script)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as submitted:
        try:
            assert submitted.stdout is not None
            job = submitted.stdout.readline().strip().split(";")[0]
            _, said = submitted.communicate()
        except BaseException:
            if job:  # nobody waits for it any more
                subprocess.run(["scancel", job], check=False)
            raise
    if not job:
        raise UsageError(f"sbatch refused {script}: {said.strip()}")
    failures: Failures = {}
    for number in numbers:
        failed = failure_file(stage.work, stage.name, number)
        if is_done(stage.work, stage.name, number):
            done(number)
        elif failed.is_file():
            failures[number] = failed.read_text()
    return failures
