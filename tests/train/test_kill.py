"""SIGKILL at any moment, in training, in a save or between them: what is there goes on to the same end."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from chronomask.data.folder import PreparedData
from chronomask.train.config import RunConfig
from chronomask.train.loop import pretrain
from tests.support.kills import OFTEN, kill_and_compare, newest_step, resume_in_pairs
from tests.support.tiny_training import Driver, assert_same_run

KILLS = 30


@pytest.mark.slow
def test_thirty_kills_and_the_run_ends_as_if_there_had_been_none(
    config: RunConfig, tmp_path: Path, driver: Driver
) -> None:
    """Of one run; ``python -m tests.support.kills`` does more, of more runs."""
    done = kill_and_compare({**config.to_dict(), **OFTEN}, tmp_path, driver, KILLS)
    print(f"{done.in_saves} kills in a save; newest checkpoints after each kill: {done.steps}")
    assert done.in_saves >= 6
    assert done.steps[-1] > 0


@pytest.mark.slow
def test_two_resumes_at_once_do_no_harm(config: RunConfig, tmp_path: Path, driver: Driver) -> None:
    values = {**config.to_dict(), **OFTEN}
    assert driver.codes({"config": values, "out": str(tmp_path / "whole")}) == [0]
    resume_in_pairs(values, tmp_path, driver, 1)


@pytest.mark.slow
@pytest.mark.parametrize("asynchronous", [True, False])
def test_killed_where_a_run_and_its_epochs_begin_and_end(
    config: RunConfig,
    tiny_data: PreparedData,
    tmp_path: Path,
    driver: Driver,
    asynchronous: bool,
) -> None:
    """Between two micro-batches of the first step, of the ones in the middle and at the end of an
    epoch, of the last step, and between the last checkpoint and the summary."""
    rows = tiny_data.split("train").num_rows * 2 // 9  # an epoch ends in the fifth step
    config = config.replace(
        [
            "checkpoint.every=1",
            f"checkpoint.asynchronous={asynchronous}",
            f"rows_per_step={rows}",
            "steps=6",
        ]
    )
    spec = {"config": config.to_dict(), "out": str(tmp_path / "cut"), "resume": True}
    for step in (0, 2, 4, 5):
        assert driver.codes(spec | {"kill_in_step": step}) == [-signal.SIGKILL]
        # In the background, the last checkpoint may not have been done yet.
        assert newest_step(tmp_path / "cut") in {
            step or -1,
            (step - 1 if asynchronous else step) or -1,
        }
    assert driver.codes(spec | {"kill_before_summary": True}) == [-signal.SIGKILL]
    assert newest_step(tmp_path / "cut") == 6
    assert not (tmp_path / "cut" / "summary.json").exists()
    assert driver.codes(spec) == [0]
    pretrain(config, tmp_path / "whole", progress=False)
    assert_same_run(tmp_path / "whole", tmp_path / "cut")
