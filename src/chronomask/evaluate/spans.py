"""Questions on long contexts as windows of tokens, and the best answer over all windows of a question.

A window is question and part of the context, between the tokenizer's special tokens; neighbouring windows
of a context share ``stride`` tokens. Contexts are tokenised once, however many questions there are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from chronomask.errors import UsageError
from chronomask.evaluate.batches import Encoded, check_pairs, end_to_end
from chronomask.progress import NOT_SHOWN, Progress

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "Question",
    "Questions",
    "Span",
    "Windows",
    "best_spans",
    "fitting_sizes",
    "make_windows",
    "merge_spans",
]

_QUESTIONS_AT_ONCE = 1024


@dataclass(frozen=True, slots=True)
class Question:
    """One question on one context. Training takes the first answer, scoring all of them; an unanswerable
    question has none.
    """

    id: str
    text: str
    context: int
    """its context's place among the contexts"""
    answers: tuple[str, ...]
    starts: tuple[int, ...]
    """where each answer begins in the context, in characters"""


@dataclass(frozen=True, slots=True)
class Questions:
    """Questions in file order, and the contexts they are about."""

    contexts: list[str]
    articles: NDArray[np.int64]
    """[number of contexts]: the article each is of"""
    questions: list[Question]

    def __len__(self) -> int:
        return len(self.questions)

    def take(self, index: NDArray[np.int64]) -> Questions:
        """Some of the questions, in the order of ``index``."""
        return Questions(self.contexts, self.articles, [self.questions[i] for i in index])


@dataclass(frozen=True, slots=True, order=True)
class Span:
    """An answer: characters ``start`` to ``end`` of the context. Orders best first."""

    minus_score: float
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Windows(Encoded):
    """W windows as tokens, those of a question one after the other.

    ``question`` int64 [W]: the place of its question; ``context_at`` int64 [W]: place of its first
    token of the context; ``offsets`` int32 [W] of [n, 2]: characters of its n tokens of the context;
    ``answer`` int64 [W, 2]: places of the first and last token of the first gold answer, both that of
    the classification token where the window does not hold all of it; ``null_at``: the place of that.
    """

    question: NDArray[np.int64]
    context_at: NDArray[np.int64]
    offsets: list[NDArray[np.int32]]
    answer: NDArray[np.int64]
    null_at: int


