"""Files of other users: what is written can be read by whom its folder says, and what may not be read is
named with a way out that does not destroy it.
"""

from __future__ import annotations

import builtins
import errno
import io
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from chronomask import cli
from chronomask.data.folder import PreparedData
from chronomask.errors import ChronomaskError
from chronomask.model.open import open_model
from chronomask.prepare.words.bands import BandWords
from chronomask.runs.layout import RunFolder, damage
from chronomask.storage import READABLE, read_object, replacing_folder, share
from tests.support.tiny_run import tiny_run


@pytest.fixture(scope="module")
def made(tiny_data: PreparedData, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run of a user whose files the group may read, and its folder of data."""
    folder = tmp_path_factory.mktemp("made")
    before = os.umask(0o027)
    try:
        return tiny_run(folder, tiny_data), tiny_data.path
    finally:
        os.umask(before)


@pytest.fixture
def forbid(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """Let the system refuse to open a file, as it does for one of another user; root may read all."""

    def of(path: Path) -> None:
        really, may = io.open, os.access

        def refusing(file: Any, *arguments: Any, **options: Any) -> Any:
            if file == path or file == str(path):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
            return really(file, *arguments, **options)

        monkeypatch.setattr(io, "open", refusing)
        monkeypatch.setattr(builtins, "open", refusing)
        monkeypatch.setattr(os, "access", lambda file, mode: Path(file) != path and may(file, mode))

    return of


def test_files_of_a_run_are_for_those_who_may_read_its_folder(made: tuple[Path, Path]) -> None:
    """safetensors makes files for their owner alone."""
    run, _ = made
    modes = {
        path.relative_to(run).as_posix(): path.stat().st_mode & 0o777
        for path in run.rglob("*")
        if path.is_file()
    }
    assert any(name.endswith("transformers/model.safetensors") for name in modes)
    assert any(name.endswith("optimiser.safetensors") for name in modes)
    assert {name: oct(mode) for name, mode in modes.items() if mode != 0o640} == {}


@pytest.mark.parametrize(
    ("umask", "expected"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600), (0o027, 0o640)]
)
def test_a_file_gets_no_right_that_its_folder_lacks(
    tmp_path: Path, umask: int, expected: int
) -> None:
    before = os.umask(umask)
    try:
        with replacing_folder(tmp_path / "model") as folder:
            (folder / "below").mkdir()
            save_file({"a": torch.zeros(2)}, folder / "below" / "a.safetensors")
            (folder / "run.sh").write_text("")
            (folder / "run.sh").chmod(0o755)
    finally:
        os.umask(before)
    made = tmp_path / "model" / "below" / "a.safetensors"
    assert oct(made.stat().st_mode & 0o777) == oct(expected)
    assert (tmp_path / "model" / "run.sh").stat().st_mode & 0o111 == 0o111


def test_a_system_without_rights_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Path, mode: int) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), str(self))

    (tmp_path / "a").write_text("x")
    monkeypatch.setattr(Path, "chmod", refuse)
    share(tmp_path / "a")
    assert (tmp_path / "a").read_text() == "x"


DOORS: dict[str, tuple[str, Callable[[Path, Path], object]]] = {
    "manifest": ("data/manifest.json", lambda data, _: PreparedData.open(data)),
    "rows": ("data/train/ids-00000.npy", lambda data, _: PreparedData.open(data).split("train").read([0], 0)),
    "bands": ("data/frequency_bands.json", lambda data, _: BandWords.open(data)),
    "weights": (
        "run/checkpoints/step-00000006/transformers/model.safetensors",
        lambda _, run: open_model(RunFolder(run).checkpoints / "step-00000006" / "transformers"),
    ),
    "config": ("run/config.yaml", lambda _, run: RunFolder(run).check_config()),
    "summary": ("run/summary.json", lambda _, run: RunFolder(run).read_summary()),
}  # fmt: skip
"""What is read, and how."""


@pytest.mark.parametrize("door", DOORS)
def test_nobody_is_told_to_replace_what_they_may_not_read(
    door: str, made: tuple[Path, Path], tmp_path: Path, forbid: Callable[[Path], None]
) -> None:
    run, data = made
    shutil.copytree(run, tmp_path / "run")
    shutil.copytree(data, tmp_path / "data")
    name, read = DOORS[door]
    forbid(tmp_path / name)
    with pytest.raises(ChronomaskError) as refused:
        read(tmp_path / "data", tmp_path / "run")
    said = str(refused.value)
    assert str(tmp_path / name) in said
    assert "Permission denied" in said
    assert said.endswith(READABLE)
    for loses in ("--force", "remove", "copy it again", "writes it again", "damaged"):
        assert loses not in said


def test_a_checkpoint_that_may_not_be_read_is_not_called_damaged(
    made: tuple[Path, Path], tmp_path: Path, forbid: Callable[[Path], None]
) -> None:
    """A run that goes on would else take an older one."""
    checkpoint = tmp_path / "run" / "checkpoints" / "step-00000006"
    shutil.copytree(made[0], tmp_path / "run")
    assert damage(checkpoint) is None
    forbid(checkpoint / "hashes.json")
    with pytest.raises(PermissionError):
        damage(checkpoint)


def test_what_json_cannot_be_read_says_why_once(
    tmp_path: Path, forbid: Callable[[Path], None]
) -> None:
    (tmp_path / "a.json").write_text("{}")
    forbid(tmp_path / "a.json")
    with pytest.raises(ChronomaskError) as refused:
        read_object(tmp_path / "a.json")
    assert str(refused.value) == f"{tmp_path / 'a.json'} cannot be read: Permission denied"


def _run_command(monkeypatch: pytest.MonkeyPatch, error: OSError) -> int | str | None:
    def fail(**_: object) -> None:
        raise error

    monkeypatch.setattr(cli, "app", fail)
    monkeypatch.setattr(sys, "argv", ["chronomask", "prepare"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return ended.value.code


@pytest.mark.parametrize(
    ("number", "way_out"),
    [
        (errno.EACCES, "name another place, or let its owner give this user the right"),
        (errno.EPERM, "name another place, or let its owner give this user the right"),
        (errno.ENOSPC, "name another place, or make room"),
        (errno.EROFS, "name another place\n"),
        (errno.ENAMETOOLONG, "name another place\n"),
    ],
)
def test_what_the_system_refuses_of_a_place_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: int, way_out: str
) -> None:
    assert _run_command(monkeypatch, OSError(number, os.strerror(number), "closed/x")) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"chronomask: closed/x: {os.strerror(number)}; {way_out}")
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(errno.ENOENT, "No such file or directory", "x"),
        PermissionError(errno.EPERM, "Operation not permitted"),
    ],
)
def test_other_errors_of_the_system_keep_their_traceback(
    monkeypatch: pytest.MonkeyPatch, error: OSError
) -> None:
    with pytest.raises(type(error)):
        _run_command(monkeypatch, error)
