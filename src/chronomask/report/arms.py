"""What runs came to, one by one and arm by arm, from their logs alone.

An arm is every run with one config but for its seed, its name and the path of its data. Its runs are told
apart by their seed and drawn as one.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np

from chronomask.report.comparison import ABSENT, LOSSES, MEAN_LOSS, thousands
from chronomask.runs.read import Run, Series
from chronomask.yardsticks import CONTENT, group_of

__all__ = [
    "ArmRow",
    "arm_row",
    "arms_table",
    "group_by_arm",
    "group_mean",
    "identity_of",
    "mean_ratios",
    "mean_row",
    "mean_run",
    "present_classes",
    "ratios_of",
    "seed_of",
]

_SEED_AT_END = re.compile(r"[\s_.,:#(-]*(seed)?[\s_:=-]*\d+\)?$", re.IGNORECASE)
_OWN = ("name", "seed", "data")
"""Keys of a run's config in which runs of one arm may differ."""


@dataclass(frozen=True, slots=True)
class ArmRow:
    """What one run came to; NaN where its files do not say.

    ``mean_loss``: the mean of the yardsticks; ``validation_loss`` in nats per predicted token at the fixed
    ratio; ``validation_accuracy`` as a fraction; ``raw_validation_loss``: of the weights as trained, where
    the run averages them; ``mean_ratio_asked`` and ``mean_ratio_achieved`` as :func:`ratios_of` has them;
    ``last_ratio``: that of the last logged step, and ``validated_ratio`` that of the validation loss;
    ``tokens_per_second`` is the median of the logged; ``seconds`` is time in training steps.
    """

    arm: str
    seed: int | None
    complete: bool
    steps: int
    mean_loss: float
    validation_loss: float
    validation_accuracy: float
    raw_validation_loss: float
    masked_tokens: float
    tokens_seen: float
    tokens_per_second: float
    mean_ratio_asked: float
    mean_ratio_achieved: float
    last_ratio: float
    validated_ratio: float
    seconds: float


def group_by_arm(runs: Sequence[Run]) -> dict[str, dict[int, Run]]:
    """Runs by arm and seed, in the order given; arms of one name are told apart by their first folder.

    Runs on other data, as their fingerprints say, are of another arm, and so is a second run of a seed.
    """
    groups: list[tuple[str, dict[int, Run]]] = []
    for run in runs:
        seed = seed_of(run)
        identity = identity_of(run)
        for known, by_seed in groups:
            if known == identity and seed not in by_seed:
                by_seed[seed] = run
                break
        else:
            groups.append((identity, {seed: run}))
    named = [(_shared_name(list(by_seed.values())), by_seed) for _, by_seed in groups]
    return dict(zip(_distinct(named), (by_seed for _, by_seed in named), strict=True))


def arm_row(run: Run) -> ArmRow:
    """The run's row: from its summary where it is finished, else from its last lines."""
    seed = run.config.get("seed")
    asked, achieved = ratios_of(run)
    return ArmRow(
        arm=run.name,
        seed=seed if isinstance(seed, int) else None,
        complete=run.summary is not None,
        steps=int(run.total("step") if run.summary is None else run.total("steps", "step")),
        mean_loss=run.total("validation_mean_loss", "mean_loss"),
        validation_loss=run.total("validation_loss", "loss"),
        validation_accuracy=run.total("validation_accuracy", "accuracy"),
        raw_validation_loss=run.total("raw_validation_loss", "raw_loss"),
        masked_tokens=run.total("masked_tokens"),
        tokens_seen=run.total("tokens_seen"),
        tokens_per_second=_speed(run),
        mean_ratio_asked=asked,
        mean_ratio_achieved=achieved,
        last_ratio=run.metrics.last("masking_ratio"),
        validated_ratio=run.validation.last("masking_ratio"),
        seconds=run.total("seconds"),
    )


def mean_row(rows: Sequence[ArmRow]) -> dict[str, float]:
    """The numbers of an arm: means over its runs, NaN where one of them does not say."""
    keys = [field.name for field in fields(ArmRow) if field.name not in ("arm", "seed", "complete")]
    return {key: float(np.mean([getattr(row, key) for row in rows])) for key in keys}


