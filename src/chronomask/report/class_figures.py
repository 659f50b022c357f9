"""Figures that look inside an arm: loss and weight of every class of words over time.

Each function takes the mean run of each arm by its place among the arms, which decides its colour, and
returns a :class:`Picture`, or None where there is nothing to draw.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from chronomask.report.arms import present_classes
from chronomask.report.comparison import join_names
from chronomask.report.drawing import (
    GROUP_COLOURS,
    LABEL_POINTS,
    MUTED,
    EndLabel,
    LegendEntry,
    Picture,
    appearance,
    arm_colour,
    compact,
    darker,
    label_ends,
    panel,
    shorten,
    to_svg,
)
from chronomask.report.figures import arm_legend, cell, ratio_text, thin_out
from chronomask.runs.read import Run, Series
from chronomask.yardsticks import CONTENT, FUNCTION, OTHER, PUNCTUATION, group_of

__all__ = ["class_loss", "class_weight", "final_class_loss"]

_UNIT = "nats per predicted token"
FEW_TOKENS = 50
"""A class with fewer predicted tokens per validation is drawn faint: its loss is mostly luck."""
_LABEL_ROOM = LABEL_POINTS * 1.1
"""Points of height that the name of a class takes at the end of its line."""


def class_loss(runs: Mapping[int, Run]) -> Picture | None:
    """Validation loss of every class over time, one panel per arm."""
    shown = [(k, run) for k, run in runs.items() if present_classes(run.validation, "class_loss")]
    if not shown:
        return None
    ratios = [float(ratio) for _, run in shown for ratio in run.validation["masking_ratio"]]
    limits = _limits(run.validation.per_class["class_loss"] for _, run in shown)
    last_step = max(run.validation.last("step") for _, run in shown)
    rows, panels = [], []
    for index, run in shown:
        classes = present_classes(run.validation, "class_loss")
        rows.extend(_class_rows(run, run.validation, classes, np.arange(len(run.validation))))
        panels.append(
            _class_lines(
                index,
                run,
                run.validation,
                classes,
                (*limits, last_step),
                _UNIT,
                "loss",
            )
        )
    caption = "The same validation, split by the class of the predicted word"
    caption += "; all panels share their scales." if len(panels) > 1 else "."
    legend = _group_legend(run.validation.per_class["class_loss"] for _, run in shown)
    groups = {entry.text for entry in legend}
    if {CONTENT, FUNCTION} <= groups:
        easy = "Function words and punctuation" if PUNCTUATION in groups else "Function words"
        caption += (
            f" {easy} are soon guessed from grammar alone, so their lines fall "
            "early and far; content words carry what the sentence is about and stay hard, and "
            "it is this gap that class weights are meant to work on."
        )
    if any(
        _is_faint(run.validation, name)
        for _, run in shown
        for name in present_classes(run.validation, "class_loss")
    ):
        caption += f" Dashed lines, with names in italics, rest on fewer than {FEW_TOKENS} tokens."
    return Picture(
        "class-loss",
        f"Loss per class of words at a fixed {ratio_text(ratios)}",
        caption,
        legend,
        tuple(panels),
        ("arm", "step", "class", "group", "loss", "num_predicted"),
        tuple(rows),
    )


def class_weight(runs: Mapping[int, Run]) -> Picture | None:
    """Weight of every class over time, one panel per arm that weighs classes."""
    shown = [(k, run) for k, run in runs.items() if present_classes(run.metrics, "class_weight")]
    if not shown:
        return None
    limits = _limits(run.metrics.per_class["class_weight"] for _, run in shown)
    last_step = max(run.metrics.last("step") for _, run in shown)
    rows, panels = [], []
    for index, run in shown:
        classes = present_classes(run.metrics, "class_weight")
        where = thin_out(run.metrics)
        for at in where:
            for name, values in classes.items():
                if np.isfinite(values[at]):
                    step = int(run.metrics["step"][at])
                    rows.append((run.name, step, name, group_of(name), cell(float(values[at]))))
        panels.append(
            _class_lines(index, run, run.metrics, classes, (*limits, last_step), "weight", "weight")
        )
    caption = (
        "The weight with which words of a class compete to be masked in the next step. All classes "
        "start alike; as losses part, hard classes gain weight and easy ones lose it. The order "
        "of the lines follows the losses above with a delay, "
        "since weights are made from running averages."
    )
    if len(shown) < len(runs):
        shown_indices = {k for k, _ in shown}
        without = [run.name for k, run in runs.items() if k not in shown_indices]
        caption += f" Not shown, because they do not weigh classes: {join_names(without)}."
    return Picture(
        "class-weight",
        "Which classes are preferred",
        caption,
        _group_legend(run.metrics.per_class["class_weight"] for _, run in shown),
        tuple(panels),
        ("arm", "step", "class", "group", "weight"),
        tuple(rows),
    )


def final_class_loss(runs: Mapping[int, Run]) -> Picture | None:
    """Loss of every class at the last validation, and its distance from the first arm's."""
    finals = {index: _final(run) for index, run in runs.items()}
    names = sorted(
        {name for final in finals.values() for name in final},
        key=lambda name: _rank(name, list(finals.values())),
    )
    if not names:
        return None
    baseline = finals.get(0, {})  # the first arm; its logs may be missing
    gaps = {
        index: {name: final[name][0] - baseline[name][0] for name in final if name in baseline}
        for index, final in finals.items()
    }
    rows = [
        (
            runs[index].name, name, group_of(name), cell(final[name][0]), cell(final[name][1]),
            cell(gaps[index].get(name, np.nan)),
        )
        for index, final in finals.items()
        for name in names
        if name in final
    ]  # fmt: skip
    losses = {
        index: {name: loss for name, (loss, _) in final.items()} for index, final in finals.items()
    }
    panels = [
        _dots(names, losses, finals, "Loss at the last validation", _UNIT, "final"),
    ]
    several = len(finals) > 1
    groups = {group_of(name) for name in names}
    caption = "One row per class of words, hardest first"
    caption += " within each group" if len(groups) > 1 else ""
    caption += "; one dot per arm." if several else "."
    if any(number < FEW_TOKENS for final in finals.values() for _, number in final.values()):
        caption += f" Hollow dots rest on fewer than {FEW_TOKENS} tokens."
    if several and baseline:
        sure = {
            index: {
                name: gap for name, gap in own.items() if not finals[index][name][1] < FEW_TOKENS
            }
            for index, own in gaps.items()
        }
        title = f"Difference from {shorten(runs[0].name)}"
        panels.append(_dots(names, sure, finals, title, "nats; left of 0 is better", "gap"))
        caption += f" The second panel takes off the loss of the baseline, “{runs[0].name}”"
        if CONTENT in groups:
            caption += (
                ": if preferring hard classes pays, its arms lie left of zero for content words"
            )
        caption += "."
        if sure != gaps:
            caption += " Classes with too few tokens have no dots there."
    return Picture(
        "final-class-loss",
        f"Where {'the arms end' if several else 'it ends'}, class by class",
        caption,
        arm_legend({run.name: index for index, run in runs.items()}),
        tuple(panels),
        ("arm", "class", "group", "loss", "num_predicted", "loss_minus_first"),
        tuple(rows),
    )


