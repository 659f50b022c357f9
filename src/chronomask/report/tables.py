"""The tables of a page: the arms, where they end, what was declared, what it cost, what differs, the data.

Each is made of a comparison's numbers (docs/studies.md) and is ready for the template: texts, and marks for
the best value and for an interval that excludes zero.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any

from chronomask.errors import amount
from chronomask.report.comparison import (
    ABSENT,
    AXIS_NAMES,
    LOSSES,
    Numbers,
    count,
    difference_text,
    duration,
    families,
    gap_text,
    in_unit,
    interval_text,
    mean_text,
    p_text,
    percent,
    power_of_ten,
    task_title,
    thousands,
    unit_of,
    verdict,
)

__all__ = [
    "arms_table",
    "class_shares",
    "config_table",
    "contrasts_table",
    "data_rows",
    "mark_of",
    "overview",
    "parameters",
    "reach_table",
    "task_table",
]

_SIGNS = {"better": "▲", "worse": "▼", "open": "", "unknown": ""}


def mark_of(arms: Mapping[str, int], name: str) -> Any:
    """The mark and colour of an arm, with its name."""
    from chronomask.report.figures import arm_legend

    return arm_legend({name: arms[name]})[0]


def arms_table(study: Numbers, arms: Mapping[str, int]) -> Numbers:
    """What each arm is, and what its runs came to, as means over seeds; without columns nobody fills."""
    by_name = {arm["name"]: arm for arm in study["arms"]}
    columns = [
        ("seeds", "", lambda arm: str(len(arm["runs"]))),
        ("steps", "", lambda arm: thousands(_of(arm, "steps"))),
        ("tokens seen", "", lambda arm: count(_of(arm, "tokens_seen"))),
        ("masked tokens", "predicted", lambda arm: count(_of(arm, "masked_tokens"))),
        ("mean loss", "of five yardsticks", lambda arm: _decimals(_of(arm, "mean_loss"))),
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
                "legend": mark_of(arms, name),
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
        weights = arm["differs"].get("masking.content.weights", (None, None))[1]
        if isinstance(weights, str):
            parts.append(f"weights: {weights}")
        if "strength" in content:
            parts.append(f"strength {_schedule_in_words(content['strength'])}")
    parts.append(_strategy_in_words(masking["strategy"]))
    parts += _rest_of_the_masking(masking, arm["differs"])
    parts += _beside_the_masking(arm["differs"])
    labels = arm["equal_labels"]
    text = ", ".join(parts)
    return f"{text}; as many labels as the baseline, by {labels}" if labels else text


def _strategy_in_words(strategy: Mapping[str, Any]) -> str:
    """What is masked together: ``whole word``; of a mixture its shares, ``token 0.5 and whole word 0.5``."""
    if "parts" not in strategy:
        return strategy["kind"].replace("_", " ")
    return " and ".join(
        f"{_strategy_in_words(part['strategy'])} {_schedule_in_words(part['share'])}"
        for part in strategy["parts"]
    )


def _rest_of_the_masking(masking: Mapping[str, Any], differs: Mapping[str, Any]) -> list[str]:
    """What an arm masks otherwise beside ratio, content and strategy, such as ``mask replace prob 0.65``."""
    told = {"ratio", "content", "strategy"}
    names = {key.split(".")[1] for key in differs if key.startswith("masking.")} - told
    found = []
    for name in sorted(names):
        value = masking.get(name)
        by_time = isinstance(value, int | float) or (isinstance(value, Mapping) and "kind" in value)
        shown = _schedule_in_words(value) if by_time else str(value).replace("_", " ")
        found.append(f"{name.replace('_', ' ')} {shown}")
    return found


def _beside_the_masking(differs: Mapping[str, Any]) -> list[str]:
    """What else an arm does otherwise: a field's name, with its kind or whole number if it has one."""
    found = {}
    for key, (_, own) in differs.items():
        group = key.partition(".")[0]
        name = group.replace("_", " ")
        whole = group == key and str(own).isdecimal()  # differences of runs are texts
        _, kind = differs.get(f"{group}.kind", (None, None))
        value = f"{int(own):,}" if whole else (kind or "").replace("_", " ")
        found[group] = f"{name} {value}".rstrip()
    return [found[group] for group in sorted(found) if group != "masking"]


def _schedule_in_words(value: Any) -> str:
    """A number, or the kind of a schedule with its numbers: ``0.25``, ``linear 0.3 to 0.15``, ``cosine decay
    0.15, floor 0.02``.
    """
    if not isinstance(value, Mapping):
        return f"{value:g}"
    numbers = {
        name: f"{own:g}"
        for name, own in value.items()
        if isinstance(own, int | float) and not isinstance(own, bool)
    }
    if "start" in numbers and "end" in numbers:
        numbers["start"] += f" to {numbers.pop('end')}"
    first, *others = [*numbers.items()] or [("", "")]
    words = f"{value['kind'].replace('_', ' ')} {first[1]}".rstrip()
    return ", ".join([words, *(f"{name.replace('_', ' ')} {own}" for name, own in others)])


