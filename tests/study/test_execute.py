"""Units are independent and marked; a study goes on where it stopped; failures are named."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from chronomask.cli import app
from chronomask.data.folder import PreparedData
from chronomask.errors import DataError, RunError, UsageError
from chronomask.study import execute
from chronomask.study.command import plan, status
from chronomask.study.command import study as run_a_study
from chronomask.study.execute import Outcome, run_one, run_study, share_of
from chronomask.study.open import open_study
from chronomask.study.times import NOTED
from chronomask.study.units import Study, check_shared_start, check_versions, start_of
from chronomask.study.work import do_unit, write_in_log
from chronomask.train.config import RunConfig
from chronomask.train.loop import pretrain
from tests.support.opened_study import opened
from tests.support.processes import HANG, end_while_workers_wait
from tests.support.tiny_training import assert_same_run


def test_a_study_runs_and_continues(
    values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = opened(values, tmp_path)
    assert len(study.units) == 1 + 4 + 4 * 2 * 2
    fails = ("decay", 0)

    def sometimes(config: Any, folder: Path, **options: Any) -> Any:
        if (config.name, config.seed) == fails:
            raise RunError("the disk is full")
        return pretrain(config, folder, **options)

    monkeypatch.setattr("chronomask.train.loop.pretrain", sometimes)
    told: list[str] = []
    outcome = run_study(study, study.in_order(), tell=told.append)
    assert [str(unit) for unit, _ in outcome.failed] == ["pretrain decay, seed 0"]
    assert len(outcome.left_out) == 4
    assert len(outcome.done) == 3 + 3 * 4
    (unit, why) = outcome.failed[0]
    assert why == "the disk is full"
    assert "the disk is full" in study.log(unit).read_text()
    assert any("FAILED: the disk is full" in line and str(study.log(unit)) in line for line in told)
    assert "failed last time: pretrain decay, seed 0" in status(study.folder)

    monkeypatch.undo()
    again = run_study(study, study.in_order())
    assert len(again.there) == len(study.units) - 5
    assert not again.failed
    assert f"{len(study.units)} of {len(study.units)} units" in status(study.folder)
    assert not run_study(study, study.in_order()).done

    _starts_are_shared(study)
    _folders_are_known(study)
    _marks_are_checked(study)


def _starts_are_shared(study: Study) -> None:
    marks = {(a, s): start_of(study.run_of(a, s)) for a in study.arms for s in (0, 1)}
    assert marks["fixed", 0] == marks["decay", 0]
    assert marks["fixed", 1] == marks["decay", 1]
    weights = {mark["initial_weights_sha256"] for mark in marks.values()}
    assert len(weights) == 2
    assert None not in weights
    path = study.run_of("decay", 1).environment
    before = path.read_text()
    path.write_text(before.replace(marks["decay", 1]["initial_weights_sha256"], "f" * 64))
    check_shared_start(study, 0)
    with pytest.raises(RunError, match="'fixed' and 'decay' of seed 1 do not start alike"):
        check_shared_start(study, 1)
    path.write_text(before)


def _folders_are_known(study: Study) -> None:
    """A study, a run, a checkpoint and results are told as what they are."""
    run = study.folder / "runs" / "decay" / "seed-0"
    checkpoint = run / "checkpoints" / "step-00000008"
    results = run / "results" / "step-00000008"
    for folder, said in (
        (study.folder, f"is a study: its runs are such as {run}"),
        (run.parent, f"holds runs, such as {run}"),
        (
            run,
            f"is a run with the model {checkpoint / 'transformers'}, which .* report take; "
            f"chronomask pretrain --out {run} --resume continues it$",
        ),
        (run / "checkpoints", f"holds the checkpoints of the run {run}$"),
        (
            checkpoint,
            f"is a checkpoint of the run {run}, with the model {checkpoint / 'transformers'}",
        ),
        (results, f"holds results of tasks, which chronomask compare {results} shows"),
    ):
        with pytest.raises(UsageError, match=f"{folder} is not prepared data; it {said}"):
            PreparedData.open(folder)


def _marks_are_checked(study: Study) -> None:
    unit = study.units[-1]
    path = study.result(unit)
    before = path.read_text()
    path.write_text(before[:50])
    with pytest.raises(DataError, match="delete it"):
        study.is_complete(unit)
    path.write_text(before.replace('"epochs": 1', '"epochs": 2'))
    with pytest.raises(UsageError, match=r"another recipe \(epochs\)"):
        study.is_complete(unit)
    path.write_text(before)
    assert study.is_complete(unit)


def test_a_study_goes_on_without_locks_and_says_so_once(
    values: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    small = values | {"tasks": {}, "curve_steps": [], "seeds": [0]}

    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", refuse)
    assert run_a_study(small, tmp_path / "out", progress=False).is_file()
    told = [record.getMessage() for record in caplog.records if "locked" in record.message]
    assert sum(text.startswith(f"{tmp_path / 'out'} cannot be locked") for text in told) == 1


def test_workers_can_be_started_from_any_thread(values: dict[str, Any], tmp_path: Path) -> None:
    """Only the main thread may handle signals; a notebook's server may call from another."""
    study = opened(values | {"tasks": {}, "curve_steps": [], "seeds": [0]}, tmp_path)
    outcomes: list[Outcome] = []

    def call() -> None:
        outcomes.append(run_study(study, study.in_order(), workers=2))

    thread = Thread(target=call)
    thread.start()
    thread.join(HANG)
    (outcome,) = outcomes
    assert len(outcome.done) == 2
    assert not outcome.failed