def fitting_sizes(
    tokenizer: PreTrainedTokenizerBase, *, max_length: int, stride: int, max_question_tokens: int
) -> dict[str, int]:
    """What to set instead where windows of ``max_length`` have no room for them; empty where they have.

    Raises UsageError as :func:`make_windows` does for a tokenizer.
    """
    left = max_length - _Frame.of(tokenizer).size
    if left - max_question_tokens > stride:
        return {}
    sizes = {"max_question_tokens": max_question_tokens, "stride": stride}
    return {name: min(size, left // 4) for name, size in sizes.items()}


def make_windows(
    tokenizer: PreTrainedTokenizerBase,
    questions: Questions,
    *,
    max_length: int,
    stride: int,
    max_question_tokens: int,
    task: str = "squad",
    shown: Progress = NOT_SHOWN,
) -> Windows:
    """Windows of at most ``max_length`` tokens; questions are cut at ``max_question_tokens``.

    ``task``: whose settings a refusal names; ``shown``: counts the questions. Raises UsageError for a
    tokenizer without character offsets, and for sizes that leave no room.
    """
    frame = _Frame.of(tokenizer)
    fitting = fitting_sizes(
        tokenizer, max_length=max_length, stride=stride, max_question_tokens=max_question_tokens
    )
    if fitting:
        ways = " ".join(f"--set {task}.{key}={value}" for key, value in fitting.items())
        room = max_length - max_question_tokens - frame.size
        raise UsageError(
            f"max_length {max_length} leaves {room} tokens for the context beside a question of "
            f"{max_question_tokens}, no more than the {stride} that windows share: lower these, "
            f"such as {ways}"
        )
    rows: list[NDArray[np.int32]] = []
    types: list[NDArray[np.uint8]] = []
    places: list[tuple[int, int, int, int]] = []
    offsets: list[NDArray[np.int32]] = []
    shortened = unseen = 0
    for number, (question, asked, ids, spans) in enumerate(_tokens_of(tokenizer, questions)):
        shortened += len(asked) > max_question_tokens
        asked = asked[:max_question_tokens]
        gold = _gold_tokens(question, spans)
        before = frame.before + len(asked)
        size = max_length - frame.size - len(asked)
        seen = False
        for begin in range(0, max(1, len(ids)), size - stride):
            end = min(begin + size, len(ids))
            row, kinds = frame.build(asked, ids[begin:end])
            inside = gold is not None and begin <= gold[0] and gold[1] < end
            seen = seen or inside
            shift = before - begin
            first, last = gold if inside and gold else (frame.cls - shift, frame.cls - shift)
            rows.append(row)
            types.append(kinds)
            places.append((number, before, first + shift, last + shift))
            offsets.append(spans[begin:end])
            if end == len(ids):
                break
        unseen += bool(question.answers) and not seen
        shown.advance()
    table = np.asarray(places, np.int64)
    tokens = end_to_end(rows, types if frame.two_types else None, tokenizer)
    return Windows(
        tokens.ids,
        tokens.types,
        tokens.bounds,
        tokens.pad_token_id,
        question=table[:, 0],
        context_at=table[:, 1],
        offsets=offsets,
        answer=table[:, 2:],
        null_at=frame.cls,
        left_out={
            f"questions cut at {max_question_tokens} tokens": shortened,
            "answers that no window holds whole": unseen,
        },
    )


def best_spans(
    start: NDArray[Any], end: NDArray[Any], max_tokens: int, number: int = 1
) -> list[tuple[float, int, int]]:
    """The ``number`` best (score, first, last) of spans of at most ``max_tokens`` tokens, best first.

    ``start``, ``end`` [n]: scores of tokens as first and as last. All spans are looked at; of equal
    ones the earlier, then the shorter comes first.
    """
    size = start.size
    if not size:
        return []
    width = min(max_tokens, size)
    ends = np.concatenate((end, np.full(width - 1, -np.inf, end.dtype)))
    scores = start[:, None] + np.lib.stride_tricks.sliding_window_view(ends, width)
    flat = scores.ravel()
    order = [flat.argmax()] if number == 1 else np.argsort(-flat, kind="stable")[:number]
    found = [(float(flat[k]), *divmod(int(k), width)) for k in order]
    return [(score, first, first + more) for score, first, more in found if score > -np.inf]


def merge_spans(found: Sequence[Span], number: int) -> list[Span]:
    """The best ``number`` over all windows of a question, each span of the text once."""
    best: dict[tuple[int, int], Span] = {}
    for span in sorted(found):
        best.setdefault((span.start, span.end), span)
    return list(best.values())[:number]


def _any_text(tokenizer: PreTrainedTokenizerBase) -> str:
    """A text of at least one token; raises UsageError where no entry's text has any.

    A normalizer may take digits away, or letters.
    """
    special = set(tokenizer.all_special_ids)
    others = (number for number in tokenizer.get_vocab().values() if number not in special)
    for text in chain(("1", "a"), (str(tokenizer.decode([number])) for number in others)):
        if tokenizer.encode(text, add_special_tokens=False):
            return text
    raise UsageError(
        f"the tokenizer ({type(tokenizer).__name__}) makes no token of any text, nor of its entries: "
        "its normalizer takes all of them away; save the model with the tokenizer it was trained with"
    )


@dataclass(frozen=True, slots=True)
class _Frame:
    """The special tokens that a tokenizer puts around a pair of texts, and their types."""

    parts: tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]]
    """before the first text, between the two, after the second"""
    part_types: tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint8]]
    text_types: tuple[int, int]
    cls: int
    """place of the classification token"""
    size: int
    """how many there are"""
    before: int
    """how many come before the second text"""

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> _Frame:
        """The frame of a tokenizer; raises UsageError for one without offsets or that runs texts together."""
        if not tokenizer.is_fast:
            raise UsageError(
                f"the tokenizer ({type(tokenizer).__name__}) gives no character offsets, which "
                "answers need: save the model with a fast tokenizer (tokenizer.json)"
            )
        check_pairs(tokenizer)
        text = _any_text(tokenizer)
        probe = tokenizer(text, text, return_token_type_ids=True)
        ids = np.asarray(probe["input_ids"], np.int32)
        types = np.asarray(probe["token_type_ids"], np.uint8)
        of_text = probe.sequence_ids()
        first, second = ([k for k, n in enumerate(of_text) if n == which] for which in (0, 1))
        cuts = (slice(0, first[0]), slice(first[-1] + 1, second[0]), slice(second[-1] + 1, None))
        parts = (ids[cuts[0]], ids[cuts[1]], ids[cuts[2]])
        at = np.flatnonzero(parts[0] == tokenizer.cls_token_id)
        return cls(
            parts,
            (types[cuts[0]], types[cuts[1]], types[cuts[2]]),
            (int(types[first[0]]), int(types[second[0]])),
            int(at[0]) if at.size else 0,
            sum(part.size for part in parts),
            parts[0].size + parts[1].size,
        )

    @property
    def two_types(self) -> bool:
        return self.text_types != (0, 0)

    def build(
        self, first: Sequence[int], second: NDArray[np.int32]
    ) -> tuple[NDArray[np.int32], NDArray[np.uint8]]:
        a, b, c = self.parts
        ids = np.concatenate((a, np.asarray(first, np.int32), b, second, c))
        one, two = self.text_types
        kinds = np.concatenate(
            (
                self.part_types[0],
                np.full(len(first), one, np.uint8),
                self.part_types[1],
                np.full(second.size, two, np.uint8),
                self.part_types[2],
            )
        )
        return ids, kinds


