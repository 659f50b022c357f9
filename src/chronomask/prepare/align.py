"""Tokens meet words: from character offsets on both sides to word starts and classes.

May enter: arithmetic on offsets. Nothing here knows a tokenizer or a tagger.
"""

from __future__ import annotations

import numpy as np

__all__ = ["align"]


def align(
    token_starts: np.ndarray,
    token_ends: np.ndarray,
    word_starts: np.ndarray,
    word_ends: np.ndarray,
    word_classes: np.ndarray,
    no_word: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Word start (bool [T]), class (uint8 [T]) and "has a word" (bool [T]) of every token.

    All offsets are characters of the same text; words are in order and do not overlap. A token
    belongs to the first word it overlaps, so white space before a word (byte-level BPE) does no harm and
    a token over several words is the first one's; neighbouring tokens of one word are that word. A
    token that overlaps none is a word of its own with class 0, and so is each of ``no_word`` (bool [T]),
    tokens that must not count as part of a word. A token without width takes the word it stands in
    or in front of.
    """
    num_words = word_starts.size
    if not num_words:
        nothing = np.zeros(token_starts.size, bool)
        return ~nothing, nothing.astype(np.uint8), nothing
    # The first word that ends after the token starts is the only candidate for "first overlapped".
    word = np.searchsorted(word_ends, token_starts, side="right")
    inside = word < num_words
    word = np.minimum(word, num_words - 1)
    inside &= word_starts[word] < np.maximum(token_ends, token_starts + 1)
    if no_word is not None:
        inside &= ~no_word
    classes = np.where(inside, word_classes[word], 0).astype(np.uint8)
    starts = np.ones(word.size, bool)
    starts[1:] = (word[1:] != word[:-1]) | ~inside[1:] | ~inside[:-1]
    return starts, classes, inside
