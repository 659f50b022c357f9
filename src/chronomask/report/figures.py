"""Figures that compare arms as a whole: how well they do, at what cost, and how far apart they are.

They take a comparison (see docs/studies.md). Each returns a :class:`Picture`, or None where there is nothing
to draw.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from chronomask.report.comparison import (
    AXIS_NAMES,
    LOSS,
    MEAN_LOSS,
    Curves,
    Numbers,
    in_unit,
    join_names,
    join_words,
    raised_ten,
    task_title,
    unit_of,
    verdict,
)
from chronomask.report.drawing import (
    MUTED,
    ArmLine,
    LegendEntry,
    Picture,
    appearance,
    arm_colour,
    arm_style,
    lines_panel,
    panel,
    shorten,
    to_svg,
)
from chronomask.runs.read import Series

__all__ = [
    "arm_legend",
    "cell",
    "curve_picture",
    "difference_picture",
    "distance_picture",
    "ratio_text",
    "reference_picture",
    "thin_out",
]

_STILL_NEAR = 0.5
"""Nats above the highest loss at which a dashed line is still drawn, however flat the curves are."""
MOST_POINTS = 400
"""Logged lines drawn per run; of longer runs so many are drawn, evenly spread (:func:`thin_out`), in the
figure and its CSV alike."""

Row = tuple[str | int | float | None, ...]


def curve_picture(curve: Numbers, arms: Mapping[str, int]) -> Picture:
    """A quantity against what it cost: the mean over seeds, its interval, and single seeds.

    ``arms``: name → place among the arms.
    """
    own = {name: k for name, k in arms.items() if name in curve["arms"]}
    axes = [axis for axis in AXIS_NAMES if any(_has(curve["arms"][name], axis) for name in own)]
    drawn = [axis for k, axis in enumerate(axes) if not _same_axis(curve, own, axes[:k], axis)]
    near, far = _references(curve, own)
    panels = [_cost_panel(curve, own, axis, near) for axis in drawn]
    extra = ["accuracy"] if curve["quantity"] == LOSS else []
    rows: list[Row] = []
    for name in own:
        for seed, values in curve["arms"][name]["by_seed"].items():
            columns = [values.get(key) for key in (*axes, "value", *extra)]
            length = len(values["value"])
            filled = [column or [None] * length for column in columns]
            rows += [(name, int(seed), *map(_whole, cells)) for cells in zip(*filled, strict=True)]
    if curve["quantity"] == LOSS:
        title = f"Validation loss at a fixed {ratio_text(curve.get('masking_ratios', ()))}"
        what = "Held-out text, masked uniformly with masks that never change. Lower is better."
        if len(own) > 1 and curve.get("same_predictions", True):
            what = (
                "All arms answer the same test, whatever they train with: the same held-out text, masked "
                "uniformly with the same masks. Lower is better."
            )
    elif curve["quantity"] == MEAN_LOSS:
        title = f"{_capital(task_title(curve))} over training"
        what = (
            "Held-out text, with whole words hidden at four fixed ratios and with a single token hidden; the "
            "mean of the five losses depends less than any of them on the ratio that an arm trains at. Lower "
            "is better."
        )
    else:
        title = f"{_capital(task_title(curve))} over training"
        better = "Higher" if curve["higher_is_better"] else "Lower"
        what = f"Checkpoints along the way were evaluated on the task. {better} is better."
    costs = ""
    if len(panels) > 1:
        lead = "; an arm that leads by one cost may not by another" if len(own) > 1 else ""
        costs = f" The panels show the same values against what they cost{lead}."
    if "seconds" in drawn:
        costs += " Time depends on what else the machine was doing."
    return Picture(
        f"curve-{curve['quantity']}",
        title,
        f"{what} {_seeds_caption(curve)}{far}{costs}",
        arm_legend(own),
        tuple(panels),
        ("arm", "seed", *axes, str(curve["metric"]), *extra),
        tuple(rows),
    )


def reference_picture(curve: Numbers, arms: Mapping[str, int], known: Curves) -> Picture:
    """The validation loss against tokens seen, over curves that other runs had as far as the longest arm."""
    own = {name: k for name, k in arms.items() if name in curve["arms"]}
    lines = [
        _cost_line(curve, curve["arms"][name], name, k, "tokens_seen", 1.0)
        for name, k in own.items()
    ]
    furthest = max(float(np.nanmax(line.x)) for line in lines)
    begun = {name: values for name, values in known.items() if min(values[0]) <= furthest}
    beneath = [(name, *_as_far_as(furthest, *values)) for name, values in begun.items()]
    left_out = [name for name in known if name not in begun]
    notes = []
    if beneath:
        notes.append(
            f"Grey dashed lines are validation losses of other runs: {join_names(begun)}. On other text, "
            "with another vocabulary or on other held-out rows they say how such a curve falls, and not "
            "which run is better. A loss far above all of them, or one that stays where it is while they "
            "fall, is worth a look. They are drawn as far as these runs went."
        )
    if left_out:
        who = "all begin" if not beneath else "they begin" if len(left_out) > 1 else "it begins"
        who = "it begins" if len(known) == 1 else who
        notes.append(f"Not drawn, because {who} beyond these runs: {join_names(left_out)}.")
    rows: list[Row] = [
        (n, _whole(x), _whole(y)) for n, *xy in beneath for x, y in zip(*xy, strict=True)
    ]
    rows += [
        (li.name, _whole(x), _whole(y)) for li in lines for x, y in zip(li.x, li.y, strict=True)
    ]
    return Picture(
        "reference",
        "Beside runs that were measured before",
        " ".join(notes),
        arm_legend(own),
        (
            lines_panel(
                lines, "By tokens seen", "tokens seen", "nats per predicted token", "reference",
                beneath=beneath,
            ),
        ),
        ("name", "tokens_seen", "loss"),
        tuple(rows),
    )  # fmt: skip


def _as_far_as(
    furthest: float, tokens: Sequence[float], losses: Sequence[float]
) -> tuple[np.ndarray, np.ndarray]:
    """A curve by tokens up to ``furthest``, where it ends on the line to its next point if it has one."""
    order = np.argsort(tokens, kind="stable")
    x, y = np.array(tokens)[order], np.array(losses)[order]
    near = x <= furthest
    if near.all() or x[near][-1] == furthest:
        return x[near], y[near]
    return np.append(x[near], furthest), np.append(y[near], np.interp(furthest, x, y))


def distance_picture(curve: Numbers, baseline: str, arms: Mapping[str, int]) -> Picture | None:
    """Validation loss minus the baseline's at the same step, and accuracy."""
    own = {name: k for name, k in arms.items() if curve["arms"].get(name, {}).get("difference")}
    if len(own) < 2 or baseline not in own:
        return None
    gaps = [_distance_line(curve["arms"][name]["difference"], name, k) for name, k in own.items()]
    panels = [
        lines_panel(
            gaps,
            f"Loss minus that of {shorten(baseline)}",
            "optimiser step",
            "nats per predicted token; below 0 is better",
            "difference",
        )
    ]
    accuracies = [
        ArmLine(k, name, np.array(found["step"]), 100 * _floats(found["accuracy"]))
        for name, k in own.items()
        if _has(found := curve["arms"][name], "accuracy")
    ]
    if accuracies:
        panels.append(
            lines_panel(
                accuracies, "Accuracy", "optimiser step", "% of predicted tokens right", "accuracy"
            )
        )
    several = any(line.band is not None for line in gaps)
    meaning = (
        "Lines are means over the seeds that an arm and the baseline share, bands their 95 % intervals, "
        "dots single seeds: where a band leaves zero, seeds agree."
        if several
        else "A gap within what another seed would do means nothing."
    )
    return Picture(
        "difference",
        "How far apart the arms are",
        f"“{baseline}” is the baseline. {'The first' if accuracies else 'The'} panel takes its validation "
        "loss off every arm’s at the same step, so that gaps too small for the figure above can be seen; the "
        f"zero line is the baseline itself. {meaning}",
        arm_legend(own),
        tuple(panels),
        ("arm", "seed", "step", "loss_minus_first", "accuracy"),
        tuple(_distance_rows(curve, own)),
    )


