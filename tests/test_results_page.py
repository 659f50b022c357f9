"""The page of results says what the studies' files say: its table of pairs at equal labels, cell by cell."""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import pytest
from scipy.stats import t

from chronomask.report.comparison import LOSSES
from chronomask.study.arms import resolve_arms
from chronomask.study.config import load_study
from chronomask.study.curves import reach
from chronomask.study.plan import (
    STORED_SPREADS,
    _beside_baseline,  # pyright: ignore[reportPrivateUsage]
)

RESULTS = Path(__file__).parents[1] / "docs" / "results"
if not (RESULTS / "tiny").is_dir():
    pytest.skip("the source archive has no results of studies", allow_module_level=True)
STUDIES = {
    name: json.loads((RESULTS / name / "comparison.json").read_text())
    for name in (
        "courses", "eight-ways", "equal-labels", "equal-labels-small", "harder-first", "larger-vocabulary",
        "next-tokens", "next-tokens-hidden", "over-time", "spread", "strategies", "tiny", "tokens-again",
        "tokens-at-last", "tokens-longer",
    )
}  # fmt: skip
MEASURES = {
    "validation_loss": 1, "mean_loss": 1, "single_mask_loss": 1, "sst2": 100, "blimp": 100, "upos_probe": 100,
}  # fmt: skip
"""Task → what its numbers are multiplied by on the page."""
POOLED = ("validation_loss", "mean_loss", "blimp", "upos_probe")
"""The columns of the table that pools two studies."""
GROUPS = ("content words", "function words", "punctuation")


def _pairs(study: dict[str, Any], task: str, arm: str, other: str) -> list[float]:
    """The differences of an arm from another, seed by seed; none where the study lacks one of them."""
    for each in study["tasks"]:
        if each["task"] == task and {arm, other} <= set(each["arms"]):
            own, theirs = (each["arms"][name]["by_seed"] for name in (arm, other))
            return [mean(own[seed]) - mean(theirs[seed]) for seed in sorted(own)]
    return []


def _cell(gaps: Sequence[float], scale: float) -> str:
    """Mean and 95 % interval by Student's t, as the page writes it."""
    half = float(t.ppf(0.975, len(gaps) - 1)) * stdev(gaps) / math.sqrt(len(gaps))
    return _interval(mean(gaps), mean(gaps) - half, mean(gaps) + half, scale)


def _interval(middle: float, low: float, high: float, scale: float) -> str:
    """A difference with its interval, bold where that excludes zero."""
    digits = 3 if scale == 1 else 1
    texts = [
        f"{round(scale * value, digits) + 0.0:+.{digits}f}".replace("-", "−")  # no negative zero
        for value in (middle, low, high)
    ]
    text = f"{texts[0]} ({texts[1]} to {texts[2]})"
    return text if low <= 0 <= high else f"**{text}**"


def _yardsticks(name: str) -> dict[tuple[str, str, str], float]:
    """The mean loss of a study by arm, yardstick and part of the words."""
    with (RESULTS / name / "csv" / "yardsticks.csv").open() as lines:
        rows = list(csv.DictReader(lines))
    return {(row["arm"], row["yardstick"], row["part"]): float(row["mean"]) for row in rows}


def _tasks(study: dict[str, Any]) -> dict[str, Any]:
    return {each["task"]: each["arms"] for each in study["tasks"]}


def _difference(arms: dict[str, Any], arm: str, scale: float) -> str:
    own = arms[arm]
    return _interval(own["difference"], own["difference_low"], own["difference_high"], scale)


def rows_of_tiny() -> list[str]:
    """The lines of the table of ``tiny``: the baseline itself, then every arm's differences from it."""
    study, rows = STUDIES["tiny"], []
    columns = ("mean_loss", "validation_loss", "single_mask_loss", "sst2", "blimp", "upos_probe")
    for arm in (each["name"] for each in study["arms"]):
        cells = [
            f"{MEASURES[task] * _tasks(study)[task][arm]['mean']:.{3 if MEASURES[task] == 1 else 1}f}"
            if arm == study["baseline"]
            else _difference(_tasks(study)[task], arm, MEASURES[task])
            for task in columns
        ]
        itself = " (itself)" if arm == study["baseline"] else ""
        rows.append(f"| {arm}{itself} | {' | '.join(cells)} |")
    return rows


