"""The probe: its words' pieces, its regression against scikit-learn's, and what is refused."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from transformers import AutoModel, PreTrainedTokenizerBase

from chronomask.conllu import Sentence
from chronomask.errors import DataError, UsageError
from chronomask.evaluate.subject import find_subject
from chronomask.evaluate.tasks.probe import (
    ProbeConfig,
    ProbeTask,
    fit_softmax,
    treebank_files,
    word_pieces,
)
from chronomask.types import UPOS
from tests.support.task_files import TAGS, treebank
from tests.support.tiny_models import save_tiny


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data" / "ud-made-up"
    folder.mkdir(parents=True)
    (folder / "xx_made-ud-train.conllu").write_text(treebank(60, 0))
    (folder / "xx_made-ud-test.conllu.gz").write_bytes(gzip.compress(treebank(20, 1).encode()))
    return folder.parent


@pytest.fixture
def model(tmp_path: Path, tiny_tokenizer: Path) -> Path:
    save_tiny(tmp_path / "model", tiny_tokenizer)
    return tmp_path / "model"


@pytest.mark.parametrize("pieces", ["mean", "first"])
def test_the_probe_reads_words_that_the_embeddings_name(
    model: Path, data: Path, pieces: str
) -> None:
    # Embeddings alone tell five words apart, so a linear probe cannot fail.
    config = ProbeConfig.parse({"layer": 0, "pieces": pieces, "l2": 0.01, "batch_tokens": 64})
    found = ProbeTask(config).run(find_subject(str(model)), data, 0, False)
    assert found.metrics["accuracy"] > 0.98
    assert found.num_examples == {"train": 360, "test": 120, "words_without_tokens": 0}
    assert found.details["accuracy/PUNCT"] == 1.0
    assert set(found.details) == {f"accuracy/{tag}" for tag in TAGS.values()}
    assert (found.examples["prediction"] == found.examples["label"]).mean() == found.metrics[
        "accuracy"
    ]


@pytest.mark.parametrize("pieces", ["mean", "first"])
def test_vectors_are_those_of_one_sentence_at_a_time(model: Path, pieces: str) -> None:
    subject = find_subject(str(model))
    part = [sentence("bacodifu", "limo", "difu.gahe"), sentence("gahe", "baco")]
    task = ProbeTask(ProbeConfig.parse({"pieces": pieces}))
    encoder = AutoModel.from_pretrained(model).eval()
    vectors, tags, missing = task._encode(subject, encoder, part, False)
    expected = []
    for each in part:
        text = " ".join(each.words)
        encoded = subject.tokenizer(text, return_offsets_mapping=True)
        with torch.no_grad():
            states = encoder(torch.tensor([encoded["input_ids"]])).last_hidden_state[0]
        at = 0
        for word in each.words:
            own = [
                k
                for k, (a, b) in enumerate(encoded["offset_mapping"])
                if b > a and at <= a and b <= at + len(word)
            ]
            assert own
            expected.append(states[own].mean(0) if pieces == "mean" else states[own[0]])
            at += len(word) + 1
    torch.testing.assert_close(vectors, torch.stack(expected), atol=1e-5, rtol=1e-4)
    assert (len(tags), missing) == (5, 0)


def sentence(*words: str) -> Sentence:
    return Sentence(words, (True,) * len(words), ("NOUN",) * len(words), False)


def test_a_long_sentence_keeps_all_its_words(model: Path) -> None:
    tokenizer: PreTrainedTokenizerBase = find_subject(str(model)).tokenizer
    long = sentence(*["baco", "difugahe"] * 20)
    whole, words, _ = word_pieces(tokenizer, [long], 1000)
    rows, cut, tags = word_pieces(tokenizer, [long], 16)
    assert len(whole) == 1
    assert max(map(len, rows)) <= 16
    assert len(rows) > 3
    assert len(tags) == 40
    flat = np.concatenate(cut)
    assert flat[flat >= 0].tolist() == words[0][words[0] >= 0].tolist()


def test_the_regression_is_scikit_learns() -> None:
    random = np.random.default_rng(0)
    y = random.integers(0, 4, 500)
    x = (random.normal(0, 1, (500, 6)) + y[:, None] * random.normal(0, 1, 6)) * [1, 2, 3, 4, 5, 9]
    weight, bias = fit_softmax(torch.tensor(x).float(), torch.tensor(y), 4, 2.0, 500)
    scaled = (x - x.mean(0)) / x.std(0)
    reference = LogisticRegression(C=0.5, tol=1e-8, max_iter=5000).fit(scaled, y)
    ours = torch.softmax(torch.tensor(x).float() @ weight + bias, 1).numpy()
    np.testing.assert_allclose(ours, reference.predict_proba(scaled), atol=2e-3)


def test_treebanks_must_be_there_whole_and_one(data: Path, model: Path) -> None:
    config = ProbeConfig()
    assert [p.name for p in treebank_files(data, config)] == [
        "xx_made-ud-train.conllu",
        "xx_made-ud-test.conllu.gz",
    ]
    with pytest.raises(UsageError, match=r"no \*-dev\.conllu"):
        treebank_files(data, ProbeConfig.parse({"part": "dev"}))
    subject = find_subject(str(model))
    with pytest.raises(UsageError, match=r"0 .* to 2"):
        ProbeTask(ProbeConfig.parse({"layer": 3})).check(subject, data)
    packed = data / "ud-made-up" / "xx_made-ud-test.conllu.gz"
    content = packed.read_bytes()
    packed.write_bytes(content[:-20])
    with pytest.raises(DataError, match="damaged"):
        ProbeTask().check(subject, data)
    packed.write_bytes(content)
    (data / "yy-ud-train.conllu").write_text(treebank(1, 0))
    with pytest.raises(UsageError, match="several treebanks"):
        treebank_files(data, config)
    assert len(treebank_files(data, ProbeConfig.parse({"treebank": "xx_made"}))) == 2
    assert len(UPOS) == 17


def test_a_treebank_whose_name_begins_anothers_can_be_chosen(tmp_path: Path) -> None:
    for name in ("en_gum", "en_gumreddit"):
        for part in ("train", "test"):
            (tmp_path / f"{name}-ud-{part}.conllu").write_text(treebank(1, 0))
    with pytest.raises(UsageError, match=r"--set upos_probe\.treebank=en_gum$"):
        treebank_files(tmp_path, ProbeConfig())
    for name in ("en_gum", "en_gumreddit"):
        chosen = treebank_files(tmp_path, ProbeConfig(treebank=name))
        assert [path.name for path in chosen] == [
            f"{name}-ud-{part}.conllu" for part in ("train", "test")
        ]


def test_a_task_that_is_used_again_reads_what_the_files_hold_now(model: Path, data: Path) -> None:
    task = ProbeTask()
    before = task.run(find_subject(str(model)), data, 0, False)
    (path,) = data.glob("*/*-test.conllu.gz")
    path.write_bytes(gzip.compress(treebank(5, 1).encode()))
    after = task.run(find_subject(str(model)), data, 0, False)
    assert after.num_examples["test"] < before.num_examples["test"]
    assert after.data_sha256 != before.data_sha256
