"""The page of results says what the studies' files say: its table of pairs at equal labels, cell by cell."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import pytest
from scipy.stats import t

from chronomask.study.arms import resolve_arms
from chronomask.study.config import load_study

RESULTS = Path(__file__).parents[1] / "docs" / "results"
STUDIES = {
    name: json.loads((RESULTS / name / "comparison.json").read_text())
    for name in ("eight-ways", "equal-labels", "tiny")
}
MEASURES = {"validation_loss": 1, "mean_loss": 1, "blimp": 100, "upos_probe": 100}
"""Task → what its numbers are multiplied by on the page, column by column."""


def _pairs(study: dict[str, Any], task: str, arm: str, other: str) -> list[float]:
    """The differences of an arm from another, seed by seed; none where the study lacks one of them."""
    for each in study["tasks"]:
        if each["task"] == task and {arm, other} <= set(each["arms"]):
            own, theirs = (each["arms"][name]["by_seed"] for name in (arm, other))
            return [mean(own[seed]) - mean(theirs[seed]) for seed in sorted(own)]
    return []


def _cell(gaps: Sequence[float], scale: float) -> str:
    """Mean and 95 % interval by Student's t, bold where it excludes zero, as the page writes it."""
    digits = 3 if scale == 1 else 1
    half = float(t.ppf(0.975, len(gaps) - 1)) * stdev(gaps) / math.sqrt(len(gaps))
    middle, low, high = (
        f"{round(scale * value, digits) + 0.0:+.{digits}f}".replace("-", "−")  # no negative zero
        for value in (mean(gaps), mean(gaps) - half, mean(gaps) + half)
    )
    text = f"{middle} ({low} to {high})"
    return f"**{text}**" if abs(mean(gaps)) > half else text


@pytest.mark.parametrize("name", sorted(path.parent.name for path in RESULTS.glob("*/study.yaml")))
def test_the_file_of_a_study_still_means_what_it_ran(name: str) -> None:
    """What masks in its arms, as this version reads them, is what its comparison says of them."""
    arms = resolve_arms(load_study(RESULTS / name / "study.yaml"), "data")
    ran = json.loads((RESULTS / name / "comparison.json").read_text())["arms"]
    assert list(arms) == [arm["name"] for arm in ran]
    for arm in ran:
        now = arms[arm["name"]].config.masking.to_dict()
        then, implied = arm["masking"], {"strength": 1.0}  # which at first had no name
        for part in ("ratio", "content", "strategy"):
            assert now[part] == (implied if part == "content" else {}) | then[part]


@pytest.mark.parametrize(
    ("arm", "other"),
    [("0.30 to 0.15", "fixed 0.225"), ("MRD linear", "fixed 0.15"), ("PTW", "fixed 0.15")],
)
def test_the_table_of_equal_labels_is_that_of_the_files(arm: str, other: str) -> None:
    cells = []
    for task, scale in MEASURES.items():
        gaps = [
            gap
            for name in ("eight-ways", "tiny")
            for gap in _pairs(STUDIES[name], task, arm, other)
        ]
        assert len(gaps) == 3 * (1 + (task != "mean_loss"))
        cells.append(_cell(gaps, scale))
    for study in STUDIES.values():
        labels = {each["name"]: each["masked_tokens"] for each in study["arms"]}
        assert arm not in labels or labels[arm] == pytest.approx(labels[other], rel=0.005)
    page = (RESULTS / "README.md").read_text(encoding="utf-8")
    assert f"| {arm} | {other} | {' | '.join(cells)} |" in page


def test_the_study_at_equal_labels_gave_what_its_table_says() -> None:
    study = STUDIES["equal-labels"]
    arm, other = "0.30 to 0.15", "fixed 0.225"
    assert study["contrasts"] == [[arm, other]]
    assert len(study["seeds"]) == 12
    page = (RESULTS / "README.md").read_text(encoding="utf-8")
    for task in study["tasks"]:
        scale = MEASURES[task["task"]]
        own = (
            f"{scale * task['arms'][name]['mean']:.{3 if scale == 1 else 1}f}"
            for name in (other, arm)
        )
        (contrast,) = task["contrasts"]
        shown = f"{scale * contrast['detectable']:.{3 if scale == 1 else 1}f}"
        gap = _cell(_pairs(study, task["task"], arm, other), scale)
        assert f" | {' | '.join(own)} | {gap} | {shown} |" in page
