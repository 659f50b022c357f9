"""Checkpoints in the background: the same bytes, one at a time, and no failure passes in silence."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from chronomask import storage
from chronomask.errors import RunError
from chronomask.train import loop, saving
from chronomask.train.config import RunConfig
from chronomask.train.log import RunLog
from chronomask.train.loop import pretrain
from chronomask.train.saving import Saver
from tests.support.processes import HANG
from tests.support.tiny_training import assert_same_run


@pytest.fixture
def config(config: RunConfig) -> RunConfig:
    return config.replace(
        ["checkpoint.every=2", "checkpoint.keep=9", "steps=6", "validation.every=0"]
    )


def test_every_checkpoint_is_the_same_as_if_training_had_waited(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The writer is held back until two more updates were made: a shared tensor would show."""
    pretrain(config.replace(["checkpoint.asynchronous=false"]), tmp_path / "waits", progress=False)
    save, advance, updated = saving.save, RunLog.advance, threading.Event()

    def late(folder: Path, snapshot: Any, **how: Any) -> Path:
        if threading.current_thread() is not threading.main_thread():
            assert updated.wait(HANG)
        return save(folder, snapshot, **how)

    def advance_and_tell(self: RunLog, step: int, metrics: Any) -> None:
        advance(self, step, metrics)
        if step in (4, 6):
            updated.set()
        elif step in (1, 5):
            updated.clear()

    monkeypatch.setattr(saving, "save", late)
    monkeypatch.setattr(RunLog, "advance", advance_and_tell)
    pretrain(config, tmp_path / "goes on", progress=False)
    assert_same_run(tmp_path / "waits", tmp_path / "goes on")
    for step in (2, 4, 6):
        name = f"checkpoints/step-{step:08d}"
        ours, theirs = (tmp_path / run / name for run in ("goes on", "waits"))
        for path in ours.rglob("*.safetensors"):
            assert path.read_bytes() == (theirs / path.relative_to(ours)).read_bytes()


def test_one_at_a_time_and_done_before_a_stop_or_the_end(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whenever a summary is written or a write begins, no other write is under way."""
    save, summarise = saving.save, loop.summarise
    under_way: list[int] = []
    most: list[int] = []

    def watched(folder: Path, snapshot: Any, **how: Any) -> Path:
        under_way.append(snapshot.step)
        most.append(len(under_way))
        path = save(folder, snapshot, **how)
        under_way.remove(snapshot.step)
        return path

    def summarise_when_done(*arguments: Any) -> Any:
        assert under_way == []
        return summarise(*arguments)

    monkeypatch.setattr(saving, "save", watched)
    monkeypatch.setattr(loop, "summarise", summarise_when_done)
    pretrain(config.replace(["checkpoint.every=1"]), tmp_path / "run", progress=False)
    assert most == [1] * 6


@pytest.mark.parametrize("failing", [2, 4])
def test_a_failure_in_the_background_ends_the_run_with_what_went_wrong(
    config: RunConfig, tmp_path: Path, failing: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within two steps if the writer is done by then, and at the latest at the next save."""
    flush, failed, steps = storage.flush, threading.Event(), []

    def full(path: Path) -> None:
        if "state.json" in path.name and f"step-{failing:08d}" in path.parent.name:
            failed.set()
            raise OSError(28, "No space left on device")
        flush(path)

    advance = RunLog.advance

    def advance_after_failure(self: RunLog, step: int, metrics: Any) -> None:
        advance(self, step, metrics)
        steps.append(step)
        if step == failing + 1:
            assert failed.wait(HANG)

    with monkeypatch.context() as patch:
        patch.setattr(storage, "flush", full)
        patch.setattr(RunLog, "advance", advance_after_failure)
        with pytest.raises(RunError, match=f"step-{failing:08d} could not be saved: No space left"):
            pretrain(config, tmp_path / "run", progress=False)
    assert steps[-1] in (failing, failing + 1, failing + 2)
    assert not (tmp_path / "run" / "summary.json").exists()
    names = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert names == [f"step-{step:08d}" for step in range(2, failing, 2)]
    pretrain(config, tmp_path / "run", resume=True, progress=False)
    pretrain(config, tmp_path / "whole", progress=False)
    assert_same_run(tmp_path / "whole", tmp_path / "run")


def test_a_failure_at_the_very_end_is_not_lost(
    config: RunConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Where another error ends the run first, the writer's is logged."""
    saver = Saver(tmp_path, None, None, 1)  # pyright: ignore[reportArgumentType]

    def fail() -> Path:
        raise RunError("the disk is gone")

    saver._writing = saver._pool.submit(fail)
    saver.close()
    assert "the disk is gone" in caplog.text
    saver.finish()  # and told once
