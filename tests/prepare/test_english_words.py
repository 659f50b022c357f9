"""Words and spellings found without asking spaCy are those that spaCy finds."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import spacy
from hypothesis import example, given
from hypothesis import strategies as st
from spacy.attrs import PREFIX
from spacy.lang.en import English

from chronomask.prepare.words.english.words import (
    LONGEST_RUN,
    EnglishWords,
    cut_runs,
    features_of,
    plain_words,
    spells_as_spacy,
)
from chronomask.prepare.words.spacy_tagger import SpacyWords

WORDS = [
    "word", "Word", "WORD", "NASA", "A", "I", "a", "s", "S", "can", "cannot", "gonna", "Mr", "Jan",
    "vs", "em", "d", "D", "x", "XDD", "km", "US", "C", "no", "am", "12", "1990", "8", "0", "3",
    "well-known", "e-mail", "étude", "Łęczyca", "ſo", "É", "well–known", "so—and",
    "Sieradz-Łęczyca", "1,065", "3.5", "1,065.25", "1904–1961", "159-60", "1-2-3", "8.0", "1.2.3.4",
    "16th", "a1", "1a", "3,8", "o-o", "Coca-Cola", "x-D", "can-do", "aA", "iPhone", "McD", "etc",
    "It", "it", "12–14", "3,5–6.5",
]  # fmt: skip
BEFORE = ["", '"', "'", "(", "[", "“", "‘", '("', "['", "((", "''", "\n", "\n("]
AFTER = [
    "", ".", ",", ";", ":", ")", "]",
    '"', "'", "”", "’", "'s", "’s", "'S", "s'", '."', '".', ".)", ").", "),", ")",
    "'s.", "'s),",
    ":)", ";)", ":')", "''", "..", "...", "!", "?", ".,", ",.", "):", "'.", "’.", "].", "-", "'t",
]  # fmt: skip
MIXED = st.text("aBzé19 .,;:'\"()[]-–—’“s\n", max_size=14)


@pytest.fixture(scope="module")
def pipeline() -> English:
    return English()


@pytest.fixture(scope="module")
def words(pipeline: English) -> EnglishWords:
    return EnglishWords(pipeline)


def spacy_words(pipeline: Any, body: str) -> list[tuple[str, int]]:
    return [(token.text, token.idx) for token in pipeline.tokenizer(body)]


def found_words(words: EnglishWords, bodies: list[str]) -> list[list[tuple[str, int]]]:
    found = words.find(bodies, [False] * len(bodies))
    pairs = list(zip(found.words, found.starts.tolist(), strict=True))
    ends = np.cumsum(found.counts).tolist()
    return [pairs[end - n : end] for end, n in zip(ends, found.counts.tolist(), strict=True)]


def test_words_between_marks(pipeline: English, words: EnglishWords) -> None:
    bodies = [a + word + b for a in BEFORE for word in WORDS for b in AFTER]
    assert found_words(words, bodies) == [spacy_words(pipeline, body) for body in bodies]
    spaced = [" " + body for body in bodies if not body.startswith("\n")]
    expected = [[(w, i + 1) for w, i in spacy_words(pipeline, body[1:])] for body in spaced]
    assert found_words(words, spaced) == expected


def test_special_cases_between_marks(pipeline: English, words: EnglishWords) -> None:
    cases = [case for case in pipeline.tokenizer.rules if not any(c.isspace() for c in case)]
    bodies = [
        a + case + b for case in cases for a in ("", "(", '"') for b in ("", ".", ",", ")", "'s")
    ]
    assert found_words(words, bodies) == [spacy_words(pipeline, body) for body in bodies]


@given(st.lists(MIXED.filter(lambda body: not any(c in body for c in " ")), max_size=6))
@example(["\n"])
@example(["Word.", "(1904)", '"well-known",'])
def test_any_characters(pipeline: English, words: EnglishWords, bodies: list[str]) -> None:
    assert found_words(words, bodies) == [spacy_words(pipeline, body) for body in bodies]


def test_spaces_of_a_document_s_beginning_are_words(words: EnglishWords) -> None:
    found = words.find([" a", " a", "  b c"], [True, False, True])
    assert found.words == [" ", "a", "a", "  ", "b", "c"]
    assert found.starts.tolist() == [0, 1, 1, 0, 2, 4]
    assert found.counts.tolist() == [2, 1, 3]


def test_nothing_to_find(words: EnglishWords) -> None:
    found = words.find([], [])
    assert found.words == []
    assert found.starts.size == found.counts.size == 0


def test_most_chunks_are_plain(pipeline: English) -> None:
    none: frozenset[str] = frozenset()
    assert plain_words('("well-known",', none, none) == ["(", '"', "well", "-", "known", '"', ","]
    assert plain_words("dog's.", none, none) == ["dog", "'s", "."]
    assert plain_words("\nThe", none, none) == ["\n", "The"]
    for asked in ("J.", "1.2.3", "a/b", "É.", "word..", "don't", "", "x_y"):
        assert plain_words(asked, none, none) is None
    assert plain_words("1,065.5).", none, none) == ["1,065.5", ")", "."]
    assert plain_words("3–5,", none, none) == ["3–5", ","]
    assert plain_words("10-12", none, none) == ["10", "-", "12"]
    assert plain_words("Jan.", frozenset({"Jan"}), none) is None
    assert plain_words("word:)", none, frozenset({":)"})) is None


def test_other_patterns_are_asked_about_everything() -> None:
    pipeline = English()
    tokenizer: Any = pipeline.tokenizer
    tokenizer.prefix_search = spacy.util.compile_prefix_regex(["w"]).search
    assert found_words(EnglishWords(pipeline), ["word"]) == [[("w", 0), ("ord", 1)]]


@given(st.lists(st.text(min_size=1, max_size=12) | st.text("aBÉß1²٣-'", min_size=1, max_size=120)))
@example(["NOUN", "ORTH", "x" * 99, "x" * 100, "İstanbul", "aaaaa\n\n\n\n\n\n"])
def test_spellings_are_those_of_spacy(pipeline: English, words: list[str]) -> None:
    words = [word for word in words if not any(0xD800 <= ord(c) <= 0xDFFF for c in word)]
    lexemes = [pipeline.vocab[word] for word in words]
    expected = [[x.orth, x.lower, x.prefix, x.suffix, x.shape] for x in lexemes]
    assert features_of(words).reshape(-1, 5).tolist() == expected


RUNS = ["!", "(", "_", "😀", "!?", "'s", "US$", "a", ".", "http://a.b/", "x,", "1)", ":("]


def characters_looked_at(text: str) -> tuple[int, int]:
    """How much text spaCy's patterns are given, for a chunk and for a whole text."""
    looked_at = 0
    pipeline = English()
    tokenizer: Any = pipeline.tokenizer

    def counting(search: Any) -> Any:
        def counted(string: str) -> Any:
            nonlocal looked_at
            looked_at += len(string)
            return search(string)

        return counted

    for name in ("prefix_search", "suffix_search", "infix_finditer", "url_match"):
        setattr(tokenizer, name, counting(getattr(tokenizer, name)))
    EnglishWords(pipeline).find([text], [True])
    by_chunk, looked_at = looked_at, 0
    SpacyWords(pipeline).tag([text])
    return by_chunk, looked_at


