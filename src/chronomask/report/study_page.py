"""Writes the page of a study: ``report.html`` and ``csv/*.csv`` from its comparison and its runs' logs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from chronomask.errors import ChronomaskError
from chronomask.report.average import mean_run
from chronomask.report.class_figures import class_loss, class_weight, final_class_loss
from chronomask.report.comparison import (
    AXIS_NAMES,
    Numbers,
    interval_text,
    mean_text,
    read_comparison,
    signed,
    task_title,
    unit_of,
    verdict,
)
from chronomask.report.downloads import Cell, Download, figure_values, write_csv
from chronomask.report.drawing import Picture, compact
from chronomask.report.figures import masking_ratio, predicted_tokens
from chronomask.report.render import render
from chronomask.report.study_figures import curve_picture, difference_picture, legend_of
from chronomask.report.study_sentences import study_sentences
from chronomask.report.tables import ABSENT, duration, flatten, thousands
from chronomask.runs.read import Run, read_run
from chronomask.storage import write_text

__all__ = ["write_study_report"]

_INSIDE = (masking_ratio, predicted_tokens, class_loss, class_weight, final_class_loss)
_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_SIGNS = {"better": "▲", "worse": "▼", "open": "", "unknown": ""}


def write_study_report(folder: Path) -> Path:
    """Write ``folder/report.html``; the path. The same results give the same bytes.

    Raises UsageError or DataError for a folder without a comparison.
    """
    study = read_comparison(folder)
    arms = {arm["name"]: k for k, arm in enumerate(_baseline_first(study))}
    runs, notices = _mean_runs(folder, _baseline_first(study))
    html = render(
        Path(__file__).with_name("study.html"),
        title=study["name"],
        sentences=study_sentences(study),
        notices=[*study["notices"], *notices],
        baseline=study["baseline"],
        arms=_arm_rows(study, arms),
        arms_download=_arms_csv(folder, study),
        overview=_overview(study, arms),
        tasks=[_task_table(task, study, arms) for task in study["tasks"]],
        tasks_download=_tasks_csv(folder, study),
        smallest_p=study["smallest_p"],
        reach=[_reach_table(reach, study, arms) for reach in study["reach"] if reach["arms"]],
        reach_download=_reach_csv(folder, study),
        axes=list(AXIS_NAMES.values()),
        figures=[figure_values(folder, picture) for picture in _pictures(study, arms)],
        inside=[
            figure_values(folder, picture)
            for draw in _INSIDE
            if runs and (picture := draw(runs)) is not None
        ],
        differences=_config_table(study, arms),
        data=_data_rows(study["data"]),
        classes=_class_shares(study["data"]),
        versions=[(key, str(value)) for key, value in study["versions"].items()],
    )
    path = folder / "report.html"
    write_text(path, html)
    return path


def _baseline_first(study: Numbers) -> list[Numbers]:
    """Arms with the baseline first: it has the ink-grey colour and the first line everywhere."""
    return sorted(study["arms"], key=lambda arm: arm["name"] != study["baseline"])


def _mean_runs(folder: Path, arms: Sequence[Numbers]) -> tuple[list[Run], list[str]]:
    """A mean run per arm from the logs that are there; they may have been left elsewhere."""
    found, problems = [], []
    for arm in arms:
        try:
            runs = [read_run(folder / run["folder"]) for run in arm["runs"]]
        except ChronomaskError:
            problems.append(f"“{arm['name']}”")
            continue
        if runs:
            found.append(mean_run(runs, arm["name"]))
    if not problems:
        return found, []
    return found, [
        f"The runs’ logs of {', '.join(problems)} are not beside this page or cannot be read: the figures "
        "from inside the arms are without them."
    ]


def _pictures(study: Numbers, arms: dict[str, int]) -> list[Picture]:
    curves = [curve_picture(curve, arms) for curve in study["curves"]]
    differences = difference_picture(study["tasks"], study["baseline"], arms)
    return [*curves[:1], *([differences] if differences is not None else []), *curves[1:]]


def _legend(arms: dict[str, int], name: str) -> Any:
    return legend_of({name: arms[name]})[0]


def _arm_rows(study: Numbers, arms: dict[str, int]) -> list[Numbers]:
    """What each arm is, and what its runs were and cost, as means over seeds."""
    rows = []
    for arm in _baseline_first(study):
        labels = (
            f"; as many labels as the baseline, by {arm['equal_labels']}"
            if arm["equal_labels"]
            else ""
        )
        rows.append(
            {
                "legend": _legend(arms, arm["name"]),
                "what": _masking_text(arm["masking"]) + labels,
                "cells": [
                    str(len(arm["runs"])),
                    thousands(_of(arm, "steps")),
                    _count(_of(arm, "tokens_seen")),
                    _count(_of(arm, "masked_tokens")),
                    _percent(_of(arm, "mean_ratio_achieved")),
                    _power(_of(arm, "flops")),
                    thousands(_of(arm, "tokens_per_second")),
                    duration(_of(arm, "seconds")),
                ],
            }
        )
    return rows


def _count(value: float) -> str:
    """A count to three digits: ``1.23M``; a dash for NaN."""
    return ABSENT if value != value else compact(float(f"{value:.3g}"))


def _power(value: float) -> str:
    """``1.08 × 10¹⁰``; a dash for NaN."""
    if value != value:
        return ABSENT
    digits, _, exponent = f"{value:.2e}".partition("e")
    return f"{digits} × 10{str(int(exponent)).translate(_RAISED)}"


def _masking_text(masking: Numbers) -> str:
    """A masking config in a line: ratio, content, units."""
    ratio = masking["ratio"]
    numbers = {
        name: f"{value:g}"
        for name, value in ratio.items()
        if isinstance(value, int | float) and value is not True
    }
    if "start" in numbers and "end" in numbers:
        numbers["start"] += f" to {numbers.pop('end')}"
    values = " ".join(numbers.values())
    content = masking["content"]["kind"]
    parts = [f"{ratio['kind'].replace('_', ' ')} {values}".strip()]
    parts += [] if content == "none" else [content.replace("_", " ")]
    return ", ".join([*parts, masking["strategy"]["kind"].replace("_", " ")])


def _overview(study: Numbers, arms: dict[str, int]) -> Numbers:
    """Every arm on every task: mean, and whether its difference's interval excludes zero."""
    rows = []
    for name in arms:
        cells = []
        for task in study["tasks"]:
            numbers = task["arms"].get(name)
            if numbers is None:
                cells.append({"mean": ABSENT, "range": "", "verdict": "", "sign": ""})
                continue
            found = "" if name == study["baseline"] else verdict(task, numbers)
            cells.append(
                {
                    "mean": mean_text(task, numbers["mean"]),
                    "range": interval_text(task, numbers["low"], numbers["high"], sign=False),
                    "verdict": found,
                    "sign": _SIGNS.get(found, ""),
                }
            )
        rows.append({"legend": _legend(arms, name), "cells": cells})
    headings = [{"title": task_title(task), "unit": unit_of(task)} for task in study["tasks"]]
    return {"headings": headings, "rows": rows}


