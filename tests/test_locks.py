"""One lock and one rule: who meets another waits or is refused; without locks a warning says so once."""

from __future__ import annotations

import errno
import logging
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from chronomask.errors import RunError, UsageError
from chronomask.locks import in_turn, lock
from chronomask.prepare.output import alone
from chronomask.runs.layout import RunFolder
from chronomask.storage import lock_of, make_folder


@pytest.fixture
def no_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", refuse)


@pytest.mark.usefixtures("no_locks")
def test_without_locks_work_goes_on_and_a_warning_says_so_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(2):
        with lock(tmp_path / "file") as mine, alone(tmp_path), in_turn(lock_of(tmp_path)):
            assert mine
        with RunFolder(tmp_path).hold():
            pass
    (told,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert told == (
        f"{tmp_path} cannot be locked (Operation not supported): start no second command that writes "
        "there while one is at work"
    )


@pytest.mark.usefixtures("no_locks")
def test_a_lock_that_is_needed_is_refused_without_locks(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="use a folder on a"), lock(tmp_path / "file", needed=True):
        pass


def test_a_lock_excludes_others_and_is_free_again(tmp_path: Path) -> None:
    file = tmp_path / "file"
    with lock(file) as first, lock(file) as second:
        assert (first, second) == (True, False)
    with lock(file, together=True) as first, lock(file, together=True) as second:
        assert (first, second) == (True, True)
        with lock(file) as alone_now:
            assert not alone_now


def test_what_some_file_systems_say_of_a_lock_of_others_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("fcntl.flock", refuse)
    with lock(tmp_path / "file") as mine:
        assert not mine


def test_who_writes_in_turn_waits_for_the_other(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file, order = lock_of(tmp_path), list[str]()

    def write() -> None:
        with in_turn(file):
            order.append("second")

    thread = threading.Thread(target=write)
    with lock(file):
        thread.start()
        while "waiting until it has ended" not in caplog.text:
            time.sleep(0.01)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]


def test_a_process_that_was_forked_meanwhile_keeps_no_lock(tmp_path: Path) -> None:
    """It has the file open as well, and may live long."""
    copies: list[int] = []
    with lock(tmp_path / "file"):
        for number in map(int, os.listdir("/proc/self/fd")):  # noqa: PTH208
            try:
                if os.readlink(f"/proc/self/fd/{number}") == str(tmp_path / "file"):  # noqa: PTH115
                    copies.append(os.dup(number))  # shares the lock, as a forked process's does
            except OSError:
                continue
    assert copies
    with lock(tmp_path / "file") as mine:
        assert mine
    for number in copies:
        os.close(number)


def test_a_lock_file_that_its_owner_removed_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who opened it before, and locks it after, has nothing: the next to come would make another."""
    file = tmp_path / "file"
    opened = Path.open
    removed: list[Path] = []

    def open_then_remove(self: Path, *arguments: Any, **keywords: Any) -> Any:
        handle = opened(self, *arguments, **keywords)
        if not removed:
            removed.append(self)
            self.unlink()
        return handle

    monkeypatch.setattr(Path, "open", open_then_remove)
    with lock(file) as mine:
        assert mine
        assert file.is_file()
        with lock(file) as other:
            assert not other


def test_what_is_no_folder_is_told_alike(tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.write_text("a file")
    for use in (make_folder, lock_of):
        with pytest.raises(UsageError, match="taken cannot be used as a folder"):
            use(taken)
    with (
        pytest.raises(UsageError, match="taken cannot be used as a folder"),
        RunFolder(taken).hold(),
    ):
        pass
