"""Tokens meet words by character offsets, whatever the tokenizer does to the text."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from chronomask.data.annotation import SPECIAL, WORD_START, is_word_start, token_class
from chronomask.prepare.config import ByteLevelBPE, Unigram, WordPiece
from chronomask.prepare.rows.annotate import Annotator
from chronomask.prepare.words.align import align
from chronomask.prepare.words.tagger import Spans, WordFinder
from chronomask.prepare.words.unicode import UnicodeWords

TEXTS = [
    "The café's naïve Übergröße costs 3.50 € — don't ask why!",
    "Emoji 👩‍👩‍👧 and 👍🏽 join words like this👍that. ﬁnally ﬂat ligatures.",
    "汉字と仮名 are 日本語, 한국어 is Korean and العربية is Arabic.",
    "See https://example.org/a_b?c=d&e=f or mail me@example.org, O'Neill’s e\u0301tude.",
    "tabs\tand\nlines\r\nand  double  spaces\u00a0and\u200bzero width \u0007bell",
    "They're can't won't I'd we've it's y'all'd've",
]


class CharacterClasses(WordFinder):
    """Unicode words whose class is their length, so that a class says which word it came from."""

    def tag(self, texts: list[str]) -> list[Spans]:
        spans = UnicodeWords().tag(texts)
        return [
            Spans(s.starts, s.ends, np.minimum(s.ends - s.starts, 63).astype(np.uint8))
            for s in spans
        ]


@pytest.fixture(scope="module", params=["wordpiece", "cased", "bytes", "bytes trimmed", "unigram"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    sample = [*TEXTS, "the words of a text are joined from pieces of words"] * 3
    if request.param == "wordpiece":
        return WordPiece(vocab_size=400).train(sample)
    if request.param == "cased":
        return WordPiece(vocab_size=400, lowercase=False).train(sample)
    if request.param == "unigram":
        return Unigram(vocab_size=300).train(sample)
    backend = ByteLevelBPE(vocab_size=400).train(sample)
    if request.param == "bytes trimmed":
        from tokenizers import processors

        backend.post_processor = processors.ByteLevel(trim_offsets=True)
    return backend


def aligned(tokenizer: Tokenizer, text: str) -> tuple[list[tuple[str, bool, int]], list[str]]:
    """(spelling, starts a word, class) of every token, and the words."""
    (batch,) = Annotator(tokenizer, range(5), CharacterClasses()).annotate([text])
    spelled = [text[a:b] for a, b in tokenizer.encode(text, add_special_tokens=False).offsets]
    starts = is_word_start(batch.annotation)
    classes = token_class(batch.annotation)
    (spans,) = UnicodeWords().tag([text])
    words = [text[a:b] for a, b in zip(spans.starts, spans.ends, strict=True)]
    return list(zip(spelled, starts.tolist(), classes.tolist(), strict=True)), words


def assert_words_hold_together(tokenizer: Tokenizer, text: str) -> None:
    """Every token has the class of the first word it overlaps, and starts are where that changes."""
    (spans,) = CharacterClasses().tag([text])
    (batch,) = Annotator(tokenizer, range(5), CharacterClasses()).annotate([text])
    offsets = tokenizer.encode(text, add_special_tokens=False).offsets
    assert len(offsets) == batch.ids.size
    before: int | None = None
    for (start, end), note in zip(offsets, batch.annotation.tolist(), strict=True):
        if note & SPECIAL:
            assert note == SPECIAL
            before = None
            continue
        over = [
            k
            for k, (a, b) in enumerate(zip(spans.starts, spans.ends, strict=True))
            if a < max(end, start + 1) and start < b
        ]
        word = over[0] if over else None
        assert token_class(note) == (spans.classes[over[0]] if over else 0)
        assert bool(note & WORD_START) == (word is None or word != before)
        before = word


@pytest.mark.parametrize("text", TEXTS)
def test_words_hold_together(tokenizer: Tokenizer, text: str) -> None:
    assert_words_hold_together(tokenizer, text)


PIECES = [
    *TEXTS,
    "e\u0301", "o\u0308\u0323", "\u0301", "Å", "\u212b", "ﬁ", "ﬄ", "Ǆ", "ß", "ẞ", "İ", "ı",  # marks
    "👍", "👍🏽", "👩\u200d👩\u200d👧", "🇩🇪", "\ufe0f", "1️⃣",  # emoji
    "汉", "漢字", "仮名", "カ\u3099", "한국어", "\u1112\u1161\u11ab", "𠀀",  # CJK, also decomposed
    "العربية", "كَتَبَ", "لا", "\u0640", "עִבְרִית", "\u200f", "ไทย", "हिन्दी",  # right to left, Indic
    "https://example.org/a_b?c=d&e=f#g", "me@example.org", "www.a-b.co.uk/%7Ex",
    "don't", "I'd've", "can’t", "rock'n'roll", "l'eau", "'tis",
    "\x07", "\x00", "\x1b[0m", "\u200b", "\u00ad", "\ufeff", "\ufffd", "\u2028", "\x85", "\t", "\r\n",
    " ", "  ", "\u00a0", "\u3000", ".", "...", "—", "3.50", "€", "[MASK]", "##s", "▁",
]  # fmt: skip


@settings(max_examples=80)
@given(text=st.lists(st.sampled_from(PIECES), max_size=8).map("".join))
def test_words_hold_together_whatever_stands_side_by_side(tokenizer: Tokenizer, text: str) -> None:
    if text:
        assert_words_hold_together(tokenizer, text)


@settings(max_examples=40)
@given(text=st.lists(st.sampled_from(PIECES), max_size=8).map("".join))
def test_tokens_without_a_word_are_counted(tokenizer: Tokenizer, text: str) -> None:
    batches = list(Annotator(tokenizer, range(5), CharacterClasses()).annotate([text]))
    (spans,) = CharacterClasses().tag([text])
    covered = np.zeros(len(text) + 2, bool)
    for a, b in zip(spans.starts, spans.ends, strict=True):
        covered[a:b] = True
    encoding = tokenizer.encode(text, add_special_tokens=False)
    lone = [
        (a, b)
        for number, (a, b) in zip(encoding.ids, encoding.offsets, strict=True)
        if number > 4 and not covered[a : max(b, a + 1)].any()
    ]
    assert sum(batch.num_without_word for batch in batches) == len(lone)


@settings(max_examples=60)
@given(text=st.text(st.sampled_from("aeé ßﬁIİ'’.\n\t e\u0301👍🏽\u200d汉ه한-_/0"), max_size=40))
def test_words_hold_together_for_any_text(tokenizer: Tokenizer, text: str) -> None:
    if text:
        assert_words_hold_together(tokenizer, text)


def test_bytes_of_one_character_are_one_word(tokenizer: Tokenizer) -> None:
    tokens, _ = aligned(tokenizer, "🜁🜂")  # byte-level: several tokens for each
    for character in "🜁🜂":
        starts = [start for spelled, start, _ in tokens if spelled == character]
        assert sum(starts) == min(1, len(starts))


def test_lower_casing_keeps_offsets_of_the_cased_text() -> None:
    tokenizer = WordPiece(vocab_size=120).train(["abc ecole istanbul"] * 5)
    tokens, words = aligned(tokenizer, "İSTANBUL ÉCOLE ABC")  # İ lower-cases to two characters
    assert words == ["İSTANBUL", "ÉCOLE", "ABC"]
    assert sum(start for _, start, _ in tokens) == 3
    assert {classes for _, _, classes in tokens} == {8, 5, 3}


def test_spelled_special_tokens_are_ordinary_text(tiny_tokenizer: object) -> None:
    from chronomask.prepare.encoding import load_backend
    from chronomask.prepare.tokenizer import open_saved

    saved = open_saved(tiny_tokenizer)  # type: ignore[arg-type]
    backend = load_backend(saved.folder)
    annotator = Annotator(backend, saved.special_ids, UnicodeWords())
    (batch,) = annotator.annotate(["a [MASK] b [SEP]"])
    assert backend.token_to_id("[MASK]") not in batch.ids
    assert saved.sep_id not in batch.ids


@pytest.mark.parametrize("kind", ["WordPiece", "WordLevel", "BPE", "Unigram"])
def test_a_model_does_not_look_special_tokens_up(kind: str) -> None:
    from tokenizers import AddedToken, models, pre_tokenizers

    from chronomask.prepare.encoding import for_documents

    names = ["[UNK]", "[MASK]", "[SEP]", "a", "b", *"[]MASK"]
    vocabulary = {token: k for k, token in enumerate(dict.fromkeys(names))}
    tokenizer = Tokenizer(
        {
            "WordPiece": models.WordPiece(vocabulary, unk_token="[UNK]"),
            "WordLevel": models.WordLevel(vocabulary, unk_token="[UNK]"),
            "BPE": models.BPE(vocabulary, [], unk_token="[UNK]", ignore_merges=True),
            "Unigram": models.Unigram([(token, -1.0) for token in vocabulary], unk_id=0),
        }[kind]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens([AddedToken(text) for text in ("[UNK]", "[MASK]", "[SEP]")])
    backend = for_documents(tokenizer.to_str())
    ids = backend.encode("a [MASK] b [SEP]").ids
    assert not {1, 2} & set(ids)
    assert (ids[0], ids.count(4)) == (3, 1)
    assert backend.encode("a ? b").ids == [3, 0, 4]


def test_unknown_tokens_are_never_maskable_and_split_their_word() -> None:
    starts = np.array([0, 1, 2])
    word_start, classes, has_word = align(
        starts, starts + 1, np.array([0]), np.array([3]), np.array([7], np.uint8),
        no_word=np.array([False, True, False]),
    )  # fmt: skip
    assert word_start.tolist() == [True, True, True]
    assert classes.tolist() == [7, 0, 7]
    assert has_word.tolist() == [True, False, True]


@pytest.mark.parametrize(
    ("tokens", "words", "starts", "classes"),
    [
        ([(0, 3), (3, 5)], [(0, 5)], [1, 0], [1, 1]),  # pieces of one word
        ([(0, 5)], [(0, 2), (3, 5)], [1], [1]),  # a token over two words is the first one's
        ([(0, 2), (2, 5)], [(0, 2), (3, 5)], [1, 1], [1, 2]),  # leading white space
        ([(0, 2), (2, 3), (3, 5)], [(0, 2), (3, 5)], [1, 1, 1], [1, 0, 2]),  # white space alone
        ([(0, 1), (1, 2), (2, 3)], [(5, 6)], [1, 1, 1], [0, 0, 0]),  # no word at all
        ([(0, 1), (0, 1), (0, 1)], [(0, 1)], [1, 0, 0], [1, 1, 1]),  # bytes of a character
        ([(0, 0), (0, 2)], [(0, 2)], [1, 0], [1, 1]),  # without width: what it stands before
        ([(0, 2)], [], [1], [0]),
        ([], [(0, 2)], [], []),
    ],
)
def test_every_kind_of_overlap(
    tokens: list[tuple[int, int]],
    words: list[tuple[int, int]],
    starts: list[int],
    classes: list[int],
) -> None:
    token, word = (np.array(x, np.int64).reshape(-1, 2) for x in (tokens, words))
    kinds = np.arange(1, len(words) + 1, dtype=np.uint8)
    word_start, token_class, has_word = align(*token.T, *word.T, kinds)
    assert word_start.astype(int).tolist() == starts
    assert token_class.tolist() == classes
    assert has_word.tolist() == [c > 0 for c in classes]


def test_batches_do_not_change_the_result(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flat() -> tuple[np.ndarray, np.ndarray]:
        batches = list(Annotator(tokenizer, range(5), CharacterClasses()).annotate(TEXTS))
        return tuple(
            np.concatenate([getattr(b, k) for b in batches]) for k in ("ids", "annotation")
        )  # type: ignore[return-value]

    together = flat()
    monkeypatch.setattr("chronomask.prepare.rows.annotate.BATCH_CHARACTERS", 1)
    alone = flat()
    for left, right in pairwise([together, alone]):
        np.testing.assert_array_equal(left[0], right[0])
        np.testing.assert_array_equal(left[1], right[1])
