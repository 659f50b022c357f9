"""Whatever a tokenizer does to a text, the tokens of a word are those that spell it."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from chronomask.data.annotation import WORD_START, is_special
from chronomask.prepare.rows.annotate import Annotator
from chronomask.prepare.words.unicode import UnicodeWords
from tests.support.corpus import made_up_text

LETTERS = "abcdefgñéßłABCDÀÉΩд漢字한글İﬁ①0123"
TEXTS = [*made_up_text(30), "naïve Ärger ÀÉ 漢字 한글 İﬁ ①2 x\u0301y", LETTERS]
SPACE = "▁"


def wordpiece(normalizer: normalizers.Normalizer) -> Tokenizer:
    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer = normalizer
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=400, special_tokens=["[UNK]"], show_progress=False
    )
    made.train_from_iterator(TEXTS, trainer)
    made.decoder = decoders.WordPiece()
    return made


def byte_level(*, prefix_space: bool, trim: bool = True) -> Tokenizer:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space, trim_offsets=trim)
    trainer = trainers.BpeTrainer(
        vocab_size=330, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    made.train_from_iterator(TEXTS, trainer)
    made.decoder = decoders.ByteLevel()
    return made


def metaspace(model: models.Model, normalizer: normalizers.Normalizer | None) -> Tokenizer:
    made = Tokenizer(model)
    if normalizer is not None:
        made.normalizer = normalizer
    made.pre_tokenizer = pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme="always")
    made.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    return made


def pieces(*, with_bytes: bool) -> list[str]:
    """A vocabulary of few letters, so that others are bytes."""
    found = [SPACE, *"abcdefgno", "ab", "ing", f"{SPACE}a", f"{SPACE}ab", "é", "ﬁ"]
    return [f"<0x{byte:02X}>" for byte in range(256)] + found if with_bytes else [*found, *LETTERS]


def unigram(*, with_bytes: bool, normalizer: normalizers.Normalizer | None = None) -> Tokenizer:
    vocabulary = [
        ("<unk>", 0.0),
        *((p, -float(k % 7 + 1)) for k, p in enumerate(pieces(with_bytes=with_bytes))),
    ]
    distinct = list(dict(vocabulary).items())
    return metaspace(models.Unigram(distinct, unk_id=0, byte_fallback=with_bytes), normalizer)


def llama() -> Tokenizer:
    """BPE over whole texts with byte fallback, as Llama's and Gemma's: the space is a normaliser's."""
    vocabulary = {piece: k for k, piece in enumerate(["<unk>", *pieces(with_bytes=True)])}
    model = models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    made = Tokenizer(model)
    made.normalizer = normalizers.Sequence(
        [normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)]
    )
    made.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return made


STRIPPING = normalizers.Sequence(
    [normalizers.NFD(), normalizers.Lowercase(), normalizers.StripAccents()]
)
MADE: dict[str, Callable[[], Tokenizer]] = {
    "wordpiece uncased": lambda: wordpiece(normalizers.BertNormalizer(lowercase=True)),
    "wordpiece cased": lambda: wordpiece(normalizers.BertNormalizer(lowercase=False)),
    "wordpiece without accents": lambda: wordpiece(STRIPPING),
    "bytes": lambda: byte_level(prefix_space=False),
    "bytes after a space": lambda: byte_level(prefix_space=True),
    "bytes with their spaces": lambda: byte_level(prefix_space=True, trim=False),
    "unigram": lambda: unigram(with_bytes=False),
    "unigram compatible": lambda: unigram(
        with_bytes=False,
        normalizer=normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()]),
    ),
    "unigram with bytes": lambda: unigram(with_bytes=True),
    "unigram with bytes, without accents": lambda: unigram(with_bytes=True, normalizer=STRIPPING),
    "bpe with bytes": llama,
}


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
