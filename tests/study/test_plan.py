"""The plan: units, time by measured rates, and the smallest differences, before anything runs."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path
from statistics import stdev
from typing import Any

import pytest
import torch

from chronomask.cli import app
from chronomask.errors import ChronomaskError
from chronomask.report.comparison import FILE, difference_text, task_title
from chronomask.study.contrasts import compare_study
from chronomask.study.execute import run_study
from chronomask.study.plan import (
    STORED_SPREADS,
    _smallest,  # pyright: ignore[reportPrivateUsage]
    _spreads_of,  # pyright: ignore[reportPrivateUsage]
    plan_in_words,
)
from chronomask.study.statistics import smallest_difference
from chronomask.study.times import NOTED, Allowance, Rates, given_rates, note_time
from tests.support.opened_study import opened


def test_the_plan_before_during_and_after(values: dict[str, Any], tmp_path: Path) -> None:
    study = opened({**values, "tasks": {}, "curve_steps": []}, tmp_path)
    before = plan_in_words(study, study.in_order(), 2)
    assert before.startswith("plan: 5 units, 1 complete; 4 to pretrain\n")
    assert "\ntime: at least " in before  # by operations: the data are prepared
    assert "\ncost: at least " in before
    shared = "(2 processes share 1 device)\n"
    assert f"device-hours; --price-per-hour says what they cost {shared}" in before
    assert "stored studies" in before
    spread, of_rows, metric, unit = STORED_SPREADS["validation_loss"]
    alone = difference_text(
        {"metric": metric, "unit": unit}, smallest_difference(spread, 2, examples_spread=of_rows)
    )
    assert f"validation loss (nats): {alone.lstrip('+')}, " in before

    run_study(study, study.in_order()[:3])
    (study.folder / NOTED).unlink()
    summaries = {arm: study.run_of(arm, 0).summary for arm in ("fixed", "decay")}
    texts = {arm: path.read_text() for arm, path in summaries.items()}
    for arm, path in summaries.items():
        path.write_text(json.dumps({**json.loads(texts[arm]), "seconds": 80.0}))
    during = plan_in_words(study, study.in_order(), 2)
    assert "3 complete; 2 to pretrain" in during
    assert "time: 2 min 40 s of one process" in during
    assert (
        "2 runs: 2 min 40 s, by the training steps of 2 runs that ended here, without start"
        in during
    )
    assert "how many processes shared the device then is not noted" in during
    for unit in study.units[1:3]:  # with start, compilation, validation and saving
        note_time(study, unit, 100.0, workers=8, complete=True)
    during = plan_in_words(study, study.in_order(), 2)
    assert "time: 3 min 20 s of one process" in during
    assert "about 1 min 40 s with 2 if they do not slow each other down" in during
    assert "by the wall time of 2 runs that ended here (with 8 processes at work)" in during
    assert "not noted" not in during
    assert (
        f"\ncost: {100 / 3600:.3g} device-hours; --price" in during
    )  # two processes on one device
    assert "(2 processes share 1 device)\n" in during
    each = plan_in_words(study, study.in_order(), 8, devices=8, price_per_hour=36.0)
    assert "about 25 s with 8\n" in each  # as many as were measured
    assert f"\ncost: {200 / 3600:.3g} device-hours, 2.00 at 36 an hour\n" in each
    for arm, path in summaries.items():
        path.write_text(texts[arm])

    run_study(study, study.in_order())
    compare_study(study)
    after = plan_in_words(study, study.in_order(), 1)
    assert after.startswith("plan: 5 units, 5 complete\n")
    assert "cost:" not in after
    assert "this study’s own seeds" in after
    assert "mean loss of five yardsticks (nats)" in after

    (
        tmp_path / "next"
    ).mkdir()  # what a pilot found, and stored studies for what it did not measure
    following = opened(values, tmp_path / "next")
    pilot = given_rates(str(study.folder))
    plan = plan_in_words(following, following.in_order(), 1, rates=pilot)
    assert f"by the scatter of seeds in {study.folder}):\n" in plan
    stored = "; by the scatter of seeds in stored studies, of models of 4 layers × 256"
    lines = plan.split("power: ")[1].splitlines()[1:]
    assert [stored in line for line in lines] == [False, False, False, True]
    found = after.split("power: ")[1].splitlines()[1:]
    assert [line.split(",")[0] for line in lines[:3]] == [line.split(",")[0] for line in found]

    published = tmp_path / "published"  # as studies are shared: the comparison without the runs
    published.mkdir()
    shutil.copy(study.folder / FILE, published)
    plan = plan_in_words(
        following, following.in_order(), 1, rates=given_rates(str(published)), price_per_hour=2.0
    )
    assert plan.split("power: ")[1].splitlines()[1:] == lines
    assert f"by the scatter of seeds in {published}):\n" in plan
    assert re.search(r"\ntime: at least .* of one process", plan)  # by operations: it has no rate
    comparison = json.loads((published / FILE).read_text())
    for task in comparison["tasks"]:
        del task["unit"]  # as an early version wrote it
    (published / FILE).write_text(json.dumps(comparison))
    rates = given_rates(str(published))
    plan = plan_in_words(following, following.in_order(), 1, rates=rates)
    assert f"4 layers × 256; {published / FILE} does not say how seeds scatter):\n" in plan
    (published / FILE).write_text("{}")
    with pytest.raises(ChronomaskError, match=re.escape(str(published / FILE))):
        given_rates(str(published))


def test_time_is_known_before_the_text_is_prepared(
    values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The least by operations; what a rate makes of it, or another folder; and what is in none of them."""
    base = {key: value for key, value in values["base"].items() if key != "data"}
    prepare = {"sources": ["x.txt"], "row_length": 64}
    study = opened({**values, "base": base, "prepare": prepare}, tmp_path)
    plan = plan_in_words(study, study.in_order(), 1, price_per_hour=2.0)
    assert re.search(r"\ntime: at least .* of one process", plan)
    assert "which no model reaches" in plan
    assert (
        "\n  not in it: preparing the text; 16 results of tasks not measured yet (cola)\n" in plan
    )
    assert "\ncost: at least " in plan
    (tmp_path / "gpu").mkdir()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    on_gpu = opened(
        {**values, "base": base | {"precision": "bf16", "device": "auto"}, "prepare": prepare},
        tmp_path / "gpu",
    )
    plan = plan_in_words(on_gpu, on_gpu.in_order(), 1)
    assert "at the rate of BERT-base on one H200, for the runs are meant for a GPU" in plan
    assert re.search(r"\ntime: at least .* of one process", plan)  # small models reach less
    monkeypatch.setattr("chronomask.train.dry_run.ON_AN_H200", 1e6)
    alone, shared, apart = (
        plan_in_words(on_gpu, on_gpu.in_order(), workers, devices=devices)
        for workers, devices in ((1, 1), (8, 1), (2, 2))
    )
    (seconds,) = re.findall(r"\ntime: at least (.*) of one process", alone)
    assert f"; at least {seconds} with 8 that share 1 device\n" in shared
    assert "if they do not slow each other down" in apart
    hours = r"\ncost: (?:at least )?(\S+) "
    assert re.findall(hours, alone) == re.findall(hours, shared)
    assert f"; at least {seconds} with 2" not in apart

    tokens = 4 * 8 * 4 * 64
    rates = given_rates(str(tokens / 100))
    calls = plan_in_words(
        study, study.in_order(), 2, devices=2, rates=rates, allowance=Allowance(20.0)
    )
    assert "; about 3 calls of 0.333333 minutes\n" in calls  # of 50 s, 19 of each call for work
    # A rate is that of a whole device: eight processes on it are neither sooner done nor cheaper.
    crowd = plan_in_words(study, study.in_order(), 8, price_per_hour=3.6, rates=rates)
    assert "; about 1 min 40 s with 8" in crowd
    assert "\ncost: 0.0278 device-hours, 0.10" in crowd
    plan = plan_in_words(study, study.in_order(), 1, rates=rates)
    assert "\ntime: 1 min 40 s of one process for what is left\n" in plan
    assert (
        f"4 runs: 1 min 40 s, at {tokens / 100:,.0f} tokens a second of a device, as given, without start"
        in plan
    )

    rates = Rates(
        "in runs/like",
        token=200 / tokens,
        runs={"fixed": 1.0},
        tasks={"cola": 5.0},
        num_runs=3,
        num_results=2,
        runs_are_wall=True,
        results_are_wall=True,
    )
    plan = plan_in_words(study, study.in_order(), 1, rates=rates)
    assert "\ntime: 4 min 40 s of one process" in plan
    assert "4 runs: 3 min 20 s, by the wall time of 3 runs that ended in runs/like\n" in plan
    assert "16 results of tasks: 1 min 20 s, by the wall time of 2 results that ended in" in plan
    assert not (study.folder / "data").exists()


