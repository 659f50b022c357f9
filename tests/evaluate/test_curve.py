"""Curves: which checkpoints, by one process or several, interrupted and gone on with."""

from __future__ import annotations

import os
import re
import shutil
import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from chronomask.cli import app
from chronomask.config_layers import read_yaml
from chronomask.data.folder import PreparedData
from chronomask.errors import ChronomaskError, RunError, UsageError
from chronomask.evaluate import curve
from chronomask.evaluate.curve import Plan, _evaluate_one, checkpoints_of, evaluate_curve
from chronomask.runs.result import TaskResult, read_results
from chronomask.yaml_text import as_yaml
from tests.support.processes import end_while_workers_wait
from tests.support.tiny_run import tiny_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_data: PreparedData) -> Path:
    return tiny_run(tmp_path_factory.mktemp("curve"), tiny_data)


def test_a_run_that_keeps_all_has_every_checkpoint(run: Path) -> None:
    names = [path.name for path in checkpoints_of(run, 1)]
    assert names == ["step-00000002", "step-00000004", "step-00000006"]
    assert [path.name for path in checkpoints_of(run, 2)] == ["step-00000002", "step-00000006"]
    assert [path.name for path in checkpoints_of(run, 9)] == ["step-00000006"]
    with pytest.raises(UsageError, match=r"checkpoint\.keep: all"):
        checkpoints_of(run.parent, 1)


def test_the_masked_loss_takes_the_data_of_the_run(run: Path, tmp_path: Path) -> None:
    for model in (run, checkpoints_of(run, 1)[0]):
        found = CliRunner().invoke(
            app,
            [
                "evaluate",
                str(model),
                "--tasks",
                "mlm",
                "--limit",
                "4",
                "--out",
                str(tmp_path / model.name),
            ],
        )
        assert found.exit_code == 0, found.exception
        assert (tmp_path / model.name / "mlm-seed0.json").is_file()
    other = CliRunner().invoke(app, ["evaluate", str(run), "--tasks", "mlm,cola"])
    assert "--task-data FOLDER" in str(other.exception)


@pytest.mark.parametrize("every", [(), ("--every", "4")])
def test_beside_tasks_with_files_the_masked_loss_takes_the_data_of_the_run(
    run: Path, glue: Path, model_folder: Path, tmp_path: Path, every: tuple[str, ...]
) -> None:
    arguments = ["--tasks", "cola,mlm", "--task-data", str(glue), "--limit", "4", "--quiet"]
    arguments += [
        "--set",
        "cola.max_length=32",
        "--set",
        "cola.epochs=1",
        "--out",
        str(tmp_path / "out"),
        *every,
    ]
    found = CliRunner().invoke(app, ["evaluate", str(run), *arguments])
    assert found.exit_code == 0, found.exception
    results = read_results([path.parent for path in (tmp_path / "out").rglob("mlm-seed0.json")])
    assert {result.task for result in results} == {"cola", "mlm"}
    refused = CliRunner().invoke(app, ["evaluate", str(model_folder), *arguments[:4]])
    said = f"mlm: {glue} is not prepared data, .* of no run .* --set mlm.prepared=FOLDER"
    assert re.search(said, str(refused.exception))


def test_the_masked_loss_of_a_run_on_a_mixture_asks_for_a_part(
    run: Path, tiny_data: PreparedData, tmp_path: Path
) -> None:
    mixed = Path(shutil.copytree(run, tmp_path / "mixed"))
    second = shutil.copytree(tiny_data.path, tmp_path / "second")
    values = read_yaml(mixed / "config.yaml")
    parts = [{"path": values["data"]}, {"path": str(second)}]
    (mixed / "config.yaml").write_text(as_yaml(values | {"data": parts}))
    refused = CliRunner().invoke(app, ["evaluate", str(mixed), "--tasks", "mlm"])
    assert f"mixture of {values['data']}, {second}: name the part" in str(refused.exception)
    beside = ["--tasks", "mlm,cola", "--task-data", str(tmp_path)]
    refused = CliRunner().invoke(app, ["evaluate", str(mixed), *beside])
    assert str(refused.exception).endswith(f"--set mlm.prepared={values['data']}")


def test_the_masked_loss_of_a_run_whose_data_are_gone_asks_for_their_place(
    run: Path, tmp_path: Path
) -> None:
    alone = Path(shutil.copytree(run, tmp_path / "alone"))
    values = read_yaml(alone / "config.yaml") | {"data": str(tmp_path / "gone")}
    (alone / "config.yaml").write_text(as_yaml(values))
    refused = CliRunner().invoke(app, ["evaluate", str(alone), "--tasks", "mlm"])
    said = f"{tmp_path / 'gone'}, which {alone} was trained on, is not there: .* --task-data FOLDER"
    assert re.search(said, str(refused.exception))


