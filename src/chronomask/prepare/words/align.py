"""Tokens meet words: from character offsets on both sides to word starts and classes.

Nothing here knows a tokenizer or a tagger.
"""

from __future__ import annotations

import numpy as np

__all__ = ["align", "word_begins", "words_of_tokens"]


def align(
    token_starts: np.ndarray,
    token_ends: np.ndarray,
    word_starts: np.ndarray,
    word_ends: np.ndarray,
    word_classes: np.ndarray,
    no_word: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Word start (bool [T]), class (uint8 [T]) and "has a word" (bool [T]) of every token.

    Words as :func:`words_of_tokens` finds them; neighbouring tokens of one word are that word, a token
    without one is a word of its own with class 0.
    """
    word = words_of_tokens(token_starts, token_ends, word_starts, word_ends, no_word)
    inside = word >= 0
    if not word_starts.size:
        return ~inside, inside.astype(np.uint8), inside
    classes = np.where(inside, word_classes[word], 0).astype(np.uint8)
    return word_begins(word), classes, inside


def words_of_tokens(
    token_starts: np.ndarray,
    token_ends: np.ndarray,
    word_starts: np.ndarray,
    word_ends: np.ndarray,
    no_word: np.ndarray | None = None,
) -> np.ndarray:
    """int64 [T]: the word of every token, −1 where it has none.

    All offsets are characters of the same text; words are in order and do not overlap. A token
    belongs to the first word it overlaps, so white space before a word (byte-level BPE) does no harm and
    a token over several words is the first one's. A token that overlaps none has no word, and so has
    each of ``no_word`` (bool [T]), tokens that must not count as part of one. A token without width
    takes the word it stands in or in front of.
    """
    num_words = word_starts.size
    if not num_words:
        return np.full(token_starts.size, -1)
    # The first word that ends after the token starts is the only candidate for "first overlapped".
    word = np.searchsorted(word_ends, token_starts, side="right")
    inside = word < num_words
    word = np.minimum(word, num_words - 1)
    inside &= word_starts[word] < np.maximum(token_ends, token_starts + 1)
    if no_word is not None:
        inside &= ~no_word
    return np.where(inside, word, -1)


def word_begins(word: np.ndarray) -> np.ndarray:
    """Bool [T]: tokens that begin a word, given the word of each or −1."""
    begins = np.ones(word.size, bool)
    begins[1:] = (word[1:] != word[:-1]) | (word[1:] < 0)
    return begins
