"""Any executor gives the same bytes, and what a killed or failing worker costs is run again."""

from __future__ import annotations

import importlib.util
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from chronomask.data.manifest import MANIFEST
from chronomask.errors import RunError, UsageError
from chronomask.prepare import executors
from chronomask.prepare.config import PrepareConfig, SlurmExecutor
from chronomask.prepare.executors import Stage, slurm_script
from chronomask.prepare.pipeline import prepare
from chronomask.prepare.rows import engine
from chronomask.prepare.tasks import run_task
from tests.support.corpus import made_up_text
from tests.support.processes import HANG, python_path


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    file = tmp_path / "corpus.txt"
    file.write_text("\n\n".join(made_up_text(80, seed=1)), encoding="utf-8")
    return file


def config(source: Path, **values: Any) -> PrepareConfig:
    base = {
        "sources": [str(source)],
        "tagger": {"kind": "none"},
        "tokenizer": {"kind": "wordpiece", "vocab_size": 300},
        "row_length": 32,
        "held_out": 0.1,
        "part_characters": 5000,
        "workers": 1,
    }
    return PrepareConfig.parse(base | values)


@pytest.fixture
def whole(corpus: Path, tmp_path: Path) -> dict[str, bytes]:
    """What one process makes of the corpus."""
    return run(config(corpus), tmp_path / "whole")


def run(made: PrepareConfig, out: Path) -> dict[str, bytes]:
    return files(prepare(made, out, progress=False).path)


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def kill_once(work: Path, stage: str, number: int) -> None:
    """Runs in a worker: the first one to come here is killed while it has a part in hand."""
    mark = work.parent.parent / "killed"
    try:
        mark.touch(exist_ok=False)
    except FileExistsError:
        run_task(work, stage, number)
    else:
        os.kill(os.getpid(), signal.SIGKILL)


def kill_always(work: Path, stage: str, number: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def fail_for_two(work: Path, stage: str, number: int) -> None:
    if number == 2:
        raise ValueError("no such word")
    run_task(work, stage, number)


def test_a_killed_worker_costs_its_part_alone(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: dict[str, bytes]
) -> None:
    monkeypatch.setattr(executors, "run_task", kill_once)
    assert run(config(corpus, workers=2), tmp_path / "out") == whole
    assert (tmp_path / "killed").exists()


def test_workers_that_keep_dying_are_reported(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executors, "run_task", kill_always)
    monkeypatch.setattr(executors, "_ATTEMPTS", 1)
    with pytest.raises(
        RunError, match=r"killed 1 times in stage annotate, parts 0, 1.*fewer --workers"
    ):
        run(config(corpus, workers=2), tmp_path / "out")
    assert not (tmp_path / "out" / MANIFEST).exists()


def test_a_part_that_fails_is_named_and_run_alone_the_next_time(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: dict[str, bytes]
) -> None:
    out = tmp_path / "out"
    monkeypatch.setattr(executors, "run_task", fail_for_two)
    with pytest.raises(
        RunError,
        match=r"stage annotate failed for parts 2 of \d+; part 2: ValueError: no such word",
    ):
        run(config(corpus, workers=2), out)
    monkeypatch.undo()
    done: list[Path] = []
    read = engine.read_text
    monkeypatch.setattr(engine, "read_text", lambda *of: done.append(of[1]) or read(*of))
    assert run(config(corpus), out) == whole
    assert done == [2]


FAKE_SBATCH = """#!{python}
import os, subprocess, sys
script = sys.argv[-1]
assert "--wait" in sys.argv and "--parsable" in sys.argv
options = [line.split()[1] for line in open(script) if line.startswith("#SBATCH")]
(last,) = [int(o.split("-")[-1]) for o in options if o.startswith("--array=0-")]
with open({told!r}, "a") as told:
    print(*options, file=told)
print("4711;cluster", flush=True)
for number in range(last + 1):
    result = subprocess.run(["bash", script], env=os.environ | {{"SLURM_ARRAY_TASK_ID": str(number)}})
    if number == 0 and {crash}:
        break
sys.exit(result.returncode)
"""


@pytest.fixture
def sbatch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Installs a command that does what ``sbatch --wait`` does, here; returns what it was asked."""
    bin_ = tmp_path / "bin"
    bin_.mkdir()
    told = tmp_path / "told"

    def install(crash: bool = False) -> Path:
        command = bin_ / "sbatch"
        command.write_text(FAKE_SBATCH.format(python=sys.executable, told=str(told), crash=crash))
        command.chmod(command.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", f"{bin_}{os.pathsep}{os.environ['PATH']}")
        monkeypatch.setenv("PYTHONPATH", python_path())
        return told

    return install


SLURM = {"kind": "slurm", "partition": "cpu", "options": ["--account=me"]}


@pytest.mark.slow
@pytest.mark.parametrize("crash", [False, True])
def test_slurm_jobs_give_the_same_bytes(
    corpus: Path, tmp_path: Path, sbatch: Any, whole: dict[str, bytes], crash: bool
) -> None:
    told = sbatch(crash)
    made = config(corpus, executor=SLURM, workers=2)
    assert run(made, tmp_path / "out") == whole
    asked = told.read_text().splitlines()
    assert (len(asked) > 1) is crash  # what a lost job left is submitted again
    assert "--array=0-1" in asked[0]
    assert "--account=me" in asked[0]
    # Where it ran does not matter when a finished folder is asked for again.
    assert run(config(corpus), tmp_path / "out") == whole


@pytest.mark.slow
def test_a_failure_in_a_slurm_job_is_told(corpus: Path, tmp_path: Path, sbatch: Any) -> None:
    sbatch()
    out = tmp_path / "out"
    made = config(corpus, executor=SLURM, workers=1)
    spoilt = [
        f"cp {tmp_path}/nothing.zst {out}/.work/text-000001.zst",
    ]
    (tmp_path / "nothing.zst").write_bytes(b"not zstandard")
    made = config(corpus, executor=SLURM | {"setup": spoilt}, workers=1)
    with pytest.raises(RunError, match=r"failed for parts 1 of \d+; part 1: ZstdError"):
        run(made, out)


def test_the_script_of_slurm_jobs(tmp_path: Path) -> None:
    executor = SlurmExecutor(
        partition="cpu", time="00:30:00", options=("--qos=low",), setup=("module load gcc",)
    )
    script = slurm_script(Stage(tmp_path / "a b", "annotate"), 7, executor)
    lines = script.splitlines()
    assert lines[0] == "#!/bin/bash"
    for option in (
        "--array=0-6", "--partition=cpu", "--time=00:30:00", "--mem=2G", "--qos=low", "--ntasks=1"
    ):  # fmt: skip
        assert f"#SBATCH {option}" in lines
    assert lines.index("module load gcc") > max(
        number for number, line in enumerate(lines) if line.startswith("#SBATCH")
    )
    assert lines[-1].startswith(
        f"exec {sys.executable} -m chronomask.prepare.tasks '{tmp_path}/a b'"
    )
    assert lines[-1].endswith('annotate "$SLURM_ARRAY_TASK_ID" 7')
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)


@pytest.mark.parametrize("kind", ["slurm", "ray"])
def test_an_executor_that_is_not_there(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=f"executor.kind={kind} needs .*--executor local"):
        run(config(corpus, executor={"kind": kind}), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_ray_gives_the_same_bytes(corpus: Path, tmp_path: Path, whole: dict[str, bytes]) -> None:
    made = config(corpus)
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