def _task_table(task: Numbers, study: Numbers, arms: dict[str, int]) -> Numbers:
    rows = []
    for name in arms:
        numbers = task["arms"].get(name)
        if numbers is None:
            continue
        spread = numbers["spread"]
        cells = [
            mean_text(task, numbers["mean"]),
            ABSENT if spread is None else mean_text(task, spread),
            interval_text(task, numbers["low"], numbers["high"], sign=False),
        ]
        if name == study["baseline"]:
            cells += [ABSENT] * 4
        else:
            cells += [
                signed(task, numbers["difference"]),
                interval_text(
                    task, numbers["difference_low"], numbers["difference_high"], sign=True
                ),
                _p_text(numbers["p"]),
                _p_text(numbers.get("p_holm")),
            ]
        rows.append({"legend": _legend(arms, name), "cells": cells})
    seeds = len(task["seeds"]) * max(1, len(task["task_seeds"]))
    counts = ", ".join(f"{count:,} {part}" for part, count in task["num_examples"].items())
    covers = next(iter(task["arms"].values()))["covers"]
    return {
        "title": task_title(task),
        "unit": unit_of(task),
        "note": f"{len(task['seeds'])} pre-training seeds, {seeds} results an arm; examples: {counts}. "
        + (
            f"Intervals allow for other {' and '.join(covers)}."
            if covers
            else "One seed: no intervals."
        ),
        "rows": rows,
    }


def _p_text(p: float | None) -> str:
    return ABSENT if p is None else f"{p:.3f}" if p >= 0.001 else "< 0.001"


