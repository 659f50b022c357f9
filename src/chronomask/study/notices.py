"""What must be known beside the numbers of runs: that they do not compare, or rest on little."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from chronomask.report.yardstick_tables import last_yardsticks
from chronomask.runs.read import Run
from chronomask.yardsticks import YARDSTICKS, few_in_words, telling_predictions

__all__ = ["data_notices", "device_notices", "few_notices", "predictions_of"]


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


def device_notices(runs: Iterable[Run]) -> list[str]:
    """A notice if runs were made on unlike devices: their times do not compare."""
    names = {
        str(run.environment.get("device_name") or run.environment.get("processor")) for run in runs
    } - {"None"}
    if len(names) < 2:
        return []
    return [f"Runs were made on {' and '.join(sorted(names))}: do not compare their times."]


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