def arms_table(arms: Mapping[str, Sequence[Run]]) -> str:
    """Arms as aligned plain text for a terminal, one line each under a heading: means over their runs.

    The mean of the yardsticks has a column where an arm was validated on them.
    """
    rows = {name: [arm_row(run) for run in runs] for name, runs in arms.items()}
    values = {name: mean_row(own) for name, own in rows.items()}
    losses = {
        "mean_loss": LOSSES[MEAN_LOSS],
        "validation_loss": "validation loss at 15 %",
    }
    if all(math.isnan(own["mean_loss"]) for own in values.values()):
        del losses["mean_loss"]
    heading = ("arm", *losses.values(), "masked tokens predicted", "tokens/s")
    lines: list[tuple[str, ...]] = [heading]
    for name, own in values.items():
        lines.append(
            (
                name if all(row.complete for row in rows[name]) else f"{name} (unfinished)",
                *(ABSENT if math.isnan(own[key]) else f"{own[key]:.4f}" for key in losses),
                thousands(own["masked_tokens"]),
                thousands(own["tokens_per_second"]),
            )
        )
    widths = [max(len(line[k]) for line in lines) for k in range(len(heading))]
    return "\n".join(
        "  ".join(
            text.ljust(width) if k == 0 else text.rjust(width)
            for k, (text, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def ratios_of(run: Run) -> tuple[float, float]:
    """The mean ratio asked and the mean ratio achieved.

    The first is what the summary of a finished run states. Without that it is computed from the logged lines,
    as the second always is.
    """
    asked, achieved = mean_ratios(run.metrics)
    planned = (run.summary or {}).get("mean_ratio_asked")
    return (asked if planned is None else float(planned)), achieved


def mean_ratios(metrics: Series) -> tuple[float, float]:
    """Mean ratio asked, and tokens predicted over tokens that may be, of a run; NaN where not logged.

    A line holds the ratio of its own step, and under a schedule the last of many steps is not their mean:
    it is read on straight lines between the logged steps. Tokens that may be predicted are logged. Of runs
    made before they were, their share of all tokens, which hardly differs between windows of lines, is the
    median over windows of predicted per token over the mean achieved ratio.
    """
    step = metrics["step"]
    tokens, predicted = (
        np.diff(metrics[key], prepend=0.0) for key in ("tokens_seen", "masked_tokens")
    )
    asked, achieved = (
        _window_means(step, metrics[key]) for key in ("masking_ratio", "masking_ratio_achieved")
    )
    there = np.isfinite(asked) & (tokens > 0)
    mean_asked = np.average(asked[there], weights=tokens[there]) if there.any() else np.nan
    if (maskable := metrics.last("maskable_tokens")) > 0:
        return float(mean_asked), metrics.last("masked_tokens") / maskable
    all_tokens, all_predicted = metrics.last("tokens_seen"), metrics.last("masked_tokens")
    if all_predicted == 0:
        return float(mean_asked), 0.0
    told = (tokens > 0) & (predicted > 0) & (achieved > 0)
    if not told.any():
        return float(mean_asked), float("nan")
    maskable = np.median(predicted[told] / tokens[told] / achieved[told])
    return float(mean_asked), float(all_predicted / (all_tokens * maskable))


def mean_run(runs: Sequence[Run], name: str) -> Run:
    """Runs of one arm as one, under its name, for the figures that draw one line an arm.

    Column by column the mean of what they logged at the steps that all have; a value that one lacks is
    left out of the mean, but that a class was not predicted is a count of 0. ``metrics`` has columns more, of
    the predictions since the line before: ``window_loss`` and ``window_predictions``, ``content_share`` and
    ``predictions_with_class``.
    """
    first = runs[0]
    metrics, validation = (
        [_with_windows(run.metrics) for run in runs],
        [run.validation for run in runs],
    )
    return Run(
        path=first.path,
        name=name,
        config=first.config,
        metrics=_mean_series(metrics),
        validation=_mean_series(validation),
        summary=first.summary,
        environment=first.environment,
        notices=(),
    )


def present_classes(series: Series, key: str) -> dict[str, np.ndarray]:
    """The per-class columns of ``key`` that hold at least one finite value."""
    columns = series.per_class.get(key, {})
    return {name: values for name, values in columns.items() if np.isfinite(values).any()}


def group_mean(series: Series, key: str, group: str) -> float:
    """Mean over a group's predicted tokens on the last line; NaN if it has none."""
    total = count = 0.0
    for name, values in series.per_class.get(key, {}).items():
        counts = series.per_class.get("class_count", {}).get(name)
        if group_of(name) != group or counts is None:
            continue
        if np.isfinite(values[-1]) and np.isfinite(counts[-1]):
            total += float(values[-1] * counts[-1])
            count += float(counts[-1])
    return total / count if count else float("nan")


def seed_of(run: Run) -> int:
    """The run's seed; 0 where its config names none."""
    seed = run.config.get("seed", 0)
    return seed if isinstance(seed, int) else 0


def identity_of(run: Run) -> str:
    """What runs of one arm share, as text."""
    config = {key: value for key, value in run.config.items() if key not in _OWN}
    data = (run.summary or {}).get("data_fingerprint") or run.environment.get("data_fingerprint")
    return json.dumps([config, data], sort_keys=True, default=str)


def _shared_name(runs: Sequence[Run]) -> str:
    """The name that runs have in common, without a number of seed behind it; else the first one's.

    ``ptw-seed0`` and ``ptw-seed1`` are ``ptw``. Of names that are a seed alone, it is that of the folder that
    the first run lies in.
    """
    names = {run.name for run in runs}
    bare = {_SEED_AT_END.sub("", name) for name in names}
    shared = bare.pop() if len(names) > 1 and len(bare) == 1 else runs[0].name
    return shared or runs[0].path.resolve().parent.name or runs[0].name


def _distinct(arms: Sequence[tuple[str, Mapping[int, Run]]]) -> list[str]:
    """Names of arms; where they clash their first run's folder is added, and a number if that clashes."""
    names = [name for name, _ in arms]
    for told_apart in (
        [f"{name} ({next(iter(by_seed.values())).path.resolve().name})" for name, by_seed in arms],
        [f"{name} #{number}" for number, (name, _) in enumerate(arms, start=1)],
    ):
        clash = Counter(names)
        names = [
            longer if clash[name] > 1 else name
            for name, longer in zip(names, told_apart, strict=True)
        ]
    return names


def _speed(run: Run) -> float:
    if run.summary is not None and isinstance(run.summary.get("tokens_per_second"), int | float):
        return float(run.summary["tokens_per_second"])
    logged = run.metrics["tokens_per_second"]
    return float(np.nanmedian(logged)) if np.isfinite(logged).any() else float("nan")


def _window_means(step: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Means over the steps of each window between lines, of values that belong to its last step."""
    size = np.diff(step, prepend=0.0)
    before = np.concatenate((values[:1], values[:-1]))
    if (
        len(values) > 2
    ):  # what came before the first line is not logged: the next lines' bend goes on
        before[0] = np.clip(3 * values[0] - 3 * values[1] + values[2], 0.0, 1.0)
    first = before + (values - before) / np.maximum(size, 1)
    return (first + values) / 2


def _with_windows(metrics: Series) -> Series:
    """The lines of a run with what :func:`mean_run` has of the predictions since the line before."""
    loss, predictions = _window_loss(metrics)
    share, with_class = _content_share(metrics)
    windows = {"window_loss": loss, "window_predictions": predictions}
    windows |= {"content_share": share, "predictions_with_class": with_class}
    return Series(metrics.columns | windows, metrics.per_class)


def _window_loss(metrics: Series) -> tuple[np.ndarray, np.ndarray]:
    """Per logged line: mean loss and number of predictions since the line before, if losses by class are
    logged. Else the loss of the line's own step, and the mean number of predictions of a step since.
    """
    counts, losses = (metrics.per_class.get(key, {}) for key in ("class_count", "class_loss"))
    if counts and counts.keys() >= losses.keys():
        total, number = np.zeros((2, len(metrics)))
        for name, values in losses.items():
            there = np.isfinite(values) & np.isfinite(counts[name])
            total += np.where(there, values * counts[name], 0.0)
            number += np.where(there, counts[name], 0.0)
        return np.divide(total, number, out=np.full(len(metrics), np.nan), where=number > 0), number
    steps = np.diff(metrics["step"], prepend=0.0)
    return metrics["loss"], np.diff(metrics["masked_tokens"], prepend=0.0) / np.maximum(steps, 1)


def _content_share(metrics: Series) -> tuple[np.ndarray, np.ndarray]:
    """Share of content words among predicted tokens with a class, and how many those are, per line."""
    counts = metrics.per_class.get("class_count", {})
    content, total = np.zeros((2, len(metrics)))
    for name, values in counts.items():
        if name == "none":
            continue
        total += np.nan_to_num(values)
        if group_of(name) == CONTENT:
            content += np.nan_to_num(values)
    nothing = np.full(len(metrics), np.nan)
    if not content.any():  # classes that are not parts of speech have no content words
        return nothing, total
    return np.divide(content, total, out=nothing, where=total > 0), total


def _mean_series(all_series: Sequence[Series]) -> Series:
    """Means of every column, per class too, at the steps that all have."""
    if len(all_series) == 1:
        return all_series[0]
    steps = all_series[0]["step"]
    for series in all_series[1:]:
        steps = np.intersect1d(steps, series["step"])
    rows = [np.searchsorted(series["step"], steps) for series in all_series]
    keys = dict.fromkeys(key for series in all_series for key in series.columns)
    columns = {
        key: _mean_of([s[key][at] for s, at in zip(all_series, rows, strict=True)]) for key in keys
    }
    classes = dict.fromkeys(
        (key, name)
        for series in all_series
        for key, own in series.per_class.items()
        for name in own
    )
    per_class: dict[str, dict[str, np.ndarray]] = {}
    for key, name in classes:
        found = [_class_column(s, key, name)[at] for s, at in zip(all_series, rows, strict=True)]
        per_class.setdefault(key, {})[name] = _mean_of(found)
    return Series(columns, per_class)


def _class_column(series: Series, key: str, name: str) -> np.ndarray:
    """A class's values, NaN where it has none; 0 as a count where other classes of the line were counted."""
    classes = series.per_class.get(key, {})
    values = classes.get(name, np.full(len(series), np.nan))
    if key == "class_count" and classes:
        are_counted = np.isfinite(np.stack(list(classes.values()))).any(0)
        return np.where(are_counted & ~np.isfinite(values), 0.0, values)
    return values


def _mean_of(values: Sequence[np.ndarray]) -> np.ndarray:
    stacked = np.stack(values)
    there = np.isfinite(stacked)
    count = there.sum(0)
    total = np.where(there, stacked, 0.0).sum(0)
    return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)
