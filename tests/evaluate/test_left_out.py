"""What tasks cut or leave out is counted, in their tokens, in result files and in the closing line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from chronomask.evaluate.batches import encode
from chronomask.evaluate.evaluate import evaluate
from chronomask.evaluate.spans import Question, Questions, make_windows
from chronomask.evaluate.subject import Subject
from chronomask.evaluate.tasks import make_tasks
from chronomask.evaluate.tasks.glue import GlueTask
from chronomask.evaluate.tasks.ner import EntityTask, Ner, Tagged
from chronomask.runs.result import TaskResult


@pytest.mark.parametrize("pairs", [None, ["film", "the film", "a", "the the the"]])
def test_cut_examples_are_those_that_an_uncut_row_would_be_longer_than(
    subject: Subject, pairs: list[str] | None
) -> None:
    texts = ["the film", "the film was very warm", "", "the film was"]
    whole = encode(subject.tokenizer, texts, pairs, 100)
    cut = encode(subject.tokenizer, texts, pairs, 5)
    lost = np.maximum(whole.lengths - 5, 0)
    assert np.array_equal(whole.lengths - lost, cut.lengths)
    assert list(cut.left_out.items()) == [
        ("examples cut at 5 tokens", np.count_nonzero(lost)),
        ("tokens cut off", lost.sum()),
    ]
    assert not any(whole.left_out.values())


def test_questions_that_are_cut_and_answers_that_no_window_holds(subject: Subject) -> None:
    words = " ".join(["the"] * 12)
    context = f"film {words} warm"
    asked = [("what", "film"), ("what is after key?", context), ("who is after", "warm")]
    questions = [
        Question(str(k), text, 0, (answer,), (context.index(answer),))
        for k, (text, answer) in enumerate(asked)
    ]
    windows = make_windows(
        subject.tokenizer, Questions([context], np.zeros(1, np.int64), questions),
        max_length=16, stride=2, max_question_tokens=3,
    )  # fmt: skip
    assert windows.left_out == {
        "questions cut at 3 tokens": 1,
        "answers that no window holds whole": 1,
    }


def test_words_without_tokens_and_words_that_are_cut(subject: Subject) -> None:
    task = EntityTask(Ner(max_length=8))
    rows = task.encode(subject, Tagged([["the", "\u200b", "z" * 30]], [["O", "O", "O"]]))
    assert rows.left_out == {"words that the tokenizer drops": 1, "words cut at 8 tokens": 1}
    assert rows.lengths.max() == 8


def test_counts_are_in_the_result_file_and_in_the_closing_line(
    subject: Subject, glue: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for folder, length in (("whole", 64), ("cut", 8)):
        tasks = make_tasks(["sts"], [f"max_length={length}"])
        evaluate(subject, tasks, glue, 1, tmp_path / folder, progress=False)
        assert ("left out: " in caplog.text) == (folder == "cut")
    whole, cut = (TaskResult.path_in(tmp_path / name, "sts", 0) for name in ("whole", "cut"))
    assert "left_out" not in json.loads(whole.read_text())
    counts = json.loads(cut.read_text())["left_out"]
    assert counts == TaskResult.load(cut).left_out
    assert counts["tokens cut off"] >= counts["examples cut at 8 tokens"] > 0
    assert f"{counts['examples cut at 8 tokens']} examples cut at 8 tokens (sts)" in caplog.text


def test_what_a_fine_tuned_task_cuts_is_named_by_its_part(subject: Subject, glue: Path) -> None:
    (task,) = make_tasks(["rte"], ["max_length=8", "patience=1", "held_out_share=0.25"])
    assert isinstance(task, GlueTask)
    prepared = task.prepare(subject, glue, False)
    counts = task.left_out(prepared)
    for part in ("training", "held-out", "dev"):
        assert counts[f"{part} examples cut at 8 tokens"] > 0
    assert counts["training rows that are cut off"] == 0
