"""Stopped at any moment and resumed equals never stopped: bit for bit on the CPU."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from chronomask.cli import app
from chronomask.data.folder import PreparedData
from chronomask.data.scores import add_scores, scores_named
from chronomask.errors import Stopped, UsageError
from chronomask.model import device
from chronomask.processes import listen
from chronomask.runs.layout import RunFolder
from chronomask.train.config import RunConfig
from chronomask.train.loop import pretrain
from chronomask.train.state import State
from tests.support.fixed_tagger import FixedTagger, stand_in_for_english
from tests.support.tiny_training import Driver, ask_to_stop_after, assert_same_run, lines


@pytest.mark.parametrize(
    ("step", "signal_number", "exit_code"), [(1, signal.SIGTERM, 143), (7, signal.SIGINT, 130)]
)
def test_a_signal_stops_at_the_step_boundary_and_resume_equals_never_stopped(
    config: RunConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    step: int,
    signal_number: signal.Signals,
    exit_code: int,
) -> None:
    config = config.replace(
        ["averaging={kind: ema, decay: 0.7, every: 2}", "learning_rate.follow_labels=sqrt"]
    )
    whole = pretrain(config, tmp_path / "whole", progress=False)
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with monkeypatch.context() as patch:
        ask_to_stop_after(patch, step, signal_number)
        with pytest.raises(Stopped, match=f"after step {step} of 12.*resume=True") as stopped:
            pretrain(config, tmp_path / "cut", progress=False)
    assert stopped.value.exit_code == exit_code
    assert handlers == [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    assert not (tmp_path / "cut" / "summary.json").exists()

    resumed = pretrain(config, tmp_path / "cut", resume=True, progress=False)
    assert_same_run(tmp_path / "whole", tmp_path / "cut")
    assert (tmp_path / "cut" / resumed["checkpoint"] / "averaged" / "model.safetensors").is_file()
    untimed = {"seconds", "tokens_per_second"}
    assert {k: v for k, v in resumed.items() if k not in untimed} == {
        k: v for k, v in whole.items() if k not in untimed
    }
    resumes = [json.loads(x) for x in (tmp_path / "cut" / "resumes.jsonl").read_text().splitlines()]
    assert [item["from_step"] for item in resumes] == [step]


def test_a_run_that_is_done_and_lost_its_checkpoints_is_not_trained_anew(
    config: RunConfig, tmp_path: Path
) -> None:
    """Its logs would be written over."""
    config = config.replace(["steps=2", "validation.every=0"])
    pretrain(config, tmp_path / "run", progress=False)
    logged = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    with pytest.raises(UsageError, match=r"done all its steps.*give another output folder"):
        pretrain(config, tmp_path / "run", resume=True, progress=False)
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == logged


OVER_TIME: dict[str, dict[str, Any]] = {
    "learning progress, shares of strategies, weights": {
        "ratio": {"kind": "uniform_rows", "high": {"kind": "linear", "start": 0.9, "end": 0.3}},
        "content": {
            "kind": "learning_progress",
            "ema_decay": 0.9,
            "fast_decay": 0.5,
            "strength": {"kind": "linear", "start": 0, "end": 1},
        },
        "strategy": {
            "kind": "mixed",
            "parts": [
                {"share": {"kind": "linear", "start": 1, "end": 0}, "strategy": {"kind": "token"}},
                {"share": {"kind": "linear", "start": 0, "end": 1}, "strategy": {"kind": "span"}},
            ],
        },
        "loss_weight": {"kind": "derivative", "exponent": 0.5},
        "loss_per": "row",
    },
    "scores of a pass over rows to come": {
        "ratio": {"kind": "constant", "base": 0.3},
        "content": {"kind": "model_scores", "every": 4, "strength": 0.5},
    },
    "reducible loss, turns": {
        "ratio": {"kind": "constant", "base": 0.3},
        "content": {"kind": "reducible_loss", "ema_decay": 0.9, "fast_decay": 0.5},
        "strategy": {"kind": "explored", "epochs": 3},
    },
}


@pytest.mark.parametrize("name", OVER_TIME)
def test_what_follows_training_resumes_bit_for_bit(
    values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    config = RunConfig.parse(values | {"masking": OVER_TIME[name]})
    pretrain(config, tmp_path / "whole", progress=False)
    with monkeypatch.context() as patch:
        ask_to_stop_after(patch, 7, signal.SIGTERM)
        with pytest.raises(Stopped):
            pretrain(config, tmp_path / "cut", progress=False)
    pretrain(config, tmp_path / "cut", resume=True, progress=False)
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


def test_sigterm_may_come_again_but_a_second_ctrl_c_ends_at_once(
    request: pytest.FixtureRequest,
) -> None:
    # Python's own handler: what a shell starts in the background ignores Ctrl-C.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    with listen() as asked:
        for _ in range(3):
            signal.raise_signal(signal.SIGTERM)
            assert asked.signal_number == signal.SIGTERM
        signal.raise_signal(signal.SIGINT)
        assert asked.signal_number == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


@pytest.mark.slow
def test_killed_within_a_step_and_within_a_save(
    values: dict[str, Any], config: RunConfig, tmp_path: Path, driver: Driver
) -> None:
    cut = {"config": values, "out": str(tmp_path / "cut")}
    # Killed before the first checkpoint, then while saving the second, resumed each time.
    assert driver.codes(cut | {"kill_in_step": 3}) == [-signal.SIGKILL]
    assert not (tmp_path / "cut" / "checkpoints").exists()
    assert driver.codes(cut | {"kill_in_save": 10, "resume": True}) == [-signal.SIGKILL]
    folder = tmp_path / "cut" / "checkpoints"
    assert {path.name for path in folder.iterdir()} == {"step-00000005", ".writing-step-00000010"}
    # The thread that saves is killed; training may have gone on by then, by a few steps.
    logged = [line["step"] for line in lines(tmp_path / "cut" / "metrics.jsonl")]
    assert logged[:3] == [3, 6, 9]

    pretrain(config, tmp_path / "cut", resume=True, progress=False)
    pretrain(config, tmp_path / "whole", progress=False)
    assert_same_run(tmp_path / "whole", tmp_path / "cut")
    assert not list(folder.glob(".*"))


def test_a_complete_run_returns_its_summary_at_once(config: RunConfig, tmp_path: Path) -> None:
    config = config.replace(["steps=2"])
    summary = pretrain(config, tmp_path / "run", progress=False)
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    assert pretrain(config, tmp_path / "run", resume=True, progress=False) == summary
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before


def test_a_folder_that_holds_something_is_refused(config: RunConfig, tmp_path: Path) -> None:
    config = config.replace(["steps=1"])
    pretrain(config, tmp_path / "run", progress=False)
    with pytest.raises(UsageError, match=r"already holds a run.*resume=True"):
        pretrain(config, tmp_path / "run", progress=False)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("years of work")
    with pytest.raises(UsageError, match="not empty and holds no run"):
        pretrain(config, tmp_path / "other", resume=True, progress=False)
    with pytest.raises(UsageError, match="a run goes into a folder"):
        pretrain(config, tmp_path / "other" / "thesis.tex", progress=False)


def test_a_checkpoint_of_another_run_is_refused_and_names_what_differs(
    config: RunConfig, tmp_path: Path
) -> None:
    config = config.replace(["steps=3", "checkpoint.every=1"])
    pretrain(config, tmp_path / "run", progress=False)
    other = config.replace(["seed=1", "masking.ratio.base=0.2", "log_every=1"])
    with pytest.raises(UsageError) as refused:
        pretrain(other, tmp_path / "run", resume=True, progress=False)
    message = str(refused.value)
    assert "masking.ratio.base (checkpoint 0.3, now 0.2)" in message
    assert "seed (checkpoint 0, now 1)" in message
    assert "log_every" not in message
    same = config.replace(["log_every=1", "loader_workers=0", "checkpoint.keep=1", "threads=2"])
    pretrain(same, tmp_path / "run", resume=True, progress=False)


def test_rows_that_have_scores_since_are_made_again_as_they_were(
    config: RunConfig, tiny_data: PreparedData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in_for_english(monkeypatch, FixedTagger())  # as it was prepared
    data = tmp_path / "data"
    shutil.copytree(tiny_data.path, data)
    config = config.replace([f"data={data}", "steps=3", "checkpoint.every=2"])
    pretrain(config, tmp_path / "run", progress=False)
    (tmp_path / "run" / "summary.json").unlink()
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-00000003")
    add_scores(data, scores_named("informativeness"))
    told = r"data fingerprint .*Scores or collocations were added .*prepare --config DATA/config.yaml --out"
    with pytest.raises(UsageError, match=told):
        pretrain(config, tmp_path / "run", resume=True, progress=False)
    words = ["prepare", "--config", str(data / "config.yaml"), "--out", str(tmp_path / "again")]
    assert CliRunner().invoke(app, words).exit_code == 0
    mended = config.replace([f"data={tmp_path / 'again'}"])
    pretrain(mended, tmp_path / "run", resume=True, progress=False)


def test_another_precision_than_the_run_began_in_is_told(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    monkeypatch.setattr(device, "_host_is_faster_in_bf16", lambda: False)
    config = config.replace(["precision=auto", "steps=3"])
    with monkeypatch.context() as patch:
        ask_to_stop_after(patch, 2, signal.SIGTERM)
        with pytest.raises(Stopped):
            pretrain(config, tmp_path / "run", progress=False)
    file = tmp_path / "run" / "environment.json"
    began = json.loads(file.read_text())
    assert began["precision"] == "fp32"
    file.write_text(json.dumps(began | {"precision": "bf16"}))  # as a run that began on a GPU
    pretrain(config, tmp_path / "run", resume=True, progress=False)
    assert "the run began in bf16 and continues in fp32" in caplog.text


def test_other_processes_are_told_where_micro_batches_meet_the_ratio(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    config = config.replace(["masking.budget=batch", "steps=3"])
    with monkeypatch.context() as patch:
        ask_to_stop_after(patch, 2, signal.SIGTERM)
        with pytest.raises(Stopped):
            pretrain(config, tmp_path / "run", progress=False)
    with pytest.raises(UsageError, match=r"micro_batches \(checkpoint 2, now 1\)"):
        pretrain(config.replace(["micro_batches=1"]), tmp_path / "run", resume=True, progress=False)
    file = tmp_path / "run" / "environment.json"
    began = json.loads(file.read_text())
    file.write_text(json.dumps(began | {"world_size": 2}))  # as a run of two processes
    pretrain(config, tmp_path / "run", resume=True, progress=False)
    assert "the number of processes was 2 and is 1: with masking.budget 'batch'" in caplog.text


def test_how_closely_a_run_is_watched_may_change_between_stops(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretrain(config, tmp_path / "whole", progress=False)
    with monkeypatch.context() as patch:
        ask_to_stop_after(patch, 6, signal.SIGTERM)
        with pytest.raises(Stopped):
            pretrain(config, tmp_path / "cut", progress=False)
    watched = config.replace(["checkpoint.every=1", "loader_workers=3", "checkpoint.keep=3"])
    pretrain(watched, tmp_path / "cut", resume=True, progress=False)
    assert len(list((tmp_path / "cut" / "checkpoints").iterdir())) == 3
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


def test_a_run_folder_is_trained_in_by_one_process_at_a_time(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second is refused, and what the first has written stays as it is."""
    with monkeypatch.context() as patch:
        ask_to_stop_after(patch, 6, signal.SIGTERM)
        with pytest.raises(Stopped):
            pretrain(config, tmp_path / "run", progress=False)
    with RunFolder(tmp_path / "run").hold():
        before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
        for resume in (True, True):
            with pytest.raises(UsageError, match="run is in use: another process trains in it"):
                pretrain(config, tmp_path / "run", resume=resume, progress=False)
        assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")} == before
        with pytest.raises(UsageError, match="already holds a run"):
            pretrain(config, tmp_path / "run", progress=False)
    pretrain(
        config, tmp_path / "run", resume=True, progress=False
    )  # a lock that is left holds nobody up
    with RunFolder(tmp_path / "new").hold(), pytest.raises(UsageError, match="new is in use"):
        pretrain(config, tmp_path / "new", progress=False)
    assert not (tmp_path / "new").exists()
    with pytest.raises(UsageError):  # refused before any work: no folder is left
        pretrain(config.replace(["data=nowhere"]), tmp_path / "deep" / "run", progress=False)
    assert not (tmp_path / "deep" / "run").exists()


