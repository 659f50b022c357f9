"""What a study will do, take and be able to see, told before it begins.

Time is read off what has ended in the folder already, or in that of a like study, and else off a rate that is
given; without any of these the operations of the runs give the least that it can be. Power is read off the
scatter of seeds: of this study's own last comparison where there is one, else of a like study's, else of
stored studies.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev

import torch

from chronomask.data.folder import PreparedData
from chronomask.data.manifest import MANIFEST
from chronomask.errors import ChronomaskError, amount
from chronomask.model.device import data_sheet_flops
from chronomask.report.comparison import (
    FILE,
    LOSS,
    MEAN_LOSS,
    SINGLE_LOSS,
    Numbers,
    difference_text,
    duration,
    join_words,
    read_comparison,
    task_title,
    told_as_damage,
    unit_of,
)
from chronomask.runs.layout import checkpoints_in, step_of
from chronomask.study.statistics import smallest_difference
from chronomask.study.times import Allowance, Rates, rates_in
from chronomask.study.units import Study, Unit
from chronomask.train.config import RunConfig
from chronomask.train.dry_run import DryRun, cost_in_words, dry_run
from chronomask.train.validation import expect_few

__all__ = ["STORED_SPREADS", "plan_in_words"]

Spread = tuple[float, float, str, str]
"""Standard deviation over seeds of an arm's difference from the baseline, that of the mean difference over
resampled examples, metric, unit."""

STORED_SPREADS: dict[str, Spread] = {
    MEAN_LOSS: (0.021, 0.0073, "loss", "nats"),
    LOSS: (0.019, 0.0066, "loss", "nats"),
    SINGLE_LOSS: (0.062, 0.020, "loss", "nats"),
    "blimp": (0.0070, 0.0021, "accuracy", "fraction"),
    "upos_probe": (0.0014, 0.00097, "accuracy", "fraction"),
    "pseudo_perplexity": (0.048, 0.0082, "loss", "nats"),
    "cola": (0.026, 0.019, "mcc", "fraction"),
    "sst2": (0.0076, 0.0069, "accuracy", "fraction"),
    "mrpc": (0.018, 0.0094, "f1", "fraction"),
    "stsb": (0.067, 0.011, "spearman", "fraction"),
    "rte": (0.035, 0.018, "accuracy", "fraction"),
    "squad": (2.1, 0.19, "f1", "percent"),
}
"""Of eight arms and three seeds of a ModernBERT of 4 layers × 256 after 41 M tokens
(docs/results/eight-ways): both of an arm's difference from the baseline, the root of the mean over the seven
arms of their squares. That study has no yardsticks: the spreads over seeds of their mean and of the single
mask are likewise those of the three arms and six seeds of the same model after 25 M tokens
(docs/results/equal-labels-small). Neither kept losses by row: the spread of losses over rows is that of 512
held-out rows in the difference of “tokens to a quarter” from “half tokens” of docs/results/tokens-longer.
A model or text of another size scatters otherwise."""


@dataclass(frozen=True, slots=True)
class _Part:
    """A kind of units that are left: their seconds in one process, and what that rests on."""

    seconds: float
    text: str
    is_least: bool = False
    """whether it may well be more"""
    fills_device: bool = False
    """whether that is at the rate of a whole device, which processes on it then share"""


def plan_in_words(
    study: Study,
    units: Sequence[Unit],
    workers: int,
    *,
    devices: int = 1,
    price_per_hour: float | None = None,
    rates: Rates | None = None,
    allowance: Allowance | None = None,
) -> str:
    """The units, the time they will take and cost, and the smallest difference that the study can show, as
    lines.

    ``devices``: what ``workers`` processes share; ``price_per_hour``: of one of them; ``rates``: what is
    reckoned with until a run, or a result of a task, has ended in the study itself; ``allowance``: the time
    of a call, if it is limited.
    """
    waiting = [unit for unit in units if not study.is_complete(unit)]
    lines = [_units_in_words(units, waiting)]
    if waiting:
        lines += _time_in_words(study, waiting, workers, devices, price_per_hour, rates, allowance)
    if waiting and (few := _few_in_words(study)):
        lines.append(few)
    return "\n".join([*lines, *_power_in_words(study, rates)])


def _few_in_words(study: Study) -> str | None:
    """A sentence saying that validations will rest on few predictions; nothing where the text is not prepared
    yet.
    """
    if study.config.prepare is not None and not study.is_complete(study.units[0]):
        return None
    held_out = PreparedData.open(study.data).split("held_out")
    few = expect_few(held_out, study.arms[study.config.baseline].config.validation)
    return few and f"validation: {few}"


def _units_in_words(units: Sequence[Unit], waiting: Sequence[Unit]) -> str:
    kinds = Counter(str(unit.kind) for unit in waiting)
    counts = [f"{number:,} to {kind}" for kind, number in kinds.items()]
    done = len(units) - len(waiting)
    return f"plan: {amount(len(units), 'units')}, {done:,} complete" + (
        f"; {', '.join(counts)}" if counts else ""
    )


def _time_in_words(
    study: Study,
    waiting: Sequence[Unit],
    workers: int,
    devices: int,
    price_per_hour: float | None,
    given: Rates | None,
    allowance: Allowance | None,
) -> list[str]:
    """The time of all that is left, of its kinds with what that rests on, what is not in it, and the cost."""
    here = rates_in(study.folder)
    runs = [unit for unit in waiting if unit.kind == "pretrain"]
    results = Counter(unit.task for unit in waiting if unit.kind == "evaluate")
    parts, left_out = [], []
    if any(unit.kind == "prepare" for unit in waiting):
        left_out.append("preparing the text")
    if runs:
        training = next((own for own in (here, given) if own is not None and own.token), None)
        part = _by_rate(study, runs, training) if training else _by_operations(study, runs)
        if part is None:
            left_out.append(
                f"{amount(len(runs), 'runs')}, until one has ended here or --rate gives a rate"
            )
        else:
            parts.append(part)
    for own in (here, given):
        known = {task: n for task, n in results.items() if own is not None and task in own.tasks}
        if own is not None and known:
            parts.append(_of_results(known, own))
            results -= Counter(known)
    if results:
        what = ", ".join(results)
        left_out.append(f"{amount(results.total(), 'results')} of tasks not measured yet ({what})")
    lines = [f"  {part.text}" for part in parts]
    if left_out:
        lines.append(f"  not in it: {'; '.join(left_out)}")
    total = sum(part.seconds for part in parts)
    if not total:
        return ["time: not known yet", *lines]
    filling = sum(part.seconds for part in parts if part.fills_device)
    # Processes beyond the number of devices share them.
    together = filling / min(workers, devices) + (total - filling) / workers
    of_devices = filling + (total - filling) * min(1.0, devices / workers)
    least = "at least " if any(part.is_least for part in parts) else ""
    text = f"time: {least}{duration(total)} of one process for what is left"
    if workers > 1:
        text += f"; {least or 'about '}{duration(together)} with {workers}"
        if filling and workers > devices:
            text += f" that share {amount(devices, 'devices')}"
        elif here.workers != {workers}:
            text += " if they do not slow each other down"
    if allowance is not None:
        calls = math.ceil(together / allowance.of_work)
        text += f"; {least or 'about '}{amount(calls, 'calls')} of {allowance.length}"
    cost = cost_in_words(of_devices, price_per_hour)
    if workers > devices:
        cost += f" ({workers} processes share {amount(devices, 'devices')})"
    return [text, *lines, f"cost: {least}{cost}"]


def _by_rate(study: Study, runs: Sequence[Unit], rates: Rates) -> _Part:
    """Runs by those of their own arm that have ended, else by their tokens; less what is saved of them."""
    assert rates.token is not None
    seconds, length = 0.0, _tokens_of_row(study)
    of_arms = rates.runs if rates.place == "here" else {}
    for unit in runs:
        config = study.arms[unit.arm].config
        rows = config.sizes.rows_before(config.steps)
        whole = of_arms.get(unit.arm, rows * length * rates.token)
        seconds += whole * _share_left(study, unit)
    basis = f"at {1 / rates.token:,.0f} tokens a second of a device, as given"
    if rates.num_runs:
        kind = "wall time" if rates.runs_are_wall else "training steps"
        became = "ended" if rates.runs_ended else "began"
        basis = f"by the {kind} of {amount(rates.num_runs, 'runs')} that {became} {rates.place}"
    more = "" if rates.runs_are_wall else ", without start, compilation, validation and saving"
    text = f"{amount(len(runs), 'runs')}: {duration(seconds)}, {basis}{more}{_with(rates)}"
    return _Part(seconds, text, fills_device=not rates.num_runs)


def _share_left(study: Study, unit: Unit) -> float:
    """Of a run's rows, what lies behind its newest checkpoint."""
    config = study.arms[unit.arm].config
    saved = max(
        (step_of(path) or 0 for path in checkpoints_in(study.run(unit).checkpoints)), default=0
    )
    return 1 - config.sizes.rows_before(saved) / config.sizes.rows_before(config.steps)


