"""The page of a study claims what its intervals carry, and carries every number."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from chronomask.errors import DataError, UsageError
from chronomask.report.average import mean_run
from chronomask.report.comparison import verdict
from chronomask.report.study_page import write_study_report
from chronomask.report.study_sentences import (
    difference_sentences,
    reach_sentences,
    study_sentences,
)
from chronomask.runs.read import read_run
from tests.support.comparisons import AXES, comparison, reach, task
from tests.support.synthetic_runs import write_run


def test_an_interval_that_excludes_zero() -> None:
    (better,) = difference_sentences([task("cola", {"a": (0.01, 0.03)})], "base")
    assert "the one comparison with “base” has an interval that excludes zero" in better
    assert "the arm better: “a” +2.0 (+1.0 to +3.0; accuracy, %)" in better
    (worse,) = difference_sentences([task("validation_loss", {"a": (0.01, 0.03)})], "base")
    assert "the arm worse: “a” +0.020 (+0.010 to +0.030; nats)" in worse


def test_an_interval_that_includes_zero() -> None:
    (one,) = difference_sentences([task("cola", {"a": (-0.01, 0.03)})], "base")
    assert "neither a difference nor that there is none" in one
    (many,) = difference_sentences([task("cola", {"a": (-0.01, 0.03), "b": (0.0, 0.1)})], "base")
    assert "none of 2 comparisons" in many
    assert "do not show that any arm is better or worse, nor that they are equal" in many
    for text in (one, many):
        assert "excludes zero with" not in text


def test_some_of_each() -> None:
    limits = {"a": (0.01, 0.03), "b": (-0.1, 0.1), "c": (-0.3, -0.1), "d": (0.1, 0.2)}
    found = difference_sentences([task("cola", limits), task("rte", {"a": (-1.0, 1.0)})], "base")
    assert "2 of 5 comparisons" in found[0]
    assert "intervals that exclude zero with the arm better" in found[0]
    assert "“d” on CoLA" in found[0]
    assert "the arm worse: “c”" in found[1]
    assert found[2].startswith("The intervals of the other 2 include zero")


def test_one_seed_claims_nothing() -> None:
    (text,) = difference_sentences([task("validation_loss", {"a": None}, seeds=1)], "base")
    assert "nothing is claimed" in text
    *_, last = difference_sentences([task("cola", {"a": (0.01, 0.02)}, seeds=1)], "base")
    assert "another seed may turn them" in last
    assert verdict(*_pair(None)) == "unknown"
    assert verdict(*_pair((0.0, 1.0))) == "open"


def _pair(limits: tuple[float, float] | None) -> tuple[dict, dict]:
    made = task("cola", {"a": limits})
    return made, made["arms"]["a"]


@pytest.mark.parametrize(
    ("numbers", "says", "not_says"),
    [
        ((0.5, 0.4, 0.6), "was reached earlier", "cannot be told"),
        ((0.5, 0.4, 1.1), "cannot be told", "earlier"),
        ((0.5, 0.4, None), "cannot be told", "earlier"),
        ((None, None, None), "not reached within their training", "earlier"),
        ((None, 0.9, None), "cannot be told", "not reached"),
    ],
)
def test_speed_is_claimed_with_its_interval(
    numbers: tuple[float | None, float | None, float | None], says: str, not_says: str
) -> None:
    made = comparison([task("cola", {"a": (0.0, 1.0)})], [reach({"a": numbers})])
    text = " ".join(reach_sentences(made))
    assert says in text
    assert not_says not in text


def test_the_summary_says_how_far_it_carries() -> None:
    text = " ".join(study_sentences(comparison([task("cola", {"a": (0.1, 0.2)})])))
    assert "no p can be below 0.25" in text
    assert "“a” predicts 2.00 times as many tokens" in text


@pytest.mark.parametrize("seeds", [1, 3])
def test_the_page_and_its_numbers(tmp_path: Path, seeds: int) -> None:
    limits = {"a": (0.01, 0.03), "b & c": None if seeds == 1 else (-0.1, 0.1)}
    tasks = [task("validation_loss", limits, seeds=seeds), task("cola", limits, seeds=seeds)]
    made = comparison(
        tasks, [reach({"a": (0.5, 0.4, 0.6), "b & c": (None, 0.9, None)})], seeds=seeds
    )
    (tmp_path / "comparison.json").write_text(json.dumps(made))
    for name in ("base", "a"):
        for seed in range(seeds):
            write_run(tmp_path / "runs" / name / f"seed-{seed}", name, seed=seed, weighted=True)
    page = write_study_report(tmp_path)
    html = page.read_text(encoding="utf-8")
    assert "Made &lt;up&gt;" in html
    assert "Made <up>" not in html
    assert "b &amp; c" in html
    assert "The runs’ logs of “b &amp; c” are not beside this page" in html
    assert "1.50 × 10¹⁰" in html
    assert "src=" not in html
    names = {path.stem for path in (tmp_path / "csv").iterdir()}
    assert names >= {
        "arms",
        "tasks",
        "reach",
        "curve-validation_loss",
        "differences",
        "class-weight",
    }
    for name in names:
        assert f'href="csv/{name}.csv"' in html
    with (tmp_path / "csv" / "tasks.csv").open() as file:
        rows = {(row["task"], row["arm"]): row for row in csv.DictReader(file)}
    assert float(rows["cola", "a"]["difference_high"]) == 0.03
    with (tmp_path / "csv" / "curve-validation_loss.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 3 * seeds * 2
    assert set(AXES) < set(lines[0])
    first = page.read_bytes()
    write_study_report(tmp_path)
    assert page.read_bytes() == first


def test_a_folder_without_a_comparison(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no comparison\.json"):
        write_study_report(tmp_path)
    (tmp_path / "comparison.json").write_text('{"schema_version": 7}')
    with pytest.raises(DataError, match="schema version 7"):
        write_study_report(tmp_path)


def test_the_mean_of_runs(tmp_path: Path) -> None:
    runs = [
        read_run(write_run(tmp_path / f"{k}", "x", gain=gain, steps=steps, weighted=True))
        for k, (gain, steps) in enumerate([(0.0, 500), (1.0, 300)])
    ]
    mean = mean_run(runs, "mean")
    common = runs[1].metrics["step"]
    assert mean.metrics["step"].tolist() == common.tolist()
    expected = (runs[0].metrics["loss"][: len(common)] + runs[1].metrics["loss"]) / 2
    np.testing.assert_allclose(mean.metrics["loss"], expected)
    weights = [run.metrics.per_class["class_weight"]["NOUN"] for run in runs]
    np.testing.assert_allclose(
        mean.metrics.per_class["class_weight"]["NOUN"], (weights[0][: len(common)] + weights[1]) / 2
    )
