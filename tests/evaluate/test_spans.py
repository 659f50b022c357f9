"""Windows beside the tokenizer's own, and best spans beside a search through everything."""

from __future__ import annotations

import logging
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from chronomask.errors import UsageError
from chronomask.evaluate.spans import (
    Question,
    Questions,
    Span,
    best_spans,
    make_windows,
    merge_spans,
)
from tests.support.official_model import make_tokenizer

CONTEXTS = [
    "The film was very warm and the actor was rude. " * 6 + "A key is here, and a story was grey.",
    "Short one.",
    "  Leading spaces, the éß and 12-34!  ",
    "a" * 90 + " the end",
]


def byte_level() -> PreTrainedTokenizerFast:
    """A tokenizer framed as RoBERTa's: <s> A </s></s> B </s>, without segments."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {piece: k for k, piece in enumerate(["<s>", "<pad>", "</s>", *alphabet])}
    backend = Tokenizer(models.BPE(vocabulary, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, cls_token="<s>", sep_token="</s>", pad_token="<pad>"
    )


def begun() -> PreTrainedTokenizerFast:
    """A tokenizer whose classification token is its second: [UNK] [CLS] A [SEP] B [SEP], of two segments."""
    tokenizer = make_tokenizer()
    pair = "[UNK]:0 [CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1"
    names = ("[UNK]", "[CLS]", "[SEP]")
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="[UNK] [CLS] $A [SEP]",
        pair=pair,
        special_tokens=[(name, tokenizer.convert_tokens_to_ids(name)) for name in names],
    )
    return tokenizer


def without(taken: str) -> PreTrainedTokenizerFast:
    """A tokenizer whose normalizer takes characters away."""
    tokenizer = make_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace(Regex(taken), "")
    return tokenizer


def questions() -> Questions:
    asked = []
    for number, context in enumerate(CONTEXTS):
        for word in ("the", "film was", "grey", "one.", "end", "a" * 60, "12-34!"):
            at = context.rfind(word)
            if at >= 0:
                text = f" what is {word[:5]} after the warm story?"
                asked.append(Question(f"{number}{word}", text, number, (word,), (at,)))
    return Questions(CONTEXTS, np.zeros(len(CONTEXTS), np.int64), asked)


@pytest.mark.parametrize(
    "tokenizer",
    [make_tokenizer(), byte_level(), begun(), without("[0-9]"), without("[0-9a]")],
    ids=["bert", "byte-level", "begun", "without digits", "without digits and a letter"],
)
@pytest.mark.parametrize(("max_length", "stride"), [(64, 8), (64, 0), (110, 40), (2000, 128)])
def test_windows_are_the_tokenizers_own(
    tokenizer: PreTrainedTokenizerFast, max_length: int, stride: int
) -> None:
    all_questions = questions()
    long_enough = 50 if max_length > 64 else 45
    windows = make_windows(
        tokenizer, all_questions, max_length=max_length, stride=stride,
        max_question_tokens=long_enough,
    )  # fmt: skip
    theirs = tokenizer(
        [question.text.strip() for question in all_questions.questions],
        [CONTEXTS[question.context] for question in all_questions.questions],
        truncation="only_second",
        max_length=max_length,
        stride=stride,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
        return_token_type_ids=True,
    )
    encoded = windows
    assert all(row[windows.null_at] == tokenizer.cls_token_id for row in theirs["input_ids"])
    one_type = all(set(types) == {0} for types in theirs["token_type_ids"])
    assert (windows.types is None) == one_type
    assert windows.question.tolist() == theirs["overflow_to_sample_mapping"]
    for k, (row, spans) in enumerate(
        zip(theirs["input_ids"], theirs["offset_mapping"], strict=True)
    ):
        inside = slice(encoded.bounds[k], encoded.bounds[k + 1])
        assert encoded.ids[inside].tolist() == row
        if encoded.types is not None:
            assert encoded.types[inside].tolist() == theirs["token_type_ids"][k]
        of_context = [k for k, n in enumerate(theirs.sequence_ids(k)) if n == 1]
        assert windows.context_at[k] == of_context[0]
        text = CONTEXTS[all_questions.questions[windows.question[k]].context]
        # At a window's first token RoBERTa's own offsets may take in the space before it.
        ours, own = (
            [text[a:b].strip() for a, b in places]
            for places in (windows.offsets[k].tolist(), [spans[place] for place in of_context])
        )
        assert ours == own


@pytest.mark.parametrize("tokenizer", [make_tokenizer(), begun()], ids=["bert", "begun"])
@pytest.mark.parametrize("stride", [0, 8, 20])
@pytest.mark.parametrize("max_length", range(57, 73))  # windows end at every token of an answer
def test_gold_places_cover_the_answer_or_point_at_cls(
    tokenizer: PreTrainedTokenizerFast, max_length: int, stride: int
) -> None:
    all_questions = questions()
    windows = make_windows(
        tokenizer, all_questions, max_length=max_length, stride=stride, max_question_tokens=30
    )
    found = set()
    for k, (first, last) in enumerate(windows.answer):
        question = all_questions.questions[windows.question[k]]
        begin, end = question.starts[0], question.starts[0] + len(question.answers[0])
        offsets = windows.offsets[k]
        holds_all = offsets[0, 0] <= begin and end <= offsets[-1, 1]
        if not holds_all:
            assert (first, last) == (windows.null_at, windows.null_at)
            continue
        found.add(question.id)
        at = windows.context_at[k]
        assert (offsets[first - at, 0], offsets[last - at, 1]) == (begin, end)
    # An answer as long as the windows' overlap is whole in one of them.
    short = {q.id for q in all_questions.questions if len(q.answers[0]) < 10}
    assert stride == 0 or short <= found


def test_every_context_of_many_has_its_own_windows() -> None:
    """Contexts are tokenised some at a time: none is lost or doubled where one lot ends."""
    texts = [f"the film {k}" for k in range(1030)]
    asked = [Question(str(k), "what?", k, (str(k),), (9,)) for k in range(len(texts))]
    many = Questions(texts, np.zeros(len(texts), np.int64), asked)
    windows = make_windows(make_tokenizer(), many, max_length=64, stride=8, max_question_tokens=8)
    assert windows.question.tolist() == list(range(len(texts)))
    read = make_tokenizer()(texts, add_special_tokens=False)["input_ids"]
    for k, at in enumerate(windows.context_at):
        row = windows.ids[windows.bounds[k] : windows.bounds[k + 1]]
        assert row[at:-1].tolist() == read[k]


@pytest.mark.parametrize("at_once", [1, 2, 7])
def test_windows_do_not_depend_on_how_many_questions_are_tokenised_at_once(
    at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: dict[str, Any] = {"max_length": 40, "stride": 8, "max_question_tokens": 8}
    expected = make_windows(make_tokenizer(), questions(), **sizes)
    monkeypatch.setattr("chronomask.evaluate.spans._QUESTIONS_AT_ONCE", at_once)
    found = make_windows(make_tokenizer(), questions(), **sizes)
    for name in ("ids", "types", "bounds", "question", "context_at", "answer"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    for own, other in zip(found.offsets, expected.offsets, strict=True):
        np.testing.assert_array_equal(own, other)
    assert found.left_out == expected.left_out


def test_a_context_longer_than_the_model_takes_is_not_warned_of(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is cut into windows, so the tokenizer's own warning of errors to come would be wrong."""
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    tokenizer = make_tokenizer()
    tokenizer.model_max_length = 64
    make_windows(tokenizer, questions(), max_length=64, stride=8, max_question_tokens=30)
    assert "longer than the specified maximum" not in caplog.text
    tokenizer(CONTEXTS)
    assert "longer than the specified maximum" in caplog.text


