"""Unigram tokenizers (Kudo, 2018), the same on every run.

sentencepiece trains: the trainer of the ``tokenizers`` library gives other pieces on every run, because it
sums and sorts in the order of randomised hash maps. Its pieces and their scores then become a tokenizer of
that library. May enter: training this one kind.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from chronomask.errors import DataError, UsageError
from chronomask.prepare.config import Unigram

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["check_unigram", "train_unigram"]

_THREADS = 1  # the sums of another number of threads give other scores
_SPACE = "▁"
_LONGEST_LINE = 1 << 20


def check_unigram() -> None:
    """Raises :class:`UsageError`, before any work, where the package is missing."""
    try:
        import sentencepiece  # noqa: F401
    except ImportError:
        raise UsageError(
            "tokenizer.kind=unigram needs the package sentencepiece; pip install "
            "'chronomask[unigram]', or choose tokenizer.kind=wordpiece"
        ) from None


def train_unigram(choice: Unigram, sample: Iterable[str], specials: Sequence[str]) -> Tokenizer:
    """A tokenizer whose first ids are ``specials``, the second of them for unknown characters.

    Raises :class:`DataError` where the sample has no text, or too little for its characters.
    """
    import sentencepiece
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    steps = [normalizers.NFKC(), *([normalizers.Lowercase()] if choice.lowercase else [])]
    normalizer = normalizers.Sequence(steps)
    lines = [
        line
        for text in sample
        for line in normalizer.normalize_str(text).splitlines()
        if line.strip() and len(line.encode()) < _LONGEST_LINE
    ]
    if not lines:
        raise DataError("there is no text to train a tokenizer on; check the sources")
    written = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=written,
            model_type="unigram",
            vocab_size=choice.vocab_size - len(specials) + 1,  # its own <unk> is among the specials
            hard_vocab_limit=False,
            character_coverage=0.9995,
            normalization_rule_name="identity",
            num_threads=_THREADS,
            max_sentence_length=_LONGEST_LINE,
            pad_id=-1, bos_id=-1, eos_id=-1, unk_id=0,
            minloglevel=2,
        )  # fmt: skip
    except RuntimeError as error:
        raise DataError(
            f"no Unigram tokenizer of {choice.vocab_size} ids can be trained on this text "
            f"({' '.join(str(error).split())}); set another tokenizer.vocab_size"
        ) from None
    trained = sentencepiece.SentencePieceProcessor(model_proto=written.getvalue())
    pieces = [
        (trained.id_to_piece(number), trained.get_score(number))
        for number in range(1, trained.get_piece_size())
    ]
    vocabulary = [*((special, 0.0) for special in specials), *pieces]
    backend = Tokenizer(models.Unigram(vocabulary, unk_id=1, byte_fallback=False))
    backend.add_special_tokens(list(specials))
    backend.normalizer = normalizer
    backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement=_SPACE, prepend_scheme="always")
    backend.decoder = decoders.Metaspace(replacement=_SPACE, prepend_scheme="always")
    return backend