def _class_lines(
    index: int,
    run: Run,
    series: Series,
    classes: dict[str, np.ndarray],
    limits: tuple[float, float, float],
    y_label: str,
    prefix: str,
) -> str:
    """A panel with one line per class, coloured by group and labelled at its right end."""
    low, high, last_step = limits
    where = thin_out(series)
    with appearance():
        axes = panel(
            shorten(run.name, 34),
            "optimiser step",
            y_label,
            labels=list(classes),
            height=max(4.0, (78 + _LABEL_ROOM * len(classes)) / 72),
            title_colour=darker(arm_colour(index)),
        )
        ends = []
        # Other classes first, content words last and so on top.
        for name in sorted(classes, key=lambda name: _GROUPS.index(group_of(name)), reverse=True):
            x, y = series["step"][where], classes[name][where]
            there = np.isfinite(y)
            x, y, colour = x[there], y[there], GROUP_COLOURS[group_of(name)]
            faint = prefix == "loss" and _is_faint(series, name)
            dashes = (0, (3, 2)) if faint else "solid"
            axes.plot(x, y, color=colour, lw=1.0 if faint else 1.3, ls=dashes)
            ends.append(EndLabel(float(x[-1]), float(y[-1]), name, colour, faint))
        axes.set_xlim(0, last_step)
        pad = 0.04 * (high - low) or 0.1
        axes.set_ylim(low - pad, high + pad)
        axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: compact(value)))
        label_ends(axes, ends)
        return to_svg(
            axes, f"class-{prefix}-{index}", f"{y_label} per class over time of {run.name}"
        )


