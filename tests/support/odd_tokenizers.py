"""Tokenizers of every kind, by name: what they do to case, accents, spaces and bytes differs."""

from __future__ import annotations

from collections.abc import Callable

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

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