def test_processes_give_what_one_gives_and_whole_results_are_kept(
    run: Path, tiny_data: PreparedData, tmp_path: Path
) -> None:
    plan = Plan(("mlm",), tiny_data.path, 1, limit=4)
    alone = evaluate_curve(run, plan, tmp_path / "alone", every=2, progress=False)
    kept = TaskResult.path_in(tmp_path / "several" / "step-00000002", "mlm", 0)
    shutil.copytree(tmp_path / "alone" / "step-00000002", kept.parent)
    before = kept.stat().st_mtime_ns
    several = evaluate_curve(run, plan, tmp_path / "several", workers=2, progress=False)
    assert list(alone) == [2, 6]
    assert list(several) == [2, 4, 6]
    assert kept.stat().st_mtime_ns == before
    for step, results in alone.items():
        assert results[0].step == step
        assert results[0].metrics == several[step][0].metrics
    assert several[2][0].metrics["loss"] > several[6][0].metrics["loss"]
    stored = TaskResult.load(TaskResult.path_in(tmp_path / "several" / "step-00000004", "mlm", 0))
    assert stored == several[4][0]


def kill_once(mark: Path, path: Path, *others: Any) -> list[TaskResult]:
    """Runs in a worker: the first one to come here is killed."""
    try:
        mark.touch(exist_ok=False)
    except FileExistsError:
        return _evaluate_one(path, *others)
    os.kill(os.getpid(), signal.SIGKILL)
    return []


def kill_always(*_: Any) -> list[TaskResult]:
    os.kill(os.getpid(), signal.SIGKILL)
    return []


@pytest.mark.slow
def test_a_worker_that_is_killed_costs_no_checkpoint(
    run: Path, tiny_data: PreparedData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = Plan(("mlm",), tiny_data.path, 1, limit=4)
    monkeypatch.setattr(curve, "_evaluate_one", partial(kill_once, tmp_path / "killed"))
    found = evaluate_curve(run, plan, tmp_path / "out", workers=2, progress=False)
    assert (tmp_path / "killed").is_file()
    assert list(found) == [2, 4, 6]
    assert all(results[0].metrics["loss"] > 0 for results in found.values())
    monkeypatch.setattr(curve, "_evaluate_one", kill_always)
    monkeypatch.setattr(curve, "_ATTEMPTS", 1)
    said = r"3 of 3 .*step-00000002: its process was killed, .* give fewer --workers"
    with pytest.raises(RunError, match=said):
        evaluate_curve(run, plan, tmp_path / "none", workers=2, progress=False)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_no_worker_outlives_its_parent(
    run: Path, tiny_data: PreparedData, tmp_path: Path, number: int
) -> None:
    """Nor does it take the next checkpoint; they would wait for an hour."""
    words = ["evaluate", str(run), "--tasks", "mlm", "--task-data", str(tiny_data.path), "--quiet"]
    words += ["--every", "1", "--workers", "2", "--out", str(tmp_path / "out")]
    code = end_while_workers_wait(tmp_path, words, number)
    assert code == (130 if number == signal.SIGINT else -number)
    assert len(list(tmp_path.glob("ready-*"))) == 2


def test_a_damaged_checkpoint_costs_only_itself(
    run: Path, tiny_data: PreparedData, tmp_path: Path
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    weights = copy / "checkpoints" / "step-00000004" / "transformers" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(RunError, match=r"1 of 3 .*step-00000004: .* does not match its hash"):
        evaluate_curve(copy, Plan(("mlm",), tiny_data.path, 1, limit=2), tmp_path, progress=False)
    assert TaskResult.path_in(tmp_path / "step-00000006", "mlm", 0).is_file()
    assert TaskResult.path_in(tmp_path / "step-00000002", "mlm", 0).is_file()


def test_what_cannot_run_is_refused_before_any_work(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="blimp"):
        evaluate_curve(run, Plan(("blimp",), tmp_path, 1), tmp_path / "out", progress=False)
    with pytest.raises(UsageError, match="seeds is 0; it must be 1 or more"):
        evaluate_curve(run, Plan(("mlm",), tmp_path, 0), tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()


def test_a_task_that_draws_nothing_leaves_results_of_checkpoints_alone(
    run: Path, tiny_data: PreparedData, tmp_path: Path
) -> None:
    """So that the same command goes on with a run that has trained further, and ``force`` is enough."""
    for plan in (
        Plan(("mlm",), tiny_data.path, 1, limit=4),
        Plan(("mlm",), tiny_data.path, 1, limit=2, force=True),
    ):
        evaluate_curve(run, plan, tmp_path, every=2, progress=False)
        assert sorted(path.name for path in tmp_path.iterdir()) == [
            "step-00000002",
            "step-00000006",
        ]


def test_a_damaged_last_checkpoint_costs_only_itself(
    run: Path, tiny_data: PreparedData, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    config = copy / "checkpoints" / "step-00000006" / "transformers" / "config.json"
    config.write_text(config.read_text() + " ")
    plan = Plan(("mlm",), tiny_data.path, 1, limit=2)
    with pytest.raises(RunError, match=r"1 of 3 .*step-00000006: "):
        evaluate_curve(copy, plan, tmp_path / "out", progress=False)
    assert TaskResult.path_in(tmp_path / "out" / "step-00000004", "mlm", 0).is_file()
    for path in (copy / "checkpoints").glob("*/transformers/config.json"):
        path.write_text(path.read_text() + " ")
    with pytest.raises(ChronomaskError, match="step-00000006"):
        evaluate_curve(copy, plan, tmp_path / "none", progress=False)
    assert not (tmp_path / "none").exists()