def difference_picture(
    tasks: Sequence[Numbers], baseline: str, arms: Mapping[str, int]
) -> Picture | None:
    """A panel a task: every arm's difference from the baseline with its interval, and single seeds."""
    others = {name: k for name, k in arms.items() if name != baseline}
    compared = [task for task in tasks if any(name in task["arms"] for name in others)]
    if not compared:
        return None
    rows: list[Row] = []
    for task in compared:
        for name in others:
            if name in task["arms"]:
                numbers = task["arms"][name]
                rows.append(
                    (
                        task["task"], task["metric"], name, numbers["difference"],
                        numbers["difference_low"], numbers["difference_high"], numbers["p"],
                        numbers.get("p_holm"), len(numbers["by_seed"]),
                    )
                )  # fmt: skip
    return Picture(
        "differences",
        f"Differences from “{baseline}” in the end",
        _forest_caption(compared, others),
        arm_legend(others),
        tuple(_forest(task, baseline, others) for task in compared),
        (
            "task", "metric", "arm", "difference", "low", "high", "p", "p_holm", "pre_training_seeds",
        ),
        tuple(rows),
    )  # fmt: skip


def arm_legend(arms: Mapping[str, int]) -> tuple[LegendEntry, ...]:
    """One entry an arm; ``arms``: name → place among the arms, which decides its colour everywhere."""
    return tuple(LegendEntry(name, arm_colour(k), arm_style(k)) for name, k in arms.items())