def test_relative_data_is_found_from_another_folder(
    values: dict[str, Any],
    tiny_data: PreparedData,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Where it lay when the run began; or, if run and data moved together, beside the run."""
    (tmp_path / "first").mkdir()
    shutil.copytree(tiny_data.path, tmp_path / "first" / "data")
    monkeypatch.chdir(tmp_path / "first")
    config = RunConfig.parse(values).replace(["data=data", "steps=2", "checkpoint.every=1"])
    pretrain(config, "run", progress=False)
    (tmp_path / "first" / "run" / "summary.json").unlink()
    shutil.rmtree(tmp_path / "first" / "run" / "checkpoints" / "step-00000002")
    monkeypatch.chdir(tmp_path)
    pretrain("first/run/config.yaml", "first/run", resume=True, progress=False)
    assert f"where the run began: {tmp_path / 'first' / 'data'}" in caplog.text
    (tmp_path / "first" / "run" / "summary.json").unlink()
    (tmp_path / "first" / "run" / "config.yaml").write_text(config.to_yaml())
    (tmp_path / "first").rename(tmp_path / "moved")
    pretrain("moved/run/config.yaml", "moved/run", resume=True, progress=False)
    assert "beside the run folder: moved/run/../data" in caplog.text
    with pytest.raises(UsageError, match="elsewhere is not a folder of prepared data"):
        pretrain(config.replace(["data=elsewhere"]), "moved/run", resume=True, progress=False)


def test_a_checkpoint_more_than_is_kept_goes_on_resume(config: RunConfig, tmp_path: Path) -> None:
    config = config.replace(["steps=4", "checkpoint.every=1", "checkpoint.keep=4"])
    pretrain(config, tmp_path / "run", progress=False)
    (tmp_path / "run" / "summary.json").unlink()  # as if killed within the end of the last save
    pretrain(config.replace(["checkpoint.keep=2"]), tmp_path / "run", resume=True, progress=False)
    names = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert names == ["step-00000003", "step-00000004"]


def test_a_state_of_before_the_yardsticks_is_read() -> None:
    """Tokens that may be masked stay unknown in a run that began before they were counted."""
    window = {
        "tokens": 5, "masked_tokens": 1, "seconds": 1.0, "seconds_waiting": 0.0,
        "flops_of_attention": 0.0, "skipped": [],
    }  # fmt: skip
    saved = {
        "step": 3, "tokens_seen": 50, "masked_tokens": 7, "rows_seen": 9, "seconds": 2.0,
        "validation_loss": None, "validation_accuracy": None, "window": window,
    }  # fmt: skip
    state = State.from_checkpoint(saved, {"window.by_class": torch.zeros(3, 2)})
    state.count(rows=1, tokens=10, maskable_tokens=8, masked_tokens=2)
    assert (state.step, state.tokens_seen, state.masked_tokens) == (4, 60, 9)
    assert state.maskable_tokens is None
    assert state.yardsticks is None
    assert state.causal_tokens == 0
    fresh = State.start(2)
    fresh.count(rows=1, tokens=10, maskable_tokens=8, masked_tokens=2)
    assert fresh.maskable_tokens == 8


@pytest.mark.parametrize("left", [None, "", "steps: [1,\n"])
def test_a_lost_config_is_written_again_as_every_command_says(
    config: RunConfig, tmp_path: Path, left: str | None
) -> None:
    """Checkpoints hold the config too, also where it is empty or no YAML; and a lost summary is written by a
    resume.
    """
    folder = tmp_path / "my run"
    summary = pretrain(config, folder, progress=False)
    before = RunConfig.load(folder / "config.yaml")
    (folder / "config.yaml").unlink()
    if left is not None:
        (folder / "config.yaml").write_text(left, encoding="utf-8")
    (folder / "summary.json").unlink()
    told = {
        str(CliRunner().invoke(app, words).exception)
        for words in (
            ["pretrain", "--out", str(folder), "--resume"],
            ["pretrain", "--branch", str(folder), "--out", str(tmp_path / "other")],
            ["report", str(folder), "--out", str(tmp_path / "page")],
            ["inspect", "Some words.", "--run", str(folder)],
            *([] if left is None else [["evaluate", str(folder), "--tasks", "mlm"]]),
        )
    }
    (message,) = told
    assert str(folder / "config.yaml") in message
    assert ("has checkpoints, but no config.yaml" in message) == (left is None)
    subprocess.run(
        message.partition("again:  ")[2], shell=True, check=True, env={}
    )  # without a PATH
    assert RunConfig.load(folder / "config.yaml") == before
    again = pretrain(config, folder, resume=True, progress=False)
    assert again["validation_loss"] == summary["validation_loss"]
    assert (folder / "summary.json").is_file()
