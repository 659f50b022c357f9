import errno
from pathlib import Path

import pytest

from chronomask.errors import RunError, UsageError
from chronomask.storage import write_text


def test_makes_the_folder_and_keeps_line_ends(tmp_path: Path) -> None:
    write_text(tmp_path / "a" / "b.txt", "ä\r\n\n")
    assert (tmp_path / "a" / "b.txt").read_bytes() == "ä\r\n\n".encode()


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(UsageError, match="taken cannot be used as a folder"):
        write_text(tmp_path / "taken" / "x.json", "{}")


def test_a_full_disk_leaves_the_old_file_and_no_draft(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "summary.json"
    write_text(path, "old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(RunError, match=r"summary\.json cannot be written: No space left"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
