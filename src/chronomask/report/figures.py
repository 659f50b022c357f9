"""Figures that compare arms as a whole: how much was masked, what was predicted, how well.

Each function takes runs and returns a :class:`Picture`, or None where there is nothing to draw.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.ticker import FuncFormatter, MaxNLocator

from chronomask.report.classes import CONTENT, group_of
from chronomask.report.drawing import (
    INK,
    EndLabel,
    LegendEntry,
    Picture,
    appearance,
    arm_colour,
    arm_style,
    arm_width,
    compact,
    darker,
    label_ends,
    panel,
    shorten,
    to_svg,
)
from chronomask.runs.read import Run, Series

__all__ = [
    "arm_legend",
    "cell",
    "difference_from_first",
    "masking_ratio",
    "predicted_tokens",
    "thinned",
    "validation_loss",
]

MOST_POINTS = 400
"""Logged lines drawn per run; longer runs are thinned evenly, in the figure and its CSV alike."""

BASELINE_NOTE = "The first arm given, “{}”, is the baseline."


def masking_ratio(runs: Sequence[Run]) -> Picture | None:
    """Masking ratio asked and achieved over time, one panel per arm."""
    runs_shown = [
        (k, run) for k, run in enumerate(runs) if np.isfinite(run.metrics["masking_ratio"]).any()
    ]
    if not runs_shown:
        return None
    keys = ("masking_ratio", "masking_ratio_achieved")
    top = max(
        float(np.nanmax(run.metrics[key], initial=0.0)) for _, run in runs_shown for key in keys
    )
    last_step = max(run.metrics.last("step") for _, run in runs_shown)
    rows, panels = [], []
    for index, run in runs_shown:
        where = thinned(run.metrics)
        step, asked, achieved = (run.metrics[key][where] for key in ("step", *keys))
        rows += _rows(run, step, run.metrics["progress"][where], asked, achieved)
        with appearance():
            axes = panel(
                shorten(run.name, 30),
                "optimiser step",
                "% of maskable tokens",
                height=2.3,
                title_colour=darker(arm_colour(index)),
                note=f"mean: {_percent(run, keys[0])} asked, {_percent(run, keys[1])} achieved",
            )
            axes.plot(
                step,
                100 * achieved,
                "o",
                ms=4.6,
                color=arm_colour(index),
                alpha=0.55,
                mew=0,
                ls="none",
            )
            axes.plot(step, 100 * asked, color=INK, lw=1.0)
            axes.set_xlim(0, last_step * 1.02)
            axes.set_ylim(0, max(100 * top * 1.12, 1.0))
            axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            panels.append(to_svg(axes, f"ratio-{index}", f"Masking ratio over time of {run.name}"))
    return Picture(
        "masking-ratio",
        "How much is masked",
        "The black line is the masking ratio the schedule asks for at each step; the dots are the "
        "ratio that was achieved, counted from the masked tokens of the logged steps. Dots on the "
        "line mean the masking does what was asked; dots that leave it are a bias to explain.",
        (
            LegendEntry("asked", INK),
            LegendEntry("achieved (in the arm’s colour)", arm_colour(runs_shown[0][0]), "dots"),
        ),
        tuple(panels),
        ("arm", "step", "progress", *keys),
        tuple(rows),
    )


def predicted_tokens(runs: Sequence[Run]) -> Picture | None:
    """Masked tokens predicted so far, and the share of them that are content words."""
    rows, totals, shares = [], [], []
    for run in runs:
        where = thinned(run.metrics)
        step, masked = run.metrics["step"][where], run.metrics["masked_tokens"][where]
        share = _content_share(run.metrics)[where]
        totals.append((step, masked))
        shares.append((step, 100 * share))
        rows += _rows(run, step, masked, share)
    panels = []
    if any(np.isfinite(y).any() for _, y in totals):
        panels.append(
            _arm_lines(
                runs, totals, "Masked tokens predicted so far", "optimiser step", "tokens", "total"
            )
        )
    with_classes = any(np.isfinite(y).any() for _, y in shares)
    if with_classes:
        panels.append(
            _arm_lines(
                runs,
                shares,
                "Content words among predicted tokens",
                "optimiser step",
                "% of predicted tokens that have a class",
                "share",
            )
        )
    if not panels:
        return None
    caption = (
        "Every masked token is one prediction to learn from, so an arm that masks more gets more "
        "signal from the same text: where the lines part, equal steps are not equal training."
    )
    if with_classes:
        caption += (
            " The second panel shows which words are chosen: an arm that prefers hard classes "
            "rises above one that masks uniformly."
        )
    return Picture(
        "predicted-tokens",
        "What is predicted",
        caption,
        arm_legend(runs),
        tuple(panels),
        ("arm", "step", "masked_tokens", "content_share"),
        tuple(rows),
    )


def validation_loss(runs: Sequence[Run]) -> Picture | None:
    """Validation loss at the fixed ratio against steps, tokens seen, masked tokens and time."""
    if not any(np.isfinite(run.validation["loss"]).any() for run in runs):
        return None
    keys = ("tokens_seen", "masked_tokens", "seconds", "masking_ratio", "loss", "accuracy")
    rows = []
    for run in runs:
        rows += _rows(run, *(run.validation[key] for key in ("step", *keys)))
    slow = max(run.validation.last("seconds") for run in runs if len(run.validation)) > 300
    panels = []
    for key, title, x_label, scale in (
        ("step", "By optimiser step", "optimiser step", 1.0),
        ("tokens_seen", "By tokens seen", "tokens seen", 1.0),
        ("masked_tokens", "By masked tokens predicted", "masked tokens predicted", 1.0),
        ("seconds", "By wall time", "minutes" if slow else "seconds", 1 / 60 if slow else 1.0),
    ):
        lines = [(run.validation[key] * scale, run.validation["loss"]) for run in runs]
        if any(np.isfinite(x).any() for x, _ in lines):
            panels.append(
                _arm_lines(runs, lines, title, x_label, "nats per predicted token", f"loss-{key}")
            )
    return Picture(
        "validation-loss",
        f"Validation loss at a fixed {ratio_text(runs)}",
        "All arms answer the same test, whatever they train with: the same held-out text, masked "
        "uniformly with the same masks. Lower is better. The panels show the same losses "
        "against four costs: updates made, text read, predictions made and time spent; an arm "
        "that leads by one cost may not by another. Time depends on what else the "
        "machine was doing.",
        arm_legend(runs),
        tuple(panels),
        ("arm", "step", *keys),
        tuple(rows),
    )


def difference_from_first(runs: Sequence[Run]) -> Picture | None:
    """Validation loss minus the first arm's, and accuracy, against steps."""
    if len(runs) < 2 or not len(runs[0].validation):
        return None
    base = dict(zip(runs[0].validation["step"], runs[0].validation["loss"], strict=True))
    rows, differences, accuracies = [], [], []
    for run in runs:
        step, loss, accuracy = (run.validation[key] for key in ("step", "loss", "accuracy"))
        gap = loss - np.array([base.get(at, np.nan) for at in step], dtype=float)
        differences.append((step, gap))
        accuracies.append((step, 100 * accuracy))
        rows += _rows(run, step, gap, accuracy)
    if not any(np.isfinite(gap).any() for _, gap in differences[1:]):
        return None
    panels = [
        _arm_lines(
            runs,
            differences,
            f"Loss minus that of {shorten(runs[0].name)}",
            "optimiser step",
            "nats per predicted token; below 0 is better",
            "difference",
        )
    ]
    if any(np.isfinite(y).any() for _, y in accuracies):
        panels.append(
            _arm_lines(
                runs,
                accuracies,
                "Accuracy",
                "optimiser step",
                "% of predicted tokens right",
                "accuracy",
            )
        )
    return Picture(
        "difference",
        "How far apart the arms are",
        f"{BASELINE_NOTE.format(runs[0].name)} The first panel takes its validation loss off every "
        "arm’s at the same step, so that gaps too small for the figure above can be seen; the zero "
        "line is the baseline itself. A gap within what another seed would do means nothing.",
        arm_legend(runs),
        tuple(panels),
        ("arm", "step", "loss_minus_first", "accuracy"),
        tuple(rows),
    )


