"""What a study will do, take and be able to see, told before it begins.

Time is read off what has run in the folder already; before, the operations of the runs give the least that it
can be. Power is read off the scatter of seeds: of this study's
own last comparison where there is one, else of a stored study.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, variance

import torch

from chronomask.errors import ChronomaskError
from chronomask.model.device import data_sheet_flops
from chronomask.report.comparison import (
    FILE,
    LOSS,
    MEAN_LOSS,
    Numbers,
    difference_text,
    duration,
    read_comparison,
    task_title,
    unit_of,
)
from chronomask.runs.result import TaskResult
from chronomask.study.statistics import smallest_difference
from chronomask.study.units import Study, Unit
from chronomask.train.dry_run import cost_in_words, dry_run

__all__ = ["STORED_SPREADS", "plan_in_words"]

Spread = tuple[float, float, str, str]
"""Standard deviation over seeds of an arm's difference from the baseline, that of the mean difference over
resampled examples (0 for a loss of validation), metric, unit."""

STORED_SPREADS: dict[str, Spread] = {
    MEAN_LOSS: (0.044, 0.0, "loss", "nats"),
    LOSS: (0.019, 0.0, "loss", "nats"),
    "blimp": (0.0070, 0.0019, "accuracy", "fraction"),
    "upos_probe": (0.0014, 0.0010, "accuracy", "fraction"),
    "pseudo_perplexity": (0.048, 0.0040, "loss", "nats"),
    "cola": (0.026, 0.019, "mcc", "fraction"),
    "sst2": (0.0076, 0.0073, "accuracy", "fraction"),
    "mrpc": (0.018, 0.0093, "f1", "fraction"),
    "stsb": (0.067, 0.011, "spearman", "fraction"),
    "rte": (0.035, 0.016, "accuracy", "fraction"),
    "squad": (2.15, 0.08, "f1", "percent"),
}
"""Of eight arms and three seeds of a ModernBERT of 4 layers × 256 after 41 M tokens
(docs/results/eight-ways), pooled
over the arms by their variances; the spread over examples from the widths of its intervals. That
study has no mean of the yardsticks: its spread is that of the thirteen small arms of
docs/results/over-time. A model or text of another size scatters otherwise."""


@dataclass(frozen=True, slots=True)
class _Time:
    """What is left of a study, in seconds of one process."""

    text: str
    seconds: float = 0.0
    """0: none is left, or it is not known"""
    is_least: bool = False
    """whether it may well be more"""


def plan_in_words(
    study: Study,
    units: Sequence[Unit],
    workers: int,
    *,
    devices: int = 1,
    price_per_hour: float | None = None,
) -> str:
    """The units, the time they will take and cost, and the smallest difference that the study can show, as
    lines.

    ``devices``: what ``workers`` processes share; ``price_per_hour``: of one of them.
    """
    waiting = [unit for unit in units if not study.is_complete(unit)]
    time = _time_of(study, waiting, workers)
    lines = [_units_in_words(units, waiting), f"time: {time.text}"]
    if time.seconds:
        # Processes beyond the number of devices share them.
        shared = time.seconds * min(1.0, devices / workers)
        least = "at least " if time.is_least else ""
        lines.append(f"cost: {least}{cost_in_words(shared, price_per_hour)}")
    return "\n".join([*lines, *_power_in_words(study)])


def _units_in_words(units: Sequence[Unit], waiting: Sequence[Unit]) -> str:
    kinds = Counter(str(unit.kind) for unit in waiting)
    counts = [f"{number:,} to {kind}" for kind, number in kinds.items()]
    done = len(units) - len(waiting)
    return f"plan: {len(units):,} units, {done:,} complete" + (
        f"; {', '.join(counts)}" if counts else ""
    )


def _time_of(study: Study, waiting: Sequence[Unit], workers: int) -> _Time:
    """By the rows of runs and the tasks of results that ended here; before the first has, by operations."""
    rates, results = _rates(study)
    if rates is None:
        return _least_time_of(study, waiting)
    total, unknown = 0.0, 0
    for unit in waiting:
        if unit.kind == "pretrain":
            config = study.arms[unit.arm].config
            total += rates * config.sizes.rows_before(config.steps)
        elif unit.kind == "evaluate":
            total += results.get(unit.task, 0.0)
            unknown += unit.task not in results
    text = f"{duration(total)} of one process for what is left, at the rates measured here"
    if workers > 1:
        text += f"; about {duration(total / workers)} with {workers} if they do not slow each other down"
    if unknown:
        text += f" ({unknown:,} results of tasks not yet measured are not in it)"
    return _Time(text, total)


def _least_time_of(study: Study, waiting: Sequence[Unit]) -> _Time:
    """Of a study in which no run has ended: what its runs take at a rate that no model reaches."""
    unknown = _Time("not known before a run has ended here; the same command tells it then")
    if not study.is_complete(study.units[0]):
        return unknown
    runs = Counter(unit.arm for unit in waiting if unit.kind == "pretrain")
    rate, total, source = None, 0.0, "of a dense product measured here"
    try:
        for arm, number in runs.items():
            config = study.arms[arm].config
            if rate is None and config.device != "cpu" and torch.cuda.is_available():
                # Nothing is measured there: the device belongs to the processes that will train.
                rate, source = (
                    data_sheet_flops(torch.device("cuda"), config.precision),
                    "of its data sheet",
                )
                if rate is None:
                    return unknown
            one = dry_run(config, flops_per_second=rate)
            rate = one.flops_per_second
            total += number * one.seconds
    except ChronomaskError:  # what training refuses is said when the run begins
        return unknown
    text = (
        f"at least {duration(total)} of one process: the operations of training, at the rate {source}, "
        "which no model reaches; once a run has ended the same command tells more"
    )
    return _Time(text, total, is_least=True)


def _rates(study: Study) -> tuple[float | None, dict[str, float]]:
    """Seconds a row of training, and of a result by task; of what is complete."""
    rows = seconds = 0.0
    results: dict[str, list[float]] = {}
    for unit in study.units:
        if unit.kind == "prepare" or not study.is_complete(unit):
            continue
        if unit.kind == "pretrain":
            summary = json.loads(study.run(unit).summary.read_text(encoding="utf-8"))
            config = study.arms[unit.arm].config
            rows += config.sizes.rows_before(config.steps)
            seconds += float(summary["seconds"])
        else:
            results.setdefault(unit.task, []).append(TaskResult.load(study.result(unit)).seconds)
    return (seconds / rows if rows else None), {task: mean(own) for task, own in results.items()}


def _power_in_words(study: Study) -> list[str]:
    """The smallest difference of each measure, by itself and as the first under Holm’s correction."""
    number = len(study.config.seeds)
    if number < 2:
        return ["power: one seed gives no interval, so no difference can be shown"]
    pairs = len(study.config.contrasts or list(study.arms)[1:])
    if not pairs:
        return []
    spreads, source = _spreads(study)
    measures = [MEAN_LOSS, LOSS, *study.tasks]
    others = pairs * (len(measures) - 1)
    lines = [
        f"power: the smallest true difference that {number} seeds show in four studies of five, by itself "
        f"and as the first under Holm’s correction: of {_tests(pairs)} on the first measure, the headline, "
        f"and of {_tests(others)} on the others ({source}):"
    ]
    for name in measures:
        if name not in spreads:
            lines.append(
                f"  {task_title({'task': name})}: not known, for no stored study measured it"
            )
            continue
        spread, of_examples, metric, unit = spreads[name]
        task: Numbers = {"task": name, "metric": metric, "unit": unit}
        tests = pairs if name == MEAN_LOSS else others
        texts = [_smallest(task, spread, number, of_examples, 0.05 / times) for times in (1, tests)]
        lines.append(f"  {task_title(task)} ({unit_of(task)}): {texts[0]}, {texts[1]}")
    return lines


def _tests(number: int) -> str:
    return "1 test" if number == 1 else f"{number} tests"


def _smallest(task: Numbers, spread: float, number: int, of_examples: float, alpha: float) -> str:
    """The smallest difference in words; where it is all that a share can differ by, that there is none."""
    value = smallest_difference(spread, number, examples_spread=of_examples, alpha=alpha)
    most = {"fraction": 1.0, "percent": 100.0}.get(task["unit"], math.inf)
    return "none" if value >= most else difference_text(task, value).lstrip("+")


def _spreads(study: Study) -> tuple[dict[str, Spread], str]:
    """Standard deviations of paired differences by task, and whose they are."""
    if (study.folder / FILE).is_file():
        try:
            found = _spreads_of(read_comparison(study.folder))
        except ChronomaskError:  # of another version: the next comparison replaces it
            found = {}
        if found:
            return {**STORED_SPREADS, **found}, "by the scatter of this study’s own seeds so far"
    return STORED_SPREADS, "by the scatter of seeds in stored studies"


def _spreads_of(comparison: Numbers) -> dict[str, Spread]:
    """Pooled over the arms; a task whose comparison does not say how its examples scatter is left out."""
    found = {}
    for task in comparison["tasks"]:
        theirs = task["arms"][comparison["baseline"]]["by_seed"]
        variances, of_examples = [], []
        for name, own in task["arms"].items():
            shared = [seed for seed in own["by_seed"] if seed in theirs]
            if name != comparison["baseline"] and len(shared) > 1:
                gaps = [mean(own["by_seed"][seed]) - mean(theirs[seed]) for seed in shared]
                variances.append(variance(gaps))
                if own.get("examples_spread") is not None:
                    of_examples.append(own["examples_spread"] ** 2)
        if variances and of_examples and task.get("unit"):
            spread, examples = (math.sqrt(mean(values)) for values in (variances, of_examples))
            found[task["task"]] = (spread, examples, str(task["metric"]), str(task["unit"]))
    return found