def test_what_is_saved_of_a_run_is_not_counted_again(
    values: dict[str, Any], tmp_path: Path
) -> None:
    study = opened({**values, "tasks": {}, "curve_steps": []}, tmp_path)
    rates = Rates("in runs/like", 0.1)
    whole = plan_in_words(study, study.in_order(), 1, rates=rates)
    study.run_of("fixed", 0).checkpoint(4).mkdir(parents=True)
    less = plan_in_words(study, study.in_order(), 1, rates=rates)
    seconds = [_seconds(plan) for plan in (whole, less)]
    assert seconds[1] == pytest.approx(7 / 8 * seconds[0], abs=1.0)
    begun = plan_in_words(
        study, study.in_order(), 1, rates=Rates("in x", 0.1, num_runs=1, runs_ended=False)
    )
    assert "by the training steps of 1 run that began in x, without start" in begun


def _seconds(plan: str) -> float:
    minutes, seconds = re.search(r"time: (\d+) min (\d+) s", plan).groups()  # pyright: ignore
    return 60 * int(minutes) + int(seconds)


@pytest.mark.parametrize("stem", ["small", "tiny", "over-time", "published"])
def test_the_plan_of_a_shipped_study_has_a_time(
    stem: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From nothing but its recipe: no text is prepared, and nothing is written."""
    app(
        ["study", "plan", stem, "--out", str(tmp_path / "out"), "--rate", "1e6"],
        standalone_mode=False,
    )  # fmt: skip
    told = capsys.readouterr().out
    assert re.search(r"\ntime: \d+ .* of one process for what is left\n", told)
    assert "not in it: preparing the text; " in told
    assert not (tmp_path / "out").exists()


def test_a_plan_ends_with_the_files_that_are_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Data on the hub are asked for when the study runs, and not before."""
    for folder, named in ((str(tmp_path / "nothing"), True), ("hub", False)):
        app(
            [
                "study",
                "plan",
                "tiny",
                "--out",
                str(tmp_path / "out"),
                "--rate",
                "1e6",
                "--task-data",
                folder,
            ],
            standalone_mode=False,
        )
        *_, last = capsys.readouterr().out.splitlines()
        assert last.startswith(f"not ready to run: sst2: {folder}") == named
        assert ("upos_probe: " in last) == named


def test_every_measure_that_will_be_tested_is_counted(
    values: dict[str, Any], tmp_path: Path
) -> None:
    study = opened({**values, "contrasts": [["decay", "fixed"]]}, tmp_path)
    plan = plan_in_words(study, study.in_order(), 1)
    assert "of 1 test on the first measure, the headline, and of 3 tests on the others" in plan
    assert [line.split(" (")[0] for line in plan.splitlines()[-4:]] == [
        "  mean loss of five yardsticks",
        "  validation loss",
        "  single-mask loss",
        "  CoLA",
    ]
    # By itself, and as the first under Holm's correction over as many tests.
    number = len(study.config.seeds)
    for name, tests in (("mean_loss", 1), ("validation_loss", 3), ("single_mask_loss", 3)):
        spread, of_rows, metric, unit = STORED_SPREADS[name]
        task = {"task": name, "metric": metric, "unit": unit}
        alone, first = (
            difference_text(
                task, smallest_difference(spread, number, examples_spread=of_rows, alpha=alpha)
            ).lstrip("+")
            for alpha in (0.05, 0.05 / tests)
        )
        assert f"  {task_title(task)} ({unit}): {alone}, {first}\n" in plan


@pytest.mark.parametrize(("unit", "whole"), [("fraction", 1.0), ("percent", 100.0)])
def test_a_difference_that_no_share_can_have_is_none(unit: str, whole: float) -> None:
    task = {"task": "cola", "metric": "accuracy", "unit": unit}
    widest = whole / smallest_difference(1.0, 3)
    assert _smallest(task, 1.001 * widest, 3, 0.0, 0.05) == "none"
    assert float(_smallest(task, 0.998 * widest, 3, 0.0, 0.05)) == pytest.approx(99.8)
    assert _smallest({**task, "unit": "nats"}, 1.001 * widest, 3, 0.0, 0.05) != "none"


def test_declared_contrasts_say_how_their_own_differences_scatter() -> None:
    flat = {"by_seed": {"0": [1.0], "1": [1.0]}, "examples_spread": 0.0}
    wide = {"by_seed": {"0": [1.0], "1": [3.0]}, "examples_spread": 0.0}
    task: dict[str, Any] = {"task": "validation_loss", "metric": "loss", "unit": "nats"}
    task["arms"] = {"base": flat, "a": flat, "b": wide}
    comparison = {"baseline": "base", "tasks": [task]}
    beside = math.sqrt((0 + 2) / 2)  # over the arms beside the baseline
    assert _spreads_of(comparison) == {
        "validation_loss": (pytest.approx(beside), 0.0, "loss", "nats")
    }
    task["contrasts"] = [
        {"arm": "a", "other": "base", "spread": 0.3, "examples_spread": 0.1},
        {"arm": "b", "other": "a", "spread": 0.4, "examples_spread": 0.1},
        {"arm": "b", "other": "base", "spread": None},
    ]
    own = (pytest.approx(math.sqrt(0.125)), pytest.approx(0.1), "loss", "nats")
    assert _spreads_of(comparison) == {"validation_loss": own}


def test_a_task_that_did_not_scatter_says_nothing_of_the_next_seeds() -> None:
    """As CoLA where every model names the majority class: all scores are 0."""
    arm = {"by_seed": {"0": [0.0], "1": [0.0]}, "examples_spread": 0.0}
    cola = {"task": "cola", "metric": "mcc", "unit": "fraction", "arms": {"a": arm, "b": arm}}
    assert _spreads_of({"baseline": "a", "tasks": [cola]}) == {}
    scattered = {**arm, "by_seed": {"0": [0.1], "1": [0.0]}}
    cola = {**cola, "arms": {"a": arm, "b": scattered}}
    assert _spreads_of({"baseline": "a", "tasks": [cola]})["cola"][0] > 0


def test_what_a_comparison_does_not_say_is_no_scatter() -> None:
    """One seed in common has no spread; older comparisons name no unit, or not how examples scatter."""
    arm = {"by_seed": {"0": [0.0], "1": [0.2]}, "examples_spread": 0.1}
    other = {"by_seed": {"0": [0.3], "1": [0.1]}, "examples_spread": 0.1}
    cola = {"task": "cola", "metric": "mcc", "unit": "fraction", "arms": {"a": arm, "b": other}}

    def found(**changes: Any) -> set[str]:
        return set(_spreads_of({"baseline": "a", "tasks": [{**cola, **changes}]}))

    assert found() == {"cola"}
    differences = _spreads_of({"baseline": "a", "tasks": [cola]})["cola"][0]
    assert differences == pytest.approx(stdev([0.3, -0.1]))
    assert found(arms={"a": arm, "b": {**other, "by_seed": {"1": [0.1], "2": [0.3]}}}) == set()
    assert found(arms={"a": arm, "b": {"by_seed": other["by_seed"]}}) == set()
    assert found(unit=None) == set()


@pytest.mark.parametrize("contrasts", [[], [["decay", "fixed"]]])
def test_one_seed_has_no_power(
    values: dict[str, Any], tmp_path: Path, contrasts: list[list[str]]
) -> None:
    study = opened({**values, "seeds": [3], "contrasts": contrasts}, tmp_path)
    assert "one seed gives no interval" in plan_in_words(study, study.in_order(), 1)
