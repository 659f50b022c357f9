"""Tasks: what a worker process is asked to do, by the name of its stage and the number of its part.

``python -m chronomask.prepare.tasks WORK STAGE RANK WORLD_SIZE`` does a share of them on a cluster's node.
Every function has the shape of a datatrove step, the part's number being the rank, and leaves a part that
is done alone. May enter: stages made of independent tasks.
"""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from chronomask.errors import ChronomaskError
from chronomask.storage import write_bytes

__all__ = [
    "as_message",
    "begin_worker",
    "failure_file",
    "is_done",
    "listing_file",
    "mark_file",
    "run_task",
    "run_tasks",
    "write_listing",
]


def _function_of(stage: str) -> Callable[..., Iterator[Any]]:
    # Each stage brings its own libraries: a worker imports only what its stage needs.
    if stage == "annotate":
        from chronomask.prepare.rows.engine import annotate_part

        return annotate_part
    if stage == "filter":
        from chronomask.prepare.clean.filters import filter_part

        return filter_part
    assert stage == "signatures", stage
    from chronomask.prepare.clean.deduplicate import sign_part

    return sign_part


def mark_file(work: Path, stage: str, number: int) -> Path:
    """The file that says that a task is done; it is written last."""
    name = {"annotate": "counts", "filter": "filtered", "signatures": "signed"}[stage]
    return work / f"{name}-{number:06d}.json"


def is_done(work: Path, stage: str, number: int) -> bool:
    """Whether the part has been through the stage."""
    return mark_file(work, stage, number).is_file()


def run_task(work: Path, stage: str, number: int) -> None:
    """Do one task, unless it is done."""
    for _ in _function_of(stage)(rank=number, work=work):
        pass


def run_tasks(
    work: Path, stage: str, numbers: Sequence[int], done: Callable[[int], None]
) -> dict[int, str]:
    """Do tasks one after the other, in this process; returns number and message of those that failed."""
    failures = {}
    for number in numbers:
        try:
            run_task(work, stage, number)
        except Exception as error:
            failures[number] = as_message(error)
        else:
            done(number)
    return failures


def as_message(error: BaseException) -> str:
    """An error on one line: our own as it is, any other with its kind."""
    text = str(error).strip().replace("\n", " ")
    return text if isinstance(error, ChronomaskError) else f"{type(error).__name__}: {text}"


def begin_worker(needs_torch: bool) -> None:
    """Prepare a worker process."""
    # Ctrl-C reaches the parent, which lets the parts in hand finish and hands out no more.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if not needs_torch:
        # spaCy imports torch if it is there, for models other than the bundled one: two seconds and
        # 190 MB for every worker.
        sys.modules.setdefault("torch", None)  # type: ignore[arg-type]


def listing_file(work: Path, stage: str) -> Path:
    """Where the parts that a job array shares out are listed."""
    return work / f"todo-{stage}.json"


def failure_file(work: Path, stage: str, number: int) -> Path:
    """Where a job of a cluster leaves the message of a part that failed."""
    return work / f"failed-{stage}-{number:06d}.txt"


def write_listing(file: Path, numbers: Sequence[int]) -> None:
    """List parts; fixed before the jobs start, so that no two of them take the same."""
    write_bytes(file, json.dumps(list(numbers)).encode())


def main(arguments: Sequence[str]) -> int:
    """Do every WORLD_SIZE-th listed part from the RANK-th on; 1 if any failed."""
    work, stage, rank, world_size, *options = arguments
    begin_worker("--torch" in options)
    numbers = json.loads(listing_file(Path(work), stage).read_text())
    failures = run_tasks(
        Path(work), stage, numbers[int(rank) :: int(world_size)], lambda number: None
    )
    for number, message in failures.items():
        write_bytes(failure_file(Path(work), stage, number), message.encode())
        print(f"chronomask: {stage} part {number}: {message}", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
