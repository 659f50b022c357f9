"""What tasks cut or leave out is counted, in their tokens, in result files and in the closing line."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import processors
from transformers import ByT5Tokenizer

from chronomask.evaluate.batches import encode
from chronomask.evaluate.evaluate import evaluate
from chronomask.evaluate.spans import Question, Questions, make_windows
from chronomask.evaluate.subject import Subject
from chronomask.evaluate.tasks import make_tasks
from chronomask.evaluate.tasks.glue import GlueTask
from chronomask.evaluate.tasks.ner import EntityTask, Ner, Tagged
from chronomask.runs.result import TaskResult
from tests.support.official_model import make_tokenizer


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


_ENDS = [("[CLS]", 2), ("[SEP]", 3)]
_POST_PROCESSORS = {
    "none": None,
    "byte level": processors.ByteLevel(),
    "bert": processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2)),
    "roberta": processors.RobertaProcessing(("[SEP]", 3), ("[CLS]", 2)),
    "second text first": processors.TemplateProcessing(
        single="$A [SEP]", pair="$B:1 [SEP] $A:0 [CLS]:0", special_tokens=_ENDS
    ),
    "sequence": processors.Sequence(
        [
            processors.ByteLevel(),
            processors.TemplateProcessing(
                single="[CLS] $A [SEP]",
                pair="[CLS] $A [SEP] [SEP] $B:1 [SEP]:1",
                special_tokens=_ENDS,
            ),
        ]
    ),
}


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("name", _POST_PROCESSORS)
def test_rows_are_cut_as_the_tokenizer_cuts_them(name: str, side: str) -> None:
    tokenizer = make_tokenizer()
    tokenizer.backend_tokenizer.post_processor = _POST_PROCESSORS[name]
    tokenizer.truncation_side = side
    _check_encoding(tokenizer)


def test_rows_of_a_slow_tokenizer_are_cut_as_it_cuts_them() -> None:
    _check_encoding(ByT5Tokenizer())


def _check_encoding(tokenizer: Any) -> None:
    """Rows, types and counts are those of texts that are tokenised one by one, cut and whole."""
    rng = np.random.default_rng(5)
    words = ["the", "film", "was", "warm", "what", "key"]

    def texts() -> list[str]:
        return [" ".join(rng.choice(words, n)) for n in (*range(8), *rng.integers(0, 30, 200))]

    for first, second in ((texts(), None), (texts(), texts())):
        for longest in (8, 9, 13):
            rows, types, left_out = _one_by_one(tokenizer, first, second, longest)
            found = encode(tokenizer, first, second, longest)
            bounds = found.bounds.tolist()
            assert [found.ids[a:b].tolist() for a, b in pairwise(bounds)] == rows
            assert dict(found.left_out) == left_out
            assert left_out["tokens cut off"] > 0
            assert ([] if found.types is None else found.types.tolist()) == [*chain(*types)]


def _one_by_one(
    tokenizer: Any, texts: Sequence[str], pairs: Sequence[str] | None, longest: int
) -> tuple[list[list[int]], list[list[int]], dict[str, int]]:
    rows, types, cut, lost = [], [], 0, 0
    for number, text in enumerate(texts):
        inputs = [text], None if pairs is None else [pairs[number]]
        has_types = pairs is not None
        own = tokenizer(
            *inputs, truncation=True, max_length=longest, return_token_type_ids=has_types
        )
        whole = tokenizer(*inputs, verbose=False)["input_ids"][0]
        rows += own["input_ids"]
        types += own.get("token_type_ids", [])
        cut += len(whole) > len(rows[-1])
        lost += len(whole) - len(rows[-1])
    return rows, types, {f"examples cut at {longest} tokens": cut, "tokens cut off": lost}


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
