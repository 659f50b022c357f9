"""A device that has no memory left: what is said then, with the settings that take less."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from traceback import clear_frames

from chronomask.errors import RunError
from chronomask.model.device import memory_lacking
from chronomask.train.distributed import World
from chronomask.train.run import Run

__all__ = ["telling_what_takes_less"]


@contextmanager
def telling_what_takes_less(
    run: Run, world: World, *, validating: bool = False, on_trial: bool = False
) -> Iterator[None]:
    """Name the settings that take less memory where there is too little; raises RunError.

    ``validating``: it is a validation and no step; ``on_trial``: nothing is trained yet.
    """
    try:
        yield
    except Exception as error:
        if (why := memory_lacking(error)) is None:
            raise
        clear_frames(error.__traceback__)  # which hold tensors
        advice = _of_validation(run) if validating else _of_training(run, world)
        again = (
            "run the same command again" if on_trial else "the same command goes on with --resume"
        )
        raise RunError(
            f"{world.device} has too little memory: {why}. {advice}; then {again}"
        ) from error


def _of_validation(run: Run) -> str:
    rows = run.config.validation.batch_rows
    return (
        f"A validation takes {rows} rows at a time: set validation.batch_rows={max(1, rows // 2)}"
    )


def _of_training(run: Run, world: World) -> str:
    config = run.config
    rows = -(-config.rows_per_step // world.size)
    batches = min(config.micro_batches, rows)
    ways = [] if batches == rows else [f"micro_batches={min(2 * batches, rows)}"]
    if not config.activation_checkpointing:
        ways.append("activation_checkpointing=true")
    mend = f"set {' or '.join(ways)}" if ways else "prepare shorter rows, or choose a smaller model"
    return f"A micro-batch has up to {-(-rows // batches):,} rows of {run.data.row_length:,} tokens: {mend}"
