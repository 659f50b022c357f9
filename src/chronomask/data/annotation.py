"""The annotation byte of a stored token: its class, whether it begins a word, whether it is special.

Bits 0 to 5 hold the class (0 = none), bit 6 marks the first token of a word of its row, bit 7 a special
token or padding, which is never masked. All who read or write such bytes do it here.
"""

from __future__ import annotations

import numpy as np

__all__ = [
    "MAX_CLASSES",
    "SPECIAL",
    "WORD_START",
    "annotate",
    "is_special",
    "is_word_start",
    "token_class",
    "totals",
    "word_id",
]

_CLASS = 0x3F
WORD_START = 0x40
"""Set where a token is the first of a word of its row."""
SPECIAL = 0x80
"""The whole byte of a special token or of padding."""
MAX_CLASSES = _CLASS + 1
"""Classes that fit, "none" among them."""


def annotate(
    token_class: np.ndarray, word_start: np.ndarray, special: np.ndarray | None = None
) -> np.ndarray:
    """uint8: the bytes of tokens; ``token_class`` uint8, ``word_start`` and ``special`` bool, one shape."""
    out = token_class | np.where(word_start, np.uint8(WORD_START), np.uint8(0))
    if special is not None:
        out[special] = SPECIAL
    return out


def is_special(annotation: np.ndarray) -> np.ndarray:
    """Bool: special tokens and padding."""
    return annotation >= SPECIAL


def is_word_start(annotation: np.ndarray) -> np.ndarray:
    """Bool: first tokens of words."""
    return (annotation & WORD_START) > 0


def token_class(annotation: np.ndarray) -> np.ndarray:
    """uint8: classes, 0 for special tokens."""
    return annotation & np.uint8(_CLASS)


def word_id(annotation: np.ndarray) -> np.ndarray:
    """int32 [B, T]: words of each row counted from 0, −1 where a token is never masked.

    ``annotation`` uint8 [B, T].
    """
    words = np.cumsum(annotation & WORD_START, axis=1, dtype=np.int32)
    words >>= 6  # the word-start bit has the value 64
    words -= 1
    words[is_special(annotation)] = -1
    return words


def totals(annotation: np.ndarray) -> np.ndarray:
    """int64 [2, 64]: maskable tokens by class; those that do not begin a word, then those that do."""
    return np.bincount(annotation.ravel(), minlength=256)[:SPECIAL].reshape(2, MAX_CLASSES)
