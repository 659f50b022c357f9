"""A model is trained further only on rows of its own tokenizer."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from chronomask.data.folder import PreparedData
from chronomask.errors import UsageError
from chronomask.model.build import build_model
from chronomask.model.config import FromCheckpoint, FromConfig
from chronomask.model.open import model_folder, name_in_cache, open_tokenizer
from chronomask.prepare.config import PrepareConfig, TokenizerFolder
from chronomask.prepare.pipeline import prepare
from chronomask.show.subject import of_text


@pytest.fixture
def checkpoint(tiny_data: PreparedData, tmp_path: Path) -> Path:
    tokenizer = open_tokenizer(tiny_data.tokenizer_path)
    sizes = {
        "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32
    }  # fmt: skip
    model = build_model(
        FromConfig(overrides=sizes), tokenizer, row_length=32, seed=0, attention="row"
    )
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(str(tmp_path / "model"))
    return tmp_path / "model"


def train_further(checkpoint: Path, tokenizer: Path) -> None:
    build_model(
        FromCheckpoint(path=str(checkpoint)),
        AutoTokenizer.from_pretrained(str(tokenizer)),
        row_length=32,
        seed=0,
        attention="row",
    )


def test_the_same_tokenizer_is_taken(checkpoint: Path, tiny_data: PreparedData) -> None:
    train_further(checkpoint, tiny_data.tokenizer_path)


def test_a_tokenizer_of_a_vocabulary_alone_is_compared(
    checkpoint: Path, tiny_data: PreparedData
) -> None:
    entries = open_tokenizer(checkpoint).get_vocab()
    (checkpoint / "tokenizer.json").unlink()
    (checkpoint / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    lines = "\n".join(sorted(entries, key=entries.__getitem__))
    (checkpoint / "vocab.txt").write_text(lines, encoding="utf-8")
    # The data's is made of it, as `adapt` makes it.
    made = checkpoint.parent / "tokenizer"
    AutoTokenizer.from_pretrained(checkpoint).save_pretrained(made)
    train_further(checkpoint, made)
    (checkpoint / "vocab.txt").write_text(lines + "\nmore", encoding="utf-8")
    with pytest.raises(UsageError, match="is not the data's"):
        train_further(checkpoint, made)


def test_another_vocabulary_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("other words make another tokenizer " * 50)
    values = {"tagger": {"kind": "none"}, "tokenizer": {"kind": "wordpiece", "vocab_size": 200}}
    config = PrepareConfig.parse({"sources": [str(tmp_path / "a.txt")]} | values)
    other = prepare(config, tmp_path / "other", progress=False)
    with pytest.raises(
        UsageError, match=r"vocabulary .* is not the data's .*prepare the data with"
    ):
        train_further(checkpoint, other.tokenizer_path)


def test_the_same_vocabulary_used_otherwise_is_refused(
    checkpoint: Path, tiny_data: PreparedData, tmp_path: Path
) -> None:
    cased = tmp_path / "cased"
    shutil.copytree(tiny_data.tokenizer_path, cased)
    values = json.loads((cased / "tokenizer.json").read_text(encoding="utf-8"))
    assert values["normalizer"]["lowercase"] is True
    values["normalizer"]["lowercase"] = False
    (cased / "tokenizer.json").write_text(json.dumps(values), encoding="utf-8")
    with pytest.raises(UsageError, match=r"splits text otherwise than the data's .*normalizer"):
        train_further(checkpoint, cased)


def test_a_name_on_the_hub_stands_for_the_folder_it_is_copied_to(
    checkpoint: Path, tiny_data: PreparedData, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download", lambda name, **_: asked.append(name) or str(checkpoint)
    )
    tokenizer = open_tokenizer(tiny_data.tokenizer_path)
    made = {
        path: build_model(
            FromCheckpoint(path=path), tokenizer, row_length=32, seed=0, attention="row"
        )
        for path in (str(checkpoint), "owner/name")
    }
    assert asked == ["owner/name"]
    first, second = (model.state_dict() for model in made.values())
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("name", ["./owner/name", "/owner/name", "owner", "a/b/c", "~/model"])
def test_a_path_is_never_looked_for_on_the_hub(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: pytest.fail("asked"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="is not a model folder: it has no config"):
        model_folder(name)
    (tmp_path / "owner" / "name").mkdir(parents=True)
    with pytest.raises(UsageError, match="is not a model folder"):
        model_folder("owner/name")


def test_a_model_of_the_hub_comes_with_its_card(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download",
        lambda _, allow_patterns: asked.extend(allow_patterns) or str(checkpoint),
    )
    model_folder("owner/name")
    assert {"README.md", "*.safetensors"} <= set(asked)


def test_a_folder_of_the_hubs_cache_is_told_where_its_model_is(
    checkpoint: Path, tmp_path: Path
) -> None:
    cached = tmp_path / "models--owner--name"
    for commit in ("aaa", "bbb"):
        shutil.copytree(checkpoint, cached / "snapshots" / commit)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("aaa")
    snapshot = re.escape(str(cached / "snapshots" / "aaa"))
    with pytest.raises(UsageError, match=rf"no config\.json; .* its snapshot, {snapshot}$"):
        model_folder(cached)
    with pytest.raises(UsageError, match=rf"no tokenizer\.json; .* its snapshot, {snapshot}$"):
        TokenizerFolder(path=str(cached)).check()
    with pytest.raises(UsageError, match=rf"its snapshot, {snapshot}"):
        of_text("a text", cached, None)
    assert name_in_cache(cached / "snapshots" / "aaa") == "owner/name"
    assert name_in_cache(cached) is None


def test_a_name_that_the_hub_does_not_know(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="owner/name is not a local folder, and cannot be loaded"):
        model_folder("owner/name")
