"""Where words are, and which class they have."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chronomask.data.folder import PreparedData
from chronomask.errors import DataError, UsageError
from chronomask.prepare.config import EnglishTagger, NoTagger, PrepareConfig, SpacyTagger
from chronomask.prepare.pipeline import prepare
from chronomask.prepare.words.spacy_tagger import bundled_folder
from chronomask.prepare.words.tagger import Spans, Tagger, WordFinder, split_long
from chronomask.prepare.words.unicode import UnicodeWords
from chronomask.types import UPOS_CLASSES
from tests.support.corpus import made_up_text


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
def english() -> WordFinder:
    return EnglishTagger().open()


def test_the_bundled_tagger_tags_english(english: WordFinder) -> None:
    text = "The quick dog\ndoesn't run  to London."
    (spans,) = english.tag([text])
    named = dict(zip(spelled(text, spans), (UPOS_CLASSES[c] for c in spans.classes), strict=True))
    assert named["The"] == "DET"
    assert named["dog"] == "NOUN"
    assert named["n't"] == "PART"
    assert named["London"] == "PROPN"
    assert named["."] == "PUNCT"
    assert not any(word.isspace() for word in named)


def test_the_bundled_tagger_is_described_without_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    import spacy

    opened = spacy.load(bundled_folder())
    monkeypatch.setattr(spacy, "load", None)  # calling it would fail
    assert opened.meta["version"] in EnglishTagger().label()
    assert f"({opened.lang}_{opened.meta['name']} " in EnglishTagger().label()
    assert EnglishTagger().classes() == UPOS_CLASSES
    assert (NoTagger().label(), NoTagger().classes()) == ("none", ("none",))


def test_an_empty_text_has_no_words(english: WordFinder) -> None:
    assert [s.starts.size for s in english.tag(["", "word", " "])] == [0, 1, 0]


def test_a_pipeline_that_is_not_installed_is_refused() -> None:
    with pytest.raises(UsageError, match="spaCy pipeline 'xx_none_sm' is not installed"):
        SpacyTagger(name="xx_none_sm").open()


def test_a_pipeline_without_tags_is_refused(tmp_path: Path) -> None:
    import spacy

    blank = spacy.blank("en")
    blank.add_pipe("sentencizer")
    blank.to_disk(tmp_path / "blank")
    with pytest.raises(DataError, match=r"sets universal part-of-speech tags.*sentencizer"):
        SpacyTagger(name=str(tmp_path / "blank")).label()


def test_any_pipeline_that_sets_tags_will_do(tmp_path: Path) -> None:
    import spacy

    ruled = spacy.blank("de")
    ruled.add_pipe("sentencizer")
    ruler = ruled.add_pipe("attribute_ruler")
    ruler.add([[{"LOWER": "hund"}]], {"POS": "NOUN"})  # type: ignore[attr-defined]
    ruled.to_disk(tmp_path / "ruled")
    tagger = SpacyTagger(name=str(tmp_path / "ruled"))
    (spans,) = tagger.open().tag(["der Hund"])
    assert [tagger.classes()[c] for c in spans.classes] == ["none", "NOUN"]
    assert tagger.label().startswith("spacy (de_")


class Shouting(Tagger):
    """A tagger of one's own: words in capitals are loud."""

    kind: Literal["shouting"] = "shouting"
    least: int = 2
    """Letters that make a word in capitals a loud one."""

    def label(self) -> str:
        return "shouting 1"

    def classes(self) -> tuple[str, ...]:
        return ("none", "quiet", "loud")

    def tag(self, texts: Sequence[str]) -> list[Spans]:
        tagged = []
        for text, words in zip(texts, UnicodeWords().tag(texts), strict=True):
            loud = [word.isupper() and len(word) >= self.least for word in spelled(text, words)]
            tagged.append(Spans(words.starts, words.ends, 1 + np.asarray(loud, np.uint8)))
        return tagged


def prepared(folder: Path, texts: list[str], tagger: dict[str, Any], **values: Any) -> PreparedData:
    """Documents prepared into ``folder/out``."""
    (folder / "a.txt").write_text("\n\n".join(texts))
    made = {
        "sources": [str(folder / "a.txt")],
        "tokenizer": {"kind": "wordpiece", "vocab_size": 300},
        "tagger": tagger,
        "row_length": 32,
        "held_out": 0,
        "workers": 1,
    }
    config = PrepareConfig.parse(made | values)
    return prepare(config, folder / "out", force=True, progress=False)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_tagger_of_ones_own(tmp_path: Path, workers: int) -> None:
    texts = ["She said NO to the UNO. I agree"] * 40
    tagger = {"kind": "shouting", "least": 3}
    data = prepared(tmp_path, texts, tagger, workers=workers, part_characters=1000)
    assert (data.class_names, data.manifest.tagger) == (Shouting().classes(), "shouting 1")
    shares = data.statistics["splits"]["train"]["word_share_per_class"]
    assert shares == {"none": 0, "quiet": round(8 / 9, 6), "loud": round(1 / 9, 6)}
    assert PrepareConfig.load(data.path / "config.yaml").tagger == Shouting(least=3)


def test_a_second_preparation_is_tagged_with_what_it_learnt_itself(tmp_path: Path) -> None:
    bands = {"kind": "frequency_bands", "num_bands": 3}
    texts = made_up_text(40)
    swapped = [text.replace("ba", "xx").replace("co", "ba").replace("xx", "co") for text in texts]
    (tmp_path / "apart").mkdir()
    apart = prepared(tmp_path / "apart", swapped, bands)
    prepared(tmp_path, texts, bands)
    assert prepared(tmp_path, swapped, bands).fingerprint == apart.fingerprint


def test_a_second_preparation_is_tagged_by_a_pipeline_that_changed(tmp_path: Path) -> None:
    import spacy

    def share_of(tag: str) -> float:
        pipeline = spacy.blank("en")
        ruler: Any = pipeline.add_pipe("attribute_ruler")
        ruler.add([[{"LOWER": "fox"}]], {"POS": tag})
        pipeline.to_disk(tmp_path / "pipeline")
        tagger = {"kind": "spacy", "name": str(tmp_path / "pipeline")}
        data = prepared(tmp_path, ["the fox and the dog"] * 5, tagger)
        return data.statistics["splits"]["train"]["word_share_per_class"][tag]

    assert share_of("NOUN") == share_of("VERB") == 0.2
