"""``hours``: the steps that fit, by a clock that the tests wind, and the run of these steps that follows."""

from __future__ import annotations

import json
import os
import signal
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from chronomask.cli import app
from chronomask.data.folder import PreparedData
from chronomask.errors import Stopped, UsageError
from chronomask.runs.layout import RunFolder
from chronomask.runs.rules import unchangeable
from chronomask.study.arms import resolve_arms
from chronomask.study.config import study_of
from chronomask.train import loop
from chronomask.train.config import RunConfig
from chronomask.train.dry_run import dry_run
from chronomask.train.hours import (
    TRIAL_STEPS,
    Costs,
    describe,
    few_validations,
    fixed_steps,
    number_of_validations,
    steps_within,
)
from chronomask.train.loop import pretrain
from chronomask.train.run import Run
from tests.support.tiny_training import (
    WITHOUT_DROPOUT,
    Driver,
    ask_to_stop_after,
    assert_same_run,
    lines,
    weights_of,
)


@pytest.fixture(autouse=True)
def _clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "chronomask.train.hours.clock", (float(number) for number in count()).__next__
    )


@pytest.fixture
def hours(config: RunConfig) -> RunConfig:
    """12 seconds after the trial, which looks at the clock 55 times. Opening, a step, a validation and the
    last checkpoint take one each: 8 steps fit, with validations after 4 and 8.
    """
    scores = "masking.content={kind: model_scores, every: 3}"  # made in passes over rows to come
    return config.replace([f"hours={(55 + 12.5) / 3600}", scores])


def test_the_steps_that_fit_are_those_of_the_sum() -> None:
    config = RunConfig.parse(
        {
            "data": "data",
            "rows_per_step": 10,
            "validation": {"every": 100, "at_start": True},
            "checkpoint": {"every": 50, "asynchronous": False},
        }
    )
    costs = Costs.of(config, 7.0, [9.0, *[1.0] * 4], validation=5.0, saving=3.0)
    assert costs == Costs(once=15.0, row=0.1, validation=5.0, checkpoint=3.0)
    whole = 15 + 250 + (3 + 1) * 5 + 5 * 3  # 250 steps, validated at 0, 100, 200 and 250
    assert costs.of_run(config, 250) == pytest.approx(whole)
    assert steps_within(config, costs, whole + 0.5) == 250
    assert steps_within(config, costs, whole - 0.5) == 249
    assert steps_within(config, costs, 10.0) == 0
    behind = config.replace(["checkpoint.asynchronous=true", "validation.every=0"])
    assert costs.of_run(behind, 250) == pytest.approx(15 + 250 + 2 * 5 + 3)
    twice = config.replace(["averaging.kind=ema"])
    assert Costs.of(twice, 7.0, [1.0], validation=5.0, saving=3.0).validation == 10.0


def test_what_is_told_of_the_time_adds_up(caplog: pytest.LogCaptureFixture) -> None:
    config = RunConfig.parse({"data": "data", "rows_per_step": 10, "hours": 0.5})
    costs = Costs(once=15.0, row=0.2, validation=5.0, checkpoint=3.0)
    with caplog.at_level("INFO", "chronomask.train.hours"):
        told = describe(config, costs, 250)
    assert told["seconds"] == {"once": 15.0, "row": 0.2, "validation": 5.0, "checkpoint": 3.0}
    assert "Room for 250 steps within 0.5 hours: 2 s a step of 10 rows, 5 s a valid" in caplog.text
    with pytest.raises(
        UsageError, match=r"a validation and a checkpoint take 25 s here; give more"
    ):
        describe(config, costs, 0)


@pytest.mark.parametrize(
    ("changes", "rows"),
    [
        (["batch_warmup={start_rows: 2, steps: 40, stages: 2}"], 20 * 2 + 20 * 6 + 60 * 10),
        (
            ["rows_follow_ratio=true", "masking.ratio={kind: linear, start: 0.3, end: 0.15}"],
            pytest.approx(
                100 * 10 * 0.6931, rel=0.01
            ),  # the mean of 0.15 / r over r from 0.30 to 0.15
        ),
    ],
)
def test_steps_of_fewer_rows_take_less(changes: list[str], rows: Any) -> None:
    config = RunConfig.parse({"data": "data", "rows_per_step": 10, "steps": 1000}).replace(changes)
    assert Costs(0.0, 1.0, 0.0, 0.0).of_run(config, 100) == rows


