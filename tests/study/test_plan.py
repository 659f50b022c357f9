"""The plan: units, time by measured rates, and the smallest differences, before anything runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from chronomask.report.comparison import difference_text
from chronomask.study.contrasts import compare_study
from chronomask.study.execute import run_study
from chronomask.study.plan import STORED_SPREADS, plan_in_words
from chronomask.study.statistics import smallest_difference
from tests.support.opened_study import opened


def test_the_plan_before_during_and_after(values: dict[str, Any], tmp_path: Path) -> None:
    study = opened({**values, "tasks": {}, "curve_steps": []}, tmp_path)
    before = plan_in_words(study, study.in_order(), 2)
    assert before.startswith("plan: 5 units, 1 complete; 4 to pretrain\n")
    assert "\ntime: at least " in before  # by operations: the data are prepared
    assert "\ncost: at least " in before
    assert "device-hours; --price-per-hour says what they cost\n" in before
    assert "stored studies" in before
    spread, _, metric, unit = STORED_SPREADS["validation_loss"]
    alone = difference_text({"metric": metric, "unit": unit}, smallest_difference(spread, 2))
    assert f"validation loss (nats): {alone.lstrip('+')}, " in before

    run_study(study, study.in_order()[:3])
    path = study.run_of("fixed", 0).summary
    summary = json.loads(path.read_text())
    for arm in ("fixed", "decay"):
        own = study.run_of(arm, 0).summary
        own.write_text(json.dumps({**json.loads(own.read_text()), "seconds": 100.0}))
    during = plan_in_words(study, study.in_order(), 2)
    assert "3 complete; 2 to pretrain" in during
    assert "time: 3 min 20 s of one process" in during
    assert "about 1 min 40 s with 2" in during
    assert (
        f"\ncost: {100 / 3600:.3g} device-hours; --price" in during
    )  # two processes on one device
    each = plan_in_words(study, study.in_order(), 2, devices=8, price_per_hour=36.0)
    assert f"\ncost: {200 / 3600:.3g} device-hours, 2.00 at 36 an hour\n" in each
    path.write_text(json.dumps(summary))

    run_study(study, study.in_order())
    compare_study(study)
    after = plan_in_words(study, study.in_order(), 1)
    assert after.startswith("plan: 5 units, 5 complete\n")
    assert "cost:" not in after
    assert "this study’s own seeds" in after
    assert "mean loss of five yardsticks (nats)" in after


def test_time_is_not_known_before_the_text_is_prepared(
    values: dict[str, Any], tmp_path: Path
) -> None:
    base = {key: value for key, value in values["base"].items() if key != "data"}
    study = opened({**values, "base": base, "prepare": {"sources": ["x.txt"]}}, tmp_path)
    plan = plan_in_words(study, study.in_order(), 1, price_per_hour=2.0)
    assert "\ntime: not known before a run has ended here" in plan
    assert "cost:" not in plan


def test_every_measure_that_will_be_tested_is_counted(
    values: dict[str, Any], tmp_path: Path
) -> None:
    study = opened({**values, "contrasts": [["decay", "fixed"]]}, tmp_path)
    plan = plan_in_words(study, study.in_order(), 1)
    assert "of 1 test on the first measure, the headline, and of 2 tests on the others" in plan
    assert [line.split(" (")[0] for line in plan.splitlines()[-3:]] == [
        "  mean loss of five yardsticks",
        "  validation loss",
        "  CoLA",
    ]


@pytest.mark.parametrize("contrasts", [[], [["decay", "fixed"]]])
def test_one_seed_has_no_power(
    values: dict[str, Any], tmp_path: Path, contrasts: list[list[str]]
) -> None:
    study = opened({**values, "seeds": [3], "contrasts": contrasts}, tmp_path)
    assert "one seed gives no interval" in plan_in_words(study, study.in_order(), 1)
