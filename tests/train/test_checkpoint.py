"""Checkpoints are whole or not there; damage is found, reported and survived."""

from __future__ import annotations

import errno
import json
import logging
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from safetensors import SafetensorError

from chronomask import storage
from chronomask.errors import DataError, RunError
from chronomask.runs.continuation import begun_by
from chronomask.runs.layout import OPTIMISER
from chronomask.train import checkpoint, saving
from chronomask.train.checkpoint import Checkpoint
from chronomask.train.config import RunConfig
from chronomask.train.loop import pretrain
from chronomask.train.state import State
from tests.support.tiny_training import assert_same_run


@pytest.fixture
def config(config: RunConfig) -> RunConfig:
    return config.replace(
        ["checkpoint.every=1", "checkpoint.keep=3", "steps=4", "validation.every=0"]
    )


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_only_the_newest_stay(config: RunConfig, tmp_path: Path) -> None:
    pretrain(config, tmp_path / "run", progress=False)
    found = checkpoint.latest(tmp_path / "run" / "checkpoints")
    assert found is not None
    assert found.step == 4
    names = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert names == ["step-00000002", "step-00000003", "step-00000004"]


@pytest.mark.parametrize("damage", ["flipped", "missing", "no hashes", "torn hashes"])
def test_a_damaged_newest_falls_back_loudly_to_the_one_before(
    config: RunConfig, tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    pretrain(config, tmp_path / "whole", progress=False)
    pretrain(config, tmp_path / "run", progress=False)
    (tmp_path / "run" / "summary.json").unlink()
    newest = tmp_path / "run" / "checkpoints" / "step-00000004"
    if damage == "flipped":
        flip(newest / "transformers" / "model.safetensors")
    elif damage == "missing":
        (newest / "optimiser.safetensors").unlink()
    elif damage == "no hashes":
        (newest / "hashes.json").unlink()
    else:
        (newest / "hashes.json").write_text('{"state.js')
    with caplog.at_level(logging.WARNING):
        pretrain(config, tmp_path / "run", resume=True, progress=False)
    assert "step-00000004 is damaged" in caplog.text
    assert "using the one before" in caplog.text
    found = checkpoint.latest(newest.parent)
    assert found is not None
    assert found.step == 4
    assert (newest.parent / "damaged-step-00000004").is_dir()
    assert_same_run(tmp_path / "whole", tmp_path / "run")


def test_no_whole_checkpoint_is_an_error_not_a_fresh_start(
    config: RunConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pretrain(config, tmp_path / "run", progress=False)
    folders = sorted((tmp_path / "run" / "checkpoints").iterdir())
    for folder in folders:
        flip(folder / "optimiser.safetensors")
    every = "; ".join(f"{folder.name}: .*optimiser.*" for folder in reversed(folders))
    with pytest.raises(RunError, match=rf"no checkpoint .* is whole \({every}\)"):
        pretrain(config, tmp_path / "run", resume=True, progress=False)
    assert caplog.text.count("using the one before it") == len(folders) - 1


@pytest.mark.parametrize("where", ["tokenizer", "optimiser", "hashes"])
def test_a_full_disk_leaves_earlier_checkpoints_and_nothing_half_written(
    config: RunConfig, tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    saves: list[Path] = []
    save_file, flush, export = saving.save_file, storage.flush, saving.export

    def full_save(tensors: Any, path: Path) -> None:
        saves.append(path)
        if where == "optimiser" and len(saves) == 5:
            path.write_bytes(b"half")
            raise SafetensorError("I/O error: No space left on device (os error 28)")
        save_file(tensors, path)

    def full_export(model: Any, tokenizer: Any, folder: Path, *others: Any) -> None:
        export(model, tokenizer, folder, *others)
        if where == "tokenizer" and "3" in folder.parent.name:  # as the library raises it
            raise Exception("No space left on device (os error 28)")

    def full_flush(path: Path) -> None:
        if where == "hashes" and "hashes.json" in path.name and "3" in path.parent.name:
            raise OSError(errno.ENOSPC, "No space left on device")
        flush(path)

    with monkeypatch.context() as patch:
        patch.setattr(saving, "save_file", full_save)
        patch.setattr(saving, "export", full_export)
        patch.setattr(storage, "flush", full_flush)
        with pytest.raises(RunError) as stopped, begun_by("command", "--resume"):
            pretrain(config, tmp_path / "run", progress=False)
    message = str(stopped.value)
    assert "step-00000003 could not be saved: No space left on device" in message
    assert "step-00000002, step-00000001" in message
    assert message.endswith("Make room; then the same command goes on with --resume")
    folder = tmp_path / "run" / "checkpoints"
    assert sorted(path.name for path in folder.iterdir()) == ["step-00000001", "step-00000002"]

    pretrain(config, tmp_path / "run", resume=True, progress=False)
    pretrain(config, tmp_path / "whole", progress=False)
    assert_same_run(tmp_path / "whole", tmp_path / "run")


def test_no_pickle_is_in_a_checkpoint(config: RunConfig, tmp_path: Path) -> None:
    pretrain(config, tmp_path / "run", progress=False)
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    suffixes = {path.suffix or path.name for path in files}
    plain = {".lock", ".json", ".jsonl", ".yaml", ".safetensors", ".md", ".txt"}
    assert suffixes <= plain | {".npz"}
    (arrays,) = [path for path in files if path.suffix == ".npz"]
    with np.load(arrays, allow_pickle=False) as stored:  # which refuses arrays of objects
        assert all(stored[name].dtype.kind in "if" for name in stored.files)
    state = safetensors.torch.load_file(
        tmp_path / "run" / "checkpoints" / "step-00000004" / "optimiser.safetensors"
    )
    assert any(key.startswith("exp_avg_sq/bert.embeddings") for key in state)


def test_another_format_version_is_refused(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(saving, "FORMAT_VERSION", 99)
        pretrain(config, tmp_path / "run", progress=False)
    with pytest.raises(RunError, match="format 99; this version of chronomask reads format 1"):
        pretrain(config, tmp_path / "run", resume=True, progress=False)


def test_a_state_with_other_fields_is_refused(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    to_json = State.to_json

    def with_more(*arguments: Any) -> dict[str, Any]:
        saved = to_json(*arguments)
        saved["window"]["more"] = 1
        return saved

    with monkeypatch.context() as patch:
        patch.setattr(State, "to_json", with_more)
        pretrain(config, tmp_path / "run", progress=False)
    with pytest.raises(
        RunError, match=r"state\.json is not as .*'more'.*the version that wrote it"
    ):
        pretrain(config, tmp_path / "run", resume=True, progress=False)


def test_every_field_of_the_state_is_in_a_checkpoint(config: RunConfig) -> None:
    """Those to come as well."""
    state = State.start(2)
    for part in (state, state.window):
        for number, field in enumerate(fields(part), 1):
            if field.name not in ("window", "by_class"):
                setattr(part, field.name, number)
    saved = json.loads(json.dumps(state.to_json(config, "fingerprint")))
    assert State.from_checkpoint(saved, state.tensors()) == state


@pytest.mark.parametrize(("name", "shape"), [("weight", (3, 2)), ("gone", (2, 2))])
def test_moments_of_another_model_are_refused(
    tmp_path: Path, name: str, shape: tuple[int, int]
) -> None:
    model = torch.nn.Linear(2, 2)
    safetensors.torch.save_file({f"exp_avg/{name}": torch.zeros(shape)}, tmp_path / OPTIMISER)
    with pytest.raises(DataError, match=f"'exp_avg/{name}' fits no parameter of the model"):
        Checkpoint(tmp_path, {}).load_optimiser(torch.optim.AdamW(model.parameters()), model)
