"""Folders that chronomask writes are known by their files, and refused as what they are."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from chronomask.data.folder import PreparedData
from chronomask.errors import UsageError
from chronomask.evaluate.subject import find_subject
from chronomask.folders import what_it_is
from chronomask.prepare.tokenizer import TokenizerFolder
from chronomask.runs.layout import RunFolder
from chronomask.runs.read import read_run
from tests.support.tiny_models import save_tiny


def test_prepared_data_are_no_run_and_no_model(tiny_data: PreparedData) -> None:
    path = tiny_data.path
    takes = "which chronomask pretrain --data takes"
    instead = f"; it is prepared data, {takes}, with the tokenizer {path / 'tokenizer'}"
    assert what_it_is(path) == instead
    with pytest.raises(UsageError, match=f"holds no run{instead}; give another output folder"):
        RunFolder(path).check_free(resume=False)
    with pytest.raises(UsageError, match=f"is not a run folder: .*{instead}"):
        read_run(path)
    with pytest.raises(UsageError, match=f"nor a model folder .*{instead}"):
        find_subject(str(path))
    with pytest.raises(UsageError, match=f"has no tokenizer.json{instead}"):
        TokenizerFolder(path=str(path)).folder()
    manifest = path / "manifest.json"
    with pytest.raises(
        UsageError, match=f"{manifest} is not .*; name the folder that it is in, {path}$"
    ):
        PreparedData.open(manifest)


def test_what_is_no_prepared_data_is_told_as_what_it_is(
    tmp_path: Path, tiny_data: PreparedData
) -> None:
    model = tmp_path / "adapted" / "model"
    save_tiny(model, tiny_data.tokenizer_path)
    shutil.copytree(tiny_data.tokenizer_path, tmp_path / "tokenizer")
    for folder, said in (
        (model, "is a model, which chronomask evaluate and chronomask adapt take"),
        (model.parent, f"holds a model, {model}"),
        (tmp_path / "tokenizer", "is a tokenizer, which chronomask prepare TEXT --tokenizer takes"),
    ):
        with pytest.raises(UsageError, match=f"{folder} is not prepared data; it {said}$"):
            PreparedData.open(folder)
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text("Some words.\n")
    assert what_it_is(tmp_path / "text") == what_it_is(tmp_path / "none") == ""
    with pytest.raises(UsageError, match="chronomask prepare TEXT --out FOLDER makes it of text"):
        PreparedData.open(tmp_path / "text")
