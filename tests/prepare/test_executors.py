"""Any executor gives the same bytes, and what a killed or failing worker costs is run again."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from chronomask.data.manifest import MANIFEST
from chronomask.errors import RunError, UsageError
from chronomask.prepare import executors
from chronomask.prepare.config import PrepareConfig
from chronomask.prepare.executors import Stage, run_task
from chronomask.prepare.pipeline import prepare
from chronomask.prepare.rows import annotate
from tests.support.corpus import made_up_text
from tests.support.processes import HANG, end_while_workers_wait, python_path
from tests.support.reading import files, tiny_config


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    file = tmp_path / "corpus.txt"
    file.write_text("\n\n".join(made_up_text(80, seed=1)), encoding="utf-8")
    return file


@pytest.fixture
def whole(corpus: Path, tmp_path: Path) -> dict[str, bytes]:
    """What one process makes of the corpus."""
    return run(tiny_config(corpus), tmp_path / "whole")


def run(made: PrepareConfig, out: Path) -> dict[str, bytes]:
    return files(prepare(made, out, progress=False).path)


def kill_once(stage: Stage, number: int) -> bool:
    """Runs in a worker: the first one to come here is killed while it has a part in hand."""
    mark = stage.work.parent.parent / "killed"
    try:
        mark.touch(exist_ok=False)
    except FileExistsError:
        return run_task(stage, number)
    os.kill(os.getpid(), signal.SIGKILL)
    return False


def kill_always(stage: Stage, number: int) -> bool:
    os.kill(os.getpid(), signal.SIGKILL)
    return False


def fail_for_two(stage: Stage, number: int) -> bool:
    if number == 2:
        raise ValueError("no such word")
    return run_task(stage, number)


def test_a_killed_worker_costs_its_part_alone(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: dict[str, bytes]
) -> None:
    monkeypatch.setattr(executors, "run_task", kill_once)
    assert run(tiny_config(corpus, workers=2), tmp_path / "out") == whole
    assert (tmp_path / "killed").exists()


def test_workers_that_keep_dying_are_reported(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executors, "run_task", kill_always)
    monkeypatch.setattr(executors, "_ATTEMPTS", 1)
    with pytest.raises(
        RunError,
        match=r"killed 1 times in stage annotate, parts 0, 1.*fewer workers \(--set workers=",
    ):
        run(tiny_config(corpus, workers=2), tmp_path / "out")
    assert not (tmp_path / "out" / MANIFEST).exists()


def test_a_part_that_fails_is_named_and_run_alone_the_next_time(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: dict[str, bytes]
) -> None:
    out = tmp_path / "out"
    monkeypatch.setattr(executors, "run_task", fail_for_two)
    with pytest.raises(
        RunError,
        match=r"stage annotate failed for parts 2; part 2: ValueError: no such word",
    ):
        run(tiny_config(corpus, workers=2), out)
    monkeypatch.undo()
    done: list[Path] = []
    read = annotate.read_text
    monkeypatch.setattr(annotate, "read_text", lambda *of: done.append(of[1]) or read(*of))
    assert run(tiny_config(corpus), out) == whole
    assert done == [2]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_no_worker_outlives_its_parent(
    corpus: Path, tmp_path: Path, whole: dict[str, bytes], number: int
) -> None:
    """Killed while both workers are in the middle of writing a file; they would wait for an hour."""
    made, out = tiny_config(corpus, workers=2), tmp_path / "out"
    (tmp_path / "a.yaml").write_text(made.to_yaml())
    words = ["prepare", "--config", str(tmp_path / "a.yaml"), "--out", str(out), "--quiet"]
    assert end_while_workers_wait(tmp_path, words, number) == -number
    assert not (out / MANIFEST).exists()
    assert not list((out / ".work").glob("annotate-*.json"))
    assert run(made, out) == whole


def test_an_executor_that_is_not_there(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"executor.kind=ray needs .*--set executor.kind=local"):
        run(tiny_config(corpus, executor={"kind": "ray"}), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_executor_that_is_gone(corpus: Path) -> None:
    with pytest.raises(UsageError, match=r"'slurm' is gone: .*--only 1/8.* take the executor out"):
        tiny_config(corpus, executor={"kind": "slurm", "partition": "cpu"})
    with pytest.raises(UsageError, match=r"executor.kind is 'slurm'|'slurm' is gone"):
        tiny_config(corpus).replace(["executor.kind=slurm"])


@pytest.mark.slow
def test_ray_gives_the_same_bytes(corpus: Path, tmp_path: Path, whole: dict[str, bytes]) -> None:
    made = tiny_config(corpus)
    (tmp_path / "a.yaml").write_text(made.to_yaml())
    # In a process of its own: Ray leaves threads and open files behind.
    subprocess.run(
        [
            sys.executable, "-m", "chronomask", "prepare", "--config", str(tmp_path / "a.yaml"),
            "--out", str(tmp_path / "out"), "--executor", "ray", "--workers", "2", "--quiet",
        ],
        env=os.environ | {"PYTHONPATH": python_path()},
        check=True, capture_output=True, timeout=HANG,
    )  # fmt: skip
    assert files(tmp_path / "out") == whole


def test_a_script_that_prepares_as_it_is_read_is_told_so(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("Some words of a text.\n\n" * 400, encoding="utf-8")
    script = tmp_path / "script.py"
    script.write_text(
        "import chronomask as cm\n"
        "cm.prepare('text.txt', 'out', tokenizer={'kind': 'wordpiece', 'vocab_size': 200},\n"
        "           tagger={'kind': 'none'}, workers=2, part_characters=1000)\n",
        encoding="utf-8",
    )
    done = subprocess.run(
        [sys.executable, script], cwd=tmp_path, capture_output=True, text=True, timeout=HANG
    )
    assert done.returncode != 0
    assert 'put the call of prepare below a line  if __name__ == "__main__":' in done.stderr
    assert "workers" in done.stderr.splitlines()[-1]
