"""Where a machine has no semaphores, one process does the work of several, and says so once."""

from __future__ import annotations

import errno
import logging
from collections.abc import Iterator
from concurrent import futures
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest

from chronomask.data.folder import PreparedData
from chronomask.evaluate import curve
from chronomask.evaluate.curve import Plan, evaluate_curve
from chronomask.prepare import executors
from chronomask.prepare.pipeline import prepare
from chronomask.processes import can_share_work
from tests.support.corpus import made_up_text
from tests.support.reading import files, tiny_config
from tests.support.tiny_run import tiny_run

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