def _reach_table(reach: Numbers, study: Numbers, arms: dict[str, int]) -> Numbers:
    """What share of the baseline's spending an arm needed to be as good."""
    rows = []
    for name in arms:
        if name not in reach["arms"]:
            continue
        cells = []
        for axis in AXIS_NAMES:
            numbers = reach["arms"][name][axis]
            if numbers["share"] is None:
                cells.append({"mean": "not reached", "range": _range(numbers)})
            else:
                cells.append({"mean": f"{100 * numbers['share']:.0f} %", "range": _range(numbers)})
        rows.append({"legend": _legend(arms, name), "cells": cells})
    return {"title": task_title(reach), "rows": rows}


def _range(numbers: Numbers) -> str:
    """The interval of a share; open at the top where the arm may never get there."""
    if "share_low" not in numbers:
        return "one seed"
    low, high = numbers["share_low"], numbers["share_high"]
    if low is None:
        return "beyond its end"
    return (
        f"{100 * low:.0f} % or more" if high is None else f"{100 * low:.0f} to {100 * high:.0f} %"
    )


def _config_table(study: Numbers, arms: dict[str, int]) -> Numbers:
    """Every field in which an arm differs from the base, with each arm's value."""
    by_name = {arm["name"]: arm for arm in study["arms"]}
    base: dict[str, Any] = {}
    for arm in study["arms"]:
        base |= {key: pair[0] for key, pair in arm["differs"].items()}
    rows = []
    for key in sorted(base):
        values = [by_name[name]["differs"].get(key, [None, base[key]])[1] for name in arms]
        rows.append((key, [ABSENT if v is None else _value_text(v) for v in values]))
    return {"names": list(arms), "rows": rows}


def _value_text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return value if isinstance(value, str) else json.dumps(value)


def _data_rows(data: Numbers) -> list[tuple[str, str]]:
    counts = data["statistics"].get("splits", {})
    rows = [("fingerprint", data["fingerprint"]), ("tokens in a row", f"{data['row_length']:,}")]
    for split, values in counts.items():
        rows += [
            (f"{split.replace('_', ' ')}: {key.replace('_', ' ')}", f"{values[key]:,}")
            for key in ("documents", "rows", "tokens", "words", "tokens_per_word", "unknown_tokens")
            if key in values
        ]
    return rows


def _class_shares(data: Numbers) -> list[tuple[str, str]]:
    """Share of each class among the words to train on, the most frequent first."""
    shares = data["statistics"].get("splits", {}).get("train", {}).get("word_share_per_class", {})
    ordered = sorted(shares.items(), key=lambda item: -item[1])
    return [(name, f"{100 * share:.1f} %") for name, share in ordered if share]


def _arms_csv(folder: Path, study: Numbers) -> Download:
    keys = (
        "steps", "tokens_seen", "masked_tokens", "mean_ratio_asked", "mean_ratio_achieved", "flops",
        "tokens_per_second", "seconds", "parameters",
    )  # fmt: skip
    rows: list[list[Cell]] = [
        [
            arm["name"],
            len(arm["runs"]),
            *(arm.get(key) for key in keys),
            json.dumps(dict(flatten(arm["masking"]))),
        ]
        for arm in study["arms"]
    ]
    return write_csv(folder, "arms", ["arm", "seeds", *keys, "masking"], rows)


def _tasks_csv(folder: Path, study: Numbers) -> Download:
    keys = (
        "mean", "spread", "low", "high", "difference", "difference_low", "difference_high", "p", "p_holm",
    )  # fmt: skip
    rows: list[list[Cell]] = [
        [
            task["task"],
            task["metric"],
            len(task["seeds"]),
            name,
            *(numbers.get(key) for key in keys),
        ]
        for task in study["tasks"]
        for name, numbers in task["arms"].items()
    ]
    return write_csv(folder, "tasks", ["task", "metric", "pre_training_seeds", "arm", *keys], rows)


def _reach_csv(folder: Path, study: Numbers) -> Download:
    keys = ("estimate", "low", "high", "share", "share_low", "share_high", "baseline")
    rows: list[list[Cell]] = [
        [reach["quantity"], name, axis, *(axes[axis].get(key) for key in keys)]
        for reach in study["reach"]
        for name, axes in reach["arms"].items()
        for axis in AXIS_NAMES
    ]
    return write_csv(folder, "reach", ["quantity", "arm", "axis", *keys], rows)


def _of(arm: Numbers, key: str) -> float:
    value = arm.get(key)
    return float("nan") if value is None else float(value)


def _percent(value: float) -> str:
    return ABSENT if value != value else f"{100 * value:.1f} %"