def thin_out(series: Series) -> np.ndarray:
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


def ratio_text(ratios: Iterable[float]) -> str:
    """The ratios that validations used, such as ``15 %``; in words where they are not known."""
    found = sorted({f"{100 * ratio:g}\N{NO-BREAK SPACE}%" for ratio in ratios if ratio == ratio})
    return " or ".join(found) or "masking ratio"


def _same_axis(curve: Numbers, arms: Iterable[str], before: Sequence[str], axis: str) -> bool:
    """Whether an axis is a multiple of one before it, for all arms alike: then its panel is the same."""
    for other in before:
        shares = [
            np.divide(_floats(own[axis])[1:], _floats(own[other])[1:])
            for name in arms
            if _has(own := curve["arms"][name], axis) and _has(own, other)
        ]
        found = np.concatenate(shares) if shares else np.empty(0)
        if found.size and np.isfinite(found).all() and np.ptp(found) < 0.005 * abs(found.mean()):
            return True
    return False


def _references(curve: Numbers, arms: Iterable[str]) -> tuple[dict[str, float], str]:
    """What the data alone gives, to be drawn beside the curves, and a sentence on what is too far above them.

    What no arm has reached is always drawn. What all have passed is drawn as long as the curves still have
    half of the panel, or it is within half a nat.
    """
    means = np.concatenate([_floats(curve["arms"][name]["mean"]) for name in arms])
    top = np.nanmax(means)
    limit = top + max(top - np.nanmin(means), _STILL_NEAR)
    known = curve.get("references") or {}
    near = {name: height for name, height in known.items() if height <= limit}
    far = [f"{name} ({height:.2f})" for name, height in known.items() if height > limit]
    if not far:
        return near, ""
    return near, f" Far above these curves, and not drawn: the loss of {join_words(far)}."


def _cost_panel(
    curve: Numbers, arms: Mapping[str, int], axis: str, references: Mapping[str, float]
) -> str:
    """The quantity against one axis, over dashed lines across; long times in minutes, FLOPs in a power of
    ten.
    """
    name, scale = AXIS_NAMES[axis], 1.0
    if axis == "seconds":
        longest = max(curve["arms"][arm]["seconds"][-1] or 0.0 for arm in arms)
        name, scale = ("minutes", 1 / 60) if longest > 300 else ("seconds", 1.0)
    unit_of_cost = name
    if axis == "flops":  # as the table of arms writes them, and not in trillions
        most = max(float(np.nanmax(_floats(curve["arms"][arm][axis]))) for arm in arms)
        exponent = math.floor(math.log10(most)) if most > 0 else 0
        scale, unit_of_cost = 10.0**-exponent, f"{name}, {raised_ten(exponent)}"
    lines = [
        _cost_line(curve, curve["arms"][arm], arm, index, axis, scale)
        for arm, index in arms.items()
        if _has(curve["arms"][arm], axis)
    ]
    of_loss = curve["quantity"] in (LOSS, MEAN_LOSS)
    unit = "nats per predicted token" if of_loss else unit_of(curve)
    prefix = f"curve-{curve['quantity']}-{axis}"
    return lines_panel(lines, f"By {name}", unit_of_cost, unit, prefix, references)


def _cost_line(
    curve: Numbers, numbers: Numbers, name: str, index: int, axis: str, scale: float
) -> ArmLine:
    def to_column(values: Iterable[float]) -> np.ndarray:
        return np.array([in_unit(curve, value) for value in values])

    x = scale * _floats(numbers[axis])
    band = None
    if numbers.get("interval_low") is not None:
        band = (to_column(numbers["interval_low"]), to_column(numbers["interval_high"]))
    seeds: tuple[tuple[np.ndarray, np.ndarray], ...] = ()
    if len(numbers["by_seed"]) > 1 and axis != "seconds":  # no two runs take the same time
        seeds = tuple(
            (scale * _floats(of_seed[axis]), to_column(of_seed["value"]))
            for of_seed in numbers["by_seed"].values()
        )
    return ArmLine(index, name, x, to_column(numbers["mean"]), band, seeds)


