"""SIGKILL at any moment, in training, in a save or between them: what is there goes on to the same end."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chronomask.data.folder import PreparedData
from chronomask.keyed import Stream, row_keys
from chronomask.train import checkpoint
from chronomask.train.config import RunConfig
from chronomask.train.loop import pretrain
from tests.support.tiny_training import Driver, assert_same_run

KILLS = 30


def unit(number: int, stream: Stream) -> float:
    """A keyed number in [0, 1)."""
    return float(row_keys(7, stream, 0, number) >> np.uint64(11)) / 2**53


def newest_step(run: Path) -> int:
    """The step that a resume would go on from; −1 without a checkpoint. Raises where none is whole."""
    found = checkpoint.latest(run / "checkpoints")
    return -1 if found is None else found.step


@pytest.mark.slow
def test_thirty_kills_and_the_run_ends_as_if_there_had_been_none(
    config: RunConfig, tmp_path: Path, driver: Driver
) -> None:
    """A third fall into the writing thread, a third into training, a third come from outside.

    Where a kill falls is counted in calls. Those from outside are sent at a counted call, of either kind
    in turn, and arrive wherever the run has come to by then; it waits for them two steps later. So no
    run ends before its kill, on however busy a machine.
    """
    config = config.replace(
        ["steps=60", "checkpoint.every=2", "checkpoint.keep=1", "validation.every=7"]
    )
    spec: dict[str, Any] = {"config": config.to_dict(), "out": str(tmp_path / "whole")}
    counted = tmp_path / "calls.json"
    answer = driver.answer([spec | {"count_into": str(counted)}])
    assert answer["codes"] == [0], answer["errors"]
    calls = json.loads(counted.read_text())
    per_save, per_step = calls["save"] / 30, calls["training"] / 60

    cut = tmp_path / "cut"
    spec |= {"out": str(cut), "resume": True}
    steps, inside = [-1], 0
    for number in range(KILLS):
        share = unit(number, Stream.SELECT)
        in_save, in_training = 1 + int(share * 2 * per_save), 1 + int(share * 6 * per_step)
        how: dict[str, Any]
        if number % 3 == 0:  # within one of the first two saves
            how = {"kill_at": ["save", in_save]}
        elif number % 3 == 1:
            how = {"kill_at": ["training", in_training]}
        elif number % 2:
            how = {"invite_at": ["save", in_save, int(2 * per_step)]}
        else:
            how = {"invite_at": ["training", in_training, int(2 * per_step)]}
        answer = driver.answer([spec | how])
        assert answer["codes"] == [-signal.SIGKILL], answer["errors"]
        inside += any((cut / "checkpoints").glob(".writing-*"))
        steps.append(newest_step(cut))
    print(f"{inside} kills in a save; newest checkpoints after each kill: {steps[1:]}")
    assert steps == sorted(steps)  # a kill never costs a checkpoint that was whole
    assert inside >= 6
    assert 0 < steps[-1] < 60
    answer = driver.answer([spec])
    assert answer["codes"] == [0], answer["errors"]
    assert_same_run(tmp_path / "whole", cut)


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