def rows_of_over_time() -> list[str]:
    """The lines of the table of ``over-time``: means of the yardsticks, by groups too, and differences."""
    study, rows = STUDIES["over-time"], []
    means = {
        each["part"]: {arm: own["mean"] for arm, own in each["arms"].items()}
        for each in study["yardsticks"]
        if each["yardstick"] == "mean"
    }
    texts = {
        part: {arm: f"{value:.{2 if part else 3}f}" for arm, value in means[part].items()}
        for part in ("", *GROUPS)
    }
    for arm in (each["name"] for each in study["arms"]):
        cells = [
            f"**{own[arm]}**" if own[arm] == min(own.values(), key=float) else own[arm]
            for own in texts.values()
        ]
        if arm == study["baseline"]:
            cells += ["", f"{100 * _tasks(study)['upos_probe'][arm]['mean']:.1f}"]
        else:
            cells += [
                _difference(_tasks(study)[task], arm, MEASURES[task])
                for task in ("mean_loss", "upos_probe")
            ]
        itself = " (itself)" if arm == study["baseline"] else ""
        rows.append(f"| {arm}{itself} | {' | '.join(cells)} |".replace("|  |", "| |"))
    return rows


def test_the_tables_of_the_small_studies_are_those_of_their_files() -> None:
    page = (RESULTS / "README.md").read_text(encoding="utf-8")
    assert len(rows_of_tiny()) == 7
    assert len(rows_of_over_time()) == 13
    for rows in (rows_of_tiny(), rows_of_over_time()):
        assert "\n".join(rows) in page


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
    for task in POOLED:
        gaps = [
            gap
            for name in ("eight-ways", "tiny")
            for gap in _pairs(STUDIES[name], task, arm, other)
        ]
        assert len(gaps) == 3 * (1 + (task != "mean_loss"))
        cells.append(_cell(gaps, MEASURES[task]))
    for study in STUDIES.values():
        labels = {each["name"]: each["masked_tokens"] for each in study["arms"]}
        assert arm not in labels or labels[arm] == pytest.approx(labels[other], rel=0.005)
    page = (RESULTS / "README.md").read_text(encoding="utf-8")
    assert f"| {arm} | {other} | {' | '.join(cells)} |" in page


@pytest.mark.parametrize(("name", "seeds"), [("equal-labels", 12), ("equal-labels-small", 6)])
def test_the_studies_at_equal_labels_gave_what_their_tables_say(name: str, seeds: int) -> None:
    study = STUDIES[name]
    arm, other = "0.30 to 0.15", "fixed 0.225"
    assert study["contrasts"] == [[arm, other]]
    assert len(study["seeds"]) == seeds
    page = (RESULTS / "README.md").read_text(encoding="utf-8")
    for task in study["tasks"]:
        scale = MEASURES[task["task"]]
        own = (
            f"{scale * task['arms'][name]['mean']:.{3 if scale == 1 else 1}f}"
            for name in (other, arm)
        )
        (contrast,) = task["contrasts"]
        shown = f"{scale * contrast['detectable']:.{3 if scale == 1 else 1}f}"
        gap = _interval(*(contrast[f"difference{end}"] for end in ("", "_low", "_high")), scale)
        assert f" | {' | '.join(own)} | {gap} | {shown} |" in page


