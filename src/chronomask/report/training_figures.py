"""Figures from the logs of training: its loss, how much was masked, what was predicted.

They take the mean run of each arm (:func:`~chronomask.report.arms.mean_run`) by its place among the arms,
which decides its colour. Each returns a :class:`Picture`, or None where there is nothing to draw.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.ticker import FuncFormatter, MaxNLocator

from chronomask.report.arms import ratios_of
from chronomask.report.comparison import percent
from chronomask.report.drawing import (
    INK,
    ArmLine,
    LegendEntry,
    Picture,
    appearance,
    arm_colour,
    darker,
    lines_panel,
    panel,
    shorten,
    to_svg,
)
from chronomask.report.figures import Row, arm_legend, cell, thin_out
from chronomask.runs.read import Run

__all__ = [
    "FEW_PREDICTIONS",
    "masking_ratio",
    "other_schedules",
    "predicted_tokens",
    "training_loss",
]

FEW_PREDICTIONS = 500
"""What was measured on fewer predicted tokens is mostly luck, and is not drawn as part of a line."""


def training_loss(runs: Mapping[int, Run]) -> Picture | None:
    """Loss of the words that each arm itself chose to predict; beside it that of next tokens, if any."""
    lines, causal, rows, left_out = [], [], [], 0
    for index, run in runs.items():
        where = thin_out(run.metrics)
        step = run.metrics["step"][where]
        loss, predictions = (
            run.metrics[key][where] for key in ("window_loss", "window_predictions")
        )
        enough = predictions >= FEW_PREDICTIONS
        left_out += int((np.isfinite(loss) & ~enough).sum())
        if (np.isfinite(loss) & enough).any():
            lines.append(ArmLine(index, run.name, step, np.where(enough, loss, np.nan)))
        following = run.metrics["causal_loss"][where]
        if np.isfinite(following).any():
            causal.append(ArmLine(index, run.name, step, following))
        rows += _rows(run, step, loss, predictions, following)
    panels = [
        lines_panel(drawn, title, "optimiser step", f"nats per {unit}", prefix)
        for drawn, title, unit, prefix in (
            (lines, "Training loss", "predicted token", "training"),
            (causal, "Causal loss", "next token", "causal"),
        )
        if drawn
    ]
    if not panels:
        return None
    note = (
        f" {left_out} logged {'lines' if left_out > 1 else 'line'} with fewer than {FEW_PREDICTIONS} "
        "predictions are not drawn: such a loss is mostly luck."
        if left_out
        else ""
    )
    columns = ("arm", "step", "loss", "num_predicted", *(("causal_loss",) if causal else ()))
    causal_note = (
        " Next tokens are those of causal rows, which see only what is before." if causal else ""
    )
    compare = (
        ": arms that mask other words, or more of them, do not compare here, and validation is for that"
        if len(runs) > 1
        else ""
    )
    return Picture(
        "training-loss",
        "Loss in training",
        f"The loss of what was chosen to be predicted since the logged line before{compare}.{note}"
        f"{causal_note}",
        _legend_of_runs(runs),
        tuple(panels),
        columns,
        tuple(row[: len(columns)] for row in rows),
    )


def masking_ratio(runs: Mapping[int, Run]) -> Picture | None:
    """Masking ratio asked and achieved over time, one panel per arm."""
    drawn = {k: run for k, run in runs.items() if np.isfinite(run.metrics["masking_ratio"]).any()}
    if not drawn:
        return None
    keys = ("masking_ratio", "masking_ratio_achieved")
    top = max(
        float(np.nanmax(run.metrics[key], initial=0.0)) for run in drawn.values() for key in keys
    )
    last_step = max(run.metrics.last("step") for run in drawn.values())
    rows = []
    for run in drawn.values():
        where = thin_out(run.metrics)
        rows += _rows(run, *(run.metrics[key][where] for key in ("step", "progress", *keys)))
    return Picture(
        "masking-ratio",
        "How much is masked",
        "The black line is the masking ratio the schedule asks for at each step; the dots are the "
        "ratio that was achieved, counted from the masked tokens of the logged steps. Dots on the "
        "line mean that the masking meets the ratio; dots off the line show a bias. Means are "
        "over all steps: what was predicted over what may be.",
        (
            LegendEntry("asked", INK),
            LegendEntry("achieved (in the arm’s colour)", arm_colour(next(iter(drawn))), "dots"),
        ),
        tuple(_ratio_panel(k, run, 100 * top, last_step) for k, run in drawn.items()),
        ("arm", "step", "progress", *keys),
        tuple(rows),
    )


_MOVING = {
    "content_strength": ("Strength of content", "power of the weights", "strength", 1.0),
    "causal_share": ("Rows of next tokens", "share of the rows", "next-tokens", 0.0),
    "masks_enter": ("Where masked tokens enter", "layer, from 0", "masks-enter", 0.0),
}
"""Column → title, unit and prefix of its panel, and the value that is nothing to tell."""
_MEANINGS = {
    "content_strength": "The power to which weights of content are raised: 0 is uniform choice, and 1 the "
    "schedule as it is.",
    "causal_share": "The share of the rows that predict next tokens.",
    "masks_enter": "The layer at which masked tokens enter.",
    "strategy_share": "The share of the rows that each strategy masks.",
    "row_ratio": "The masking ratios of single rows: the line is their median, half of the rows lie in the "
    "darker band and nine tenths in the lighter one.",
}
"""Column → what its panel shows."""


def other_schedules(runs: Mapping[int, Run]) -> Picture | None:
    """What else followed training: strength of content, causal rows, where masks enter, shares of
    strategies, ratios of rows.
    """
    moving: dict[str, list[ArmLine]] = {key: [] for key in _MOVING}
    panels, rows = [], []
    for index, run in runs.items():
        where = thin_out(run.metrics)
        step = run.metrics["step"][where]
        for key, (*_, usual) in _MOVING.items():
            values = run.metrics[key][where]
            if (np.nan_to_num(values, nan=usual) != usual).any():
                moving[key].append(ArmLine(index, run.name, step, values))
                rows += _named_rows((run.name, key, ""), step, values)
        for key, draw in (("strategy_share", _share_panel), ("row_ratio", _row_panel)):
            columns = {name: v[where] for name, v in run.metrics.per_class.get(key, {}).items()}
            if columns:
                panels.append(draw(index, run.name, step, columns))
            for name, values in columns.items():
                rows += _named_rows((run.name, key, name), step, values)
    told = {what for _, what, *_ in rows}
    panels = [
        lines_panel(moving[key], title, "optimiser step", unit, prefix)
        for key, (title, unit, prefix, _) in _MOVING.items()
        if moving[key]
    ] + panels
    if not panels:
        return None
    return Picture(
        "over-time",
        "What else follows training",
        " ".join(_MEANINGS[key] for key in _MEANINGS if key in told),
        _legend_of_runs(runs),
        tuple(panels),
        ("arm", "what", "which", "step", "value"),
        tuple(rows),
    )


def _named_rows(names: tuple[str, str, str], step: np.ndarray, values: np.ndarray) -> list[Row]:
    """CSV rows of one column: what it is, step, value."""
    return [(*names, cell(at), cell(value)) for at, value in zip(step, values, strict=True)]


def _share_panel(index: int, name: str, step: np.ndarray, columns: Mapping[str, np.ndarray]) -> str:
    """The share of rows of every strategy, in per cent; what is not logged has none."""
    lines = [
        ArmLine(k, kind.replace("_", " "), step, 100 * np.nan_to_num(values))
        for k, (kind, values) in enumerate(columns.items())
    ]
    title = f"Strategies of {shorten(name, 24)}"
    return lines_panel(lines, title, "optimiser step", "% of rows", f"strategies-{index}")


def _row_panel(index: int, name: str, step: np.ndarray, columns: Mapping[str, np.ndarray]) -> str:
    """Between which ratios the rows lie, in per cent; columns by the share of rows that lies below."""
    lowest, low, middle, high, highest = (100 * columns[q] for q in sorted(columns, key=float))
    colour = arm_colour(index)
    with appearance():
        axes = panel(f"Rows of {shorten(name, 24)}", "optimiser step", "% of maskable tokens")
        axes.fill_between(step, lowest, highest, color=colour, alpha=0.14, lw=0)
        axes.fill_between(step, low, high, color=colour, alpha=0.28, lw=0)
        axes.plot(step, middle, color=colour, lw=1.6)
        axes.set_xlim(0, step[-1] * 1.02)
        axes.set_ylim(0, float(np.nanmax(highest)) * 1.12)
        return to_svg(axes, f"rows-{index}", f"Masking ratios of rows over time of {name}")


def predicted_tokens(runs: Mapping[int, Run]) -> Picture | None:
    """Masked tokens predicted so far, and the share of them that are content words."""
    rows, totals, shares = [], [], []
    left_out = 0
    for index, run in runs.items():
        where = thin_out(run.metrics)
        step, masked = run.metrics["step"][where], run.metrics["masked_tokens"][where]
        share, predictions = (
            run.metrics[key][where] for key in ("content_share", "predictions_with_class")
        )
        enough = predictions >= FEW_PREDICTIONS
        left_out += int((np.isfinite(share) & ~enough).sum())
        totals.append(ArmLine(index, run.name, step, masked))
        shares.append(ArmLine(index, run.name, step, np.where(enough, 100 * share, np.nan)))
        rows += _rows(run, step, masked, share)
    panels = []
    if any(np.isfinite(line.y).any() for line in totals):
        panels.append(
            lines_panel(
                totals, "Masked tokens predicted so far", "optimiser step", "tokens", "total"
            )
        )
    with_classes = any(np.isfinite(line.y).any() for line in shares)
    if with_classes:
        panels.append(
            lines_panel(
                shares,
                "Content words among predicted tokens",
                "optimiser step",
                "% of predicted tokens that have a class",
                "share",
            )
        )
    if not panels:
        return None
    several = len(runs) > 1
    caption = "Every masked token is one prediction to learn from"
    caption += (
        ", so an arm that masks more gets more signal from the same text: where the lines part, equal steps "
        "are not equal training."
        if several
        else "."
    )
    if with_classes:
        caption += f" The {'second ' if len(panels) > 1 else ''}panel shows which words are chosen"
        caption += (
            ": an arm that prefers hard classes rises above one that masks uniformly."
            if several
            else "."
        )
        if left_out:
            caption += (
                f" {left_out} points of fewer than {FEW_PREDICTIONS} predictions are not drawn."
            )
    return Picture(
        "predicted-tokens",
        "What is predicted",
        caption,
        _legend_of_runs(runs),
        tuple(panels),
        ("arm", "step", "masked_tokens", "content_share"),
        tuple(rows),
    )


def _legend_of_runs(runs: Mapping[int, Run]) -> tuple[LegendEntry, ...]:
    return arm_legend({run.name: k for k, run in runs.items()})


def _ratio_panel(index: int, run: Run, top: float, last_step: float) -> str:
    """What one arm asked for and achieved, in per cent."""
    where = thin_out(run.metrics)
    step, asked, achieved = (
        run.metrics[key][where] for key in ("step", "masking_ratio", "masking_ratio_achieved")
    )
    means = ["not logged" if value != value else percent(value) for value in ratios_of(run)]
    colour = arm_colour(index)
    with appearance():
        axes = panel(
            shorten(run.name, 30),
            "optimiser step",
            "% of maskable tokens",
            height=2.3,
            title_colour=darker(colour),
            note=f"mean: {means[0]} asked, {means[1]} achieved",
        )
        axes.plot(step, 100 * achieved, "o", ms=4.6, color=colour, alpha=0.55, mew=0, ls="none")
        axes.plot(step, 100 * asked, color=INK, lw=1.0)
        axes.set_xlim(0, last_step * 1.02)
        axes.set_ylim(0, max(top * 1.12, 1.0))
        axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        return to_svg(axes, f"ratio-{index}", f"Masking ratio over time of {run.name}")


def _rows(run: Run, *columns: np.ndarray) -> list[Row]:
    """CSV rows of one run: its name, then a cell of each column."""
    return [(run.name, *map(cell, values)) for values in zip(*columns, strict=True)]
