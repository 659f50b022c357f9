"""Masks and what can be counted of them. Letters: B rows, T tokens, C classes.

One epoch makes a picture. A short text has a budget of a few tokens, rounded at random, so shares are
counted over many keyed epochs, of which the picture shows the first.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import IntEnum

import numpy as np

from chronomask.masking.masker import Masker
from chronomask.types import MaskedBatch, Rows

__all__ = ["EPOCHS", "Shown", "Statistics", "count_masked", "shown_as", "statistics", "word_pieces"]

EPOCHS = 200
"""Epochs that shares are averaged over."""
_TOKENS_AT_ONCE = 1 << 20


class Shown(IntEnum):
    """How the model sees a token."""

    PLAIN = 0
    """as it is, nothing to predict"""
    HIDDEN = 1
    """as [MASK]"""
    RANDOM = 2
    """as another token"""
    KEPT = 3
    """as it is, but to be predicted"""


@dataclass(frozen=True, slots=True)
class Statistics:
    """Shares in [0, 1] over all rows and epochs.

    ``achieved``: predicted tokens of all maskable ones; ``class_in_text``, ``class_in_masked``
    float64 [C]: each class's share of the maskable and of the predicted tokens; ``multi_in_text``,
    ``multi_in_masked``: share of words of several pieces among all and among the masked words, where
    a token of a word of k pieces stands for 1/k word. A share of nothing is NaN.
    """

    achieved: float
    class_in_text: np.ndarray
    class_in_masked: np.ndarray
    multi_in_text: float
    multi_in_masked: float


def shown_as(rows: Rows, batch: MaskedBatch, mask_token_id: int) -> np.ndarray:
    """int8 [B, T]: the :class:`Shown` of every token; a random token that hits the truth is kept."""
    shown = np.zeros(rows.input_ids.shape, np.int8)
    predicted = batch.labels >= 0
    shown[predicted] = Shown.RANDOM
    shown[predicted & (batch.input_ids == rows.input_ids)] = Shown.KEPT
    shown[predicted & (batch.input_ids == mask_token_id)] = Shown.HIDDEN
    return shown


def count_masked(masker: Masker, rows: Rows, progress: float, epochs: int = EPOCHS) -> np.ndarray:
    """int64 [B, T]: in how many of the epochs 0 … ``epochs`` − 1 each token is predicted."""
    number, length = rows.input_ids.shape
    at_once = max(1, _TOKENS_AT_ONCE // (number * length))
    counts = np.zeros((number, length), np.int64)
    for first in range(0, epochs, at_once):
        repeats = min(at_once, epochs - first)
        batch = masker(_epochs(rows, first, repeats), progress)
        counts += (batch.labels >= 0).reshape(repeats, number, length).sum(axis=0)
    return counts


def _epochs(rows: Rows, first: int, repeats: int) -> Rows:
    """The rows of several epochs under one another, in training order."""
    number, length = rows.input_ids.shape
    return replace(
        rows,
        input_ids=np.tile(rows.input_ids, (repeats, 1)),
        word_id=np.tile(rows.word_id, (repeats, 1)),
        token_class=np.tile(rows.token_class, (repeats, 1)),
        row_id=np.tile(rows.row_id, repeats),
        epoch=np.repeat(np.arange(first, first + repeats), number),
        cu_seqlens=np.arange(repeats * number + 1, dtype=np.int32) * np.int32(length),
        order=np.arange(first * number, (first + repeats) * number),
    )


def word_pieces(word_id: np.ndarray) -> np.ndarray:
    """int64 [B, T]: how many tokens each token's word has, 0 where nothing may be masked."""
    pieces = np.zeros(word_id.shape, np.int64)
    for row, words in enumerate(word_id):
        there = words >= 0
        pieces[row, there] = np.bincount(words[there])[words[there]]
    return pieces


def statistics(rows: Rows, counts: np.ndarray, epochs: int, num_classes: int) -> Statistics:
    """What ``counts`` [B, T] of :func:`count_masked` tell."""
    pieces = word_pieces(rows.word_id)
    maskable = pieces > 0
    part_of_word = np.where(maskable, 1.0 / np.maximum(pieces, 1), 0.0)

    def per_class(amount: np.ndarray) -> np.ndarray:
        return np.bincount(rows.token_class.ravel(), amount.ravel(), num_classes)

    def multi(amount: np.ndarray) -> float:
        words = part_of_word * amount
        return _share(words[pieces > 1].sum(), words.sum())

    total = int(counts.sum())
    return Statistics(
        achieved=_share(total, epochs * int(np.count_nonzero(maskable))),
        class_in_text=per_class(maskable) / max(np.count_nonzero(maskable), 1),
        class_in_masked=per_class(counts) / total if total else np.full(num_classes, np.nan),
        multi_in_text=multi(maskable),
        multi_in_masked=multi(counts),
    )


def _share(part: float, whole: float) -> float:
    return float(part / whole) if whole else float("nan")
