"""Where words are, and which class they have."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chronomask.errors import DataError, UsageError
from chronomask.prepare.config import EnglishTagger, NoTagger, SpacyTagger
from chronomask.prepare.words.taggers import (
    Spans,
    TaggerProtocol,
    UnicodeWords,
    describe_tagger,
    load_tagger,
    split_long,
)
from chronomask.types import UPOS_CLASSES


def spelled(text: str, spans: Spans) -> list[str]:
    return [text[a:b] for a, b in zip(spans.starts, spans.ends, strict=True)]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("don't stop. 3.5 foo_bar!", ["don't", "stop", ".", "3.5", "foo_bar", "!"]),
        ("e\u0301tude nai\u0308ve", ["e\u0301tude", "nai\u0308ve"]),
        ("中文 テスト 한국어", ["中", "文", "テスト", "한국어"]),
        ("👩\u200d👩\u200d👧 hi 👍🏽!", ["👩\u200d👩\u200d👧", "hi", "👍🏽", "!"]),
        ("'quoted' rock'n'roll", ["'", "quoted", "'", "rock'n'roll"]),
        ("co\u00adoperate a\u00a0b", ["co\u00adoperate", "a", "b"]),
        ("العربية كلمة", ["العربية", "كلمة"]),
        ("a\x07b", ["a", "b"]),
        ("", []),
        (" \n", []),
        ("x", ["x"]),
    ],
)
def test_unicode_words(text: str, words: list[str]) -> None:
    (spans,) = UnicodeWords().tag([text])
    assert spelled(text, spans) == words


@given(st.text(max_size=60))
def test_unicode_words_are_ordered_and_cover_all_letters(text: str) -> None:
    (spans,) = UnicodeWords().tag([text])
    assert (spans.starts < spans.ends).all()
    assert (spans.ends[:-1] <= spans.starts[1:]).all()
    covered = np.zeros(len(text) + 1, bool)
    for a, b in zip(spans.starts, spans.ends, strict=True):
        covered[a:b] = True
    assert all(covered[k] for k, c in enumerate(text) if c.isalnum())
    assert not any(covered[k] for k, c in enumerate(text) if c in " \n\t")


@given(st.text("ab \n.", max_size=80), st.integers(2, 20))
def test_long_texts_are_cut_and_join_again(text: str, limit: int) -> None:
    pieces = list(split_long(text, limit))
    assert "".join(piece for _, piece in pieces) == text
    assert all(len(piece) <= limit for _, piece in pieces)
    assert all(text[at : at + len(piece)] == piece for at, piece in pieces)


def test_long_texts_are_cut_at_line_ends_then_sentences() -> None:
    assert [p for _, p in split_long("one two.\nthree four. five", 12)] == [
        "one two.\n",
        "three four. ",
        "five",
    ]


@pytest.fixture(scope="module")
def english() -> TaggerProtocol:
    return load_tagger(EnglishTagger())


def test_the_bundled_tagger_tags_english(english: TaggerProtocol) -> None:
    text = "The quick dog\ndoesn't run  to London."
    (spans,) = english.tag([text])
    named = dict(
        zip(spelled(text, spans), (english.class_names[c] for c in spans.classes), strict=True)
    )
    assert named["The"] == "DET"
    assert named["dog"] == "NOUN"
    assert named["n't"] == "PART"
    assert named["London"] == "PROPN"
    assert named["."] == "PUNCT"
    assert not any(word.isspace() for word in named)


def test_the_bundled_tagger_is_described_without_loading(english: TaggerProtocol) -> None:
    assert describe_tagger(EnglishTagger()) == (english.name, english.class_names)
    assert english.class_names == UPOS_CLASSES
    assert describe_tagger(NoTagger()) == ("none", ("none",))


def test_an_empty_text_has_no_words(english: TaggerProtocol) -> None:
    assert [s.starts.size for s in english.tag(["", "word", " "])] == [0, 1, 0]


def test_a_pipeline_that_is_not_installed_is_refused() -> None:
    with pytest.raises(UsageError, match="spaCy pipeline 'xx_none_sm' is not installed"):
        load_tagger(SpacyTagger(name="xx_none_sm"))


def test_a_pipeline_without_tags_is_refused(tmp_path: Path) -> None:
    import spacy

    blank = spacy.blank("en")
    blank.add_pipe("sentencizer")
    blank.to_disk(tmp_path / "blank")
    with pytest.raises(DataError, match=r"sets universal part-of-speech tags.*sentencizer"):
        load_tagger(SpacyTagger(name=str(tmp_path / "blank")))


def test_any_pipeline_that_sets_tags_will_do(tmp_path: Path) -> None:
    import spacy

    ruled = spacy.blank("de")
    ruled.add_pipe("sentencizer")
    ruler = ruled.add_pipe("attribute_ruler")
    ruler.add([[{"LOWER": "hund"}]], {"POS": "NOUN"})  # type: ignore[attr-defined]
    ruled.to_disk(tmp_path / "ruled")
    tagger = load_tagger(SpacyTagger(name=str(tmp_path / "ruled")))
    (spans,) = tagger.tag(["der Hund"])
    assert [tagger.class_names[c] for c in spans.classes] == ["none", "NOUN"]
    assert tagger.name.startswith("spacy (de_")
