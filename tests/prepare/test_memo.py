"""Looking chunks up gives what giving every whole text to tokenizer and tagger gives."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, processors

from chronomask.prepare.config import EnglishTagger, PrepareConfig
from chronomask.prepare.encoding import load_backend
from chronomask.prepare.read.left_out import Skipped
from chronomask.prepare.read.sources import find_sources
from chronomask.prepare.rows.annotate import Annotator
from chronomask.prepare.words.bands import BandWords
from chronomask.prepare.words.english.accuracy import load_tagger as load_pipeline
from chronomask.prepare.words.english.network import PAD, EnglishNetwork
from chronomask.prepare.words.memo import (
    ChunkMemo,
    Growing,
    begins_its_text,
    cut,
    may_be_cut,
    text_of,
)
from chronomask.prepare.words.tagger import WithoutContext, WordFinder
from chronomask.prepare.words.unicode import UnicodeWords
from tests.support.corpus import made_up_text

ODD = [
    "", " ", "\n", "a", "  a", "a ", "a  b", "a\nb", "a \nb", "a\n b", "\n\na", "a\n\n", "a\tb", "a\u00a0b",
    "\u0301a b", "a \u0301b", "nai\u0308ve étude", "ﬁne ofﬁce", "👩\u200d👩\u200d👧 hi 👍🏽!", "a\u200d b",
    "中文 テスト 한국어",
    "العربية كلمة", "https://a.org/b?c=d e.g. don't can't", "a\x07b \x07 c", "a\x1cb", "x" * 300 + " y",
    "[MASK] [CLS]", "a\u2028b", "\u200b \u200b a", "I'm :) here", "co\u00adoperate a\u3000b", "\ufeffa",
    " ".join(f"में{k}" for k in range(300)),
]  # fmt: skip
SPECIAL_IDS = list(range(5))


@pytest.fixture(scope="module")
def prose() -> list[str]:
    """English that every machine has."""
    source = {"kind": "installed_packages", "max_bytes": 150_000}
    config = PrepareConfig.parse({"sources": [source]})
    fields, skipped = config.fields(), Skipped()
    found = find_sources(config.sources, fields, skipped)
    return [d.text for item in found for d in item.documents(fields, skipped)]


@pytest.fixture(scope="module", params=["wordpiece", "cased", "byte_level_bpe", "roberta"])
def backend(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder: Path = tmp_path_factory.mktemp("tokenizer") / "t"
    options: dict[str, object] = {"kind": request.param, "vocab_size": 600}
    if request.param == "cased":
        options |= {"kind": "wordpiece", "lowercase": False}
    if request.param == "roberta":
        options["kind"] = "byte_level_bpe"
    choice = PrepareConfig.parse({"sources": ["x"], "tokenizer": options}).tokenizer
    choice.save([*made_up_text(50), *ODD], 128, folder)
    if request.param == "roberta":
        file = folder / "tokenizer.json"
        made = Tokenizer.from_file(str(file))
        made.post_processor = processors.RobertaProcessing(("[SEP]", 3), ("[CLS]", 2))
        made.save(str(file))
    return load_backend(folder)


def flat(
    texts: list[str], backend: Tokenizer, finder: WordFinder, keep: bool
) -> tuple[list[int], list[int], list[int], list[int], int, int]:
    batches = list(Annotator(backend, SPECIAL_IDS, finder, keep=keep).annotate(texts))
    return (
        [value for batch in batches for value in batch.ids.tolist()],
        [value for batch in batches for value in batch.annotation.tolist()],
        [value for batch in batches for value in batch.lengths.tolist()],
        [value for batch in batches for value in batch.unknown.tolist()],
        sum(batch.num_words for batch in batches),
        sum(batch.num_without_word for batch in batches),
    )


def chunks_one_by_one(text: str) -> list[str]:
    """Chunks as they are defined: to the next lone space or line feed, or the comma before it."""
    if "\0" in text:
        return [text]
    return re.split(r"(?<=\S)(?=[ \n]\S)|(?<=[a-z])(?=,[ \n]\S)", text) if text else []


def chunks_of(texts: list[str]) -> list[list[str]]:
    found = cut(texts)
    all_of_them = [text_of(found.distinct[k]) for k in found.which.tolist()]
    ends = np.cumsum(found.counts).tolist()
    return [all_of_them[end - n : end] for end, n in zip(ends, found.counts.tolist(), strict=True)]


@given(
    st.lists(
        st.text("abzA,,'.: \n\t\u00a0\u0301\u200d中\x1c\x85\u3000\0(\ud800", max_size=12)
        | st.text(max_size=12),
        max_size=4,
    )
)
def test_texts_are_cut_at_lone_spaces(texts: list[str]) -> None:
    assert chunks_of(texts) == [chunks_one_by_one(text) for text in texts]


def test_frequent_words_are_one_chunk() -> None:
    assert chunks_of(["the cat,\nthe dog,"]) == [["the", " cat", ",", "\nthe", " dog,"]]
    assert chunks_of(["a  b", "", "a"]) == [["a  b"], [], ["a"]]
    found = cut(["the cat the cat", " the", "x the"])
    first, inside = found.which[4], found.which[-1]
    assert len(found.distinct) == 5
    assert found.which.tolist()[:4] == [0, 1, 2, 1]
    assert first != inside
    assert text_of(found.distinct[first]) == text_of(found.distinct[inside])
    assert begins_its_text(found.distinct[first])
    assert not begins_its_text(found.distinct[inside])


def test_no_special_case_reaches_across_a_cut() -> None:
    pipeline = load_pipeline()
    rules = pipeline.tokenizer.rules
    assert len(rules) > 1000
    assert not [rule for rule in rules if "," in rule or re.search(r"\S\s\S", rule)]
    pipeline.tokenizer.add_special_case("a,", [{"ORTH": "a,"}])
    assert EnglishNetwork.of(pipeline, np.zeros(200, np.uint8)) is None


@pytest.mark.parametrize(
    "finder", [UnicodeWords(), BandWords([["a"], ["b", "étude"]]), EnglishTagger().open()]
)
def test_odd_texts(backend: Tokenizer, finder: WordFinder) -> None:
    assert may_be_cut(backend)
    plain = flat(ODD, backend, finder, keep=False)
    assert flat(ODD, backend, finder, keep=True) == plain
    # twice in one go: now every chunk is known
    twice = flat([*ODD, *ODD], backend, finder, keep=True)
    assert twice == tuple(value * 2 for value in plain)


@given(
    st.lists(
        st.text(max_size=40) | st.text("ab' .,\n\t\u00a0\u0301\u200d中\x1cÉ", max_size=40),
        max_size=5,
    )
)
def test_any_text(backend: Tokenizer, texts: list[str]) -> None:
    tagger = UnicodeWords()
    assert flat(texts, backend, tagger, keep=True) == flat(texts, backend, tagger, keep=False)


def test_english_classes_are_those_of_spacy(backend: Tokenizer, prose: list[str]) -> None:
    finder = EnglishTagger().open()
    assert isinstance(finder.by_chunk(), EnglishNetwork)
    kept, plain = flat(prose, backend, finder, keep=True), flat(prose, backend, finder, keep=False)
    assert kept[0] == plain[0]
    assert kept[2] == plain[2]
    differ = np.flatnonzero(np.asarray(kept[1]) != np.asarray(plain[1]))
    # Ties within rounding, and signs such as "= (" that spaCy would make one word across a space.
    assert differ.size <= len(kept[1]) * 2e-5
    assert len({value & 63 for value in kept[1]}) > 12


def test_a_class_does_not_depend_on_what_else_is_in_the_batch(prose: list[str]) -> None:
    network = EnglishTagger().open().by_chunk()
    assert isinstance(network, EnglishNetwork)
    chunks = [" " + word for text in prose[:40] for word in text.split()]
    words = network.learn(chunks, [False] * len(chunks))
    rng = np.random.default_rng(0)
    together = np.zeros(PAD, np.int64)
    apart = []
    for _ in range(30):
        types = rng.choice(words.types, rng.integers(1, 60))
        together = np.concatenate([together, types, np.zeros(PAD, np.int64)])
        edge = np.zeros(PAD, np.int64)
        apart.append(network.classify(np.concatenate([edge, types, edge])))
    at_once = network.classify(together)
    where = together > 0
    assert (at_once[where] == np.concatenate([a[PAD:-PAD] for a in apart])).all()


def test_forgetting_changes_nothing(backend: Tokenizer) -> None:
    texts = made_up_text(60)
    is_special = np.zeros(backend.get_vocab_size(), bool)
    is_special[SPECIAL_IDS] = True
    forgetful = ChunkMemo(backend, WithoutContext(UnicodeWords()), most=20)
    known = ChunkMemo(backend, WithoutContext(UnicodeWords()))
    for start in range(0, 60, 7):
        part = texts[start : start + 7]
        a, b = forgetful.annotate(part, is_special), known.annotate(part, is_special)
        assert all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))
        assert len(forgetful._chunks) < len(known._chunks) or start == 0


def test_tokenizers_that_look_across_spaces_are_not_cut(backend: Tokenizer) -> None:
    from tokenizers import AddedToken, normalizers, pre_tokenizers

    backend = Tokenizer.from_str(backend.to_str())
    before, normalizer = backend.pre_tokenizer, backend.normalizer
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    assert not may_be_cut(backend)
    backend.pre_tokenizer = before
    backend.normalizer = normalizers.Replace(" a", "b")
    assert not may_be_cut(backend)
    if normalizer is not None:
        backend.normalizer = normalizer
        assert may_be_cut(backend)
        backend.add_tokens([AddedToken("new york")])
        assert not may_be_cut(backend)


def test_rows_are_what_was_appended() -> None:
    grown = Growing(np.uint8, (2,), room=3)
    expected = np.arange(40).reshape(20, 2)
    for part in np.split(expected, [1, 2, 7, 7, 15]):
        grown.append(part)
    assert len(grown) == 20
    assert grown.rows.dtype == np.uint8
    assert np.array_equal(grown.rows, expected)


def test_extended_rows_are_written_in_place() -> None:
    grown = Growing(np.int64, room=1)
    grown.append(np.array([7]))
    grown.extend(5)[...] = 3
    assert grown.rows.tolist() == [7, 3, 3, 3, 3, 3]


def test_emptied_it_begins_anew() -> None:
    grown = Growing(np.int64)
    grown.append(np.arange(5))
    grown.clear()
    assert grown.rows.size == 0
    grown.append(np.array([9]))
    assert grown.rows.tolist() == [9]
