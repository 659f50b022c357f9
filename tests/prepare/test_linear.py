"""Work is linear in a text, whatever it is a run of: counted in operations, not in seconds."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
from tokenizers import Tokenizer

from chronomask.prepare.config import ByteLevelBPE, EnglishTagger, WordPiece
from chronomask.prepare.rows.annotate import PIECE_CHARACTERS, Annotator
from chronomask.prepare.words.bands import BandWords
from chronomask.prepare.words.tagger import Spans, WordFinder
from chronomask.prepare.words.unicode import UnicodeWords
from tests.support.corpus import made_up_text
from tests.support.odd_tokenizers import MADE

MARKS = ["!", "(", "_", "a", "1", "漢", "👍", "\u0301", "'s", "a ", "\n", " ", "\u200d", ", "]
SIZE = 4_000


class CountingTokenizer:
    """A tokenizer that knows how much text it was given, and how much at a time."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.given = self.longest = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def encode_batch(self, texts: Sequence[str], **options: Any) -> Any:
        self.given += sum(map(len, texts))
        self.longest = max(self.longest, *map(len, texts))
        return self._tokenizer.encode_batch(texts, **options)


class CountingWords(WordFinder):
    """Unicode words, and how much text they were found in."""

    def __init__(self) -> None:
        self.given = self.longest = 0

    def tag(self, texts: Sequence[str]) -> list[Spans]:
        self.given += sum(map(len, texts))
        self.longest = max(self.longest, *map(len, texts))
        return UnicodeWords().tag(texts)


def lines_run(work: Callable[[], Any]) -> int:
    """How many lines of this package ``work`` runs."""
    count = 0

    def in_function(frame: Any, event: str, argument: Any) -> Any:
        nonlocal count
        count += event == "line"
        return in_function

    def in_call(frame: Any, event: str, argument: Any) -> Any:
        return in_function if "chronomask" in frame.f_code.co_filename else None

    before = sys.gettrace()
    sys.settrace(in_call)
    try:
        work()
    finally:
        sys.settrace(before)
    return count


@pytest.fixture(scope="module")
def tokenizers() -> dict[str, Tokenizer]:
    sample = [*made_up_text(40), "".join(MARKS)]
    trained = {
        "wordpiece": WordPiece(vocab_size=300).train(sample),
        "bytes": ByteLevelBPE(vocab_size=330).train(sample),
        "unigram with bytes": MADE["unigram with bytes"](),
    }
    for tokenizer in trained.values():
        tokenizer.encode_special_tokens = True
    return trained


@pytest.fixture(scope="module")
def finders() -> list[WordFinder]:
    return [EnglishTagger().open(), UnicodeWords(), BandWords([["a"], ["!"]])]


@pytest.mark.parametrize("mark", MARKS)
def test_tokenising_and_tagging_a_run(
    mark: str, tokenizers: dict[str, Tokenizer], finders: list[WordFinder]
) -> None:
    # Every tagger with one tokenizer, and every tokenizer with one tagger.
    pairs = [(tokenizers["wordpiece"], finder) for finder in finders]
    pairs += [(tokenizer, finders[1]) for tokenizer in tokenizers.values()]
    for tokenizer, finder in pairs:
        sizes = []
        for size in (100, SIZE, 2 * SIZE):  # what is done only once is done in the first
            annotator = Annotator(tokenizer, [0], finder)
            text = (mark * size)[:size]
            sizes.append(lines_run(partial(list, annotator.annotate([text]))))
        assert sizes[2] <= 2.2 * sizes[1] + 500, (type(finder).__name__, sizes)


@pytest.mark.parametrize("keep", [True, False])
def test_every_character_is_given_once_and_few_at_a_time(
    keep: bool, tokenizers: dict[str, Tokenizer]
) -> None:
    for size in (3 * PIECE_CHARACTERS, 6 * PIECE_CHARACTERS + 7):
        finder, tokenizer = CountingWords(), CountingTokenizer(tokenizers["wordpiece"])
        annotator = Annotator(tokenizer, [0], finder, keep=keep)  # type: ignore[arg-type]
        tokens = sum(batch.ids.size for batch in annotator.annotate(["!" * size]))
        assert tokens == size
        assert finder.given == tokenizer.given == size
        assert max(finder.longest, tokenizer.longest) <= PIECE_CHARACTERS
