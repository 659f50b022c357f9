"""A run that begins from another's checkpoint, and what is measured and saved before the first step."""

from __future__ import annotations

import json
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from typer.testing import CliRunner

from chronomask.cli import app
from chronomask.data.folder import PreparedData
from chronomask.errors import RunError, Stopped, UsageError
from chronomask.prepare.config import PrepareConfig
from chronomask.prepare.pipeline import prepare
from chronomask.runs.layout import RunFolder
from chronomask.train import step as steps
from chronomask.train.config import RunConfig
from chronomask.train.distributed import World
from chronomask.train.dry_run import dry_run
from chronomask.train.dump import replay
from chronomask.train.loop import pretrain
from chronomask.train.open import open_run
from tests.support.tiny_training import (
    WITHOUT_DROPOUT,
    ask_to_stop_after,
    assert_same_run,
    lines,
    weights_of,
)

STEADY = [
    *WITHOUT_DROPOUT,
    "masking.ratio={kind: constant, base: 0.3}",
    "learning_rate={kind: constant, peak: 1.0e-3}",
    "log_every=1",
]
"""Schedules that do not move: going on is then the same as beginning anew from where one was."""


def test_more_steps_from_the_end_are_those_of_a_longer_run(
    config: RunConfig, tmp_path: Path
) -> None:
    """Bit for bit: weights, moments, what content has learned, the order of rows and their masks."""
    config = config.replace(STEADY)
    pretrain(config.replace(["steps=12"]), tmp_path / "whole", progress=False)
    pretrain(config.replace(["steps=6"]), tmp_path / "first", progress=False)
    more = config.replace(["steps=6", f"branch={tmp_path / 'first'}"])
    pretrain(more, tmp_path / "more", progress=False)
    ours, theirs = weights_of(tmp_path / "more"), weights_of(tmp_path / "whole")
    assert all(ours[name].equal(theirs[name]) for name in theirs)
    logged = [
        [(line["loss"], line["class_weight"]) for line in lines(tmp_path / run / "metrics.jsonl")]
        for run in ("whole", "more")
    ]
    assert logged[0][6:] == logged[1]
    origin = json.loads((tmp_path / "more" / "environment.json").read_text())["branch"]
    assert origin["step"] == 6
    pretrain(
        config.replace(["steps=2", f"branch={tmp_path / 'more'}"]),
        tmp_path / "third",
        progress=False,
    )
    state = json.loads((tmp_path / "third/checkpoints/step-00000002/state.json").read_text())
    assert state["first_row"] == 12 * 8


def test_dropout_goes_on_over_branches(config: RunConfig, tmp_path: Path) -> None:
    """Also in a branch of a branch, and over a resume."""
    config = config.replace([*STEADY[len(WITHOUT_DROPOUT) :], "validation.every=0"])
    pretrain(config.replace(["steps=8"]), tmp_path / "whole", progress=False)
    pretrain(config.replace(["steps=3"]), tmp_path / "first", progress=False)
    second = config.replace(["steps=2", f"branch={tmp_path / 'first'}"])
    pretrain(second, tmp_path / "second", progress=False)
    third = config.replace(["steps=3", f"branch={tmp_path / 'second'}", "checkpoint.every=1"])
    pretrain(third, tmp_path / "third", progress=False)
    (tmp_path / "third" / "summary.json").unlink()
    shutil.rmtree(tmp_path / "third" / "checkpoints" / "step-00000003")
    pretrain(third, tmp_path / "third", resume=True, progress=False)
    ours, theirs = weights_of(tmp_path / "third"), weights_of(tmp_path / "whole")
    assert all(ours[name].equal(theirs[name]) for name in theirs)
    losses = [line["loss"] for line in lines(tmp_path / "third" / "metrics.jsonl")]
    assert losses == [line["loss"] for line in lines(tmp_path / "whole" / "metrics.jsonl")][5:]