@pytest.mark.parametrize("ends", ["done", "killed"])
def test_what_another_process_is_at_is_waited_for(
    values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ends: str
) -> None:
    """And done here if that one ends without it; it never counts as failed."""
    study = opened(values | {"seeds": [0], "task_seeds": [0], "curve_steps": []}, tmp_path)
    theirs = next(unit for unit in study.units if unit.arm == "decay")
    pretrain(study.run_config(theirs), tmp_path / "theirs", progress=False)
    log = study.log(theirs)
    log.parent.mkdir(parents=True)
    told: list[str] = []
    with log.open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)

        def tell(text: str) -> None:
            told.append(text)
            if "is waited for" in text:
                assert told[-2].startswith("[2/4] evaluate fixed")  # all else is done
                if ends == "done":
                    shutil.copytree(tmp_path / "theirs", study.run(theirs).path)
                fcntl.flock(held, fcntl.LOCK_UN)

        monkeypatch.setattr("chronomask.study.execute._PAUSE", 0.0)
        outcome = run_study(study, study.in_order(), tell=tell)
    assert not outcome.failed
    assert not outcome.left_out
    assert (theirs in outcome.there, theirs in outcome.done) == (ends == "done", ends == "killed")
    assert all(study.is_complete(unit) for unit in study.units)
    assert told[-1].startswith("[4/4] ")
    assert ("done by another process" in " ".join(told)) == (ends == "done")


@pytest.mark.parametrize(
    ("cores", "number", "given", "threads"),
    [(16, 1, {}, (None, None)), (16, 3, {}, ("5", "5")), (2, 12, {}, ("1", "1")), (96, 2, {}, ("48", "32")),
     (16, 2, {"OMP_NUM_THREADS": "3"}, ("3", "8")),
     (16, 2, {"TORCHINDUCTOR_COMPILE_THREADS": "4"}, ("8", "4"))],
)  # fmt: skip
def test_processes_share_the_cores_unless_told_otherwise(
    values: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    cores: int,
    number: int,
    given: dict[str, str],
    threads: tuple[str | None, str | None],
) -> None:
    names = ("OMP_NUM_THREADS", "TORCHINDUCTOR_COMPILE_THREADS")
    for name in names:
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(execute, "available_cores", lambda: cores)
    found: list[tuple[str | None, ...]] = []
    process = SimpleNamespace(start=lambda: found.append(tuple(map(os.environ.get, names))))
    monkeypatch.setattr(
        execute.multiprocessing,
        "get_context",
        lambda kind: SimpleNamespace(Process=lambda **_: process),
    )
    before = dict(os.environ)
    worker = execute._start(opened(values, tmp_path), 0, number, [])
    worker.pipe.close()
    assert found == [threads]
    assert dict(os.environ) == before