def _is_faint(series: Series, name: str) -> bool:
    """Whether no validation predicted many tokens of a class."""
    counts = series.per_class.get("class_count", {}).get(name)
    return counts is not None and bool(np.nanmax(counts) < FEW_TOKENS)


def _dots(
    names: Sequence[str],
    values: Mapping[int, Mapping[str, float]],
    finals: Mapping[int, Mapping[str, tuple[float, float]]],
    title: str,
    x_label: str,
    prefix: str,
) -> str:
    """A panel with one row per class and one dot per arm; ``values`` and ``finals`` by the arms' places."""
    row_points = max(15.0, 5.0 * len(values) + 4)
    with appearance():
        axes = panel(
            title,
            x_label,
            "one dot per arm" if len(values) > 1 else "",
            height=(78 + row_points * len(names)) / 72,
            row_names=names,
        )
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.set_yticks(range(len(names)), names)
        for label, name in zip(axes.get_yticklabels(), names, strict=True):
            label.set_color(darker(GROUP_COLOURS[group_of(name)]))
        axes.grid(visible=False, axis="y")
        _bands(axes, names)
        offsets = (np.arange(len(values)) - (len(values) - 1) / 2) * 0.72 / max(len(values), 1)
        for offset, (index, arm) in zip(offsets, values.items(), strict=True):
            for row, name in enumerate(names):
                if name in arm:
                    few = finals[index][name][1] < FEW_TOKENS
                    axes.plot(
                        arm[name],
                        row + offset,
                        "o",
                        ms=3.6,
                        mew=1.0,
                        color=arm_colour(index),
                        mfc="white" if few else arm_colour(index),
                    )
        if prefix == "gap":
            axes.axvline(0, color=MUTED, lw=1.0, zorder=1)
        return to_svg(axes, f"{prefix}-class-loss", f"{title}, one row per class, one dot per arm")


def _bands(axes: Axes, names: Sequence[str]) -> None:
    """Shade every other row and rule off the groups, so that the eye keeps to its row."""
    for row, name in enumerate(names):
        if row % 2:
            axes.axhspan(row - 0.5, row + 0.5, color="#f4f6f8", lw=0, zorder=0)
        if row and group_of(name) != group_of(names[row - 1]):
            axes.axhline(row - 0.5, color=MUTED, lw=0.8, zorder=1)


_GROUPS = (CONTENT, FUNCTION, PUNCTUATION, OTHER)


def _rank(name: str, finals: Sequence[dict[str, tuple[float, float]]]) -> tuple[int, float, str]:
    losses = [final[name][0] for final in finals if name in final]
    return _GROUPS.index(group_of(name)), -float(np.mean(losses)), name


def _final(run: Run) -> dict[str, tuple[float, float]]:
    """Class → (loss, predicted tokens) at the last validation."""
    counts = run.validation.per_class.get("class_count", {})
    return {
        name: (float(values[-1]), float(counts[name][-1]) if name in counts else np.nan)
        for name, values in present_classes(run.validation, "class_loss").items()
        if np.isfinite(values[-1])
    }


def _class_rows(
    run: Run, series: Series, classes: dict[str, np.ndarray], where: np.ndarray
) -> list[tuple[str | int | float | None, ...]]:
    counts = series.per_class.get("class_count", {})
    return [
        (
            run.name,
            int(series["step"][at]),
            name,
            group_of(name),
            cell(float(values[at])),
            cell(float(counts[name][at])) if name in counts else None,
        )
        for at in where
        for name, values in classes.items()
        if np.isfinite(values[at])
    ]


def _group_legend(columns: Iterable[dict[str, np.ndarray]]) -> tuple[LegendEntry, ...]:
    present = {group_of(name) for column in columns for name in column}
    return tuple(LegendEntry(group, GROUP_COLOURS[group]) for group in _GROUPS if group in present)


def _limits(columns: Iterable[dict[str, np.ndarray]]) -> tuple[float, float]:
    """Smallest and greatest value over all runs, for a scale that panels share."""
    values = np.concatenate([values for column in columns for values in column.values()])
    return float(np.nanmin(values)), float(np.nanmax(values))