def test_the_dump_of_a_branch_replays_bit_for_bit(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretrain(config.replace(["steps=2"]), tmp_path / "first", progress=False)
    branch = config.replace(["steps=2", f"branch={tmp_path / 'first'}"])
    norms: list[float] = []

    def is_finite(loss: torch.Tensor, norm: torch.Tensor) -> torch.Tensor:
        norms.append(float(norm))
        return torch.tensor(False)

    monkeypatch.setattr(steps, "_finite", is_finite)
    with pytest.raises(RunError, match="step 1: loss"):
        pretrain(branch, tmp_path / "branch", progress=False)
    again = replay(tmp_path / "branch" / "dump" / "step-00000001")
    assert [again.gradient_norm] == norms


def test_a_branch_has_its_own_schedules_and_resumes_exactly(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretrain(config, tmp_path / "parent", progress=False)
    point = tmp_path / "parent" / "checkpoints" / "step-00000010"
    branch = RunConfig.of(
        config,
        branch=str(point),
        steps=7,
        learning_rate={"kind": "linear", "peak": 1e-3, "warmup_steps": 0},
        masking={"ratio": {"kind": "constant", "base": 0.15}},
        log_every=1,
    )
    pretrain(branch, tmp_path / "whole", progress=False)
    logged = lines(tmp_path / "whole" / "metrics.jsonl")
    assert [line["learning_rate"] for line in logged] == [1e-3 * (1 - k / 7) for k in range(7)]
    assert {line["masking_ratio"] for line in logged} == {0.15}
    with monkeypatch.context() as patch:
        ask_to_stop_after(patch, 3, signal.SIGTERM)
        with pytest.raises(Stopped):
            pretrain(branch, tmp_path / "cut", progress=False)
    shutil.rmtree(tmp_path / "parent")  # its state is the branch's own by now
    pretrain(branch, tmp_path / "cut", resume=True, progress=False)
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


def test_a_branch_of_another_seed_says_that_rows_come_again(
    config: RunConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pretrain(config.replace(["steps=2"]), tmp_path / "parent", progress=False)
    for seed in (0, 1):
        caplog.clear()
        branch = config.replace([f"branch={tmp_path / 'parent'}", "steps=1", f"seed={seed}"])
        pretrain(branch, tmp_path / f"branch {seed}", progress=False)
        assert (
            "has seed 0 and this one 1, so its rows come in another order" in caplog.text
        ) == seed


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("model.overrides.num_hidden_layers=1", "has another model"),
        ("optimiser={kind: muon}", "has another optimiser"),
        ("branch=nowhere", "nowhere is neither a run with a checkpoint"),
        ("branch=nowhere/checkpoints/step-00000001", "does not exist"),
    ],
)
def test_what_cannot_be_branched_from_is_refused(
    config: RunConfig, tmp_path: Path, change: str, message: str
) -> None:
    config = config.replace(["steps=1", "validation.rows=4"])
    pretrain(config, tmp_path / "parent", progress=False)
    branch = config.replace([f"branch={tmp_path / 'parent'}", change])
    with pytest.raises(UsageError, match=message):
        pretrain(branch, tmp_path / "branch", progress=False)
    assert not (tmp_path / "branch").exists()


def test_a_branch_onto_longer_rows_is_told_to_be_a_run_of_its_own(
    config: RunConfig, tiny_data: PreparedData, tmp_path: Path
) -> None:
    config = config.replace(["steps=1", "validation.every=0", "masking.content.kind=none"])
    pretrain(config, tmp_path / "first", progress=False)
    values = {
        "sources": [str(tiny_data.path.parent / "text.txt")],
        "tokenizer": {"kind": "folder", "path": str(tiny_data.tokenizer_path)},
        "tagger": {"kind": "none"},
        "row_length": 64,
        "workers": 1,
    }
    prepare(PrepareConfig.parse(values), tmp_path / "long", progress=False)
    onto = config.replace([f"data={tmp_path / 'long'}", f"branch={tmp_path / 'first'}"])
    with pytest.raises(UsageError, match=r"32 positions, .* a branch keeps them; begin"):
        dry_run(onto, flops_per_second=1e9)
    with pytest.raises(UsageError, match=r"32 positions, .* a branch keeps them; begin") as refused:
        pretrain(onto, tmp_path / "branch", progress=False)
    model = re.search(r"model=\{.*\}", str(refused.value))
    assert model is not None
    alone = onto.replace(["branch=null", model[0]])
    assert pretrain(alone, tmp_path / "run", progress=False)["complete"]


def test_before_the_first_step(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A validation and a checkpoint at step 0, once, also over a kill before the first checkpoint."""
    config = config.replace(
        ["validation.at_start=true", "checkpoint.at_start=true", "checkpoint.keep=9"]
    )
    pretrain(config, tmp_path / "whole", progress=False)
    assert [line["step"] for line in lines(tmp_path / "whole" / "validation.jsonl")] == [
        0,
        4,
        8,
        12,
    ]
    names = sorted(path.name for path in (tmp_path / "whole" / "checkpoints").iterdir())
    assert names[0] == "step-00000000"
    again = tmp_path / "again"
    for missing in (False, True):  # from the checkpoint of step 0, and from none
        shutil.rmtree(again, ignore_errors=True)
        shutil.copytree(tmp_path / "whole", again)
        (again / "summary.json").unlink()
        for name in names[0 if missing else 1 :]:
            shutil.rmtree(again / "checkpoints" / name)
        pretrain(config, again, resume=True, progress=False)
        assert_same_run(tmp_path / "whole", again)
    plain: dict[str, Any] = {"validation": {"at_start": False}, "checkpoint": {"at_start": False}}
    pretrain(RunConfig.of(config, **plain), tmp_path / "plain", progress=False)
    assert lines(tmp_path / "plain" / "metrics.jsonl") == lines(
        tmp_path / "whole" / "metrics.jsonl"
    )


def test_a_run_with_the_frozen_weights_of_another_needs_it_no_more(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights stand in the run's own config, so it resumes when the other run is gone."""
    first = tmp_path / "ptw"
    pretrain(config.replace(["steps=2", "validation.every=0"]), first, progress=False)
    last = lines(first / "metrics.jsonl")[-1]
    weights = {n: w ** last["content_strength"] for n, w in last["class_weight"].items()}
    frozen = config.replace(["steps=3", f"masking.content={{kind: fixed, weights: '{first}'}}"])
    shutil.rmtree(first)
    with monkeypatch.context() as patch:
        ask_to_stop_after(patch, 1, signal.SIGTERM)
        with pytest.raises(Stopped):
            pretrain(frozen, tmp_path / "run", progress=False)
    ours = RunConfig.load(tmp_path / "run" / "config.yaml")
    assert ours.masking.content.to_dict()["weights"] == weights
    pretrain(ours, tmp_path / "run", resume=True, progress=False)
    assert lines(tmp_path / "run" / "metrics.jsonl")[-1]["step"] == 3


def test_each_schedule_goes_on_by_itself(
    config: RunConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A ratio of another kind begins anew, and content goes on, in force from the first step on."""
    pretrain(config.replace(["steps=3", "validation.every=0"]), tmp_path / "first", progress=False)
    branch = config.replace([f"branch={tmp_path / 'first'}", "masking.ratio={kind: responsive}"])
    alone = World(0, 1, torch.device("cpu"))
    run, _ = open_run(branch, RunFolder(tmp_path / "branch"), alone, resume=False)
    assert (
        run.masker.class_weights()
        == lines(tmp_path / "first" / "metrics.jsonl")[-1]["class_weight"]
    )
    assert len(set((run.masker.class_weights() or {}).values())) > 2
    assert "masking.ratio begins anew: the checkpoint holds no state of a responsive" in caplog.text
    assert "masking.content begins anew" not in caplog.text


@pytest.mark.parametrize("named", [False, True])
def test_the_config_of_a_run_as_recipe_makes_a_run_of_its_own(
    config: RunConfig, tmp_path: Path, named: bool
) -> None:
    """With the name that the run was given, but not with that of its folder; and --branch is heeded."""
    first = config.replace(["steps=2", f"name={'mine' if named else 'null'}"])
    pretrain(first, tmp_path / "first", progress=False)
    recipe, branch = str(tmp_path / "first" / "config.yaml"), str(tmp_path / "first")
    first_written = Path(recipe).read_text(encoding="utf-8")
    assert f"name: {'mine' if named else 'first'}\n" in first_written
    for name, more in (("again", []), ("branched", ["--branch", branch])):
        done = CliRunner().invoke(
            app, ["pretrain", recipe, "--out", str(tmp_path / name), "--quiet", *more]
        )
        assert done.exit_code == 0, done.output
        written = yaml.safe_load((tmp_path / name / "config.yaml").read_text(encoding="utf-8"))
        assert written["name"] == ("mine" if named else name)
        assert written["branch"] == (branch if more else None)
    assert pretrain(first, tmp_path / "first", resume=True, progress=False)["complete"]
    assert first_written == (tmp_path / "first" / "config.yaml").read_text(encoding="utf-8")


def test_in_python_a_branch_has_the_config_of_its_run_too(
    config: RunConfig, tmp_path: Path
) -> None:
    first = config.replace(["steps=2", "seed=4", "z_loss=0.001", "name=first"])
    pretrain(first, tmp_path / "first", progress=False)
    for path in (
        tmp_path / "first",
        str(next((tmp_path / "first" / "checkpoints").glob("step-*"))),
    ):
        found = RunConfig.of({"z_loss": 0.002}, branch=path, steps=3)
        changed = {"z_loss": 0.002, "steps": 3, "branch": str(path), "name": None}
        assert found.to_dict() == first.to_dict() | changed
    assert RunConfig.of(config, branch=tmp_path / "first").z_loss == config.z_loss  # a whole one
    pretrain({}, tmp_path / "more", branch=tmp_path / "first", steps=1, progress=False)
    assert RunConfig.of(tmp_path / "more" / "config.yaml").seed == 4


def test_a_branch_of_what_is_not_there_is_refused_from_python_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match=r"branch .*none: there is no run; give a run's folder"):
        pretrain({}, tmp_path / "out", branch=tmp_path / "none", steps=3)