def _tokens_of(
    tokenizer: PreTrainedTokenizerBase, questions: Questions
) -> Iterator[tuple[Question, list[int], NDArray[np.int32], NDArray[np.int32]]]:
    """Each question with its own token ids, and those and the characters of its context."""
    of_context: dict[int, tuple[NDArray[np.int32], NDArray[np.int32]]] = {}
    for begin in range(0, len(questions), _QUESTIONS_AT_ONCE):
        some = questions.questions[begin : begin + _QUESTIONS_AT_ONCE]
        texts = tokenizer([own.text.strip() for own in some], add_special_tokens=False)
        needed = sorted({own.context for own in some} - of_context.keys())
        tokens = _tokenise(tokenizer, [questions.contexts[k] for k in needed])
        of_context.update(zip(needed, tokens, strict=True))
        for question, asked in zip(some, texts["input_ids"], strict=True):
            yield question, asked, *of_context[question.context]


def _tokenise(
    tokenizer: PreTrainedTokenizerBase, texts: list[str]
) -> list[tuple[NDArray[np.int32], NDArray[np.int32]]]:
    """Token ids int32 [n] and characters int32 [n, 2] of each text."""
    if not texts:
        return []
    encoded = tokenizer(
        texts,
        add_special_tokens=False,
        return_offsets_mapping=True,
        verbose=False,  # texts longer than the model's rows are cut into windows
    )
    return [
        (np.asarray(ids, np.int32), np.asarray(spans, np.int32).reshape(len(ids), 2))
        for ids, spans in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
    ]


def _gold_tokens(question: Question, spans: NDArray[np.int32]) -> tuple[int, int] | None:
    """First and last token of the first answer within the context; None if there is none."""
    if not question.answers:
        return None
    begin = question.starts[0]
    end = begin + len(question.answers[0])
    first = int(np.searchsorted(spans[:, 1], begin, side="right"))
    last = int(np.searchsorted(spans[:, 0], end, side="left")) - 1
    return (first, last) if first <= last else None