def _distance_line(difference: Numbers, name: str, index: int) -> ArmLine:
    step = _floats(difference["step"])
    band = None
    if difference["low"] is not None:
        band = (_floats(difference["low"]), _floats(difference["high"]))
    seeds = tuple((step, _floats(values)) for values in difference["by_seed"].values())
    return ArmLine(
        index, name, step, _floats(difference["mean"]), band, seeds if len(seeds) > 1 else ()
    )


def _distance_rows(curve: Numbers, arms: Mapping[str, int]) -> Iterable[Row]:
    """A row for every arm, seed and step that it shares with the baseline."""
    for name in arms:
        numbers = curve["arms"][name]
        place = {step: k for k, step in enumerate(numbers["step"])}
        for seed, gaps in numbers["difference"]["by_seed"].items():
            accuracy = numbers["by_seed"][seed].get("accuracy")
            for step, gap in zip(numbers["difference"]["step"], gaps, strict=True):
                right = None if accuracy is None else accuracy[place[step]]
                yield (name, int(seed), _whole(step), _whole(gap), right)


def _seeds_caption(curve: Numbers) -> str:
    numbers = curve["arms"].values()
    if max(len(arm["by_seed"]) for arm in numbers) == 1:
        return "There is one seed: another would give other lines."
    bands = any(arm.get("interval_low") is not None for arm in numbers)
    return (
        "Lines are means over pre-training seeds, bands their 95 % intervals, and dots single seeds."
        if bands
        else "Lines are means over pre-training seeds, and dots are single seeds."
    )


def _forest(task: Numbers, baseline: str, others: Mapping[str, int]) -> str:
    """A task's differences, a row an arm, in the order of the arms."""
    names = [name for name in others if name in task["arms"]]
    better = "right" if task["higher_is_better"] else "left"
    with appearance():
        title = task_title(task)
        axes = panel(
            _capital(title),
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
            numbers, colour = task["arms"][name], arm_colour(others[name])
            found = verdict(task, numbers)
            at = in_unit(task, numbers["difference"])
            ends = [at]
            if found != "unknown":
                ends = [in_unit(task, numbers[f"difference_{end}"]) for end in ("low", "high")]
                axes.plot(ends, [row, row], color=colour, lw=1.8, zorder=2, solid_capstyle="butt")
            seeds = _seed_differences(task, name, baseline)
            if len(seeds) > 1:
                axes.plot(
                    seeds, [row + 0.24] * len(seeds), "o", ms=2.8, mew=0, color=colour, alpha=0.6
                )
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
            reach = max(reach, abs(at), *map(abs, [*ends, *seeds]))
        axes.set_xlim(-1.08 * reach or -1.0, 1.08 * reach or 1.0)
        return to_svg(axes, f"forest-{task['task']}", f"Differences from the baseline on {title}")


def _forest_caption(tasks: Sequence[Numbers], others: Iterable[str]) -> str:
    """What a row of the differences is; intervals and dots of seeds are spoken of where there are some."""
    found = [
        (verdict(task, task["arms"][name]), len(task["arms"][name]["by_seed"]))
        for task in tasks
        for name in others
        if name in task["arms"]
    ]
    with_intervals = any(kind != "unknown" for kind, _ in found)
    without = any(kind == "unknown" for kind, _ in found)
    several = any(seeds > 1 for _, seeds in found)
    words = ["One row an arm: the mean difference over paired seeds"]
    words[0] += ", its 95 % interval" if with_intervals else ""
    words[0] += ", and small dots for single seeds." if several else "."
    if with_intervals:
        words.append("A full dot’s interval excludes zero, and a hollow one’s does not.")
    if without:
        words.append("A cross has no interval, for want of a second seed in common.")
    if with_intervals:
        words.append(
            "Of many intervals about one in twenty misses by chance; the tables have the tests."
        )
    return " ".join(words)


def _seed_differences(task: Numbers, name: str, baseline: str) -> list[float]:
    """The difference of each pre-training seed that the arm and the baseline share, as shown."""
    own, theirs = (task["arms"][arm]["by_seed"] for arm in (name, baseline))
    return [
        in_unit(task, float(np.mean(own[seed]) - np.mean(theirs[seed])))
        for seed in own
        if seed in theirs
    ]


def _has(numbers: Numbers, key: str) -> bool:
    """Whether an arm has any number under a key."""
    return any(value is not None for value in numbers.get(key) or ())


def _floats(values: Iterable[float | None]) -> np.ndarray:
    return np.array([np.nan if value is None else value for value in values], dtype=float)


def _whole(value: float | None) -> int | float | None:
    return None if value is None else cell(value)


def _capital(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}"