def test_what_another_process_has_done_meanwhile_leaves_its_time_alone(
    values: dict[str, Any], tmp_path: Path
) -> None:
    """It was not complete when this call looked what there is to do."""
    study = opened(values | {"tasks": {}, "curve_steps": [], "seeds": [0]}, tmp_path)
    theirs = next(unit for unit in study.units if unit.arm == "decay")

    def tell(text: str) -> None:
        if "fixed" in text:
            assert do_unit(study, theirs) is None

    outcome = run_study(study, study.in_order(), tell=tell)
    assert theirs in outcome.there
    assert theirs not in outcome.done
    noted = (study.folder / "times.jsonl").read_text()
    assert str(theirs) not in noted
    assert do_unit(study, theirs) == "another process has done it"


def test_only_what_ended_with_an_error_is_said_to_have_failed(
    values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not what is at work or was killed, whatever training said in between; also an error of no sort."""
    study = opened(values | {"tasks": {}, "curve_steps": []}, tmp_path)
    unit = next(unit for unit in study.units if unit.kind == "pretrain")
    told: list[str] = []

    def warn_and_fail(*_: Any, **options: Any) -> None:
        print("the losses of a validation are largely chance")
        told.append(status(study.folder))
        raise TypeError("no number\nof anything")

    monkeypatch.setattr("chronomask.train.loop.pretrain", warn_and_fail)
    assert do_unit(study, unit) == "TypeError: no number"
    assert "failed" not in told[0]
    assert f"failed last time: {unit}" in status(study.folder)
    with study.log(unit).open("a") as log:
        log.write(f"2026-11-30 04:06:20 {unit}\nthe validation loss has hardly moved\n")
    assert "failed" not in status(study.folder)


def test_a_log_that_cannot_be_written_fails_its_unit_alone(
    values: dict[str, Any], tmp_path: Path
) -> None:
    study = opened(values | {"tasks": {}, "curve_steps": []}, tmp_path)
    first, *others = (unit for unit in study.units if unit.kind == "pretrain")
    study.log(first).parent.mkdir(parents=True)
    study.log(first).symlink_to("/dev/full")
    outcome = run_study(study, [first, others[0]])
    (unit, why), *more = outcome.failed
    assert not more
    assert unit == first
    assert why.startswith(
        f"{study.log(first)} cannot be written: No space left on device; make room"
    )
    assert outcome.done == [others[0]]
    write_in_log(study, first, "stopped on request")


def test_runs_are_those_of_pretrain(values: dict[str, Any], tmp_path: Path) -> None:
    values |= {"tasks": {}, "curve_steps": [], "seeds": [1]}
    study = opened(values, tmp_path)
    run_study(study, study.in_order())
    alone = tmp_path / "alone"
    pretrain(study.arms["decay"].run_config(1), alone, progress=False)
    assert_same_run(study.run_of("decay", 1).path, alone)


def test_an_arm_trains_with_the_weights_that_another_ended_with(
    values: dict[str, Any], tmp_path: Path
) -> None:
    """Though it is named first: its run waits, whoever does the units, and belongs to the other's."""
    values |= {"tasks": {}, "curve_steps": [], "seeds": [1], "baseline": "ptw"}
    values["arms"] = {
        "frozen": {"masking.content": {"kind": "fixed", "weights": {"arm": "ptw"}}},
        "ptw": {"masking.content": {"kind": "ptw", "strength": 0.5}},
    }
    study = opened(values, tmp_path)
    with pytest.raises(RunError, match="needs unit 2, pretrain ptw, seed 1"):
        run_one(study, 1)
    assert [unit.arm for unit in run_study(study, list(study.units)).done] == ["ptw", "frozen"]
    ptw, frozen = study.run_of("ptw", 1), study.run_of("frozen", 1)
    last = json.loads(ptw.metrics.read_text().splitlines()[-1])
    top = max(last["class_weight"].values())
    weights = {name: (value / top) ** 0.5 for name, value in last["class_weight"].items()}
    assert len(set(weights.values())) > 1
    for line in frozen.metrics.read_text().splitlines():
        assert json.loads(line)["class_weight"] == pytest.approx(weights, abs=1e-4)
    assert RunConfig.load(frozen.config) == study.run_config(study.units[1])
    assert not run_study(opened(values, tmp_path), study.in_order()).done

    summary, metrics = ptw.summary.read_text(), ptw.metrics.read_text()
    ptw.metrics.write_text(metrics.replace('"content_strength": 0.5', '"content_strength": 1.0'))
    with pytest.raises(UsageError, match=r"frozen.* another config: masking\.content\.weights\."):
        opened(values, tmp_path)
    ptw.summary.unlink()
    with pytest.raises(UsageError, match=r"ptw/seed-1 is no finished run: put that one back"):
        opened(values, tmp_path)
    ptw.summary.write_text(summary)
    ptw.metrics.write_text(metrics)
    opened(values, tmp_path)


def test_a_folder_of_another_config_is_refused(values: dict[str, Any], tmp_path: Path) -> None:
    values |= {"tasks": {}, "curve_steps": [], "seeds": [0]}
    study = opened(values, tmp_path)
    run_one(study, 1)
    values["base"]["rows_per_step"] = 2
    with pytest.raises(UsageError, match="rows_per_step is 4 there, 2 now"):
        opened(values, tmp_path)
    values["base"] |= {"rows_per_step": 4, "log_every": 1}
    values["seeds"] = [0, 5]
    assert len(opened(values, tmp_path).units) == 5  # it may grow, and be watched more closely
    with pytest.raises(UsageError, match="holds no study"):
        open_study(study.config, study.run_of("fixed", 0).path)


def test_a_study_of_another_version_does_not_grow(values: dict[str, Any], tmp_path: Path) -> None:
    """Refused before any work, for what it would add could not be compared with what is there."""
    values |= {"curve_steps": [], "seeds": [0], "task_seeds": [0]}
    values["tasks"]["cola"]["curve"] = False
    study = opened(values, tmp_path)
    run_study(study, study.in_order())
    grown = opened({**values, "seeds": [0, 1]}, tmp_path)
    command = ["study", "run", "--out", str(study.folder), "--quiet"]
    for path in (study.run_of("decay", 0).environment, study.result(study.units[-1])):
        before = path.read_text()
        told = json.loads(before)
        told["versions"]["chronomask"] = "0.0.1"
        path.write_text(json.dumps(told))
        with pytest.raises(UsageError, match=r"chronomask 0\.0\.1 there, .* here.*another --out"):
            app(command, standalone_mode=False)
        unit = str(3 if path.name == "environment.json" else len(grown.units) - 1)
        with pytest.raises(UsageError, match="other versions made"):
            app([*command, "--unit", unit], standalone_mode=False)
        assert "not ready to run: other versions made" in plan(None, study.folder)
        assert not grown.run_of("fixed", 1).path.exists()
        path.write_text(before)
    check_versions(grown, grown.units)
    path = study.run_of("decay", 0).environment
    before = path.read_text()
    told = json.loads(before)
    told["versions"]["torch"] = told["versions"]["torch"].partition("+")[0] + "+cu128"
    path.write_text(json.dumps(told))
    check_versions(grown, grown.units)
    path.write_text(before)

    kept = [study.run_of("fixed", 0).summary, study.result(study.units[-1])]
    made = [file.stat().st_mtime_ns for file in kept]
    app(command, standalone_mode=False)  # it grows by a seed, and makes nothing twice
    assert all(grown.is_complete(unit) for unit in grown.units)
    assert [file.stat().st_mtime_ns for file in kept] == made


def test_one_unit_needs_what_it_needs(values: dict[str, Any], tmp_path: Path) -> None:
    study = opened(values, tmp_path)
    with pytest.raises(UsageError, match="units 0 to 20"):
        run_one(study, 21)
    with pytest.raises(RunError, match="needs unit 1, pretrain fixed, seed 0"):
        run_one(study, 5)


def test_shares_cover_everything_once(values: dict[str, Any], tmp_path: Path) -> None:
    study = opened(values, tmp_path)
    shares = [share_of(study, f"{k}/3") for k in (1, 2, 3)]
    units = [unit.number for share in shares for unit in share if unit.kind != "prepare"]
    assert sorted(units) == list(range(1, len(study.units)))
    for bad in ("0/3", "4/3", "3", "a/b", "1/0"):
        with pytest.raises(UsageError, match="1/4"):
            share_of(study, bad)


def test_a_share_is_done_as_an_array_does_it(
    values: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values |= {"tasks": {}, "curve_steps": [], "seeds": [0]}
    study = opened(values, tmp_path)
    for share, complete in (("2/2", 2), ("1/2", 3)):
        app(["study", "run", "--out", str(study.folder), "--only", share], standalone_mode=False)
        assert "2 of 2 units complete" in capsys.readouterr().out
        assert f"{complete} of 3 units" in status(study.folder)


def test_curve_steps_without_checkpoints_are_refused(
    values: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="saves no checkpoint at 3"):
        opened({**values, "curve_steps": [3]}, tmp_path)
    values["base"]["checkpoint"]["keep"] = 1
    with pytest.raises(UsageError, match="set it to 2, or to all"):
        opened(values, tmp_path)


def test_task_mistakes_are_refused_before_work(values: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unknown task 'colla'"):
        opened({**values, "tasks": {"colla": {}}, "curve_steps": []}, tmp_path)
    values["tasks"]["cola"]["settings"]["epoch"] = 1
    with pytest.raises(UsageError, match="epochs"):
        opened(values, tmp_path)


@pytest.mark.slow
def test_processes_stop_and_go_on(values: dict[str, Any], tmp_path: Path) -> None:
    values["tasks"]["cola"]["curve"] = False
    values |= {"curve_steps": []}
    values["base"] |= {"steps": 10**9}  # more than will ever be done: it ends when it is told to
    values["base"]["checkpoint"]["every"] = 0
    study = opened(values, tmp_path)
    command = [sys.executable, "-m", "chronomask", "study", "run", "--out", str(study.folder)]
    process = subprocess.Popen([*command, "--workers", "2"], stderr=subprocess.PIPE, text=True)
    logs = [study.run_of(arm, 0).metrics for arm in study.arms]
    while not all(log.is_file() and log.stat().st_size for log in logs):
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=HANG)
    assert process.returncode == 128 + signal.SIGTERM
    assert "the same command continues it" in errors
    notes = [json.loads(line) for line in (study.folder / NOTED).read_text().splitlines()]
    assert {note["unit"] for note in notes} == {f"pretrain {arm}, seed 0" for arm in study.arms}
    assert not any(note["complete"] for note in notes)
    assert "failed last time" not in status(study.folder)
    saved = [
        json.loads(next(log.parent.glob("checkpoints/step-*/state.json")).read_text())
        for log in logs
    ]
    assert all(0 < state["step"] < 10**9 for state in saved)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_no_worker_outlives_its_parent(values: dict[str, Any], tmp_path: Path, number: int) -> None:
    """They are asked to stop, as by SIGTERM, which saves the state of a run."""
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    words = ["study", "run", str(tmp_path / "study.yaml"), "--out", str(tmp_path / "out")]
    code = end_while_workers_wait(tmp_path, [*words, "--workers", "2"], number)
    assert code == {signal.SIGKILL: -number, signal.SIGTERM: 143, signal.SIGINT: 130}[number]
    assert len(list(tmp_path.glob("ready-*"))) == 2