def _of_results(known: Mapping[str, int], rates: Rates) -> _Part:
    seconds = sum(number * rates.tasks[task] for task, number in known.items())
    kind = "wall time" if rates.results_are_wall else "time, without start,"
    basis = f"by the {kind} of {amount(rates.num_results, 'results')} that ended {rates.place}"
    number = amount(sum(known.values()), "results")
    return _Part(seconds, f"{number} of tasks: {duration(seconds)}, {basis}{_with(rates)}")


def _with(rates: Rates) -> str:
    """How many processes were at work when rates were measured, or that nobody noted it."""
    if not rates.workers:
        if rates.folder is None or not rates.num_runs + rates.num_results:
            return ""
        return (
            " (how many processes shared the device then is not noted; with several, less of it than this is "
            "needed)"
        )
    numbers = join_words([str(number) for number in sorted(rates.workers)])
    return f" (with {numbers} process{'' if numbers == '1' else 'es'} at work)"


def _tokens_of_row(study: Study) -> float:
    """Tokens of a row in the mean; of text that is not prepared yet, at most."""
    if study.config.prepare is not None and not study.is_complete(study.units[0]):
        return study.config.prepare.row_length
    split = PreparedData.open(study.data).split("train")
    return split.num_tokens / split.num_rows


def _by_operations(study: Study, runs: Sequence[Unit]) -> _Part | None:
    """Runs at a rate that no model reaches; None where a device has none that is known."""
    rate, total, source = None, 0.0, "of a dense product measured here"
    assumed = False
    try:
        for arm in dict.fromkeys(unit.arm for unit in runs):
            config = study.arms[arm].config
            if rate is None and config.device != "cpu" and torch.cuda.is_available():
                # Nothing is measured there: the device belongs to the processes that will train.
                rate, source = (
                    data_sheet_flops(torch.device("cuda"), config.precision),
                    "of its data sheet",
                )
                if rate is None:
                    return None
            one = _dry_run(study, config, rate)
            assumed |= one.rate_is == "of an H200"
            rate = one.flops_per_second
            left = sum(_share_left(study, unit) for unit in runs if unit.arm == arm)
            total += left * one.seconds
    except ChronomaskError:  # what training refuses is said when the run begins
        return None
    at = f"at the rate {source}, which no model reaches"
    if assumed:
        at = (
            "at the rate of BERT-base on one H200, for the runs are meant for a GPU and there is none here "
            "(small models reach less; --rate takes another)"
        )
    text = (
        f"{amount(len(runs), 'runs')}: at least {duration(total)}, by the operations of training alone, {at}"
        "; once a run has ended the same command tells more"
    )
    whole = assumed or source == "of its data sheet"
    return _Part(total, text, is_least=True, fills_device=whole)


