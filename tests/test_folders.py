"""Folders that chronomask writes are known by their files, and refused as what they are."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from chronomask.data.folder import PreparedData
from chronomask.errors import UsageError
from chronomask.evaluate.subject import find_subject
from chronomask.folders import what_it_is
from chronomask.model.open import model_folder, open_config, weight_files
from chronomask.prepare.read.left_out import Skipped
from chronomask.prepare.read.records import Fields
from chronomask.prepare.read.sources import Files
from chronomask.prepare.tokenizer import TokenizerFolder
from chronomask.runs.layout import RunFolder
from chronomask.runs.read import read_run
from chronomask.yaml_text import read_text
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


def test_an_adapter_of_peft_is_no_model(tmp_path: Path, tiny_data: PreparedData) -> None:
    """Its tokenizer lies beside it, and its weights fit no model by themselves."""
    adapter = tmp_path / "adapter"
    shutil.copytree(tiny_data.tokenizer_path, adapter)
    (adapter / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    for refused in (find_subject, open_config):
        with pytest.raises(UsageError, match=r"holds an adapter of PEFT.*merge_and_unload"):
            refused(str(adapter))


def test_an_adapter_of_peft_beside_a_model_is_refused(
    tmp_path: Path, tiny_data: PreparedData
) -> None:
    """Whether transformers takes it into the model depends on what is installed."""
    model = tmp_path / "model"
    save_tiny(model, tiny_data.tokenizer_path)
    assert find_subject(str(model)).path == model
    (model / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    for refused in (find_subject, weight_files):
        with pytest.raises(UsageError, match="adapter of PEFT beside a model: join them"):
            refused(model)  # type: ignore[operator]


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


def test_an_adaptation_is_told_with_its_run_and_what_it_measured(tmp_path: Path) -> None:
    for file in (
        "model/config.json", "run/config.yaml", "run/metrics.jsonl", "before/data/mlm-seed0.json"
    ):  # fmt: skip
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text("{}")
    said = what_it_is(tmp_path)
    assert said.startswith(f"; it is an adaptation: its model is {tmp_path / 'model'}, its run ")
    assert f"its run {tmp_path / 'run'}, " in said
    with pytest.raises(UsageError, match=f"not a run folder.* its run {tmp_path / 'run'}"):
        read_run(tmp_path)
    measured = tmp_path / "before" / "data"
    assert what_it_is(tmp_path / "before") == f"; it holds results of tasks, such as in {measured}"


def test_what_is_no_model_is_told_with_the_model_in_it(
    tmp_path: Path, tiny_data: PreparedData
) -> None:
    run = tmp_path / "run"
    checkpoint = run / "checkpoints" / "step-00000004"
    model = checkpoint / "transformers"
    save_tiny(model, tiny_data.tokenizer_path)
    (checkpoint / "state.json").write_text("{}")
    (run / "config.yaml").write_text("steps: 4\n")
    save_tiny(tmp_path / "adapted" / "model", tiny_data.tokenizer_path)
    (tmp_path / "empty").mkdir()
    for folder, said in (
        (run, f"it is a run with the model {model}, which"),
        (checkpoint, f"it is a checkpoint of the run {run}, with the model {model}"),
        (tmp_path / "adapted", f"it holds a model, {tmp_path / 'adapted' / 'model'}"),
        (tiny_data.path, "it is prepared data, which chronomask pretrain --data takes"),
        (tmp_path / "empty", "name the folder of a model, such as"),
        (tmp_path / "none", "name the folder of a model, such as"),
    ):
        for opened in (model_folder, open_config):
            with pytest.raises(UsageError, match=f"{folder} is not a .*no config.json; {said}"):
                opened(folder)


def test_a_command_that_is_named_takes_a_folder_with_a_space(tmp_path: Path) -> None:
    results, run = tmp_path / "my results", tmp_path / "my run"
    results.mkdir()
    (results / "rte-seed0.json").touch()
    assert f"chronomask compare '{results}' shows" in what_it_is(results)
    run.mkdir()
    (run / "config.yaml").touch()
    (run / "metrics.jsonl").touch()
    assert f"chronomask pretrain --out '{run}' --resume continues it" in what_it_is(run)


def test_runs_and_studies_are_no_text_although_they_hold_lines_of_json(tmp_path: Path) -> None:
    for name, files, said in (
        ("run", ("config.yaml", "metrics.jsonl"), "it is a run, which chronomask evaluate"),
        ("study", ("study.yaml", "runs/a/metrics.jsonl"), "it is a study: its runs are such as"),
    ):
        for file in files:
            (tmp_path / name / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name / file).write_text("{}\n")
        with pytest.raises(UsageError, match=f"source {tmp_path / name} is no text; {said}"):
            Files(path=str(tmp_path / name)).find(Fields("text"), Skipped())
        with pytest.raises(UsageError, match=f"{name} is a folder: name a file in it; {said}"):
            read_text(tmp_path / name)
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "metrics.jsonl").write_text('{"text": "Some words."}\n')
    assert len(Files(path=str(tmp_path / "text")).find(Fields("text"), Skipped())) == 1
