"""Figures of a study: curves with bands over seeds, and differences from the baseline with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.ticker import FuncFormatter, MaxNLocator

from chronomask.report.comparison import AXIS_NAMES, Numbers, shown, task_title, unit_of, verdict
from chronomask.report.drawing import (
    MUTED,
    EndLabel,
    LegendEntry,
    Picture,
    appearance,
    arm_colour,
    arm_style,
    arm_width,
    compact,
    label_ends,
    panel,
    shorten,
    to_svg,
)

__all__ = ["curve_picture", "difference_picture", "legend_of"]

_MOST_LABELS = 8
"""Lines labelled at their ends; with more arms the legend alone tells them apart."""


def legend_of(arms: Mapping[str, int]) -> tuple[LegendEntry, ...]:
    """One entry an arm; ``arms``: name → place in the study, which decides its colour everywhere."""
    return tuple(LegendEntry(name, arm_colour(k), arm_style(k)) for name, k in arms.items())


def curve_picture(curve: Numbers, arms: Mapping[str, int]) -> Picture:
    """A quantity against each axis: the mean over seeds, and the range of the seeds around it."""
    own = {name: k for name, k in arms.items() if name in curve["arms"]}
    num_seeds = max(len(numbers["by_seed"]) for numbers in curve["arms"].values())
    panels = [_axis_panel(curve, own, axis) for axis in AXIS_NAMES]
    rows: list[tuple[str | int | float | None, ...]] = []
    for name in own:
        for seed, values in curve["arms"][name]["by_seed"].items():
            columns = [values[axis] for axis in AXIS_NAMES]
            rows += [
                (name, int(seed), *cells) for cells in zip(*columns, values["value"], strict=True)
            ]
    title = task_title(curve)
    band = (
        f"Lines are means over {num_seeds} pre-training seeds, bands reach from the lowest to the "
        "highest of them."
        if num_seeds > 1
        else "Every arm has one seed, so there is no band: another seed would give other lines."
    )
    better = "Higher" if curve["higher_is_better"] else "Lower"
    what = (
        "the same held-out text with the same masks at a fixed 15 % for all arms"
        if curve["quantity"] == "validation_loss"
        else "the task asked of checkpoints along the way"
    )
    return Picture(
        f"curve-{curve['quantity']}",
        f"{title[0].upper()}{title[1:]} over training",
        f"{better} is better; {what}. {band} The panels show the same values against five costs: an "
        "arm that leads by one may not by another. Seconds depend on what else the machine did.",
        legend_of(own),
        tuple(panels),
        ("arm", "seed", *AXIS_NAMES, str(curve["metric"])),
        tuple(rows),
    )


def difference_picture(
    tasks: Sequence[Numbers], baseline: str, arms: Mapping[str, int]
) -> Picture | None:
    """A panel a task: every arm's difference from the baseline with its interval."""
    others = {name: k for name, k in arms.items() if name != baseline}
    shown_tasks = [task for task in tasks if any(name in task["arms"] for name in others)]
    if not shown_tasks:
        return None
    rows: list[tuple[str | int | float | None, ...]] = []
    panels = []
    for task in shown_tasks:
        own = {name: k for name, k in others.items() if name in task["arms"]}
        panels.append(_forest(task, own))
        for name in own:
            numbers = task["arms"][name]
            rows.append(
                (
                    task["task"], task["metric"], name, numbers["difference"],
                    numbers["difference_low"], numbers["difference_high"], numbers["p"],
                    numbers.get("p_holm"), len(task["seeds"]),
                )
            )  # fmt: skip
    return Picture(
        "differences",
        f"Differences from “{baseline}”",
        "One row an arm: the mean difference over paired seeds and its 95 % interval. A full dot’s "
        "interval excludes zero, a hollow one’s does not, and a cross has no interval, for want of a "
        "second seed. Of many intervals about one in twenty misses by chance; the tables have the tests.",
        legend_of(others),
        tuple(panels),
        (
            "task", "metric", "arm", "difference", "low", "high", "p", "p_holm", "pre_training_seeds",
        ),
        tuple(rows),
    )  # fmt: skip


def _axis_panel(curve: Numbers, arms: Mapping[str, int], axis: str) -> str:
    """The quantity against one axis."""
    names = list(arms)
    labelled = len(names) <= _MOST_LABELS
    title = f"By {AXIS_NAMES[axis]}"
    with appearance():
        axes = panel(
            title,
            AXIS_NAMES[axis],
            unit_of(curve),
            labels=[shorten(name) for name in names] if labelled else (),
        )
        ends = []
        for place, name in enumerate(names):
            numbers, colour = curve["arms"][name], arm_colour(arms[name])
            x = np.array(numbers[axis], dtype=float)
            mean, low, high = (
                np.array([shown(curve, value) for value in numbers[key]])
                for key in ("mean", "low", "high")
            )
            if len(numbers["by_seed"]) > 1:
                axes.fill_between(x, low, high, color=colour, alpha=0.13, lw=0)
            axes.plot(
                x,
                mean,
                color=colour,
                ls=arm_style(arms[name]),
                lw=arm_width(place, len(names)),
                marker="o" if len(x) <= 15 else None,
                ms=2.2 + arm_width(place, len(names)),
                clip_on=False,
            )
            ends.append(EndLabel(float(x[-1]), float(mean[-1]), shorten(name), colour))
        axes.set_xlim(0, max(end.x for end in ends) * 1.02 or 1.0)
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: compact(value)))
        axes.set_ylim(*axes.get_ylim())
        if labelled:
            label_ends(axes, ends)
        return to_svg(
            axes, f"curve-{curve['quantity']}-{axis}", f"{task_title(curve)} {title.lower()}"
        )


def _forest(task: Numbers, arms: Mapping[str, int]) -> str:
    """A task's differences, a row an arm, in the order of the study."""
    names = list(arms)
    better = "right" if task["higher_is_better"] else "left"
    with appearance():
        title = task_title(task)
        axes = panel(
            f"{title[0].upper()}{title[1:]}",
            f"difference; {better} of 0 is better",
            unit_of(task),
            height=(84 + 19 * len(names)) / 72,
            row_names=[shorten(name, 24) for name in names],
        )
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.set_yticks(range(len(names)), [shorten(name, 24) for name in names])
        axes.grid(visible=False, axis="y")
        axes.axvline(0, color=MUTED, lw=1.0, zorder=1)
        reach = 0.0
        for row, name in enumerate(names):
            numbers, colour = task["arms"][name], arm_colour(arms[name])
            found = verdict(task, numbers)
            at = shown(task, numbers["difference"])
            ends = [at]
            if found != "unknown":
                ends = [shown(task, numbers[f"difference_{end}"]) for end in ("low", "high")]
                axes.plot(ends, [row, row], color=colour, lw=1.8, zorder=2, solid_capstyle="butt")
            axes.plot(
                at,
                row,
                marker="x" if found == "unknown" else "o",
                ms=6.0,
                mew=1.6,
                color=colour,
                mfc="white" if found == "open" else colour,
                zorder=3,
            )
            reach = max(reach, *map(abs, ends), abs(at))
        axes.set_xlim(-1.08 * reach or -1.0, 1.08 * reach or 1.0)
        return to_svg(axes, f"forest-{task['task']}", f"Differences from the baseline on {title}")
