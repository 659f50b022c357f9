"""A process takes the cores and the memory that it has, and not those of the machine.

Where a machine has no semaphores, one process does the work of several, and says so once.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable, Iterator
from concurrent import futures
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch

from chronomask import machine
from chronomask.data.folder import PreparedData
from chronomask.evaluate import curve
from chronomask.evaluate.curve import Plan, evaluate_curve
from chronomask.machine import available_cores, can_share_work, memory_of_process
from chronomask.model import device
from chronomask.model.device import use_own_cores
from chronomask.prepare import executors, pipeline
from chronomask.prepare.pipeline import prepare
from tests.support.corpus import made_up_text
from tests.support.reading import files, tiny_config
from tests.support.tiny_run import tiny_run

Groups = Callable[[str, dict[str, str]], None]
ERRORS = [
    OSError(errno.EROFS, "Read-only file system"),
    FileNotFoundError(errno.ENOENT, "No such file or directory"),
    PermissionError(errno.EACCES, "Permission denied"),
    OSError(errno.ENOSYS, "Function not implemented"),
    ImportError("This platform lacks a functioning sem_open implementation"),
]


@pytest.fixture(autouse=True)
def _asked_anew() -> Iterator[None]:
    can_share_work.cache_clear()
    yield
    can_share_work.cache_clear()


def without_semaphores(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """Every semaphore fails as the system lets it fail, and so would a pool of processes."""

    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(type(get_context("spawn")), "Lock", fail)
    for module in (executors, curve, futures):
        monkeypatch.setattr(module, "ProcessPoolExecutor", fail)
    can_share_work.cache_clear()


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_it_is_told_once_with_the_reason(
    error: Exception, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    without_semaphores(monkeypatch, error)
    with caplog.at_level(logging.WARNING):
        assert not can_share_work()
        assert not can_share_work()
    (said,) = caplog.messages
    assert str(error) in said
    assert "let /dev/shm be written" in said


def test_here_they_can(caplog: pytest.LogCaptureFixture) -> None:
    assert can_share_work()
    assert not caplog.messages


def test_a_preparation_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("\n\n".join(made_up_text(80, seed=1)), encoding="utf-8")
    made = tiny_config(corpus).replace(["workers=2", "part_characters=2000"])
    together = files(prepare(made, tmp_path / "together", progress=False).path)
    without_semaphores(monkeypatch, ERRORS[0])
    assert files(prepare(made, tmp_path / "alone", progress=False).path) == together


def test_a_curve_is_the_same(
    tmp_path: Path, tiny_data: PreparedData, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tiny_run(tmp_path, tiny_data)
    plan = Plan(("mlm",), tiny_data.path, 1, limit=4)
    alone = evaluate_curve(run, plan, tmp_path / "alone", progress=False)
    without_semaphores(monkeypatch, ERRORS[0])
    again = evaluate_curve(run, plan, tmp_path / "again", workers=2, progress=False)
    assert list(again) == list(alone)
    for step, results in alone.items():
        assert again[step][0].metrics == results[0].metrics


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Groups:
    """A machine of 64 cores whose control groups have these files; ``own`` is the process's own."""

    def make(own: str, files: dict[str, str]) -> None:
        (tmp_path / "own").write_text(own)
        for name, text in files.items():
            path = tmp_path / "all" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    monkeypatch.setattr(machine, "_OWN_GROUPS", tmp_path / "own")
    monkeypatch.setattr(machine, "_ALL_GROUPS", tmp_path / "all")
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    return make


JOB = "0::/slurm/job_7/step_0\n"