def _dry_run(study: Study, config: RunConfig, rate: float | None) -> DryRun:
    """Look ahead at a run, also where its text is not prepared yet: then rows are full of tokens."""
    prepare = study.config.prepare
    if prepare is None or study.is_complete(study.units[0]):
        return dry_run(config, flops_per_second=rate)
    return dry_run(
        config.model_copy(update={"data": str(study.data / MANIFEST)}),  # which is not there
        flops_per_second=rate,
        row_length=prepare.row_length,
        vocab_size=getattr(prepare.tokenizer, "vocab_size", None),
    )


def _power_in_words(study: Study, rates: Rates | None) -> list[str]:
    """The smallest difference of each measure, by itself and as the first under Holm’s correction."""
    number = len(study.config.seeds)
    if number < 2:
        return ["power: one seed gives no interval, so no difference can be shown"]
    pairs = len(study.config.contrasts or list(study.arms)[1:])
    if not pairs:
        return []
    found, source = _spreads(study, rates)
    spreads = STORED_SPREADS | found
    measures = [MEAN_LOSS, LOSS, SINGLE_LOSS, *study.tasks]
    others = pairs * (len(measures) - 1)
    lines = [
        f"power: the smallest true difference that {number} seeds show in four studies of five, by itself "
        f"and as the first under Holm’s correction: of {_tests(pairs)} on the first measure, the headline, "
        f"and of {_tests(others)} on the others ({source}):"
    ]
    for name in measures:
        task: Numbers = {"task": name}
        if name in study.tasks:
            task["title"] = study.tasks[name].title
        if name not in spreads:
            lines.append(f"  {task_title(task)}: not known, for no stored study measured it")
            continue
        spread, of_examples, metric, unit = spreads[name]
        task |= {"metric": metric, "unit": unit}
        tests = pairs if name == MEAN_LOSS else others
        texts = [_smallest(task, spread, number, of_examples, 0.05 / times) for times in (1, tests)]
        line = f"  {task_title(task)} ({unit_of(task)}): {texts[0]}, {texts[1]}"
        lines.append(line if name in found or not found else f"{line}; {_OF_STORED}")
    return lines


