"""Whatever a tokenizer does to a text, the tokens of a word are those that spell it."""

from __future__ import annotations

import unicodedata

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from chronomask.data.annotation import WORD_START, is_special
from chronomask.prepare.rows.annotate import Annotator
from chronomask.prepare.words.unicode import UnicodeWords
from tests.support.odd_tokenizers import LETTERS, MADE, SPACE


@pytest.fixture(scope="module", params=MADE)
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    made = MADE[request.param]()
    made.encode_special_tokens = True
    return made


def unspaced(text: str) -> str:
    text = text.removeprefix("##")  # of an ideograph within a run of them
    return "".join(c for c in text.replace(SPACE, " ") if not c.isspace() and c.isprintable())


def normalised(tokenizer: Tokenizer, text: str) -> str:
    return unspaced(tokenizer.normalizer.normalize_str(text) if tokenizer.normalizer else text)


@given(
    st.lists(
        st.text(LETTERS + "\u0301\u0308", min_size=1, max_size=6).filter(
            lambda word: not unicodedata.combining(word[0])
        ),
        min_size=1,
        max_size=6,
    ),
    st.sampled_from([" ", "  ", "\n", ". ", ", ", " - ", "\t"]),
)
@example(["한글", "漢字", "éa"], " ")
@example(["a", "İﬁ", "①2"], ", ")
def test_tokens_of_a_word_spell_it(tokenizer: Tokenizer, words: list[str], between: str) -> None:
    text = between.join(words)
    (batch,) = Annotator(tokenizer, special_ids(tokenizer), UnicodeWords()).annotate([text])
    special = is_special(batch.annotation)
    begins = (batch.annotation & WORD_START > 0) & ~special
    word_of = np.cumsum(begins) - 1
    if special.any():
        return  # unknown tokens belong to no word
    (spans,) = UnicodeWords().tag([text])
    expected = [
        normalised(tokenizer, text[a:b]) for a, b in zip(spans.starts, spans.ends, strict=True)
    ]
    found = [
        unspaced(tokenizer.decode(batch.ids[word_of == k].tolist())) for k in range(begins.sum())
    ]
    # words that the normaliser leaves nothing of have no token; tokens of white space alone spell nothing
    assert [word for word in found if word] == [word for word in expected if word]


def special_ids(tokenizer: Tokenizer) -> list[int]:
    known = (tokenizer.token_to_id(token) for token in ("[UNK]", "<unk>"))
    return [number for number in known if number is not None]
