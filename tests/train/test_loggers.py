"""TensorBoard and Weights & Biases show what the JSON Lines say, once, also over a resume."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from chronomask.errors import DataError, UsageError
from chronomask.train.config import RunConfig
from chronomask.train.loggers import WandB
from chronomask.train.loop import pretrain
from tests.support.processes import HANG, python_path
from tests.support.tiny_training import back_to_step_3, lines

SHORT = ["steps=6", "checkpoint.every=3", "checkpoint.keep=9", "log_every=1", "validation.every=2"]


def test_tensorboard_holds_each_point_once(config: RunConfig, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = config.replace([*SHORT, "loggers=[{kind: tensorboard}]"])
    run = tmp_path / "run"
    pretrain(config, run, progress=False)
    back_to_step_3(run)
    pretrain(config, run, resume=True, progress=False)
    events = EventAccumulator(str(run / "tensorboard")).Reload()
    logged = {line["step"]: line for line in lines(run / "metrics.jsonl")}
    for tag, key in (("train/loss", "loss"), ("train/masking_ratio", "masking_ratio")):
        points = {event.step: event.value for event in events.Scalars(tag)}
        assert len(events.Scalars(tag)) == 6
        assert points == pytest.approx({step: line[key] for step, line in logged.items()}, rel=1e-6)
    assert [event.step for event in events.Scalars("validation/loss")] == [2, 4, 6]
    assert any(tag.startswith("train/class_loss/") for tag in events.Tags()["scalars"])


@pytest.mark.parametrize("saved", [True, False], ids=["at-step-0", "nothing-saved"])
def test_tensorboard_holds_each_point_once_where_a_run_is_trained_again_from_its_first_step(
    config: RunConfig, tmp_path: Path, saved: bool
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    changes = ["steps=3", "validation.every=0", "validation.at_start=true", "checkpoint.every=0"]
    config = config.replace([*SHORT, *changes, "loggers=[{kind: tensorboard}]"])
    run = tmp_path / "run"
    pretrain(config.replace(["checkpoint.at_start=true"]), run, progress=False)
    (run / "summary.json").unlink()  # as if it had been killed before its last checkpoint
    for checkpoint in (run / "checkpoints").iterdir():
        if not (saved and checkpoint.name == "step-00000000"):
            shutil.rmtree(checkpoint)
    pretrain(config, run, resume=True, progress=False)
    events = EventAccumulator(str(run / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2, 3]
    assert [event.step for event in events.Scalars("validation/loss")] == [0, 3]


@pytest.mark.slow
def test_wandb_offline_holds_each_point_once(values: dict[str, Any], tmp_path: Path) -> None:
    config = RunConfig.parse(values).replace(
        [*SHORT, "loggers=[{kind: wandb, mode: offline, project: test}]"]
    )
    run = tmp_path / "run"
    environment = os.environ | {
        "PYTHONPATH": python_path(),
        "WANDB_DIR": str(tmp_path),
        "HOME": str(tmp_path),
    }
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.wandb_run", json.dumps(config.to_dict()), str(run)],
        capture_output=True, text=True, env=environment, timeout=HANG,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    ids, points = json.loads(done.stdout.splitlines()[-1])
    assert len(ids) == 2
    assert len(set(ids)) == 1  # two sessions of one run
    trained = [(point["step"], point["train/loss"]) for point in points if "train/loss" in point]
    assert trained == [(line["step"], line["loss"]) for line in lines(run / "metrics.jsonl")]
    validated = [point["step"] for point in points if "validation/loss" in point]
    assert validated == [2, 4, 6]


@pytest.mark.parametrize("kind", ["tensorboard", "wandb"])
def test_a_logger_that_is_not_installed_is_named_before_any_work(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == kind else real(name, *rest)
    )
    config = config.replace([f"loggers=[{{kind: {kind}}}]"])
    with pytest.raises(UsageError, match=rf"pip install 'chronomask\[{kind}\]'"):
        pretrain(config, tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_wandb_takes_from_the_environment_what_the_config_leaves_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb

    asked: dict[str, Any] = {}

    def init(**given: Any) -> Any:
        asked.update(given)
        return SimpleNamespace(define_metric=lambda *_, **__: None)

    monkeypatch.setattr(wandb, "init", init)
    monkeypatch.setenv("WANDB_PROJECT", "ours")
    WandB().open(tmp_path, step=-1, name="", config={})
    assert (asked["project"], asked["mode"]) == ("ours", None)  # the mode it reads itself
    monkeypatch.delenv("WANDB_PROJECT")
    WandB(mode="offline").open(tmp_path, step=-1, name="", config={})
    assert (asked["project"], asked["mode"]) == ("chronomask", "offline")


def test_what_wandb_refuses_is_told_with_the_way_on(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb

    def refuse(**_: Any) -> None:
        raise wandb.Error("No API key configured.")

    monkeypatch.setattr(wandb, "init", refuse)
    config, run = config.replace(["steps=1"]), tmp_path / "run"
    with pytest.raises(UsageError, match=r"No API key .*wandb login.*mode: offline.*resume=True"):
        pretrain(config.replace(["loggers=[wandb]"]), run, progress=False)
    pretrain(config, run, resume=True, progress=False)


@pytest.mark.parametrize(
    "text", ['{"id": "abc", "se', "[]", '{"id": "abc"}', '{"id": 3, "sent": {"metrics": 1}}']
)
def test_what_wandb_was_sent_is_damaged_and_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    import wandb

    begun = SimpleNamespace(define_metric=lambda *_, **__: None)
    monkeypatch.setattr(wandb, "init", lambda **_: begun)
    file = tmp_path / "wandb.json"
    file.write_text(text)
    with pytest.raises(DataError, match=r"wandb\.json .*remove it.*resume=True"):
        WandB().open(tmp_path, step=3, name="", config={})
    file.unlink()
    WandB().open(tmp_path, step=3, name="", config={})
    assert json.loads(file.read_text())["sent"] == {"metrics": 0, "validation": 0}


def test_an_unknown_logger_is_refused(config: RunConfig) -> None:
    with pytest.raises(UsageError, match="tensorbord"):
        config.replace(["loggers=[{kind: tensorbord}]"])