def _tests(number: int) -> str:
    return "1 test" if number == 1 else f"{number} tests"


def _smallest(task: Numbers, spread: float, number: int, of_examples: float, alpha: float) -> str:
    """The smallest difference in words; where it is all that a share can differ by, that there is none."""
    value = smallest_difference(spread, number, examples_spread=of_examples, alpha=alpha)
    most = {"fraction": 1.0, "percent": 100.0}.get(task["unit"], math.inf)
    return "none" if value >= most else difference_text(task, value).lstrip("+")


_OF_STORED = "by the scatter of seeds in stored studies, of models of 4 layers × 256"


def _spreads(study: Study, rates: Rates | None) -> tuple[dict[str, Spread], str]:
    """Standard deviations of paired differences by task, where a comparison has them, and whose they are."""
    places = [(study.folder, "by the scatter of this study’s own seeds so far")]
    if rates is not None and rates.folder is not None:
        places.append((rates.folder, f"by the scatter of seeds {rates.place}"))
    silent = ""
    for folder, source in places:
        if (folder / FILE).is_file():
            try:
                with told_as_damage(folder / FILE):
                    found = _spreads_of(read_comparison(folder))
            except ChronomaskError:  # of another version: the next comparison replaces it
                found = {}
            if found:
                return found, source
            silent += f"; {folder / FILE} does not say how seeds scatter"
    return {}, _OF_STORED + silent


def _spreads_of(comparison: Numbers) -> dict[str, Spread]:
    """Pooled over the declared contrasts that were tested, else over the arms beside the baseline.

    A task that does not scatter, or whose comparison does not say how its examples do, is left out.
    """
    found = {}
    for task in comparison["tasks"]:
        pairs: list[tuple[float, float | None]] = [
            (contrast["spread"], contrast.get("examples_spread"))
            for contrast in task.get("contrasts", ())
            if contrast.get("spread") is not None
        ] or _beside_baseline(task, comparison["baseline"])
        variances = [spread**2 for spread, _ in pairs]
        of_examples = [spread**2 for _, spread in pairs if spread is not None]
        if variances and of_examples and task.get("unit"):
            spread, examples = (math.sqrt(mean(values)) for values in (variances, of_examples))
            if not spread and not examples:
                continue  # all models answer alike, as at chance: it says nothing of the next ones
            found[task["task"]] = (spread, examples, str(task["metric"]), str(task["unit"]))
    return found


def _beside_baseline(task: Numbers, baseline: str) -> list[tuple[float, float | None]]:
    """Of each arm with two seeds or more: the spread of its differences, and that over examples if known."""
    theirs, pairs = task["arms"][baseline]["by_seed"], []
    for name, own in task["arms"].items():
        shared = [seed for seed in own["by_seed"] if seed in theirs]
        if name != baseline and len(shared) > 1:
            gaps = [mean(own["by_seed"][seed]) - mean(theirs[seed]) for seed in shared]
            pairs.append((stdev(gaps), own.get("examples_spread")))
    return pairs
