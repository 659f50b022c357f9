import errno
import json
import re
import threading
from pathlib import Path
from typing import Any

import pytest
from safetensors import SafetensorError

from chronomask import storage
from chronomask.errors import DataError, RunError, UsageError
from chronomask.storage import (
    refuse_file,
    replacing_folder,
    said_by_system,
    stays_below,
    write_json,
    write_text,
)
from chronomask.text_files import read_text


def test_makes_the_folder_and_keeps_line_ends(tmp_path: Path) -> None:
    write_text(tmp_path / "a" / "b.txt", "ä\r\n\n")
    assert (tmp_path / "a" / "b.txt").read_bytes() == "ä\r\n\n".encode()


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(UsageError, match="taken cannot be used as a folder"):
        write_text(tmp_path / "taken" / "x.json", "{}")


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("run.json", "such as {there}/run$"),
        ("notes.txt", "such as {there}/notes$"),
        ("taken.html", "such as {there}/taken-folder$"),
        ("taken", "such as {there}/taken-folder$"),
    ],
)
def test_a_folder_is_not_named_as_a_file(tmp_path: Path, name: str, advice: str) -> None:
    (tmp_path / "taken").write_text("in the way")
    (tmp_path / "notes.txt").write_text("in the way")
    with pytest.raises(UsageError, match=advice.format(there=tmp_path)) as refused:
        refuse_file(tmp_path / name, "a run")
    refuse_file(Path(str(refused.value).rpartition(" ")[2]), "a run")  # the way out works


def test_a_device_is_no_folder() -> None:
    with pytest.raises(UsageError, match="/dev/null: a run goes into a folder"):
        refuse_file(Path("/dev/null"), "a run")


def test_a_folder_of_any_name_is_taken(tmp_path: Path) -> None:
    (tmp_path / "old.json").mkdir()  # one that is there already
    for name in ("old.json", "bert.v1", "a.b", "new"):
        refuse_file(tmp_path / name, "a run")


def test_several_may_write_the_same_file_at_once(tmp_path: Path) -> None:
    """Each of them writes beside the others; the file is that of one of them, and no draft is left."""
    file = tmp_path / "a.json"
    failed: list[BaseException] = []

    def write(number: int) -> None:
        try:
            for _ in range(40):
                write_json(file, [number] * 2000)
                assert len(set(json.loads(file.read_text()))) == 1
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert list(tmp_path.iterdir()) == [file]


def test_several_may_write_the_same_folder_at_once(tmp_path: Path) -> None:
    """Each in a draft of its own; that of a writer that was killed is emptied and taken over."""
    folder, left = tmp_path / "made", tmp_path / ".made.writing"
    write_text(left / "within" / "left.txt", "half")
    with replacing_folder(folder) as first:
        assert (first, list(first.iterdir())) == (left, [])
        (first / "a.txt").write_text("first")
        with replacing_folder(folder) as second:
            assert not list(second.iterdir())
            (second / "a.txt").write_text("second")
        assert (folder / "a.txt").read_text() == "second"
    assert (folder / "a.txt").read_text() == "first"
    assert list(tmp_path.iterdir()) == [folder]


def test_a_draft_that_takes_its_place_while_it_is_made_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pathlib makes a folder, finds one there, and finds it gone when it looks what it is."""
    make, made = Path.mkdir, []

    def late(path: Path, *arguments: Any, **options: Any) -> None:
        if path.name == ".a.writing" and not made:
            made.append(path)
            raise FileExistsError(errno.EEXIST, "File exists", str(path))
        make(path, *arguments, **options)

    monkeypatch.setattr(Path, "mkdir", late)
    with replacing_folder(tmp_path / "a") as writing:
        (writing / "number").write_text("1")
    assert made
    assert (tmp_path / "a" / "number").read_text() == "1"


def test_several_may_replace_the_same_folder_at_once(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    failed: list[BaseException] = []

    def write(number: int) -> None:
        try:
            for _ in range(30):
                with replacing_folder(folder) as writing:
                    (writing / "number").write_text(str(number))
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert [path.name for path in folder.iterdir()] == ["number"]


def test_what_came_to_the_place_of_a_new_folder_meanwhile_stays(tmp_path: Path) -> None:
    folder = tmp_path / "a"

    def write() -> None:
        with replacing_folder(folder, new=True) as writing:
            (writing / "mine").touch()
            write_text(folder / "precious.txt", "theirs")

    with pytest.raises(RunError, match="a cannot be written: Directory not empty; choose another"):
        write()
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (folder / "precious.txt").read_text() == "theirs"


def test_the_draft_of_a_killed_writer_is_taken_over(tmp_path: Path) -> None:
    file, draft = tmp_path / "a.txt", tmp_path / ".a.txt.writing"
    draft.write_text("half of something longer")
    write_text(file, "whole")
    assert file.read_text() == "whole"
    assert list(tmp_path.iterdir()) == [file]


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


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
        (Exception("No space left on device (os error 28)"), "No space left on device"),
        (SafetensorError("I/O error: File too large (os error 27)"), "File too large"),
        (ValueError("a value that is not one"), None),
        (DataError("x is damaged (end of file (os error 5))"), None),
    ],
)
def test_errors_of_the_system_are_told_from_others_and_leave_the_old_folder(
    tmp_path: Path, error: Exception, expected: str | None
) -> None:
    write_text(tmp_path / "made" / "a.txt", "old")
    assert said_by_system(error) == expected

    def fail() -> None:
        with replacing_folder(tmp_path / "made") as folder:
            (folder / "a.txt").write_text("half")
            raise error

    with pytest.raises(
        RunError if expected else type(error), match=re.escape(expected or str(error))
    ):
        fail()
    assert [path.name for path in tmp_path.iterdir()] == ["made"]
    assert read_text(tmp_path / "made" / "a.txt") == "old"


def test_a_place_where_nothing_can_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    with pytest.raises(
        UsageError, match=r"file is a file, and nothing can be made in one; "
    ) as refused:
        refuse_file(tmp_path / "file" / "within" / "run", "a run")
    free = Path(str(refused.value).rpartition(" ")[2])
    assert free == tmp_path / "run"
    refuse_file(free, "a run")
    with pytest.raises(UsageError, match="links lead back to one another"):
        refuse_file(tmp_path / "a", "a run")
    assert storage.read_object(tmp_path / "file" / "summary.json") is None  # there can be none


def test_a_folder_takes_the_place_of_a_link_and_leaves_what_it_led_to(tmp_path: Path) -> None:
    elsewhere, folder = tmp_path / "elsewhere", tmp_path / "folder"
    elsewhere.mkdir()
    (elsewhere / "mine.txt").write_text("stays")
    folder.symlink_to(elsewhere)
    left = tmp_path / ".folder.writing"
    left.mkdir()
    (left / "link").symlink_to(elsewhere)  # of a writer that was killed
    with replacing_folder(folder) as writing:
        (writing / "new.txt").write_text("new")
    assert [path.name for path in folder.iterdir()] == ["new.txt"]
    assert not folder.is_symlink()
    assert (elsewhere / "mine.txt").read_text() == "stays"


def test_names_below_a_folder() -> None:
    assert all(map(stays_below, ("a", "a/b", "é n/ü.npy", "..a", "a..")))
    strange = (
        "",
        "/",
        "/a",
        "a/",
        "a//b",
        ".",
        "..",
        "../a",
        "a/../b",
        "a/./b",
        "a\\b",
        "a\nb",
        "a\0",
        5,
        None,
    )
    assert not any(map(stays_below, strange))