@pytest.mark.parametrize("mark", RUNS)
def test_work_is_linear_in_a_run_of_marks(mark: str) -> None:
    for half, whole in zip(*(characters_looked_at(mark * n) for n in (1500, 3000)), strict=True):
        assert 0 < whole <= 2.2 * half + 1000


@pytest.mark.parametrize("mark", [*RUNS, "()", "a-b"])
@pytest.mark.parametrize("length", [LONGEST_RUN - 1, LONGEST_RUN, LONGEST_RUN + 1, 1000])
def test_long_runs_are_cut_alike_in_chunks_and_in_texts(
    pipeline: English, words: EnglishWords, mark: str, length: int
) -> None:
    run = (mark * length)[:length]
    text = f"He said {run} and left, {run}, so"
    spans = SpacyWords(pipeline).tag([text])[0]
    whole = [text[a:b] for a, b in zip(spans.starts, spans.ends, strict=True)]
    chunks = re.split(r"(?=[ ])", text)
    pieces = [words_of_chunk for chunk in found_words(words, chunks) for words_of_chunk in chunk]
    assert [word for word, _ in pieces] == whole
    if length < LONGEST_RUN:  # a comma follows
        assert whole == [word for word, _ in spacy_words(pipeline, text)]
    assert max(map(len, whole)) <= LONGEST_RUN


def test_parts_of_a_text_are_the_text() -> None:
    text = "a " + "b" * 600 + "\n" + "c" * 256 + " " + "d" * 257
    parts = cut_runs(text)
    assert "".join(part for _, part in parts) == text
    assert [offset for offset, _ in parts] == [0, 258, 514, 860 + 256]
    assert cut_runs("") == [(0, "")]


def test_a_vocabulary_with_spellings_of_its_own_is_known() -> None:
    pipeline = English()
    vocab: Any = pipeline.vocab
    assert spells_as_spacy(vocab)
    vocab.lex_attr_getters = {**vocab.lex_attr_getters, PREFIX: lambda text: text[:2]}
    assert not spells_as_spacy(vocab)