@pytest.mark.parametrize(
    "name",
    [
        "courses",
        "harder-first",
        "next-tokens",
        "next-tokens-hidden",
        "spread",
        "strategies",
        "tokens-again",
        "tokens-at-last",
        "tokens-longer",
        "larger-vocabulary",
    ],
)
def test_the_tables_of_declared_contrasts_are_those_of_their_files(name: str) -> None:
    study = STUDIES[name]
    page = (RESULTS / "README.md").read_text(encoding="utf-8")
    baseline = study["baseline"]
    (head,) = (
        line
        for line in page.splitlines()
        if line.startswith(f"| `{name}`, {len(study['seeds'])} seeds")
    )
    for task in study["tasks"]:
        scale = MEASURES[task["task"]]
        gaps = [
            _interval(*(contrast[f"difference{end}"] for end in ("", "_low", "_high")), scale)
            for contrast in task["contrasts"]
        ]
        heads = [
            f"{contrast['arm']}, difference"
            + f" from {contrast['other']}" * (contrast["other"] != baseline)
            for contrast in task["contrasts"]
        ]
        assert head.endswith(f"| {baseline} | {' | '.join(heads)} |")
        own = f"{scale * task['arms'][baseline]['mean']:.{3 if scale == 1 else 1}f}"
        assert f" | {own} | {' | '.join(gaps)} |" in page


def test_the_overview_says_what_the_sections_say() -> None:
    page = (RESULTS / "README.md").read_text(encoding="utf-8")
    overview, sections = page.split("\n## ", maxsplit=1)
    intervals = re.findall(r"[+−]\d\.\d{3} \([+−]\d\.\d{3} to [+−]\d\.\d{3}\)", overview)
    assert len(intervals) >= 9
    assert [each for each in intervals if each not in sections] == []


def test_ends_with_and_without_single_tokens_are_compared_as_the_files_say() -> None:
    page = (RESULTS / "README.md").read_text(encoding="utf-8")
    ends = [("tokens-at-last", "tokens to a quarter"), ("strategies", "tokens to words")]
    with_some, without = (
        next(task for task in STUDIES[name]["tasks"] if task["task"] == "mean_loss")["arms"][arm]
        for name, arm in ends
    )
    seeds = without["by_seed"]
    gaps = [mean(seeds[seed]) - mean(with_some["by_seed"][seed]) for seed in seeds]
    middle, low, high = re.findall(r"\d\.\d{3}", _cell(gaps, 1))
    assert len(gaps) == 6
    assert f"the same six seeds are {middle} nats lower on the mean ({low} to {high})" in page


def test_whole_words_in_the_larger_model_are_told_as_the_file_has_them() -> None:
    page = (RESULTS / "README.md").read_text(encoding="utf-8")
    read = _yardsticks("tokens-longer")
    gaps = {
        ratio: read["whole words", f"words-{ratio}", "all"]
        - read["half tokens", f"words-{ratio}", "all"]
        for ratio in (5, 15, 30, 50)
    }
    assert gaps[5] < gaps[15] < 0 < gaps[30] < gaps[50]
    told = {ratio: f"{abs(gap):.2f}" for ratio, gap in gaps.items()}
    assert (
        f"Where whole words are hidden they are {told[5]} nats ahead at 5 %, {told[15]} at 15 %,\n"
        f"  and {told[30]} and {told[50]} nats behind at 30 and 50 %."
    ) in page


def test_groups_of_words_of_harder_words_first_are_those_of_the_file() -> None:
    page = (RESULTS / "README.md").read_text(encoding="utf-8")
    read = _yardsticks("harder-first")
    for arm in STUDIES["harder-first"]["tasks"][0]["arms"]:
        cells = [f"{read[arm, 'mean', group]:.3f}" for group in GROUPS]
        assert f"| {arm} | {' | '.join(cells)} |" in page


@pytest.mark.parametrize(
    "name",
    [
        "larger-vocabulary",
        "next-tokens",
        "spread",
        "strategies",
        "tokens-again",
        "tokens-at-last",
        "tokens-longer",
    ],
)
def test_yardsticks_by_ratio_are_those_of_the_file(name: str) -> None:
    page = (RESULTS / "README.md").read_text(encoding="utf-8")
    read = _yardsticks(name)
    for arm in STUDIES[name]["tasks"][0]["arms"]:
        cells = [
            f"{read[arm, each, 'all']:.3f}"
            for each in ("words-5", "words-15", "words-30", "words-50", "single")
        ]
        assert f"| {arm} | {' | '.join(cells)} |" in page


