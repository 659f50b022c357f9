"""The entropy of words' frequencies and the bound of pairs: by hand, in order, and kept by fingerprint."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from transformers import BertConfig, ModernBertConfig, PretrainedConfig

from chronomask.data import entropy
from chronomask.data.entropy import measure_entropy
from chronomask.data.folder import PreparedData
from chronomask.train.validation import bounds_in_words, plateau_in_words


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_the_unigram_entropy_by_hand_and_what_is_kept(
    tiny_data: PreparedData, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = measure_entropy(tiny_data)
    assert found is not None
    held, train = (
        np.concatenate(
            [
                ids[1:][word[1:] >= 0]
                for rows in [split.read(np.arange(split.num_rows))]
                for ids, word in zip(rows.input_ids, rows.word_id, strict=True)
            ]
        )
        for split in (tiny_data.split("held_out"), tiny_data.split("train"))
    )
    size = tiny_data.manifest.vocab_size
    counts = dict.fromkeys(range(size), 0.5)
    for token in train.tolist():
        counts[token] += 1
    total = sum(counts.values())
    by_hand = -np.mean([np.log(counts[token] / total) for token in held.tolist()])
    assert found.unigram == pytest.approx(by_hand)
    assert 0 < found.bigram < found.unigram < np.log(size)
    (path,) = cache.rglob("*.json")
    assert path.stem == tiny_data.fingerprint

    monkeypatch.setattr(entropy, "_count", lambda data: pytest.fail("counted again"))
    assert measure_entropy(tiny_data) == found
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    path.write_text("{half")
    assert measure_entropy(tiny_data) == found
    assert json.loads(path.read_text())["unigram"] == found.unigram


def test_a_cache_that_cannot_be_written_stops_nothing(tiny_data: PreparedData, cache: Path) -> None:
    cache.write_text("a file")
    assert measure_entropy(tiny_data) is not None


def test_a_run_at_the_plateau_is_told_since_when() -> None:
    def line(step: int, loss: float) -> dict[str, float]:
        return {"step": step, "loss": loss, "unigram_entropy": 6.3, "bigram_bound": 5.6}

    lines = [line(100, 7.5), line(200, 6.25), line(300, 6.22), line(400, 6.2)]
    bert = BertConfig()
    said = plateau_in_words(lines, bert)
    assert said is not None
    assert "6.20 nats and has hardly moved since step 200" in said
    assert "give 6.30, a table of pairs 5.60" in said
    assert plateau_in_words([*lines, line(500, 5.5)], bert) is None
    moving = plateau_in_words([line(100, 7.5), line(200, 6.0)], bert)
    assert moving is not None
    assert "hardly moved" not in moving
    assert "hardly uses the words around" in moving
    near = plateau_in_words([line(100, 5.7)], bert)
    assert near is not None
    assert "hardly uses" not in near
    assert "less of the words around than such a table" in near


def test_the_plateau_recommends_nothing_that_a_model_has() -> None:
    lines = [{"step": 1, "loss": 6.2, "unigram_entropy": 6.3, "bigram_bound": 5.6}]

    def said(architecture: PretrainedConfig | None) -> str:
        return plateau_in_words(lines, architecture) or ""

    assert "a pre-norm model such as modernbert" in said(BertConfig())
    wide, narrow = (ModernBertConfig(local_attention=size) for size in (128, 32))
    assert "modernbert" not in said(wide)
    assert "a narrower window" in said(wide)
    assert "window" not in said(narrow)
    assert "another peak rate, and more steps" in said(None)  # of a checkpoint that is continued


def test_what_the_data_alone_gives_in_words() -> None:
    assert bounds_in_words({"unigram": 6.361, "bigram": 5.6}) == (
        "words’ frequencies alone give a validation loss of 6.36 nats, a table of pairs 5.60"
    )
