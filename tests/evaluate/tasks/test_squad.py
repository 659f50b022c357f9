"""SQuAD files, and the whole task."""

from __future__ import annotations

import gzip
import json
import lzma
import re
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from tokenizers import processors
from transformers import ByT5Tokenizer

from chronomask.errors import DataError, UsageError
from chronomask.evaluate.subject import Subject, find_subject
from chronomask.evaluate.tasks.glue import GlueTask
from chronomask.evaluate.tasks.squad import SquadConfig, SquadTask, read_questions
from tests.support.official_files import squad_values, write_squad

SMALL = SquadConfig(max_length=64, stride=16, max_question_tokens=12, epochs=1, batch_size=8)


def articles(number: int, shift: int = 0) -> Any:
    """Contexts in which the answer stands after "key"."""
    made = []
    for k in range(number):
        words = ["the", "film", "was", "very", "warm", "and", "grey"]
        at = (k * 5 + shift) % 6
        answer = ["lovely", "rude", "kind", "cold"][(k + shift) % 4]
        words[at:at] = ["key", answer]
        made.append([(" ".join(words), [("what is after key?", [answer][0])])])
    return squad_values(made)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_squad(tmp_path / "squad", articles(16), articles(6, 1))
    return tmp_path


@pytest.mark.parametrize(("suffix", "opener"), [(".gz", gzip.open), (".xz", lzma.open)])
def test_compressed_files_read_as_plain_ones(data: Path, suffix: str, opener: Any) -> None:
    plain = read_questions(data, "dev")
    path = data / "squad" / "dev-v1.1.json"
    with opener(path.with_name(f"dev-v1.1.some.json{suffix}"), "wb") as file:
        file.write(path.read_bytes())
    with pytest.raises(UsageError, match=r"several dev files \(dev-v1.1.json, dev-v1.1.some.json"):
        read_questions(data, "dev")
    path.unlink()
    packed = read_questions(data, "dev")
    assert (packed.questions, packed.contexts) == (plain.questions, plain.contexts)


def test_truncated_gz_is_refused_by_name(data: Path) -> None:
    path = data / "squad" / "dev-v1.1.json"
    whole = gzip.compress(path.read_bytes())
    path.unlink()
    path.with_name("dev-v1.1.json.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"dev-v1.1.json.gz is damaged or cut short"):
        read_questions(data, "dev")


def change(values: Any, **changes: Any) -> Any:
    question = values["data"][1]["paragraphs"][0]["qas"][0]
    question.update(changes)
    return values


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (lambda v: {"version": "1.1"}, "no key 'data'"),
        (lambda v: {"data": []}, "holds no questions"),
        (lambda v: [1], "expected data > paragraphs"),
        (lambda v: change(v, answers=[]), r"question 1-0-0: no answer.*v2.0"),
        (lambda v: change(v, id="0-0-0"), "question 0-0-0: the id occurs twice"),
        (
            lambda v: change(v, question=None),
            "question 1-0-0: question, context and answers must be text",
        ),
        (
            lambda v: change(v, answers=[{"text": "rude", "answer_start": 0}]),
            "'rude' is not at character 0.*'key '.*; the context does not hold it",
        ),
    ],
)
def test_bad_files_are_refused_by_place(data: Path, broken: Any, message: str) -> None:
    path = data / "squad" / "dev-v1.1.json"
    path.write_text(json.dumps(broken(json.loads(path.read_text()))))
    with pytest.raises(DataError, match=message):
        read_questions(data, "dev")


@pytest.mark.parametrize(
    ("start", "message"),
    [
        (0, r"it is at character 4: set"),
        (7, r"it is at character 4 \(the file counts bytes of UTF-8, .*set answer_start to that$"),
        (5, r"it is at character 4 \(the file counts units of UTF-16, .*set"),
        (17, r"it is at character 15: set"),
    ],
)
def test_an_answer_at_another_place_is_refused_with_its_place(
    data: Path, start: int, message: str
) -> None:
    path = data / "squad" / "dev-v1.1.json"
    values = json.loads(path.read_text())
    paragraph = values["data"][1]["paragraphs"][0]
    paragraph["context"] = "\U0001f511 a key or two key"
    assert (len("\U0001f511 a ".encode()), paragraph["context"].index("key")) == (7, 4)
    change(values, answers=[{"text": "key", "answer_start": start}])
    path.write_text(json.dumps(values))
    with pytest.raises(DataError, match=message):
        read_questions(data, "dev")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "dev-v1.1.json is not JSON"),
        (b'{"data": []}\n{"data": []}', "goes on after one JSON value, at line 2, column 1"),
        (b"[" * 100_000, "dev-v1.1.json is nested too deeply"),
        (b'{"data":\n"\xe9"}', "dev-v1.1.json, line 2: byte 0xe9 is not UTF-8"),
        ('{"data": []}'.encode("utf-16"), "dev-v1.1.json is UTF-16"),
    ],
)
def test_bytes_that_are_no_json_are_refused(data: Path, content: bytes, message: str) -> None:
    (data / "squad" / "dev-v1.1.json").write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_questions(data, "dev")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        *(
            (
                {"answers": [{"text": "rude", "answer_start": start}]},
                "0-0: answer_start is .* whole number",
            )
            for start in ("4", 4.5, float("inf"), float("nan"), True, None)
        ),
        ({"answers": [{"text": 5, "answer_start": 0}]}, "answers must be text"),
        ({"answers": "rude"}, "question 1-0-0: string indices"),
        ({"question": "a \ud800"}, "question 1-0-0: .* is half of a character"),
    ],
)
def test_values_of_another_shape_are_refused(data: Path, changes: Any, message: str) -> None:
    path = data / "squad" / "dev-v1.1.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()), **changes)))
    with pytest.raises(DataError, match=message):
        read_questions(data, "dev")