def test_losses_by_what_is_shown_are_those_of_the_file() -> None:
    page = (RESULTS / "README.md").read_text(encoding="utf-8")
    with (RESULTS / "next-tokens" / "by_shown.csv").open() as lines:
        read = [row for row in csv.DictReader(lines) if row["yardstick"] == "words-5"]
    numbers, *arms = ([row[kind] for kind in ("mask", "itself", "random")] for row in read)
    assert "with {:,}, {} and {} predictions".format(int(numbers[0]), *numbers[1:]) in page
    for row, losses in zip(read[1:], arms, strict=True):
        assert f"| {row['arm']} | {' | '.join(f'{float(loss):.2f}' for loss in losses)} |" in page


def test_losses_of_hidden_tokens_are_those_of_the_files() -> None:
    page = (RESULTS / "README.md").read_text(encoding="utf-8")
    for name, how in (("next-tokens", "80 % hidden"), ("next-tokens-hidden", "always hidden")):
        with (RESULTS / name / "by_shown.csv").open() as lines:
            read = {(row["arm"], row["yardstick"]): row["mask"] for row in csv.DictReader(lines)}
        for arm in STUDIES["next-tokens-hidden"]["tasks"][0]["arms"]:
            cells = [f"{float(read[arm, f'words-{share}']):.2f}" for share in (5, 15, 30, 50)]
            assert f"| {arm}, {how} | {' | '.join(cells)} |" in page


def test_the_course_at_equal_labels_is_that_of_the_file() -> None:
    with (RESULTS / "equal-labels-small" / "csv" / "difference.csv").open() as lines:
        read = [row for row in csv.DictReader(lines) if row["arm"] == "0.30 to 0.15"]
    course = {
        step: mean(float(row["loss_minus_first"]) for row in read if row["step"] == str(step))
        for step in (250, 750, 1250)
    }
    page = (RESULTS / "README.md").read_text(encoding="utf-8")
    told = f"led by {-course[250]:.3f} nats after a sixth of the run and by {-course[750]:.3f} after half"
    assert told in page
    assert f"was {course[1250]:.3f} behind after five sixths" in page


@pytest.mark.parametrize(
    "folder", sorted(path.parent.name for path in RESULTS.glob("*/comparison.json"))
)
def test_files_of_a_study_agree(folder: str) -> None:
    """Its tables have the ratios and ranges of its comparison, and these ranges are those of its curves."""
    study = json.loads((RESULTS / folder / "comparison.json").read_text())
    with (RESULTS / folder / "csv" / "arms.csv").open() as lines:
        rows = {row["arm"]: row for row in csv.DictReader(lines)}
    for arm in study["arms"]:
        for key in ("mean_ratio_asked", "mean_ratio_achieved"):
            assert float(rows[arm["name"]][key]) == pytest.approx(arm[key], rel=1e-9)
    finished = [arm["name"] for arm in study["arms"] if arm.get("complete", True)]
    curves = {(curve["quantity"], curve["metric"]): curve for curve in study["curves"]}
    for published in study["reach"]:
        curve = curves[published["quantity"], published["metric"]]
        found = reach({"unit": None, **curve}, study["baseline"], finished)["arms"]
        assert published["arms"].keys() == found.keys()
        for arm, own in published["arms"].items():
            for key, value in own.get("step", {}).items():
                assert value == (found[arm]["step"][key] and pytest.approx(found[arm]["step"][key]))


def test_the_stored_scatter_of_a_plan_is_that_of_the_studies_it_names() -> None:
    for name, (seeds, examples, metric, unit) in STORED_SPREADS.items():
        of_seeds = (
            "equal-labels-small" if name in ("mean_loss", "single_mask_loss") else "eight-ways"
        )
        (task,) = (own for own in STUDIES[of_seeds]["tasks"] if own["task"] == name)
        pairs = _beside_baseline(task, STUDIES[of_seeds]["baseline"])
        found = [math.sqrt(mean(own**2 for own in spread)) for spread in zip(*pairs, strict=True)]
        if name in LOSSES:
            (task,) = (own for own in STUDIES["tokens-longer"]["tasks"] if own["task"] == name)
            found[1] = task["arms"]["tokens to a quarter"]["examples_spread"]
        assert [float(f"{spread:.2g}") for spread in found] == [seeds, examples], name
        assert (task["metric"], task["unit"]) == (metric, unit)
