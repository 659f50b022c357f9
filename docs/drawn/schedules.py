"""Ratio schedules over training, and maps from losses to weights."""

from __future__ import annotations

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from chronomask.config import kind_of
from chronomask.masking.content import Clipped, Sigmoid, Softmax
from chronomask.masking.ratio import Schedule
from chronomask.report.drawing import MUTED

from .paper import BLUE, GREEN, ORANGE, headed, label, per_cent, sheet

PROGRESS = np.linspace(0, 1, 81)
EXAMPLES = {
    "constant": {},
    "linear_decay": {},
    "cosine_decay": {},
    "linear": {},
    "phases": {
        "phases": [
            {"until": 0.6, "ratio": 0.3},
            {"until": 0.9, "ratio": 0.15},
            {"until": 1, "ratio": 0.05},
        ]
    },
    "sequence": {
        "parts": [
            {"until": 0.3, "schedule": {"kind": "constant", "base": 0.3}},
            {"until": 1, "schedule": {"kind": "linear", "start": 0.3, "end": 0.1}},
        ]
    },
    "warmup_decay": {},
    "ascending": {},
    "concave_decay": {},
    "convex_decay": {},
    "up_then_down": {},
    "down_then_up": {},
    "cosine_then_quadratic": {},
    "uniform_rows": {"high": {"kind": "linear", "start": 0.6, "end": 0.3}},
    "beta_rows": {"mean": {"kind": "linear"}, "concentration": 10},
    "normal_rows": {"mean": {"kind": "linear"}, "std": 0.05},
    "cosine_rows": {"high": {"kind": "linear", "start": 0.6, "end": 0.3}},
    "mixture_rows": {
        "parts": [
            {"share": 0.6, "law": {"kind": "normal_rows", "mean": 0.12, "std": 0.02}},
            {
                "share": 0.4,
                "law": {
                    "kind": "normal_rows",
                    "mean": {"kind": "linear", "start": 0.4, "end": 0.85},
                    "std": 0.08,
                },
            },
        ]
    },
    "responsive": {},
}
"""Every kind with its defaults, or with the values that docs/schedules.md shows."""


def figures() -> dict[str, Figure]:
    """One panel per schedule, all of them on one sheet, and the weight maps."""
    schedules = {
        kind: Schedule.parse({"kind": kind, **values}) for kind, values in EXAMPLES.items()
    }
    drawn = {}
    for kind, schedule in schedules.items():
        figure, (axes,) = sheet(3.4, 1.7)
        _draw(axes, schedule)
        drawn[f"ratio-{kind}"] = figure
    figure, panels = sheet(9.6, 8.5, 5, 4)
    for axes in panels[len(schedules) :]:
        axes.set_axis_off()
    for axes, (kind, schedule) in zip(panels, schedules.items(), strict=False):
        _draw(axes, schedule, marks=False)
        headed(axes, kind)
        axes.set_ylim(0, 0.62)
        axes.set_yticks([0, 0.3, 0.6])
        axes.label_outer()
    drawn["ratio-overview"] = figure
    drawn["weight-maps"] = _weight_maps()
    return drawn


def _draw(axes: Axes, schedule: Schedule, marks: bool = True) -> None:
    if schedule.draws_rows:
        _bands(axes, schedule)
    elif not schedule.known_before:
        _response(axes, schedule, marks)
    else:
        times = PROGRESS if marks else PROGRESS[::4]  # a small panel needs no more
        ratios = np.array([schedule.at(float(t)) for t in times])
        jumps = np.abs(np.diff(ratios, prepend=ratios[0])) > 0.03
        axes.plot(times, np.where(jumps, np.nan, ratios), color=BLUE)
        mean = float(np.mean([schedule.at((k + 0.5) / 2000) for k in range(2000)]))
        if marks and np.ptp(ratios) > 0:
            axes.axhline(mean, color=MUTED, lw=0.8, ls=(0, (3, 3)))
            x, side = (1.0, "right") if kind_of(schedule) == "warmup_decay" else (0.01, "left")
            axes.text(x, mean, f"mean {mean:.3g}", color=MUTED, size=7.5, ha=side, va="bottom")
        top = float(ratios.max())
        axes.set_ylim(0, max(0.2, 1.12 * top))
    axes.set_xlim(0, 1)
    axes.set_xticks([0, 0.5, 1])
    per_cent(axes)
    if marks:
        axes.set_xlabel("progress")


def _bands(axes: Axes, schedule: Schedule) -> None:
    """Where the ratios of 5–95 % and of 25–75 % of the rows lie, and their median."""
    quantiles = np.array([0.05, 0.25, 0.5, 0.75, 0.95])
    values = np.array([schedule.of_rows(float(t), quantiles) for t in PROGRESS[::4]])
    axes.fill_between(PROGRESS[::4], values[:, 0], values[:, 4], color=BLUE, alpha=0.15, lw=0)
    axes.fill_between(PROGRESS[::4], values[:, 1], values[:, 3], color=BLUE, alpha=0.25, lw=0)
    axes.plot(PROGRESS[::4], values[:, 2], color=BLUE)
    axes.set_ylim(0, max(0.62, 1.05 * float(values.max())))


def _response(axes: Axes, schedule: Schedule, marks: bool) -> None:
    """The ratio that answers a made-up validation loss that stalls twice."""
    state = schedule.begin()
    levels = []
    for t in np.linspace(0, 1, 61):
        stalled = 0.2 < t < 0.4 or t > 0.65
        state.observe(3.0 if stalled else 5.0 * float(np.exp(-2 * t)))
        levels.append(state.at(float(t)))
    axes.step(np.linspace(0, 1, 61), levels, color=BLUE, where="post")
    axes.set_ylim(0, 0.34)
    if marks:
        for start, stop in ((0.2, 0.4), (0.65, 1.0)):
            axes.axvspan(start, stop, color=MUTED, alpha=0.12, lw=0)
            label(axes, (start + stop) / 2, 0.05, "loss stalls", MUTED, ha="center", bbox=None)


def _weight_maps() -> Figure:
    """Weight against z-scored loss for the three maps; softmax relative to a hardest z of 1.5."""
    figure, (axes,) = sheet(5.2, 2.8)
    z = torch.linspace(-2.0, 1.5, 141, dtype=torch.float64)
    maps = {
        "sigmoid, slope 2 (published)": (Sigmoid(), BLUE),
        "softmax, temperature 1": (Softmax(), ORANGE),
        "clipped, slope ¼, 0.2 to 0.8": (Clipped(), GREEN),
    }
    for text, (weight_map, colour) in maps.items():
        axes.plot(z.numpy(), weight_map.weights(z).numpy(), color=colour, label=text)
    axes.set_ylim(0, 1.02)
    axes.set_xlim(-2, 1.5)
    axes.legend(frameon=False, fontsize=8, loc="upper left")
    headed(axes, "Weight of a class", "loss of the class, in standard deviations from the mean (z)")
    return figure