@pytest.mark.parametrize(
    ("own", "files", "cores"),
    [
        (JOB, {}, 64),
        (JOB, {"slurm/job_7/step_0/cpu.max": "max 100000\n"}, 64),
        (JOB, {"slurm/job_7/step_0/cpu.max": "400000 100000\n"}, 4),
        (JOB, {"slurm/job_7/cpu.max": "150000 100000\n"}, 2),  # of the group above
        (JOB, {"cpu.max": "50000 100000\n"}, 1),  # as a container sees its own group
        (JOB, {"cpu.max": "9000000 100000\n"}, 64),
        (JOB, {"cpu.max": "nonsense"}, 64),
        (JOB, {"cpu.max": "1000 0\n"}, 64),
        ("0::a", {"a/cpu.max": "200000 100000\n"}, 2),
        ("0::/a:b\u2028c\n", {"a:b\u2028c/cpu.max": "200000 100000\n"}, 2),
        ("nonsense", {"cpu.max": "200000 100000\n"}, 2),
        (
            "4:cpu,cpuacct:/a\n",
            {
                "cpu,cpuacct/a/cpu.cfs_quota_us": "300000\n",
                "cpu,cpuacct/a/cpu.cfs_period_us": "100000\n",
            },
            3,
        ),
        (
            "4:cpu,cpuacct:/docker/a\n3:memory:/docker/b\n",
            {"cpu/docker/a/cpu.cfs_quota_us": "300000\n",
             "cpu/docker/a/cpu.cfs_period_us": "100000\n"},
            3,
        ),
        (
            "4:cpu,cpuacct:/docker/a\n",
            {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"},
            64,
        ),
    ],
)  # fmt: skip
def test_cores_are_those_of_the_job_or_container(
    groups: Groups, own: str, files: dict[str, str], cores: int
) -> None:
    groups(own, files)
    assert available_cores() == cores


def test_cores_are_those_that_the_process_may_run_on(
    groups: Groups, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups(JOB, {})
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5}, raising=False)
    assert available_cores() == 2


def test_without_control_groups_and_affinity_all_cores_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on macOS."""
    monkeypatch.setattr(machine, "_OWN_GROUPS", tmp_path / "none")
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 10)
    assert available_cores() == 10
    assert 1e9 < memory_of_process() < 1e14


@pytest.mark.parametrize(
    ("own", "files"),
    [
        (JOB, {"slurm/job_7/step_0/memory.max": "max\n", "slurm/memory.max": "2000\n"}),
        (JOB, {"memory.max": "2000\n", "slurm/memory.max": "3000\n"}),
        ("4:memory:/docker/a\n", {"memory/docker/a/memory.limit_in_bytes": "2000\n"}),
    ],
)
def test_memory_is_that_of_the_job_or_container(
    groups: Groups,
    monkeypatch: pytest.MonkeyPatch,
    own: str,
    files: dict[str, str],
) -> None:
    groups(own, files)
    assert memory_of_process() == 2000
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert memory_of_process() == 500


@pytest.mark.parametrize(
    ("chosen", "threads"), [(None, 2), ("6", 6)], ids=["torch's choice", "the user's choice"]
)
def test_torch_takes_no_more_threads_than_the_container_has_cores(
    monkeypatch: pytest.MonkeyPatch, chosen: str | None, threads: int
) -> None:
    monkeypatch.setattr(device, "available_cores", lambda: 2)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if chosen is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", chosen)
    before = torch.get_num_threads()
    torch.set_num_threads(6)
    try:
        use_own_cores()
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


def test_preparation_takes_as_many_processes_as_it_has_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not as many as the machine has."""
    monkeypatch.setattr(pipeline, "available_cores", lambda: 3)
    asked: list[int] = []

    def run_stage(stage: Any, numbers: Any, workers: int, *rest: Any) -> None:
        asked.append(workers)
        executors.run_stage(stage, numbers, 1, *rest)

    monkeypatch.setattr(pipeline, "run_stage", run_stage)
    (tmp_path / "text.txt").write_text("\n\n".join(made_up_text(80)), encoding="utf-8")
    prepare(
        tiny_config(tmp_path / "text.txt").replace(["workers=0"]), tmp_path / "data", progress=False
    )
    assert asked
    assert set(asked) == {3}