def overview(study: Numbers, arms: Mapping[str, int]) -> Numbers:
    """Every arm on every task: mean, whether it is the best, and whether its difference excludes zero."""
    best = {task["task"]: _best(task, study) for task in study["tasks"]}
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
        rows.append({"legend": mark_of(arms, name), "cells": cells})
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


def contrasts_table(study: Numbers) -> list[Numbers]:
    """Every declared contrast on every task, the headline first: what was found, and what these seeds would
    have shown.
    """
    return [
        {
            "arm": one["arm"],
            "other": one["other"],
            "task": task_title(task),
            "unit": unit_of(task),
            "sign": _SIGNS.get(verdict(task, one), ""),
            "classes": verdict(task, one),
            "cells": [
                difference_text(task, one["difference"]),
                gap_text(task, one),
                p_text(one["p"]),
                p_text(one.get("p_holm")),
                ABSENT
                if one["detectable"] is None
                else difference_text(task, one["detectable"]).lstrip("+"),
            ],
        }
        for family in families(study["tasks"])
        for task in family
        for one in task.get("contrasts", ())
    ]


def _best(task: Numbers, study: Numbers) -> set[str]:
    """The arms whose mean, as it is written, is the best of several; none where means do not compare."""
    unlike = task["task"] in LOSSES and not study.get("losses_compare", True)
    if len(task["arms"]) < 2 or unlike:
        return set()
    choose = max if task["higher_is_better"] else min
    best = choose(numbers["mean"] for numbers in task["arms"].values())
    text = mean_text(task, best)
    return {name for name, own in task["arms"].items() if mean_text(task, own["mean"]) == text}


def task_table(task: Numbers, study: Numbers, arms: Mapping[str, int]) -> Numbers:
    """One task with its differences and tests."""
    rows = []
    best = _best(task, study)
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
                p_text(numbers["p"]),
                p_text(numbers.get("p_holm")),
            ]
        rows.append({"legend": mark_of(arms, name), "cells": cells, "best": name in best})
    return {
        "title": task_title(task),
        "unit": unit_of(task),
        "note": _note(task),
        "rows": rows,
    }


def _note(task: Numbers) -> str:
    """On how many seeds and results an arm's numbers rest, and what the intervals allow for."""
    arms = [numbers["by_seed"].values() for numbers in task["arms"].values()]
    seeds = _span({len(by_seed) for by_seed in arms}, "pre-training seeds")
    results = _span({sum(map(len, by_seed)) for by_seed in arms}, "results")
    counts = ", ".join(f"{size:,} {part}" for part, size in task["num_examples"].items())
    covers = next((own["covers"] for own in task["arms"].values() if own["covers"]), ())
    allow = (
        f"Intervals allow for other {' and '.join(covers)}."
        if covers
        else "One seed: no intervals."
    )
    return f"{seeds}, {results} an arm{f'; examples: {counts}' if counts else ''}. {allow}"


def _span(numbers: Collection[int], what: str) -> str:
    """``1 result``, ``3 results``, ``1 to 2 results``; ``what`` in the plural."""
    least, most = min(numbers), max(numbers)
    return amount(most, what) if least == most else f"{least} to {amount(most, what)}"


def reach_table(reach: Numbers, arms: Mapping[str, int]) -> Numbers | None:
    """What share of the baseline's spending an arm needed to be as good; None for one arm alone."""
    if len(reach["arms"]) < 2:
        return None
    axes = [axis for axis in AXIS_NAMES if any(axis in own for own in reach["arms"].values())]
    rows = [
        {
            "legend": mark_of(arms, name),
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


def config_table(study: Numbers, arms: Mapping[str, int]) -> Numbers:
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


def data_rows(data: Numbers) -> list[tuple[str, str]]:
    """What the data is, name and value."""
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


def class_shares(data: Numbers) -> list[tuple[str, str]]:
    """Share of each class among the words to train on, the most frequent first."""
    train = data.get("statistics", {}).get("splits", {}).get("train", {})
    ordered = sorted(train.get("word_share_per_class", {}).items(), key=lambda item: -item[1])
    return [(name, percent(share)) for name, share in ordered if share]


def parameters(study: Numbers) -> list[str]:
    """The sizes of the models, each once."""
    found = (arm.get("parameters") for arm in study["arms"])
    return list(dict.fromkeys(f"{value:,.0f}" for value in found if value is not None))


def _of(arm: Numbers, key: str) -> float:
    value = arm.get(key)
    return float("nan") if value is None else float(value)


def _decimals(value: float) -> str:
    return ABSENT if value != value else f"{value:.3f}"