def test_missing_file_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"train-v1.1.json does not exist \(nor .json.gz"):
        read_questions(tmp_path, "train")


def test_hub_rows_are_the_same_questions(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = read_questions(data, "dev")
    rows = [
        {
            "id": question.id,
            "title": f"t{files.articles[question.context]}",
            "context": files.contexts[question.context],
            "question": question.text,
            "answers": {"text": list(question.answers), "answer_start": list(question.starts)},
        }
        for question in files.questions
    ]
    hub = datasets.Dataset.from_list(rows)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: hub)
    there = read_questions(Path("hub"), "dev")
    assert (there.questions, there.contexts) == (files.questions, files.contexts)
    np.testing.assert_array_equal(there.articles, files.articles)


def test_a_model_learns_to_answer(subject: Subject, data: Path) -> None:
    write_squad(data / "squad", articles(96), articles(12, 1))
    task = SquadTask(SMALL.replace(["epochs=16", "learning_rate=4e-3", "batch_size=12"]))
    task.check(subject, data)
    result = task.run(subject, data, 0, progress=False)
    assert result.metrics["f1"] > 90
    assert result.examples["f1"].shape == result.examples["exact_match"].shape == (12,)
    assert result.metrics["exact_match"] == pytest.approx(result.examples["exact_match"].mean())
    assert result.num_examples == {
        "train": 96, "train_windows": 96, "dev": 12, "dev_windows": 12,
    }  # fmt: skip
    assert result.primary == "f1"


def test_same_seed_same_numbers_and_limit_is_in_the_recipe(subject: Subject, data: Path) -> None:
    config = SMALL.replace(["limit=5"])
    results = [SquadTask(config).run(subject, data, seed, False) for seed in (3, 3)]
    np.testing.assert_array_equal(results[0].examples["f1"], results[1].examples["f1"])
    assert results[0].recipe["limit"] == 5
    assert results[0].num_examples["dev"] == 5


def test_windows_longer_than_the_model_are_refused(subject: Subject, data: Path) -> None:
    with pytest.raises(
        UsageError, match=r"max_length is 384.*--set squad.max_length=128"
    ) as refused:
        SquadTask().check(subject, data)
    said = re.findall(r"--set squad\.(\w+=\d+)", str(refused.value))
    assert [each.partition("=")[0] for each in said] == [
        "max_length",
        "max_question_tokens",
        "stride",
    ]
    SquadTask(SquadConfig().replace(said)).check(subject, data)


def test_tokenizers_that_cannot_serve_are_refused_beforehand(
    model_folder: Path, data: Path, glue: Path
) -> None:
    slow = find_subject(str(model_folder))
    slow.__dict__["tokenizer"] = ByT5Tokenizer()
    with pytest.raises(UsageError, match="no character offsets"):
        SquadTask(SMALL).check(slow, data)
    running = find_subject(str(model_folder))
    running.tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    for task, folder in ((SquadTask(SMALL), data), (GlueTask("rte"), glue)):
        with pytest.raises(UsageError, match="puts nothing between two texts"):
            task.check(running, folder)
    GlueTask("cola").check(running, glue)


def test_learning_rate_is_chosen_on_other_articles(subject: Subject, data: Path) -> None:
    config = SMALL.replace(["learning_rates=[1e-9,5e-3]", "epochs=4", "held_out_share=0.25"])
    result = SquadTask(config).run(subject, data, 0, False)
    assert set(result.details) == {
        "learning_rate", "held_out_score_at_1e-09", "held_out_score_at_0.005",
    }  # fmt: skip
    better = max(1e-9, 5e-3, key=lambda rate: result.details[f"held_out_score_at_{rate:g}"])
    assert result.details["learning_rate"] == better
