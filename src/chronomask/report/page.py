"""The one page of every report: of a run, of runs, of a study.

A section appears where there is something to show. ``report.html`` needs no other file; beside it
``csv/*.csv`` hold every number that it plots or lists.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from chronomask.errors import ChronomaskError, need
from chronomask.report.arms import ArmRow, arm_row, mean_row, mean_run
from chronomask.report.comparison import (
    ABSENT,
    AXIS_NAMES,
    LOSS,
    Curves,
    Numbers,
    count,
    difference_text,
    duration,
    families,
    flatten,
    in_unit,
    interval_text,
    mean_text,
    percent,
    power_of_ten,
    read_comparison,
    task_title,
    thousands,
    unit_of,
    verdict,
)
from chronomask.report.render import Cell, Download, picture_values, render, write_csv
from chronomask.report.sentences import answer, findings
from chronomask.runs.read import Run, read_run
from chronomask.storage import write_text

__all__ = ["write_page", "write_page_of_study"]

_SIGNS = {"better": "▲", "worse": "▼", "open": "", "unknown": ""}
_MEANS = (
    "steps", "tokens_seen", "masked_tokens", "validation_loss", "validation_accuracy",
    "raw_validation_loss",
    "mean_ratio_asked", "mean_ratio_achieved", "flops", "tokens_per_second", "seconds",
)  # fmt: skip
"""What an arm came to, in the order of the table of arms."""


def write_page_of_study(folder: Path, out: Path | None = None, known: Curves | None = None) -> Path:
    """Write the page of a study that was compared, from its files alone, into its folder or ``out``.

    Runs whose logs are not there are left out of the figures from inside the arms, and that is said.
    Returns the page's path. Raises UsageError or DataError for a folder without a comparison.
    """
    study = read_comparison(folder)
    runs: dict[str, list[Run]] = {}
    problems = []
    for arm in study["arms"]:
        try:
            runs[arm["name"]] = [read_run(folder / run["folder"]) for run in arm["runs"]]
        except ChronomaskError:
            problems.append(f"“{arm['name']}”")
    if problems:
        study["notices"].append(
            f"The runs’ logs of {', '.join(problems)} are not beside this page or cannot be read: the "
            "figures from inside the arms are without them."
        )
    return write_page(study, runs, out or folder, known)


def write_page(
    study: Numbers, runs: Mapping[str, Sequence[Run]], out: Path, known: Curves | None = None
) -> Path:
    """Write ``out/report.html`` and ``out/csv/*.csv``; returns the page's path.

    ``study``: the comparison, as docs/studies.md describes it; ``runs``: arm → its runs, for what their
    logs hold; ``known``: curves to lay under the loss. The same input gives the same bytes. Raises
    UsageError where a package is missing or the folder cannot be made.
    """
    need("matplotlib", "report", "Drawing a report")
    study = {**study, "arms": _with_means(study, runs)}
    # The baseline first: it has the ink-grey colour and the first line everywhere.
    names = [arm["name"] for arm in study["arms"]]
    arms = {name: k for k, name in enumerate(sorted(names, key=study["baseline"].__ne__))}
    means = {
        k: mean_run(own, name) for name, k in arms.items() if (own := list(runs.get(name, ())))
    }
    html = render(
        Path(__file__).with_name("page.html"),
        title=study["name"],
        answer=answer(study),
        findings=findings(study, means),
        notices=study["notices"],
        baseline=study["baseline"],
        arms=_arms_table(study, arms),
        arms_download=_arms_csv(out, study),
        runs_download=_runs_csv(out, arms, runs),
        overview=_overview(study, arms),
        contrasts=_contrasts_table(study),
        tasks=[_task_table(task, study, arms) for task in study["tasks"]],
        tasks_download=_tasks_csv(out, study) if study["tasks"] else None,
        tested=any(
            numbers.get("p") is not None
            for task in study["tasks"]
            for numbers in (*task["arms"].values(), *task.get("contrasts", ()))
        ),
        headline=task_title(families(study["tasks"])[0][0]) if study["tasks"] else "",
        reach=[table for reach in study["reach"] if (table := _reach_table(reach, arms))],
        reach_download=_reach_csv(out, study) if len(arms) > 1 and study["reach"] else None,
        figures=[picture_values(out, picture) for picture in _result_pictures(study, arms, known)],
        inside=[picture_values(out, picture) for picture in _inside_pictures(means)],
        differences=_config_table(study, arms),
        data=_data_rows(study["data"]),
        classes=_class_shares(study["data"]),
        parameters=_parameters(study),
        versions=[(key, str(value)) for key, value in study["versions"].items()],
    )
    path = out / "report.html"
    write_text(path, html)
    return path


def _with_means(study: Numbers, runs: Mapping[str, Sequence[Run]]) -> list[Numbers]:
    """The arms with what their logs say now, where these are there, beside what the comparison says."""
    return [
        {**arm, **mean_row([arm_row(run) for run in runs[arm["name"]]])}
        if runs.get(arm["name"])
        else arm
        for arm in study["arms"]
    ]


def _result_pictures(study: Numbers, arms: Mapping[str, int], known: Curves | None) -> list[Any]:
    """Figures of how well arms do: the loss, how far apart they are, differences in the end, other curves."""
    from chronomask.report import figures

    pictures = []
    for curve in study["curves"]:
        if not curve["arms"]:
            continue
        pictures.append(figures.curve_picture(curve, arms))
        if curve["quantity"] == LOSS:
            if known:
                pictures.append(figures.reference_picture(curve, arms, known))
            pictures.append(figures.distance_picture(curve, study["baseline"], arms))
            pictures.append(figures.difference_picture(study["tasks"], study["baseline"], arms))
    if not any(curve["quantity"] == LOSS for curve in study["curves"]):
        pictures.append(figures.difference_picture(study["tasks"], study["baseline"], arms))
    return [picture for picture in pictures if picture is not None]


def _inside_pictures(means: Mapping[int, Run]) -> list[Any]:
    """Figures from the logs of training and the classes of validation."""
    from chronomask.report import class_figures, training_figures

    draws = (
        training_figures.training_loss,
        training_figures.masking_ratio,
        training_figures.other_schedules,
        training_figures.predicted_tokens,
        class_figures.class_loss,
        class_figures.class_weight,
        class_figures.final_class_loss,
    )
    return [picture for draw in draws if means and (picture := draw(means)) is not None]


def _mark(arms: Mapping[str, int], name: str) -> Any:
    from chronomask.report.figures import arm_legend

    return arm_legend({name: arms[name]})[0]


def _arms_table(study: Numbers, arms: Mapping[str, int]) -> Numbers:
    """What each arm is, and what its runs came to, as means over seeds; without columns nobody fills."""
    by_name = {arm["name"]: arm for arm in study["arms"]}
    columns = [
        ("seeds", "", lambda arm: str(len(arm["runs"]))),
        ("steps", "", lambda arm: thousands(_of(arm, "steps"))),
        ("tokens seen", "", lambda arm: count(_of(arm, "tokens_seen"))),
        ("masked tokens", "predicted", lambda arm: count(_of(arm, "masked_tokens"))),
        ("validation loss", "nats", lambda arm: _decimals(_of(arm, "validation_loss"))),
        ("accuracy", "", lambda arm: percent(_of(arm, "validation_accuracy"))),
        ("loss as trained", "not averaged", lambda arm: _decimals(_of(arm, "raw_validation_loss"))),
        ("mean ratio, %", "asked, achieved", _ratios),
        ("FLOPs", "", lambda arm: power_of_ten(_of(arm, "flops"))),
        ("tokens/s", "median", lambda arm: thousands(_of(arm, "tokens_per_second"))),
        ("training time", "", lambda arm: duration(_of(arm, "seconds"))),
    ]
    cells = [[text(by_name[name]) for name in arms] for *_, text in columns]
    filled = [k for k, column in enumerate(cells) if set(column) != {ABSENT}]
    return {
        "headings": [{"title": columns[k][0], "unit": columns[k][1]} for k in filled],
        "rows": [
            {
                "legend": _mark(arms, name),
                "what": _what(by_name[name]),
                "complete": by_name[name].get("complete", True),
                "cells": [cells[k][row] for k in filled],
            }
            for row, name in enumerate(arms)
        ],
        "several_seeds": any(len(arm["runs"]) > 1 for arm in study["arms"]),
    }


def _ratios(arm: Numbers) -> str:
    """What was asked for and what was achieved, in per cent."""
    ratios = [_of(arm, f"mean_ratio_{which}") for which in ("asked", "achieved")]
    if all(ratio != ratio for ratio in ratios):
        return ABSENT
    return ", ".join(ABSENT if ratio != ratio else f"{100 * ratio:.1f}" for ratio in ratios)


def _what(arm: Numbers) -> str:
    """An arm in a line: ratio, content and its strength, units, and what differs beside the masking."""
    masking = arm["masking"]
    if not all("kind" in masking.get(part, {}) for part in ("ratio", "content", "strategy")):
        return ""
    content = masking["content"]
    parts = [_schedule_in_words(masking["ratio"])]
    if content["kind"] != "none":
        parts.append(content["kind"].replace("_", " "))
        if "strength" in content:
            parts.append(f"strength {_schedule_in_words(content['strength'])}")
    parts.append(masking["strategy"]["kind"].replace("_", " "))
    others = {key.partition(".")[0] for key in arm["differs"]} - {"masking"}
    parts += sorted(key.replace("_", " ") for key in others)
    labels = arm["equal_labels"]
    text = ", ".join(parts)
    return f"{text}; as many labels as the baseline, by {labels}" if labels else text


def _schedule_in_words(value: Any) -> str:
    """A number, or the kind of a schedule with its numbers: ``0.25``, ``linear 0.3 to 0.15``."""
    if not isinstance(value, Mapping):
        return f"{value:g}"
    numbers = {
        name: f"{own:g}"
        for name, own in value.items()
        if isinstance(own, int | float) and not isinstance(own, bool)
    }
    if "start" in numbers and "end" in numbers:
        numbers["start"] += f" to {numbers.pop('end')}"
    return " ".join([value["kind"].replace("_", " "), *numbers.values()])


def _overview(study: Numbers, arms: Mapping[str, int]) -> Numbers:
    """Every arm on every task: mean, whether it is the best, and whether its difference excludes zero."""
    best = {task["task"]: _best(task) for task in study["tasks"]}
    rows = []
    for name in arms:
        cells = []
        for task in study["tasks"]:
            numbers = task["arms"].get(name)
            if numbers is None:
                cells.append({"mean": ABSENT, "range": "", "classes": "", "sign": ""})
                continue
            found = "" if name == study["baseline"] else verdict(task, numbers)
            marks = [found, "best" if name in best[task["task"]] else ""]
            cells.append(
                {
                    "mean": mean_text(task, numbers["mean"]),
                    "range": interval_text(task, numbers["low"], numbers["high"], sign=False),
                    "classes": " ".join(filter(None, marks)),
                    "sign": _SIGNS.get(found, ""),
                }
            )
        rows.append({"legend": _mark(arms, name), "cells": cells})
    headings = [{"title": task_title(task), "unit": unit_of(task)} for task in study["tasks"]]
    _with_glue_mean(headings, rows, study)
    return {"headings": headings, "rows": rows}


def _with_glue_mean(headings: list[Numbers], rows: list[Numbers], study: Numbers) -> None:
    """Add a column with the mean of the GLUE tasks, where there are several."""
    glue = [task for task in study["tasks"] if task.get("family") == "glue"]
    if len(glue) < 2:
        return
    means = {}
    for row in rows:
        name = row["legend"].text
        values = [
            in_unit(task, task["arms"][name]["mean"]) for task in glue if name in task["arms"]
        ]
        means[name] = sum(values) / len(values) if len(values) == len(glue) else None
    best = max((round(mean, 1) for mean in means.values() if mean is not None), default=None)
    headings.append({"title": "GLUE mean", "unit": f"of {len(glue)} tasks, ×100"})
    for row in rows:
        mean = means[row["legend"].text]
        text = ABSENT if mean is None else f"{mean:.1f}"
        marked = "best" if mean is not None and round(mean, 1) == best and len(rows) > 1 else ""
        row["cells"].append({"mean": text, "range": "", "classes": marked, "sign": ""})


def _contrasts_table(study: Numbers) -> list[Numbers]:
    """Every declared contrast on every task: what was found, and what these seeds would have shown."""
    return [
        {
            "pair": f"{one['arm']} − {one['other']}",
            "task": task_title(task),
            "unit": unit_of(task),
            "sign": _SIGNS.get(verdict(task, one), ""),
            "classes": verdict(task, one),
            "cells": [
                difference_text(task, one["difference"]),
                interval_text(task, one["difference_low"], one["difference_high"], sign=True),
                _p_text(one["p"]),
                _p_text(one.get("p_holm")),
                ABSENT
                if one["detectable"] is None
                else difference_text(task, one["detectable"]).lstrip("+"),
            ],
        }
        for task in study["tasks"]
        for one in task.get("contrasts", ())
    ]


def _best(task: Numbers) -> set[str]:
    """The arms whose mean, as it is written, is the best of several."""
    if len(task["arms"]) < 2:
        return set()
    choose = max if task["higher_is_better"] else min
    best = choose(numbers["mean"] for numbers in task["arms"].values())
    text = mean_text(task, best)
    return {name for name, own in task["arms"].items() if mean_text(task, own["mean"]) == text}


def _task_table(task: Numbers, study: Numbers, arms: Mapping[str, int]) -> Numbers:
    """One task with its differences and tests."""
    rows = []
    best = _best(task)
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
            low, high = (numbers[f"difference_{end}"] for end in ("low", "high"))
            cells += [
                difference_text(task, numbers["difference"]),
                interval_text(task, low, high, sign=True),
                _p_text(numbers["p"]),
                _p_text(numbers.get("p_holm")),
            ]
        rows.append({"legend": _mark(arms, name), "cells": cells, "best": name in best})
    number = len(task["seeds"])
    results = number * max(1, len(task["task_seeds"]))
    counts = ", ".join(f"{size:,} {part}" for part, size in task["num_examples"].items())
    covers = next(iter(task["arms"].values()))["covers"]
    notes = [
        f"{number} pre-training {'seed' if number == 1 else 'seeds'}, {results} "
        f"{'result' if results == 1 else 'results'} an arm{f'; examples: {counts}' if counts else ''}.",
        f"Intervals allow for other {' and '.join(covers)}."
        if covers
        else "One seed: no intervals.",
    ]
    return {
        "title": task_title(task),
        "unit": unit_of(task),
        "note": " ".join(notes),
        "rows": rows,
    }


def _p_text(p: float | None) -> str:
    return ABSENT if p is None else f"{p:.3f}" if p >= 0.001 else "< 0.001"


def _reach_table(reach: Numbers, arms: Mapping[str, int]) -> Numbers | None:
    """What share of the baseline's spending an arm needed to be as good; None for one arm alone."""
    if len(reach["arms"]) < 2:
        return None
    axes = [axis for axis in AXIS_NAMES if any(axis in own for own in reach["arms"].values())]
    rows = [
        {
            "legend": _mark(arms, name),
            "cells": [_share_cell(reach["arms"][name].get(axis)) for axis in axes],
        }
        for name in arms
        if name in reach["arms"]
    ]
    return {"title": task_title(reach), "axes": [AXIS_NAMES[axis] for axis in axes], "rows": rows}


def _share_cell(numbers: Numbers | None) -> dict[str, str]:
    if numbers is None:
        return {"mean": ABSENT, "range": ""}
    share = numbers["share"]
    return {
        "mean": "not reached" if share is None else f"{100 * share:.0f} %",
        "range": _range(numbers),
    }


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


def _config_table(study: Numbers, arms: Mapping[str, int]) -> Numbers:
    """Every field in which an arm differs from what all are compared with, with each arm's value."""
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
    rows = []
    if data.get("fingerprint"):
        rows.append(("fingerprint", data["fingerprint"]))
    if "row_length" in data:
        rows.append(("tokens in a row", f"{data['row_length']:,}"))
    for split, values in data.get("statistics", {}).get("splits", {}).items():
        rows += [
            (f"{split.replace('_', ' ')}: {key.replace('_', ' ')}", f"{values[key]:,}")
            for key in ("documents", "rows", "tokens", "words", "tokens_per_word", "unknown_tokens")
            if values.get(key) is not None
        ]
    return rows


def _class_shares(data: Numbers) -> list[tuple[str, str]]:
    """Share of each class among the words to train on, the most frequent first."""
    train = data.get("statistics", {}).get("splits", {}).get("train", {})
    ordered = sorted(train.get("word_share_per_class", {}).items(), key=lambda item: -item[1])
    return [(name, percent(share)) for name, share in ordered if share]


def _parameters(study: Numbers) -> list[str]:
    found = (arm.get("parameters") for arm in study["arms"])
    return list(dict.fromkeys(f"{value:,.0f}" for value in found if value is not None))


def _arms_csv(out: Path, study: Numbers) -> Download:
    columns = ["arm", "seeds", "complete", *_MEANS, "parameters", "masking"]
    rows: list[list[Cell]] = [
        [
            arm["name"],
            len(arm["runs"]),
            arm.get("complete", True),
            *(_cell(arm.get(key)) for key in (*_MEANS, "parameters")),
            json.dumps(dict(flatten(arm["masking"]))),
        ]
        for arm in study["arms"]
    ]
    return write_csv(out, "arms", columns, rows)


def _runs_csv(
    out: Path, arms: Mapping[str, int], runs: Mapping[str, Sequence[Run]]
) -> Download | None:
    """Every run by itself."""
    rows: list[list[Cell]] = []
    for name in arms:
        for run in runs.get(name, ()):
            values = {**asdict(arm_row(run)), "arm": name}
            rows.append([_cell(values[field.name]) for field in fields(ArmRow)])
    return write_csv(out, "runs", [field.name for field in fields(ArmRow)], rows) if rows else None


def _tasks_csv(out: Path, study: Numbers) -> Download:
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
    return write_csv(out, "tasks", ["task", "metric", "pre_training_seeds", "arm", *keys], rows)


def _reach_csv(out: Path, study: Numbers) -> Download:
    keys = ("estimate", "low", "high", "share", "share_low", "share_high", "baseline")
    rows: list[list[Cell]] = [
        [reach["quantity"], name, axis, *(axes[axis].get(key) for key in keys)]
        for reach in study["reach"]
        for name, axes in reach["arms"].items()
        for axis in AXIS_NAMES
        if axis in axes
    ]
    return write_csv(out, "reach", ["quantity", "arm", "axis", *keys], rows)


def _cell(value: Any) -> Cell:
    """A value for a CSV cell: whole numbers without a point, nothing where there is none."""
    if not isinstance(value, float):
        return value
    if value != value:
        return None
    return int(value) if value.is_integer() else value


def _of(arm: Numbers, key: str) -> float:
    value = arm.get(key)
    return float("nan") if value is None else float(value)


def _decimals(value: float) -> str:
    return ABSENT if value != value else f"{value:.3f}"
