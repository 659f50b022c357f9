"""``hours``: how many steps fit into a wall-clock budget, found from what a trial measured before step 0.

The trial is a run of its own that is thrown away, so it leaves no trace in the run that follows: that one
has its number of steps in ``config.yaml`` and in every checkpoint, and is the run that ``steps`` gives,
bit for bit. Deciding within the run was left aside: schedules are functions of step / steps, so a number
that is found at step k would either bend them there or change what the first k steps have already done.
"""

from __future__ import annotations

import logging
import math
import time
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from chronomask.errors import UsageError, amount
from chronomask.runs.layout import RunFolder, checkpoints_in
from chronomask.train.config import RunConfig
from chronomask.yardsticks import FEW_PREDICTIONS, ROWS_OF_TRAINING

__all__ = [
    "TRIAL_STEPS",
    "Costs",
    "clock",
    "describe",
    "few_validations",
    "fixed_steps",
    "number_of_validations",
    "refuse_no_average",
    "steps_within",
    "trial_config",
]

logger = logging.getLogger(__name__)

TRIAL_STEPS = 24
"""Steps of a trial, spread over the run's progress; the first of them warm up, so that the median counts."""
_MOST = 10**9

clock = time.perf_counter
"""The clock, in seconds; tests replace it."""


@dataclass(frozen=True, slots=True)
class Costs:
    """What a run's parts take here, in seconds."""

    once: float
    """opening the run, and what the first steps take beyond the others, such as compiling"""
    row: float
    """a row of training"""
    validation: float
    checkpoint: float

    @classmethod
    def of(
        cls,
        config: RunConfig,
        opening: float,
        steps: list[float],
        *,
        validation: float,
        saving: float,
    ) -> Costs:
        """From the times of a trial's parts, ``steps`` being those of its steps in turn."""
        usual = median(steps)
        slow = sum(max(0.0, seconds - usual) for seconds in steps)
        # A mean of the weights is validated beside them; the trial has none.
        both = 2 if config.averaging is not None else 1
        return cls(opening + slow, usual / config.rows_per_step, both * validation, saving)

    def of_run(self, config: RunConfig, steps: int) -> float:
        """Seconds of a whole run of so many steps, its validations and checkpoints included.

        A checkpoint that is written while training goes on takes no time, but for the last.
        """
        if config.rows_follow_ratio:  # their course stretches with the steps
            rows = config.sizes.rows_before(config.steps) * steps / config.steps
        else:
            rows = config.sizes.rows_before(steps)
        validations = number_of_validations(config, steps)
        saves = 1 if config.checkpoint.asynchronous else _number(config.checkpoint.every, steps)
        saves += config.checkpoint.at_start
        return self.once + rows * self.row + validations * self.validation + saves * self.checkpoint


def number_of_validations(config: RunConfig, steps: int) -> int:
    """How often a run of so many steps is validated."""
    return _number(config.validation.every, steps) + config.validation.at_start


def few_validations(config: RunConfig, steps: int, row_length: int, most: int) -> dict[str, int]:
    """``validation.rows`` and ``.every`` that keep the validations of so many steps to 3 % of the work.

    At most ``most`` beside the one at the start, on no more rows than ``config`` asks for. First the rows
    become fewer, down to what makes enough predictions at a ratio of 5 %; then the validations do, down to
    those half-way and at the end, which too short a run pays more for.
    """
    affordable = 0.03 * steps * config.rows_per_step / ROWS_OF_TRAINING
    asked = config.validation.rows
    fewest = min(asked, math.ceil(FEW_PREDICTIONS / (0.05 * row_length)))
    rows = max(fewest, min(asked, int(affordable / (most + 1))))
    number = max(2, min(most, int(affordable / rows) - 1))
    return {"validation.rows": rows, "validation.every": max(1, math.ceil(steps / number))}


def _number(every: int, steps: int) -> int:
    """How often something is done every so many steps and at the end."""
    return -(-steps // every) if every else 1


def steps_within(config: RunConfig, costs: Costs, seconds: float) -> int:
    """The most steps that take no more than ``seconds``; 0 if not one does."""
    fits, too_many = 0, _MOST
    while too_many - fits > 1:
        middle = (fits + too_many) // 2
        within = costs.of_run(config, middle) <= seconds
        fits, too_many = (middle, too_many) if within else (fits, middle)
    return fits


def trial_config(config: RunConfig) -> RunConfig:
    """The run whose steps are measured: all of them with full rows, and nothing that others would read."""
    plain: dict[str, Any] = {
        "hours": None,
        "steps": max(config.steps, TRIAL_STEPS),  # rows of so many are read
        "batch_warmup": None,
        "length_warmup": None,
        "rows_follow_ratio": False,
        "averaging": None,
        "outliers": {"kind": "none"},
        "learning_rate": {"kind": "constant", "peak": 1e-9},  # without a warm-up it might diverge
        "loggers": [],
    }
    trial = RunConfig.parse(config.to_dict() | plain, "the configuration")
    masking = trial.masking
    masking = masking.model_copy(update={"content": masking.content.paid_step_by_step()})
    return trial.model_copy(update={"masking": masking})


def fixed_steps(config: RunConfig, folder: RunFolder) -> int | None:
    """The number of steps that the run in ``folder`` began with; None where none did with these hours."""
    if not folder.config.is_file():
        return None
    folder.check_config()
    before = RunConfig.load(folder.config)
    same = before.hours == config.hours or checkpoints_in(folder.checkpoints)
    return before.steps if same else None


def describe(config: RunConfig, costs: Costs, steps: int) -> dict[str, Any]:
    """What ``environment.json`` says of how the number of steps was found; it is logged too.

    Raises UsageError for no step, and for too few of them to average.
    """
    if not steps:
        raise UsageError(
            f"hours is {config.hours:g}, and not one step fits into what the trial left of it: opening the "
            f"run, a step, a validation and a checkpoint take {costs.of_run(config, 1):.3g} s here; give "
            "more hours, or steps instead"
        )
    refuse_no_average(config, steps)
    logger.info(
        "Room for %s within %g hours: %.3g s a step of %s rows, %.3g s a validation, %.3g s a checkpoint, "
        "%.3g s before and around them",
        amount(steps, "steps"), config.hours, costs.row * config.rows_per_step, f"{config.rows_per_step:,}",
        costs.validation, costs.checkpoint, costs.once,
    )  # fmt: skip
    return {"hours": config.hours, "steps": steps, "seconds": asdict(costs)}


def refuse_no_average(config: RunConfig, steps: int) -> None:
    """Raise UsageError where the mean of the weights would be of none, in the steps that ``hours`` gives."""
    averaging = config.averaging
    if averaging is not None and not averaging.number(steps):
        raise UsageError(
            f"hours is {config.hours:g}, which is room for {amount(steps, 'steps')} here, and "
            f"averaging.every ({averaging.every}) leaves none of them to average: lower it, or "
            "give more hours"
        )
