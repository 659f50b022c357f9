"""Which tokens of a vocabulary begin a word, or are one by themselves, as their spelling says."""

from __future__ import annotations

import json
import unicodedata
from typing import TYPE_CHECKING

import numpy as np

from chronomask.errors import UsageError
from chronomask.vocabulary import vocabulary_size

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["ALONE", "BEGINS", "read_marks", "vocabulary_markers", "word_marks"]

BEGINS, ALONE = 1, 2
"""Marks of a token in :func:`word_marks`: begins a word; is a word by itself (punctuation)."""


def word_marks(tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    """uint8 [V]: for each token id, :data:`BEGINS` and :data:`ALONE`, read off the vocabulary.

    WordPiece marks continuations (``##``); byte-level BPE and SentencePiece mark the space before a
    word (``Ġ``, ``▁``). Punctuation counts as a word by itself, and what follows it begins a word.
    The marks know only of spaces: languages written without them come out as long words, and
    non-ASCII punctuation of a byte-level vocabulary sticks to the word before it. Real word
    boundaries come from ``chronomask prepare``, which keeps character offsets.

    Raises UsageError for a vocabulary that marks neither.
    """
    marks = read_marks(tokenizer)
    if marks is None:
        raise UsageError(
            f"the vocabulary of {tokenizer.name_or_path!r} marks neither continuations nor word "
            "beginnings; give 'word_ids' per token instead"
        )
    return marks


def read_marks(tokenizer: PreTrainedTokenizerBase) -> np.ndarray | None:
    """:func:`word_marks`; None for a vocabulary that marks neither."""
    continuation, beginning = vocabulary_markers(tokenizer)
    if not continuation and not beginning:
        return None
    marks = np.full(vocabulary_size(tokenizer), BEGINS, np.uint8)
    for token, number in tokenizer.get_vocab().items():
        if continuation:
            begins = not token.startswith(continuation)
            text = token.removeprefix(continuation)
        else:
            begins = token.startswith(beginning)
            text = token.removeprefix(beginning)
        alone = _is_punctuation(text, byte_level=beginning == "Ġ")
        marks[number] = (BEGINS if begins or alone else 0) | (ALONE if alone else 0)
    for number, token in tokenizer.added_tokens_decoder.items():
        # Such a token takes the space that would have marked it, or the word behind it.
        marks[number] |= (BEGINS if token.lstrip else 0) | (ALONE if token.rstrip else 0)
    return marks


def vocabulary_markers(tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
    """What a continuation starts with, and what a word beginning starts with; "" = no such mark."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return "", ""
    parts = json.loads(backend.to_str())
    if parts["model"]["type"] == "WordPiece":
        return parts["model"]["continuing_subword_prefix"], ""
    before = json.dumps([parts["normalizer"], parts["pre_tokenizer"]], ensure_ascii=False)
    if '"ByteLevel"' in before:
        return "", "Ġ"
    return "", "▁" if "▁" in before else ""


def _is_punctuation(text: str, byte_level: bool) -> bool:
    """Only punctuation and symbols; beyond ASCII, letters of a byte-level vocabulary are bytes."""
    if not text or (byte_level and not text.isascii()):
        return False
    return all(unicodedata.category(character)[0] in "PS" for character in text)
