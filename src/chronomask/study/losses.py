"""The last losses of validation of runs that are compared: by seed and, where they were kept, by row."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from chronomask.report.comparison import LOSS, MEAN_LOSS, SINGLE_LOSS
from chronomask.report.yardstick_tables import last_yardsticks
from chronomask.runs.held_out import LOSSES_OF_ROWS, RowLosses, mean_of_rows, read_rows
from chronomask.runs.layout import RunFolder
from chronomask.runs.read import Run

__all__ = ["Loss", "last_losses"]


@dataclass(frozen=True, slots=True)
class Loss:
    """A loss of validation: arm → seed → its last value, and how many predictions it is the mean of."""

    values: Mapping[str, Mapping[int, float]]
    predictions: float
    rows: Mapping[str, Mapping[int, np.ndarray]] | None
    """its values [rows] on the held-out rows, the same for all runs; None where a run does not have them"""


def last_losses(runs: Mapping[str, Mapping[int, Run]]) -> dict[str, Loss]:
    """The losses of validation by task: at the fixed ratio, and, where all runs have them, the mean of the
    yardsticks and that of a single mask. Raises DataError for a damaged file of row losses.
    """
    if not runs:
        return {}
    first = next(run for own in runs.values() for run in own.values())
    counts = last_yardsticks(first, "yardstick_count")
    found: dict[str, Loss] = {}
    by_row = _by_row(runs)
    for task, number in {
        LOSS: first.validation.last("num_predicted"),
        MEAN_LOSS: sum(own for name, own in counts.items() if "/" not in name),
        SINGLE_LOSS: counts.get("single", 0),
    }.items():
        losses = {
            arm: {seed: _last_loss(run, task) for seed, run in own.items()}
            for arm, own in runs.items()
        }
        if task == LOSS or np.isfinite([x for own in losses.values() for x in own.values()]).all():
            rows = None
            if by_row is not None:
                rows = {
                    arm: {seed: mean_of_rows(kept, _KEPT_AS[task]) for seed, kept in own.items()}
                    for arm, own in by_row.items()
                }
            found[task] = Loss(losses, number, rows)
    return found


_KEPT_AS = {
    LOSS: LOSSES_OF_ROWS[:1],
    MEAN_LOSS: LOSSES_OF_ROWS[1:],
    SINGLE_LOSS: ("single",),
}
"""The losses by row that each loss of a comparison is the mean of."""


def _by_row(runs: Mapping[str, Mapping[int, Run]]) -> dict[str, dict[int, RowLosses]] | None:
    """What the last validations found of every held-out row; None where not all runs kept it of the same
    predictions.
    """
    found: dict[str, dict[int, RowLosses]] = {}
    for arm, own in runs.items():
        for seed, run in own.items():
            kept = read_rows(RunFolder(run.path).validation_rows, int(run.validation["step"][-1]))
            if kept is None:
                return None
            found.setdefault(arm, {})[seed] = kept
    numbers = [
        [kept[name][1] for name in LOSSES_OF_ROWS]
        for own in found.values()
        for kept in own.values()
    ]
    alike = all(np.array_equal(number, numbers[0]) for number in numbers[1:])
    return found if alike and all(number.any() for number in numbers[0]) else None


def _last_loss(run: Run, task: str) -> float:
    """The last value of one of the losses; NaN where the run has none."""
    if task == SINGLE_LOSS:
        return last_yardsticks(run, "yardstick_loss").get("single", math.nan)
    return run.validation.last("loss" if task == LOSS else "mean_loss")