def test_a_run_of_hours_is_the_run_of_its_steps_bit_for_bit(
    hours: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    summary = pretrain(hours, tmp_path / "hours", progress=False)
    steps = summary["steps"]
    assert steps == 8
    with monkeypatch.context() as patch:
        ask_to_stop_after(patch, steps - 2, signal.SIGTERM)
        with pytest.raises(Stopped):
            pretrain(hours, tmp_path / "cut", progress=False)
    monkeypatch.setattr(
        "chronomask.train.hours.clock", iter(()).__next__
    )  # nothing is measured again
    pretrain(hours, tmp_path / "cut", resume=True, progress=False)
    assert_same_run(tmp_path / "hours", tmp_path / "cut")
    pretrain(hours.replace(["hours=null", f"steps={steps}"]), tmp_path / "steps", progress=False)
    ours, theirs = weights_of(tmp_path / "hours"), weights_of(tmp_path / "steps")
    assert all(ours[name].equal(theirs[name]) for name in theirs)
    for name in ("metrics.jsonl", "validation.jsonl"):
        assert lines(tmp_path / "hours" / name) == lines(tmp_path / "steps" / name)

    written = RunConfig.load(tmp_path / "hours" / "config.yaml")
    assert (written.steps, written.hours) == (steps, hours.hours)
    assert not (tmp_path / "hours" / ".trial").exists()
    noted = json.loads((tmp_path / "hours" / "environment.json").read_text())["budget"]
    assert noted["steps"] == steps
    assert noted["seconds"] == {"once": 1, "row": 1 / 8, "validation": 1, "checkpoint": 1}


def test_stopped_while_it_is_measured_a_run_leaves_nothing(
    hours: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = count()

    def clock() -> float:
        if (now := next(looks)) == 9:
            os.kill(os.getpid(), signal.SIGTERM)
        return float(now)

    monkeypatch.setattr("chronomask.train.hours.clock", clock)
    with pytest.raises(Stopped, match="nothing is trained yet") as stopped:
        pretrain(hours, tmp_path / "run", progress=False)
    assert stopped.value.exit_code == 143
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("steps", [1, 8, 1000])
def test_the_speed_is_measured_over_the_whole_course(
    steps: int, hours: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever number of steps the config has, which hours replaces."""
    seen: list[float] = []
    draw = loop.draw

    def noting(run: Run, step: int, progress: float, *more: Any) -> Any:
        seen.append(progress)
        return draw(run, step, progress, *more)

    monkeypatch.setattr(loop, "draw", noting)
    pretrain(hours.replace([f"steps={steps}"]), tmp_path / "run", progress=False)
    tried = seen[:TRIAL_STEPS]
    assert tried == pytest.approx([k / TRIAL_STEPS for k in range(24)], abs=1e-3)


def test_too_little_time_is_refused_and_leaves_nothing(hours: RunConfig, tmp_path: Path) -> None:
    short = hours.replace([f"hours={(55 + 3) / 3600}"])
    with pytest.raises(
        UsageError, match=r"hours is 0\.016.*not one step fits.* give more hours, or"
    ):
        pretrain(short, tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_averaging_is_judged_by_the_steps_that_hours_give(hours: RunConfig, tmp_path: Path) -> None:
    """And not by the ``steps`` that they take the place of: of the 8 that fit every sixth is averaged."""
    averaged = hours.replace(["steps=5", "averaging={kind: ema, every: 6}", f"hours={68.5 / 3600}"])
    summary = pretrain(averaged, tmp_path / "run", progress=False)
    assert (summary["steps"], summary["averaged_steps"]) == (7, 1)
    assert dry_run(averaged.replace(["attention=row"]), flops_per_second=1e9).steps > 6
    rare = averaged.replace(["averaging.every=1000000"])
    told = r"hours is 0\.019.*, which is room for 7 steps here, and averaging\.every \(1000000\) leaves none"
    with pytest.raises(UsageError, match=told):
        pretrain(rare, tmp_path / "rare", progress=False)
    with pytest.raises(UsageError, match=r"which is room for .* leaves none of them"):
        dry_run(rare.replace(["attention=row"]), flops_per_second=1e9)


def test_other_hours_are_another_run(hours: RunConfig, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    began = hours.replace(["steps=77"])
    (tmp_path / "run" / "config.yaml").write_text(began.to_yaml())
    folder = RunFolder(tmp_path / "run")
    assert fixed_steps(hours, folder) == 77
    more = hours.replace(["hours=9"])
    assert fixed_steps(more, folder) is None  # without a checkpoint nothing is trained yet
    folder.checkpoint(5).mkdir(parents=True)
    assert fixed_steps(more, folder) == 77  # and the resume is refused, as hours differ
    assert "hours" in unchangeable(hours, more)


@pytest.mark.slow
def test_the_first_process_decides(hours: RunConfig, tmp_path: Path, driver: Driver) -> None:
    spec = {"config": hours.replace(WITHOUT_DROPOUT).to_dict(), "out": str(tmp_path / "run")}
    answer = driver.answer([{**spec, "tick": 1.0}, {**spec, "tick": 0.1}])
    assert answer["codes"] == [0, 0], answer["errors"]
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["steps"] == 8


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["hours=0"], "hours is 0"),
        (["hours=.inf"], "hours"),
        (
            ["hours=1", "masking.progress=masked_tokens", "masked_token_budget=9"],
            "hours decides how many steps.*masking.progress 'masked_tokens'",
        ),
    ],
)
def test_hours_that_cannot_be_are_refused_by_their_key(
    config: RunConfig, changes: list[str], said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        config.replace(changes)


def test_a_study_wants_steps(tiny_data: PreparedData) -> None:
    study = study_of({"base": {"data": str(tiny_data.path)}, "arms": {"a": {}, "b": {"hours": 1}}})
    with pytest.raises(UsageError, match=r"arm 'b': hours decides the steps.*set hours null"):
        resolve_arms(study, str(tiny_data.path))


def test_steps_on_the_command_line_take_the_place_of_hours(
    hours: RunConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also those of a run that is branched from, whose config has both."""
    path = tmp_path / "config.yaml"
    path.write_text(hours.to_yaml())
    ahead = ["pretrain", str(path), "--dry-run", "--flops", "1e9"]
    app([*ahead, "--steps", "5"], standalone_mode=False)
    assert "steps               5\n" in capsys.readouterr().out
    with pytest.raises(UsageError, match=r"--steps and --hours both.*leave one of them out"):
        app([*ahead, "--steps", "5", "--hours", "1"], standalone_mode=False)


def test_a_dry_run_says_how_many_steps_a_rate_gives(config: RunConfig) -> None:
    said = dry_run(config.replace(["hours=0.5", "attention=row"]), flops_per_second=1e9)
    # The ratio's mean over twelve steps, from which the number is taken, is not that over many.
    assert said.seconds == pytest.approx(1800, rel=0.05)
    assert said.rows == said.steps * 8


@pytest.mark.parametrize("steps", [1, 3, 100, 2000, 20_000, 500_000])
@pytest.mark.parametrize("row_length", [16, 256, 512])
def test_validations_fit_into_three_per_cent_or_are_as_few_as_serve(
    config: RunConfig, steps: int, row_length: int
) -> None:
    config = config.replace(
        ["rows_per_step=32", "validation.rows=1024", "validation.at_start=true"]
    )
    changes = few_validations(config, steps, row_length, most=10)
    fitted = config.replace([f"{key}={value}" for key, value in changes.items()])
    number, rows = number_of_validations(fitted, steps), fitted.validation.rows
    assert min(3, 1 + steps) <= number <= 11
    assert min(1024, 2000 / (0.05 * row_length)) <= rows <= 1024
    share = 1.2 * number * rows / (32 * steps)
    assert share <= 0.03 or (number <= 3 and rows <= min(1024, 1 + 2000 / (0.05 * row_length)))
    if steps == 500_000:
        assert (number, rows) == (11, 1024)


@pytest.mark.parametrize(
    ("steps", "rows", "every"),
    [
        (1, 79, 1),  # 79 rows make 2,000 predictions at 5 % of 512 tokens
        (600, 79, 120),  # room for 6 validations of 79 rows, one of them at the start
        (2000, 145, 200),  # for 11 of 145
    ],
)
def test_what_room_there_is_for_validations_is_used(
    config: RunConfig, steps: int, rows: int, every: int
) -> None:
    config = config.replace(["rows_per_step=32", "validation.rows=1024"])
    fitted = few_validations(config, steps, 512, most=10)
    assert fitted == {"validation.rows": rows, "validation.every": every}