def arm_legend(runs: Sequence[Run]) -> tuple[LegendEntry, ...]:
    """One legend entry per arm, in the colours of :func:`arm_colour`."""
    return tuple(LegendEntry(run.name, arm_colour(k), arm_style(k)) for k, run in enumerate(runs))


def thinned(series: Series) -> np.ndarray:
    """Indices of at most ``MOST_POINTS`` lines, evenly spread, first and last among them."""
    if len(series) <= MOST_POINTS:
        return np.arange(len(series))
    return np.linspace(0, len(series) - 1, MOST_POINTS).round().astype(int)


def cell(value: float) -> int | float | None:
    """A number for a CSV cell: whole numbers without a point, nothing where there is none."""
    value = float(value)
    if not np.isfinite(value):
        return None
    return int(value) if value.is_integer() else value


def ratio_text(runs: Sequence[Run]) -> str:
    """The ratio all validations used, such as ``15 %``; all of them if they differ."""
    used = sorted(
        {
            float(ratio)
            for run in runs
            for ratio in run.validation["masking_ratio"]
            if np.isfinite(ratio)
        }
    )
    return " or ".join(f"{100 * ratio:g}\N{NO-BREAK SPACE}%" for ratio in used) or "masking ratio"


def _rows(run: Run, *columns: np.ndarray) -> list[tuple[str | int | float | None, ...]]:
    """CSV rows of one run: its name, then a cell of each column."""
    return [(run.name, *map(cell, values)) for values in zip(*columns, strict=True)]


