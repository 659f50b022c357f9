"""Labelled texts of one's own: files and columns that are found, classes, a task that is learnt, refusals."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import f1_score

from chronomask.errors import DataError, UsageError
from chronomask.evaluate.subject import find_subject
from chronomask.evaluate.tasks.classification import (
    Classification,
    ClassificationTask,
    classification_files,
    read_labelled,
)
from chronomask.evaluate.tasks.glue import classification_metrics
from tests.support.task_files import rated
from tests.support.tiny_models import save_tiny


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data" / "classification"
    folder.mkdir(parents=True)
    (folder / "train.csv").write_text(rated(60))
    (folder / "my-valid.csv.gz").write_bytes(gzip.compress(rated(20).encode()))
    (folder / "notes.txt").write_text("not read")
    return folder.parent


def test_classes_that_words_tell_are_learnt(
    data: Path, tmp_path: Path, tiny_tokenizer: Path
) -> None:
    save_tiny(tmp_path / "model", tiny_tokenizer)
    config = Classification(
        learning_rate=2e-3, epochs=30, batch_size=8, max_length=64, device="cpu"
    )
    task = ClassificationTask(config=config)
    subject = find_subject(str(tmp_path / "model"))
    task.check(subject, data)
    found = task.run(subject, data, 0, False)
    assert found.metrics["accuracy"] > 0.9
    assert found.num_examples == {"train": 60, "dev": 20}
    gold, answers = found.examples["label"], found.examples["prediction"]
    assert gold.tolist() == [0, 1, 2] * 6 + [0, 1]
    assert list(found.details) == ["f1/bad", "f1/good", "f1/none"]
    assert [*found.details.values()] == pytest.approx(f1_score(gold, answers, average=None))
    assert found.metrics["macro_f1"] == pytest.approx(np.mean([*found.details.values()]))
    assert task.run(subject, data, 0, False).metrics == found.metrics
    assert not ClassificationTask(config=config).differing_settings(found)


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ([0, 1, 1], {"f1/bad": 1.0, "f1/good": 1.0}),
        ([0, 0, 0], {"f1/bad": 0.5, "f1/good": 0.0}),
        ([0, 1, 2], {"f1/bad": 1.0, "f1/good": 2 / 3, "f1/none": 0.0}),
    ],
)
def test_the_mean_f1_is_of_classes_that_the_part_has_or_that_are_named(
    data: Path, answers: list[int], expected: dict[str, float]
) -> None:
    task = ClassificationTask()
    task.read(data)
    labels, named = np.array([0, 1, 1]), np.array(answers)
    assert task.details(labels, named) == pytest.approx(expected)
    macro = classification_metrics(("macro_f1",), named, labels)["macro_f1"]
    assert macro == pytest.approx(np.mean([*expected.values()]))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", 'label,text\nx,"one, ""two""\nthree"\n\ny,\n'),
        ("a.csv.gz", '\ufefflabel,text\r\nx,"one, ""two""\nthree"\r\ny,\r\n'),
        (
            "a.jsonl",
            '{"text": "one, \\"two\\"\\nthree", "label": "x"}\n{"text":"","label":" y "}\n',
        ),
    ],
)
def test_texts_are_read_as_they_are(tmp_path: Path, name: str, content: str) -> None:
    data = content.encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    texts, labels = read_labelled(tmp_path / name, Classification())
    assert texts == [['one, "two"\nthree'], [""]]
    assert labels == ["x", "y"]


@pytest.mark.parametrize("name", ["a.csv", "A.TSV"])
def test_a_text_may_be_long(tmp_path: Path, name: str) -> None:
    mark, text = ("," if name == "a.csv" else "\t"), "oil " * 50_000
    before = csv.field_size_limit()
    (tmp_path / name).write_text(f"label{mark}text\nx{mark}{text}\n \n")
    assert read_labelled(tmp_path / name, Classification()) == ([[text]], ["x"])
    assert csv.field_size_limit() == before


def test_blanks_before_a_field_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('label, text\nx, "one, two"\n')
    assert read_labelled(tmp_path / "a.csv", Classification()) == ([["one, two"]], ["x"])


def test_a_quotation_mark_is_text_between_tabs(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text('label\ttext\nx\t"one, two\ny\tthree" four\n')
    texts, _ = read_labelled(tmp_path / "a.tsv", Classification())
    assert texts == [['"one, two'], ['three" four']]


def test_columns_are_those_that_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id,a,b,kind\n1,p,q,x\n")
    config = Classification(text="b", pair="a", label="kind")
    assert read_labelled(tmp_path / "a.csv", config) == ([["q", "p"]], ["x"])


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([10, 9, -1], ["-1", "9", "10"]),
        (["b", "10", "9"], ["10", "9", "b"]),
        ([True, False, False], ["false", "true"]),
        ([1.0, 0, 2.0], ["0", "1", "2"]),
    ],
)
def test_classes_have_an_order(tmp_path: Path, labels: list[object], expected: list[str]) -> None:
    lines = [json.dumps({"text": "a", "label": label}) for label in labels]
    for part in ("train", "test"):
        (tmp_path / f"{part}.jsonl").write_text("\n".join(lines))
    task = ClassificationTask(config=Classification(part="test"))
    train, scored = task.read(tmp_path)
    assert task.format.class_names == tuple(expected)
    assert task.head_options == {"num_labels": len(expected)}
    spelt = [label if isinstance(label, str) else json.dumps(label) for label in labels]
    assert [expected[number] for number in train.labels] == [s.removesuffix(".0") for s in spelt]
    assert scored["test"].labels.tolist() == train.labels.tolist()


def test_files_are_found_by_their_part(data: Path) -> None:
    config = Classification()
    train, dev = classification_files(data, config)
    assert (train.name, dev.name) == ("train.csv", "my-valid.csv.gz")
    assert classification_files(data / "classification", config) == (train, dev)
    with pytest.raises(UsageError, match=r"no test file.*--set classification\.part=dev"):
        classification_files(data, Classification(part="test"))
    (data / "classification" / "train.jsonl").write_text("")
    with pytest.raises(UsageError, match=r"several train files \(train.csv, train.jsonl\)"):
        classification_files(data, config)
    with pytest.raises(UsageError, match=r"there is no folder .*none: name the folder"):
        classification_files(data / "none", config)
    with pytest.raises(UsageError, match="files of your own are read, and none of the hub"):
        classification_files(Path("hub"), config)


@pytest.mark.parametrize(
    ("names", "found"),
    [
        ("Train.csv DEV.CSV", "DEV.CSV"),
        ("train.csv dev.csv interval.csv approval.csv constrain.csv", "dev.csv"),
        ("train.en.csv dev.en.csv", "dev.en.csv"),
        ("pumps_train.csv pumps_eval.csv test.dev.csv.md", "pumps_eval.csv"),
        ("train.csv train-dev.csv", "train-dev.csv"),
        ("wnut17train.jsonl wnut17val.jsonl.gz", "wnut17val.jsonl.gz"),
        ("train.csv en.testa.csv", "en.testa.csv"),
    ],
)
def test_a_part_is_a_word_of_the_name(tmp_path: Path, names: str, found: str) -> None:
    for name in names.split():
        (tmp_path / name).write_text("")
    train, dev = classification_files(tmp_path, Classification())
    assert (train.name, dev.name) == (names.split()[0], found)


def test_files_that_are_not_read_are_named(tmp_path: Path) -> None:
    for name in ("train.json", "dev.json"):
        (tmp_path / name).write_text("[]")
    with pytest.raises(UsageError, match=r"no train file.*, but dev\.json, train\.json: name"):
        classification_files(tmp_path, Classification())


def test_files_of_another_task_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "ner").mkdir()
    for part in ("train", "dev"):
        (tmp_path / "ner" / f"{part}.tsv").write_text("text\tlabel\n")
    with pytest.raises(UsageError, match="holds no train file"):
        classification_files(tmp_path, Classification())


def test_one_of_several_data_sets_is_chosen(data: Path) -> None:
    inner = data / "classification" / "pumps"
    inner.mkdir()
    for path in [*inner.parent.glob("*.csv*")]:
        path.rename(inner / path.name)
    assert classification_files(data, Classification())[0] == inner / "train.csv"
    other = inner.parent / "valves"
    other.mkdir()
    (other / "train.tsv").write_text("")
    with pytest.raises(UsageError, match=r"\(pumps, valves\).*classification\.dataset=pumps"):
        classification_files(data, Classification())
    assert classification_files(data, Classification(dataset="pumps"))[0] == inner / "train.csv"
    with pytest.raises(UsageError, match="no folder 'pump': did you mean 'pumps'"):
        classification_files(data, Classification(dataset="pump"))


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("a.csv", "", "is empty"),
        ("a.csv", "text,label\n", "holds no examples"),
        (
            "a.csv",
            "sentence,label\na,b\n",
            r"line 1: no column 'text'.*'sentence', 'label'.*\.text=",
        ),
        ("a.csv", "text,class\na,b\n", r"no column 'label'.*classification\.label=NAME"),
        ("a.csv", "text,label,text\na,b,c\n", "two columns are called 'text'"),
        ("a.csv", "text,label\na,b\nc,d,e\n", "line 3: 3 columns instead of 2"),
        ("a.csv", "text;label\na;b\n", r"line 1: the columns are separated by ';': save"),
        ("a.tsv", "text,label\na,b\n", r"separated by ',': save the file as \.csv"),
        ("a.csv", "a b,x\nc d,y\n", r"no column 'text'; the first line names 'a b', 'x'"),
        ("a.csv", "text\na\n", "no column 'label', without which nothing can be scored"),
        ("a.csv", 'text,label\na,b\n"c,d\n', r"line 3: no record of \.csv"),
        ("a.csv", 'text,label\n"a "b" c",x\n', r"line 2: .* one within the text is doubled"),
        ("a.csv", f"text,label\na,{'9' * 5000}\n", r"line 2: the label has 5,000 characters"),
        ("a.tsv", "text\tlabel\na\t \n", "line 2: the label is empty"),
        ("a.jsonl", '{"text": "a", "label": 0.5}', r"line 1: the label is 0\.5; a class is text"),
        ("a.jsonl", '{"text": "a", "label": null}', "the label is None"),
        ("a.jsonl", '{"text": 3, "label": 1}', "lacks text"),
        ("a.jsonl", '{"label": 1}', "no key 'text'; there are 'label'"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, name: str, content: str, problem: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=problem):
        read_labelled(tmp_path / name, Classification())


@pytest.mark.parametrize(
    ("train", "dev", "problem"),
    [
        (["x", "y"], ["Y"], r"dev\.tsv has the label 'Y'.*train\.tsv never has; did you mean"),
        (["x", "x"], ["x"], "has one class, 'x'"),
        (["0", "1"], ["-1", "-1"], "has the label -1 throughout.*score one that has labels"),
        ([f"0.{k}" for k in range(60)], ["0.1"], "60 different labels in 60 examples"),
    ],
)
def test_labels_that_are_no_classes_are_refused(
    tmp_path: Path, train: list[str], dev: list[str], problem: str
) -> None:
    for part, labels in (("train", train), ("dev", dev)):
        lines = [f"a text\t{label}" for label in labels]
        (tmp_path / f"{part}.tsv").write_text("\n".join(["text\tlabel", *lines]))
    with pytest.raises(DataError, match=problem):
        ClassificationTask().read(tmp_path)
