"""What must be known beside the numbers of runs: that they do not compare, or rest on little."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from chronomask.report.arms import identity_of, seed_of
from chronomask.report.comparison import first_few, join_words
from chronomask.report.yardstick_tables import last_yardsticks
from chronomask.runs.layout import RunFolder, branch_folder
from chronomask.runs.read import Run
from chronomask.yardsticks import YARDSTICKS, few_in_words, telling_predictions

__all__ = [
    "RunsByArm",
    "branch_notices",
    "data_notices",
    "device_notices",
    "few_notices",
    "predictions_of",
    "repetition_notices",
    "seeds_in_words",
    "without_copies",
]

RunsByArm = Mapping[str, Mapping[int, Run]]
"""Arm → seed → run."""


def seeds_in_words(seeds: Sequence[int]) -> str:
    """``seed 3``, ``seeds 0 and 1``."""
    return f"seed{'s' * (len(seeds) > 1)} {join_words([str(seed) for seed in seeds])}"


def without_copies(runs: Sequence[Run]) -> tuple[list[Run], list[str]]:
    """The runs but those that are a copy of one before, with a notice of each of these.

    A log has times in it, so that of two runs that were made it is never the same.
    """
    found: dict[tuple[str, int, bytes], Run] = {}
    notices = []
    for run in runs:
        key = (identity_of(run), seed_of(run), RunFolder(run.path).metrics.read_bytes())
        if (first := found.setdefault(key, run)) is not run:
            notices.append(
                f"{run.path} is left out as a copy of {first.path}: their logs are the same byte for byte."
            )
    return list(found.values()), notices


def repetition_notices(arms: RunsByArm) -> list[str]:
    """Notices of arms that are one way to mask, and apart only because they have a seed twice."""
    alike: dict[str, list[str]] = {}
    for name, runs in arms.items():
        alike.setdefault(identity_of(next(iter(runs.values()))), []).append(name)
    notices = []
    for names in alike.values():
        if len(names) > 1:
            seeds = sorted({seed for name in names[1:] for seed in arms[name]})
            notices.append(
                f"{join_words(first_few([f'“{name}”' for name in names]))} are the same way to mask, with "
                f"several runs of {seeds_in_words(seeds)}: an arm has one of each seed, so that they stand "
                "apart. Leave out what you do not mean to compare."
            )
    return notices


def branch_notices(arms: RunsByArm) -> list[str]:
    """Notices of arms that go on from other runs: whose they are, and what their numbers count."""
    known = {
        run.path.resolve(): f"“{name}”" for name, runs in arms.items() for run in runs.values()
    }
    notices = []
    for name, runs in arms.items():
        origins: dict[str, None] = {}
        for run in runs.values():
            if isinstance(branch := run.environment.get("branch"), dict):
                folder = branch_folder(branch["checkpoint"]).path
                origins[f"step {branch['step']:,} of {known.get(folder.resolve(), folder)}"] = None
        if origins:
            notices.append(
                f"“{name}” goes on from {join_words(first_few(list(origins)))}, with the weights that it had "
                "there: its steps, tokens and labels are those after that."
            )
    return notices


def few_notices(runs: Sequence[Run]) -> list[str]:
    """Of the run whose last validation rests on the fewest predictions, where these are too few."""
    found: list[tuple[float, str]] = []
    for run in runs:
        counts = last_yardsticks(run, "yardstick_count")
        numbers = [int(counts.get(own.name, 0)) for own in YARDSTICKS]
        at_ratio = run.validation.last("num_predicted") if len(run.validation) else math.nan
        if counts and math.isfinite(at_ratio) and (few := few_in_words(int(at_ratio), numbers)):
            found.append((telling_predictions(int(at_ratio), numbers), few))
    if not found:
        return []
    few = min(found)[1]
    return [
        f"{few[:1].upper()}{few[1:]}. Intervals over seeds do not have that in them, for all runs answer the "
        "same predictions: hold out more text, or raise validation.rows."
    ]


def predictions_of(runs: Iterable[Run]) -> list[int]:
    """On how many predictions the runs' last validations rest: the different numbers, rising."""
    found = {run.validation.last("num_predicted") for run in runs}
    return sorted(int(number) for number in found if number == number)


def device_notices(runs: Sequence[Run]) -> list[str]:
    """Notices if runs were made on unlike devices, whose times do not compare, or in unlike precisions."""
    names = {
        str(run.environment.get("device_name") or run.environment.get("processor")) for run in runs
    } - {"None"}
    found = []
    if len(names) > 1:
        found.append(
            f"Runs were made on {' and '.join(sorted(names))}: do not compare their times."
        )
    precisions = {str(run.environment.get("precision")) for run in runs} - {"None"}
    if len(precisions) > 1:
        found.append(
            f"Some runs computed in {' and some in '.join(sorted(precisions))}: their times do not compare, "
            "and their losses differ by rounding too. precision: fp32 is the same on every device."
        )
    return found


def data_notices(runs: Sequence[Run]) -> list[str]:
    """Notices where the losses of runs do not compare."""
    found = []
    ratios = {float(ratio) for run in runs for ratio in run.validation["masking_ratio"]}
    if len({run.summary.get("data_fingerprint") for run in runs if run.summary}) > 1:
        found.append(
            "These runs were not trained on the same prepared data: do not compare their losses."
        )
    if len({ratio for ratio in ratios if ratio == ratio}) > 1:
        found.append(
            "These runs were not validated at the same masking ratio: do not compare their losses."
        )
    numbers = predictions_of(runs)
    orders = {(run.config.get("validation") or {}).get("order", "data") == "data" for run in runs}
    if not found and (len(numbers) > 1 or len(orders) > 1):
        several = (
            ""
            if len(numbers) < 2
            else f" rest on {numbers[0]:,} to {numbers[-1]:,} predictions, and"
        )
        found.append(
            "These runs were not validated on the same held-out rows (validation.rows, validation.order): "
            f"their losses{several} are not those of the same words."
        )
    return found
