"""SuperGLUE's small tasks: files, the heads against plain versions, learning, and refusals."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import ByT5Tokenizer

from chronomask.errors import DataError, UsageError
from chronomask.evaluate.heads import SpanClassifier
from chronomask.evaluate.subject import Subject, find_subject
from chronomask.evaluate.tasks import REGISTRY, make_tasks
from chronomask.evaluate.tasks.glue import classification_metrics
from chronomask.evaluate.tasks.ner import EntityTask, Ner
from chronomask.evaluate.tasks.superglue import (
    CopaTask,
    Marked,
    SpanTask,
    SuperGlue,
    SuperGlueTask,
)
from tests.support.task_files import superglue_lines, write_superglue

QUICK = SuperGlue(max_length=64, epochs=1, batch_size=4, device="cpu")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_superglue(tmp_path / "superglue")
    return tmp_path


def of(name: str) -> SuperGlueTask:
    (task,) = make_tasks([name])
    assert isinstance(task, SuperGlueTask)
    return task


def tensors(subject: Subject, text: str, pair: str | None) -> dict[str, torch.Tensor]:
    """A row of one text or two, by the tokenizer itself."""
    return dict(
        subject.tokenizer(text, pair, return_tensors="pt", return_token_type_ids=pair is not None)
    )


@pytest.mark.parametrize(
    ("name", "folder", "columns", "classes"),
    [
        ("boolq", "BoolQ", ("passage", "question"), [False, True]),
        ("cb", "CB", ("premise", "hypothesis"), ["entailment", "contradiction", "neutral"]),
        ("superglue_rte", "RTE", ("premise", "hypothesis"), ["entailment", "not_entailment"]),
        ("wic", "WiC", ("sentence1", "sentence2"), [False, True]),
        ("wsc", "WSC", ("text",), [False, True]),
    ],
)
def test_files_are_the_official_ones(
    data: Path, name: str, folder: str, columns: tuple[str, ...], classes: list[Any]
) -> None:
    lines = superglue_lines(12)[folder]
    train, dev = of(name).read(data)
    assert train.texts == [line[columns[0]] for line in lines]
    if len(columns) > 1:
        assert train.pairs == [line[columns[1]] for line in lines]
    assert train.labels.tolist() == [classes.index(line["label"]) for line in lines]
    assert dev["dev"].texts == train.texts[:6]
    if isinstance(train, Marked):
        for (first, second), text, line in zip(train.spans, train.texts, lines, strict=True):
            other = (train.pairs or train.texts)[train.texts.index(text)]
            words = ["film", "film"] if name == "wic" else ["the actor", "warm"]
            assert [text[slice(*first)], other[slice(*second)]] == words, line


def test_the_family_is_all_six_and_none_is_gluess() -> None:
    names = [task.name for task in make_tasks(["superglue"])]
    assert names == ["boolq", "cb", "superglue_rte", "copa", "wic", "wsc"]
    assert REGISTRY["rte"].family == "glue"


def test_each_choice_is_a_row_of_its_own(subject: Subject, data: Path) -> None:
    task = CopaTask("copa", QUICK)
    train, _ = task.read(data)
    part = task.part(subject, train)
    torch.manual_seed(0)
    model = subject.open_as("AutoModelForSequenceClassification", num_labels=1).eval()
    questions = {"cause": "What was the cause of this?", "effect": "What happened as a result?"}
    expected = []
    for line in superglue_lines(12)["COPA"]:
        scores = []
        for choice in (line["choice1"], line["choice2"]):
            context = f"{line['premise']} {questions[line['question']]}"
            inputs = tensors(subject, context, choice)
            with torch.no_grad():
                scores.append(float(model(**inputs).logits[0, 0]))
        expected.append(scores)
    index = np.arange(12)
    with torch.no_grad():
        inputs = part.encoded.batch(index, model, torch.device("cpu"))
        found = task.logits(model(**inputs))
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)
    assert task.answers(model, part).tolist() == np.argmax(expected, 1).tolist()
    target = torch.from_numpy(train.labels)
    loss = task.loss(part, torch.device("cpu"))(model(**inputs), inputs, torch.from_numpy(index))
    by_hand = -torch.log_softmax(torch.tensor(expected), 1)[torch.arange(12), target].mean()
    assert loss.item() == pytest.approx(float(by_hand), abs=1e-5)


@pytest.mark.parametrize("name", ["wic", "wsc"])
def test_the_span_head_sees_the_first_token_and_the_means_of_both_spans(
    subject: Subject, data: Path, name: str
) -> None:
    task = SpanTask(name, QUICK)
    train, _ = task.read(data)
    rows = task.encode(subject, train)
    torch.manual_seed(0)
    head = SpanClassifier(subject.open_as("AutoModel"), 2).eval()
    with torch.no_grad():
        found = head(**rows.batch(np.arange(12), head, torch.device("cpu"))).logits
        for k, text in enumerate(train.texts):
            inputs = tensors(subject, text, None if train.pairs is None else train.pairs[k])
            states = head.encoder(**inputs).last_hidden_state[0]
            words = subject.tokenizer.convert_ids_to_tokens(inputs["input_ids"][0].tolist())
            if name == "wic":
                middle = words.index("[SEP]")
                at = [[max(j for j in range(middle) if words[j] == "film")]]
                at.append([min(j for j in range(middle, len(words)) if words[j] == "film")])
            else:
                at = [[1, 2], [4]]
            parts = [states[0], *(states[place].mean(0) for place in at)]
            expected = head.classifier(torch.cat(parts))
            torch.testing.assert_close(found[k], expected, atol=1e-5, rtol=1e-4)


def test_a_head_on_spans_stops_early_and_chooses_its_rate(subject: Subject, data: Path) -> None:
    recipe = ["epochs=2", "patience=1", "held_out_share=0.25", "learning_rates=[1e-3,1e-9]"]
    task = SpanTask("wsc", QUICK.replace(recipe))
    task.check(subject, data)
    found = task.run(subject, data, 0, False)
    assert found.details["best_epoch"] <= 2
    assert found.num_examples == {"train": 9, "dev": 6}
    assert found.details["learning_rate"] in (1e-3, 1e-9)
    assert task.run(subject, data, 0, False).metrics == found.metrics


def test_macro_f1_by_hand() -> None:
    label, prediction = np.array([0, 0, 1, 2, 2, 2]), np.array([0, 1, 1, 2, 0, 2])
    of_class = [2 * 1 / (2 + 2), 2 * 1 / (2 + 1), 2 * 2 / (2 + 3)]
    found = classification_metrics(("macro_f1",), prediction, label)
    assert found["macro_f1"] == pytest.approx(np.mean(of_class))


def test_spans_whose_number_is_off_are_the_nearest_of_that_text(data: Path) -> None:
    line = {
        "text": "Ann saw Bob, and Ann left.", "label": True, "idx": 0,
        "target": {"span1_text": "Ann", "span1_index": 3, "span2_text": "Bob", "span2_index": 2},
    }  # fmt: skip
    (data / "superglue" / "WSC" / "val.jsonl").write_text(json.dumps(line))
    _, dev = of("wsc").read(data)
    found = dev["dev"]
    assert isinstance(found, Marked)
    assert found.spans == [((17, 20), (8, 11))]


def test_words_that_are_cut_are_counted(subject: Subject, data: Path) -> None:
    task = SpanTask("wic", QUICK.replace(["max_length=8"]))
    train, _ = task.read(data)
    assert task.encode(subject, train).left_out["words that are cut or have no token"] > 0


def test_a_slow_tokenizer_is_refused_beforehand(model_folder: Path, data: Path) -> None:
    slow = find_subject(str(model_folder))
    slow.__dict__["tokenizer"] = ByT5Tokenizer()
    (data / "ner").mkdir()
    for part in ("train", "dev"):
        (data / "ner" / f"{part}.txt").write_text("Bonn B-LOC\n")
    for task in (SpanTask("wic", QUICK), EntityTask(Ner(max_length=64))):
        with pytest.raises(UsageError, match="gives no character offsets"):
            task.check(slow, data)


@pytest.mark.parametrize(
    ("folder", "changes", "message"),
    [
        ("BoolQ", {"label": "maybe"}, "val.jsonl, line 1: label 'maybe'; valid: false, true"),
        ("BoolQ", {"label": None}, "label None; valid"),
        ("CB", {"premise": 5}, "line 1 lacks premise"),
        ("COPA", {"question": "why"}, "question 'why'; valid: cause, effect"),
        ("COPA", {"label": 2}, "label 2; valid: 0, 1"),
        ("WiC", {"start1": None}, "lacks start1 and end1"),
        ("WiC", {"end2": 999}, "characters 2 to 999 are not in sentence2"),
        ("WSC", {"target": 3}, "target is 3"),
        ("WSC", {"target": {"span1_text": "x", "span1_index": 99}}, "span1_index is 99"),
        ("WSC", {"target": {"span1_text": "zz", "span1_index": 0}}, "'zz' is not in the text"),
    ],
)
def test_lines_of_another_shape_are_refused(
    data: Path, folder: str, changes: dict[str, Any], message: str
) -> None:
    path = data / "superglue" / folder / "val.jsonl"
    path.write_text(json.dumps(superglue_lines(1)[folder][0] | changes))
    name = {"BoolQ": "boolq", "CB": "cb", "COPA": "copa", "WiC": "wic", "WSC": "wsc"}[folder]
    with pytest.raises(DataError, match=message):
        of(name).read(data)


def test_missing_empty_and_compressed_files(data: Path) -> None:
    path = data / "superglue" / "CB" / "val.jsonl"
    whole = path.read_bytes()
    path.write_bytes(b"\n")
    with pytest.raises(DataError, match="holds no examples"):
        of("cb").read(data)
    path.unlink()
    with pytest.raises(UsageError, match=r"val\.jsonl does not exist"):
        of("cb").read(data)
    path.with_name("val.jsonl.gz").write_bytes(gzip.compress(whole))
    assert len(of("cb").read(data)[1]["dev"]) == 6