def _percent(run: Run, key: str) -> str:
    values = run.metrics[key]
    return f"{100 * np.nanmean(values):.1f} %" if np.isfinite(values).any() else "not logged"


def _content_share(metrics: Series) -> np.ndarray:
    """Share of content words among predicted tokens with a class, per logged line."""
    counts = metrics.per_class.get("class_count", {})
    content, total = np.zeros(len(metrics)), np.zeros(len(metrics))
    for name, values in counts.items():
        if name == "none":
            continue
        total += np.nan_to_num(values)
        if group_of(name) == CONTENT:
            content += np.nan_to_num(values)
    if not content.any():  # classes that are not parts of speech have no content words
        return np.full(len(metrics), np.nan)
    return np.divide(content, total, out=np.full(len(metrics), np.nan), where=total > 0)


def _arm_lines(
    runs: Sequence[Run],
    lines: Sequence[tuple[np.ndarray, np.ndarray]],
    title: str,
    x_label: str,
    y_label: str,
    prefix: str,
) -> str:
    """A panel with one line per arm, labelled at its right end."""
    with appearance():
        names = [shorten(run.name) for run in runs]
        axes = panel(title, x_label, y_label, labels=names)
        ends = []
        for index, ((x, y), name) in enumerate(zip(lines, names, strict=True)):
            there = np.isfinite(x) & np.isfinite(y)
            x, y = x[there], y[there]
            if not len(x):
                continue
            axes.plot(
                x,
                y,
                color=arm_colour(index),
                ls=arm_style(index),
                lw=arm_width(index, len(runs)),
                marker="o" if len(x) <= 15 else None,
                ms=2.2 + arm_width(index, len(runs)),
                clip_on=False,
            )
            ends.append(EndLabel(float(x[-1]), float(y[-1]), name, arm_colour(index)))
        longest = max((end.x for end in ends), default=0.0)
        axes.set_xlim(0, longest * 1.02 or 1.0)
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: compact(value)))
        axes.set_ylim(*axes.get_ylim())
        label_ends(axes, ends)
        return to_svg(axes, prefix, f"{title}, one line per arm")
