"""Which runs are compared by their losses, and their last losses: by seed and, where kept, by row."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from chronomask.report.comparison import LOSS, MEAN_LOSS, SINGLE_LOSS, first_few, join_words
from chronomask.report.yardstick_tables import last_yardsticks
from chronomask.runs.held_out import LOSSES_OF_ROWS, RowLosses, mean_of_rows, read_rows
from chronomask.runs.layout import RunFolder
from chronomask.runs.read import Run
from chronomask.study.gather import Gathered
from chronomask.study.notices import RunsByArm, seeds_in_words

__all__ = ["Loss", "last_losses", "runs_to_compare"]


@dataclass(frozen=True, slots=True)
class Loss:
    """A loss of validation: arm → seed → its last value, and how many predictions it is the mean of."""

    values: Mapping[str, Mapping[int, float]]
    predictions: float
    rows: Mapping[str, Mapping[int, np.ndarray]] | None
    """its values [rows] on the held-out rows, the same for all runs; None where a run does not have them"""


def runs_to_compare(gathered: Gathered) -> tuple[RunsByArm, list[str]]:
    """The runs whose losses are compared, and notices of those that are not.

    Of the complete arms, those on the seeds that all have. A seed in which a run diverged is no arm's; an arm
    of which every run did is left out itself, and takes no seed from the others. With no seed in common each
    arm has its own: then means are shown, and no difference is paired. None where the baseline has no run
    left.
    """
    finite: dict[str, dict[int, Run]] = {}
    diverged: set[int] = set()
    notices = []
    for arm in gathered.arms:
        runs = {seed: run for seed, run in sorted(arm.runs.items()) if len(run.validation)}
        kept = {
            seed: run for seed, run in runs.items() if math.isfinite(run.validation["loss"][-1])
        }
        lost = [seed for seed in runs if seed not in kept]
        if arm.complete and kept:
            finite[arm.name] = kept
            diverged.update(lost)
        if lost:
            notices.append(_divergence(arm.name, lost, stays=arm.name in finite))
    left = {
        name: {seed: run for seed, run in runs.items() if seed not in diverged}
        for name, runs in finite.items()
    }
    arms = {name: runs for name, runs in left.items() if runs}
    notices += [
        f"“{name}” has no seed left in which no run diverged: it is left out of every comparison of losses."
        for name in left
        if name not in arms
    ]
    if gathered.baseline not in arms:
        return {}, notices
    common = set.intersection(*map(set, arms.values()))
    if not common:
        return arms, [*notices, _of_unlike_seeds(arms)]
    alone = {name: [seed for seed in runs if seed not in common] for name, runs in arms.items()}
    if beside := [f"“{name}” {seeds_in_words(seeds)}" for name, seeds in alone.items() if seeds]:
        notices.append(
            "Losses are compared on the seeds that all arms have; left out: "
            f"{join_words(first_few(beside))}."
        )
    return {
        name: {seed: runs[seed] for seed in sorted(common)} for name, runs in arms.items()
    }, notices


def _divergence(arm: str, seeds: Sequence[int], *, stays: bool) -> str:
    """A notice of an arm's runs whose training went out of bounds; ``stays``: it has others."""
    what = (
        "its seed is left out of every comparison of losses, of all arms"
        if stays
        else "the arm has no other that is complete, so that it is left out of every comparison of losses"
    )
    return (
        f"“{arm}” ended with a loss that is no number with {seeds_in_words(seeds)}: such a run has "
        f"diverged, and {what}."
    )


def _of_unlike_seeds(arms: RunsByArm) -> str:
    """A notice of arms that no seed is common to."""
    own = [f"“{name}” {seeds_in_words(list(runs))}" for name, runs in arms.items()]
    return (
        f"No seed is common to all arms ({join_words(first_few(own))}): losses are means over each arm’s own "
        "seeds, so that their differences are of other seeds too, and have no interval."
    )


def last_losses(runs: RunsByArm) -> dict[str, Loss]:
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


def _by_row(runs: RunsByArm) -> dict[str, dict[int, RowLosses]] | None:
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
