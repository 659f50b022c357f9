"""The sentences above the tables, made from the numbers and claiming no more than they carry."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

from chronomask.report.classes import CONTENT, FUNCTION, group_mean
from chronomask.report.figures import ratio_text
from chronomask.report.tables import ArmRow
from chronomask.runs.read import Run

__all__ = ["data_fingerprints", "seeds_per_arm", "summary_sentences"]

_WORDS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


def summary_sentences(runs: Sequence[Run], rows: Sequence[ArmRow]) -> list[str]:
    """What was run, what came out, and how far it can be trusted, a sentence each."""
    # An unfinished run is behind the others by its age, not by its masking.
    compared = [row for row in rows if row.complete] or list(rows)
    return [
        _what_ran(runs, rows),
        *_loss(runs, compared),
        *_signal(compared),
        *_classes(runs),
        _trust(runs, rows),
    ]


def seeds_per_arm(runs: Sequence[Run]) -> int:
    """The greatest number of seeds with which one configuration was run."""
    seeds: dict[str, set[str]] = {}
    for run in runs:
        values = {key: value for key, value in run.config.items() if key not in ("name", "seed")}
        arm = json.dumps(values, sort_keys=True, default=str)
        seeds.setdefault(arm, set()).add(str(run.config.get("seed")))
    return max(len(found) for found in seeds.values())


def data_fingerprints(runs: Sequence[Run]) -> list[str]:
    """The distinct data fingerprints that finished runs name, in order."""
    found = (str(run.summary.get("data_fingerprint")) for run in runs if run.summary)
    return list(dict.fromkeys(text for text in found if text not in ("", "None")))


def _what_ran(runs: Sequence[Run], rows: Sequence[ArmRow]) -> str:
    steps = sorted({row.steps for row in rows})
    span = f"{steps[0]:,}" if len(steps) == 1 else f"between {steps[0]:,} and {steps[-1]:,}"
    shared = len(data_fingerprints(runs)) == 1 and all(row.complete for row in rows)
    data = " on the same data" if shared else ""
    if len(runs) == 1:
        return f"One run, “{rows[0].arm}”, was trained for {span} steps."
    return f"{_count(len(runs)).capitalize()} runs were trained for {span} steps{data}."


def _loss(runs: Sequence[Run], rows: Sequence[ArmRow]) -> list[str]:
    validated = [row for row in rows if not math.isnan(row.validation_loss)]
    scored = sorted(validated, key=lambda row: row.validation_loss)
    if not scored:
        return ["No validation has been made yet."]
    best, worst = scored[0], scored[-1]
    at = f"at a fixed masking ratio of {ratio_text(runs)}"
    if len(scored) == 1:
        return [
            f"Validated {at}, “{best.arm}” has a loss of {best.validation_loss:.3f} nats per "
            "predicted token."
        ]
    spread = worst.validation_loss - best.validation_loss
    return [
        f"Validated {at}, losses lie between {best.validation_loss:.3f} nats per predicted "
        f"token (“{best.arm}”) and {worst.validation_loss:.3f} (“{worst.arm}”), {spread:.3f} apart."
    ]


def _signal(rows: Sequence[ArmRow]) -> list[str]:
    masked = [row.masked_tokens for row in rows if not math.isnan(row.masked_tokens)]
    if len(masked) < 2 or min(masked) <= 0 or max(masked) < 1.02 * min(masked):
        return []
    more = max(masked) / min(masked) - 1
    return [
        f"They did not all predict equally many tokens: from {min(masked):,.0f} to "
        f"{max(masked):,.0f}, {100 * more:.0f}\N{NO-BREAK SPACE}% more."
    ]


def _classes(runs: Sequence[Run]) -> list[str]:
    losses = []
    for run in runs:
        if len(run.validation):
            content, function = (
                group_mean(run.validation, "class_loss", group) for group in (CONTENT, FUNCTION)
            )
            if not math.isnan(content) and not math.isnan(function):
                losses.append((content, function))
    if not losses:
        return []
    content = sum(pair[0] for pair in losses) / len(losses)
    function = sum(pair[1] for pair in losses) / len(losses)
    harder = "harder" if content > function else "easier"
    where = "" if len(losses) == 1 else ", averaged over the runs"
    return [
        f"Content words end up {harder} to predict than function words: {content:.2f} against "
        f"{function:.2f} nats{where}."
    ]


def _trust(runs: Sequence[Run], rows: Sequence[ArmRow]) -> str:
    if len(runs) == 1:
        return "One run shows how training went; it compares nothing."
    if seeds_per_arm(runs) == 1:
        seeds = {row.seed for row in rows} - {None}
        same = f", all with seed {seeds.pop()}" if len(seeds) == 1 else ""
        return (
            f"Every arm was run once{same}: another seed would move these losses too, so "
            "differences between arms are not evidence that one way of masking is better."
        )
    return (
        "Some arms were run with several seeds, drawn here as lines of their own; this page makes "
        "no statistical test, so look for differences larger than those between seeds of one arm."
    )


def _count(number: int) -> str:
    return _WORDS[number] if number < len(_WORDS) else f"{number:,}"