def all_spans(start: np.ndarray, end: np.ndarray, max_tokens: int) -> list[tuple[float, int, int]]:
    """Every span there is, best first: the search that needs no thought."""
    spans = [
        (float(start[i] + end[j]), i, j)
        for i in range(len(start))
        for j in range(i, min(i + max_tokens, len(end)))
    ]
    return sorted(spans, key=lambda span: (-span[0], span[1], span[2]))


@given(
    st.lists(st.tuples(st.integers(-5, 5), st.integers(-5, 5)), max_size=25),
    st.integers(1, 30),
    st.integers(1, 40),
)
@example([(1, 2), (3, 4), (0, 5)], 2, 1)
@example([(1, 2), (3, 4), (0, 5)], 2, 2)
def test_best_spans_equal_a_search_through_all(
    scores: list[tuple[int, int]], max_tokens: int, number: int
) -> None:
    table = np.array(scores, np.float32).reshape(-1, 2)
    expected = all_spans(table[:, 0], table[:, 1], max_tokens)[:number]
    assert best_spans(table[:, 0], table[:, 1], max_tokens, number) == expected


def test_best_over_windows_equals_a_search_over_the_whole_context() -> None:
    """Each token scored once, however many windows it is in: windows must not change the answer."""
    tokenizer = make_tokenizer()
    text = " ".join(f"the film{k} was grey" for k in range(60))
    one = Questions([text], np.zeros(1, np.int64), [Question("q", "what?", 0, ("the",), (0,))])
    windows = make_windows(tokenizer, one, max_length=60, stride=20, max_question_tokens=8)
    assert len(windows.question) > 5
    spans = np.unique(np.concatenate(windows.offsets), axis=0)
    rng = np.random.default_rng(0)
    for _ in range(20):
        start, end = rng.normal(size=(2, len(spans)))
        place = {tuple(span): k for k, span in enumerate(spans.tolist())}
        found = []
        for offsets in windows.offsets:
            here = [place[tuple(span)] for span in offsets.tolist()]
            for score, first, last in best_spans(start[here], end[here], 12, 5):
                found.append(Span(-score, int(offsets[first, 0]), int(offsets[last, 1])))
        # Spans of up to 20 tokens, the overlap, are whole in some window.
        expected = [
            (score, int(spans[i, 0]), int(spans[j, 1])) for score, i, j in all_spans(start, end, 12)
        ][:5]
        merged = merge_spans(found, 5)
        assert [(-s.minus_score, s.start, s.end) for s in merged] == expected


def test_a_tokenizer_without_offsets_is_refused() -> None:
    with pytest.raises(UsageError, match=r"ByT5Tokenizer.*no character offsets"):
        make_windows(ByT5Tokenizer(), questions(), max_length=64, stride=8, max_question_tokens=30)


def test_windows_without_room_are_refused() -> None:
    with pytest.raises(
        UsageError,
        match=r"leaves 11 tokens .* --set squad.max_question_tokens=15 --set squad.stride=11$",
    ):
        make_windows(
            make_tokenizer(), questions(), max_length=64, stride=11, max_question_tokens=50
        )
    for length in range(16, 65):  # the way out works
        with pytest.raises(UsageError, match="such as") as refused:
            make_windows(
                make_tokenizer(),
                questions(),
                max_length=length,
                stride=128,
                max_question_tokens=64,
            )
        asked, shared = map(int, re.findall(r"=(\d+)", str(refused.value)))
        make_windows(
            make_tokenizer(),
            questions(),
            max_length=length,
            stride=shared,
            max_question_tokens=asked,
        )


def test_a_tokenizer_that_makes_no_token_is_refused() -> None:
    with pytest.raises(UsageError, match="makes no token of any text"):
        make_windows(without("."), questions(), max_length=64, stride=8, max_question_tokens=20)
