"""The memory of one device that a run takes, and what is said where there is too little of it.

A CUDA device without memory left raises an error, which is told with the settings that take less. A host
may end the process instead, and nothing can be said then: what it has is compared beforehand.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from traceback import clear_frames

from torch import nn
from transformers import PreTrainedModel

from chronomask.data.loader import rows_of_pass
from chronomask.errors import RunError, amount
from chronomask.machine import memory_of_process
from chronomask.model.device import memory_lacking, precision_on
from chronomask.model.memory import Memory, estimate_memory
from chronomask.runs.continuation import goes_on
from chronomask.runs.layout import RunFolder, checkpoints_in
from chronomask.runs.rules import expect, unchangeable
from chronomask.train.config import RunConfig
from chronomask.train.distributed import World
from chronomask.train.run import Run

__all__ = [
    "memory_of_step",
    "telling_of_opening",
    "telling_what_takes_less",
    "warn_of_little_memory",
]

logger = logging.getLogger(__name__)


def memory_of_step(
    config: RunConfig,
    model: PreTrainedModel,
    *,
    devices: int,
    row_length: int,
    maskable: float,
    bf16: bool,
    on_cuda: bool,
) -> Memory:
    """What a step takes of one device, at the largest step and the highest ratio.

    ``model`` may lie on ``meta``; ``devices`` share the rows of a step; ``maskable``: tokens of a row that
    may be masked.
    """
    of_device = -(-config.rows_per_step // devices)
    micro = -(-of_device // min(config.micro_batches, of_device))
    highest = expect(config, lambda step: row_length).highest_ratio
    causal = config.objective.has_causal_rows
    return estimate_memory(
        model,
        state_numbers=config.optimiser.state_numbers(model) + _size_of_average(config, model),
        rows=micro,
        row_length=row_length,
        predicted=micro * row_length if causal else round(micro * maskable * highest),
        bf16=bf16,
        bf16_weights=config.bf16_weights,
        on_cuda=on_cuda,
        checkpointing=config.activation_checkpointing,
    )


def warn_of_little_memory(run: Run, world: World) -> None:
    """Warn where a step on the host may take more memory than it has, with settings that take less.

    On a CUDA device nothing is said: see :func:`telling_what_takes_less`.
    """
    if world.device.type != "cpu":
        return
    has = memory_of_process()
    needed = _on_host(run, run.config, world)
    if needed > has:
        logger.warning(
            "a step takes up to %s GB of memory for each process, and there are %s GB: the system may end "
            "the run without a word; %s",
            f"{needed / 1e9:,.1f}", f"{has / 1e9:,.1f}", _what_fits(run, world, has),
        )  # fmt: skip


def _what_fits(run: Run, world: World, has: int) -> str:
    """Settings with which a step takes well below ``has`` bytes of the host, as far as there are some."""
    rows = -(-run.config.rows_per_step // world.size)
    number = min(run.config.micro_batches, rows)
    while number < rows:
        number = min(2 * number, rows)
        smaller = f"micro_batches={number}"
        takes = _on_host(run, run.config.replace([smaller]), world)
        if takes <= 0.75 * has and _may_have(run, smaller):
            return f"set {smaller}, which takes up to {takes / 1e9:.1f} GB"
    fewer = max(1, has // 4 // (_BYTES_OF_A_TOKEN * run.data.row_length))
    if fewer < rows and not checkpoints_in(run.folder.checkpoints):
        return f"set rows_per_step={fewer * world.size} or fewer"
    if not run.config.activation_checkpointing:
        return "set activation_checkpointing=true, or begin another run, with shorter rows or a smaller model"
    return "begin another run, with shorter rows or a smaller model"


def _may_have(run: Run, setting: str) -> bool:
    """Whether the run may go on with a setting: once it has a checkpoint, it has some for good."""
    begun = checkpoints_in(run.folder.checkpoints)
    return not begun or not unchangeable(run.config, run.config.replace([setting]))


def _on_host(run: Run, config: RunConfig, world: World) -> int:
    """Bytes that a step of the run takes of the host, with the settings of ``config``."""
    length = run.data.row_length
    memory = memory_of_step(
        config,
        run.model,
        devices=world.size,
        row_length=length,
        maskable=length,
        bf16=precision_on(world.device, config.precision) == "bf16",
        on_cuda=False,
    )
    return memory.total + config.rows_per_step // world.size * length * _BYTES_OF_A_TOKEN


_BYTES_OF_A_TOKEN = 64
"""Of the rows and masks of a whole step, which are there before the first micro-batch is computed."""


def _size_of_average(config: RunConfig, model: nn.Module) -> int:
    """How many float32 numbers the averaged weights have; 0 without averaging."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad and config.averaging)


@contextmanager
def telling_of_opening(world: World, folder: RunFolder) -> Iterator[None]:
    """Say what to do where a model and its optimiser's state find no place on the device; raises RunError."""
    try:
        yield
    except Exception as error:
        if (why := memory_lacking(error)) is None:
            raise
        clear_frames(error.__traceback__)  # which hold tensors
        mend = "end what else has memory there"
        if checkpoints_in(folder.checkpoints):
            mend += f", then {goes_on()}"
        else:
            mend = f"choose a smaller model, or {mend}"
        raise RunError(
            f"{world.device} has too little memory for the model and what its optimiser keeps: {why}; {mend}"
        ) from error


@contextmanager
def telling_what_takes_less(run: Run, world: World, *, validating: bool = False) -> Iterator[None]:
    """Name the settings that take less memory where there is too little; raises RunError.

    ``validating``: it is a validation and no step.
    """
    try:
        yield
    except Exception as error:
        if (why := memory_lacking(error)) is None:
            raise
        clear_frames(error.__traceback__)  # which hold tensors
        what, ways = (_of_validation if validating else _of_training)(run, world)
        mend = (
            f"set {' or '.join(ways)}; then {goes_on()}"
            if ways
            else f"end what else has memory there, then {goes_on()}; or begin in another output folder, with "
            "shorter rows or a smaller model"
        )
        raise RunError(f"{world.device} has too little memory: {why}. {what}: {mend}") from error


def _of_validation(run: Run, world: World) -> tuple[str, list[str]]:
    """What a validation takes, and the settings that take less."""
    validation = run.config.validation
    all_rows = min(validation.rows, run.data.split("held_out").num_rows)
    at_once = rows_of_pass(run.data.row_length, validation.batch_rows)
    rows = min(at_once, max(1, -(-all_rows // world.size)))
    ways = [f"validation.batch_rows={rows // 2}"] if rows > 1 else []
    return f"A validation takes {amount(rows, 'rows')} at a time", ways


def _of_training(run: Run, world: World) -> tuple[str, list[str]]:
    """The same of a step."""
    config = run.config
    rows = -(-config.rows_per_step // world.size)
    batches = min(config.micro_batches, rows)
    smaller = f"micro_batches={min(2 * batches, rows)}"
    ways = [smaller] if batches < rows and _may_have(run, smaller) else []
    if not config.activation_checkpointing:
        ways.append("activation_checkpointing=true")
    most = amount(-(-rows // batches), "rows")
    return f"A micro-batch has up to {most} of {run.data.row_length:,} tokens", ways
