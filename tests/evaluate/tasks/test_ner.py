"""Entities: how labels say them, which tokens words begin at, a task that is learnt, and refusals."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from chronomask.errors import DataError, UsageError
from chronomask.evaluate.subject import find_subject
from chronomask.evaluate.tasks.ner import (
    Entity,
    EntityTask,
    Ner,
    entities,
    entity_files,
    f1_of,
    read_tagged,
)
from tests.support.task_files import labelled
from tests.support.tiny_models import save_tiny


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data" / "ner"
    folder.mkdir(parents=True)
    (folder / "eng.train").write_text("not read: no ending that is known")
    (folder / "train.txt").write_text(labelled(60, 0))
    (folder / "eng.testa.conll.gz").write_bytes(b"")
    (folder / "eng.testa.conll.gz").unlink()
    (folder / "valid.conll.gz").write_bytes(gzip.compress(labelled(20, 1).encode()))
    (folder / "test.bio").write_text(labelled(5, 2).replace("\n", "\r\n"))
    return folder.parent


@pytest.fixture
def model(tmp_path: Path, tiny_tokenizer: Path) -> Path:
    save_tiny(tmp_path / "model", tiny_tokenizer)
    return tmp_path / "model"


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ("", ""),
        ("O O", ""),
        ("B-PER I-PER O B-LOC", "PER 0 1, LOC 3 3"),
        ("B-PER B-PER", "PER 0 0, PER 1 1"),
        ("I-PER I-PER O I-LOC", "PER 0 1, LOC 3 3"),  # IOB1
        ("I-PER B-PER I-PER", "PER 0 0, PER 1 2"),
        ("I-PER I-LOC", "PER 0 0, LOC 1 1"),
        ("B-PER I-LOC", "PER 0 0, LOC 1 1"),  # not after the scheme
        ("S-PER S-PER B-LOC I-LOC E-LOC", "PER 0 0, PER 1 1, LOC 2 4"),
        ("B-PER S-PER", "PER 0 0, PER 1 1"),
        ("B-LOC E-LOC I-LOC", "LOC 0 1, LOC 2 2"),
        ("B-A-B I-A-B", "A-B 0 1"),
        ("O I-PER", "PER 1 1"),
    ],
)
def test_entities_are_those_of_the_shared_task(labels: str, expected: str) -> None:
    found = (text.split() for text in expected.split(", ") if text)
    assert entities(labels.split()) == {Entity(k, int(a), int(b)) for k, a, b in found}


def test_f1_by_hand() -> None:
    assert f1_of(2, 4, 3) == pytest.approx(2 * (2 / 4) * (2 / 3) / (2 / 4 + 2 / 3))
    assert f1_of(0, 0, 0) == 0.0
    assert f1_of(0, 3, 0) == 0.0


def test_entities_that_words_name_are_learnt(model: Path, data: Path) -> None:
    config = Ner(learning_rate=2e-3, epochs=30, batch_size=8, max_length=64, device="cpu")
    task = EntityTask(config)
    subject = find_subject(str(model))
    task.check(subject, data)
    found = task.run(subject, data, 0, False)
    assert found.metrics["f1"] > 0.9
    assert found.num_examples["train"] == 60
    assert found.num_examples["dev"] == 20
    assert set(found.details) == {"f1/LOC", "f1/PER"}
    right, given, there = (found.examples[name].sum() for name in ("right", "given", "there"))
    assert found.metrics["f1"] == pytest.approx(f1_of(right, given, there))
    again = task.run(subject, data, 0, False)
    assert again.metrics == found.metrics


@pytest.mark.parametrize("max_length", [8, 64])
def test_every_word_begins_at_one_token(model: Path, data: Path, max_length: int) -> None:
    task = EntityTask(Ner(max_length=max_length))
    train, _ = task.read(data)
    encoded = task.encode(find_subject(str(model)), train)
    assert encoded.lengths.max() <= max_length
    words = encoded.word[encoded.word >= 0]
    assert np.array_equal(words, np.arange(sum(map(len, train.words))))


def test_files_are_found_by_their_part(data: Path) -> None:
    train, dev = entity_files(data, "dev")
    assert (train.name, dev.name) == ("train.txt", "valid.conll.gz")
    assert entity_files(data, "test")[1].name == "test.bio"
    assert len(read_tagged(entity_files(data, "test")[1])) == 5
    (data / "ner" / "dev.conll").write_text(labelled(2, 3))
    with pytest.raises(UsageError, match=r"several dev files \(dev.conll, valid.conll.gz\)"):
        entity_files(data, "dev")
    with pytest.raises(UsageError, match=r"there is no folder .*none"):
        entity_files(data / "none", "dev")
    (data / "ner" / "train.txt").rename(data / "ner" / "train.iob")
    with pytest.raises(UsageError, match=r"no train file.*\), but dev\.conll, .*train\.iob,"):
        entity_files(data, "dev")


def test_an_ending_may_stand_before_the_ending(tmp_path: Path) -> None:
    for name in ("train.iob.txt", "dev.iob.txt", "interval.txt"):
        (tmp_path / name).write_text("a O\n")
    found = entity_files(tmp_path, "dev")
    assert [path.name for path in found] == ["train.iob.txt", "dev.iob.txt"]


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("word\n", "line 1: 'word' has one column"),
        ("a O\nb NOUN\n", "line 2: the last column is 'NOUN'"),
        ("\n\n-DOCSTART- O\n", "holds no sentence"),
        ("caf\xe9 O\n", "UTF-8"),
        ("a O\nb B-\n", "line 2: the last column is 'B-'"),
        ("a O\nb O\n\nc O\n", "holds no entity: the last column is O in every line"),
        ("1\ta\tB-LOC\n2\tb\tO\n\n1\tc\tO\n", "first column is the number of the word"),
        (
            "# text = a\n1\ta\tB-LOC\t-\tme\n",
            r"number of the word .*grep -v '\^#' train.txt \| cut -f 2,3",
        ),
        ("#\ta.de [2010]\n1\ta\tB-LOC\tO\n", "number of the word"),
        ("en:a\tB-LOC\nen::\tO\n", r"every word begins with 'en:'.*sed 's/\^en:"),
    ],
)
def test_files_of_another_shape(tmp_path: Path, text: str, match: str) -> None:
    path = tmp_path / "train.txt"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match=match):
        read_tagged(path)


def test_a_number_sign_is_a_word_where_it_has_the_columns_of_one(tmp_path: Path) -> None:
    path = tmp_path / "train.txt"
    path.write_text("# two O\nBonn B-LOC\n# O\n# id 7\n# a comment\n\n# B-MISC\n7 I-MISC\n")
    assert read_tagged(path).words == [["Bonn", "#"], ["#", "7"]]
    path.write_text("# text = O\nBonn NNP I-NP B-LOC\n# NN I-NP O\n# sent_id = 7\n")
    assert read_tagged(path).words == [["Bonn", "#"]]


def test_numbers_and_colons_may_be_words(tmp_path: Path) -> None:
    path = tmp_path / "train.txt"
    path.write_text("1 O\n2 B-NUM\n\nen:a O\nb O\n\n#\tO\n")
    assert read_tagged(path).words == [["1", "2"], ["en:a", "b"], ["#"]]
    path.write_text("1 CD B-NUM\n2 CD O\n\na DT O\n")
    assert read_tagged(path).words == [["1", "2"], ["a"]]


def test_only_blanks_and_tabs_part_columns(tmp_path: Path) -> None:
    path = tmp_path / "train.txt"
    lines = "10\xa0000 B-NUM\n New\u202fYork  B-LOC \n\u3000 O\n"
    path.write_text(lines, encoding="utf-8")
    assert read_tagged(path).words == [["10\xa0000", "New\u202fYork", "�"]]
    path.write_text(lines.replace(" B", "\tB").replace(" O", "\tO"), encoding="utf-8")
    assert read_tagged(path).words == [["10\xa0000", "New\u202fYork", "�"]]


def test_a_label_that_training_never_has(model: Path, data: Path) -> None:
    (data / "ner" / "test.bio").write_text("Bonn B-LOCC\n")
    with pytest.raises(DataError, match=r"B-LOCC.*did you mean 'B-LOC'"):
        EntityTask(Ner(part="test", max_length=64)).check(find_subject(str(model)), data)


def test_a_batch_without_a_word_teaches_nothing_and_ends_nothing(model: Path, data: Path) -> None:
    """A tokenizer may drop the only word of a sentence."""
    train = data / "ner" / "train.txt"
    train.write_text("\u200b O\n\n" + train.read_text())
    task = EntityTask(Ner(epochs=1, batch_size=1, max_length=16))
    found = task.run(find_subject(str(model)), data, 0, False)
    assert found.left_out["training words that the tokenizer drops"] == 1
