"""Which tokens are masked together: strategies turn rows into units, masked whole or not at all.

A strategy's ``unit_id`` gives every maskable token the number of its unit within the row, rising from
left to right, and −1 to the others. A new strategy is one class here and one line in the union.
"""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
from numba import njit
from pydantic import Field

from chronomask import keyed
from chronomask.config import Config
from chronomask.keyed import Scalar
from chronomask.types import Array, Rows

__all__ = ["Strategy"]


class Token(Config):
    """Every token is a unit (Devlin et al., NAACL 2019)."""

    kind: Literal["token"] = "token"


class WholeWord(Config):
    """The tokens of a word are a unit; words are those of the tagger, or Unicode words."""

    kind: Literal["whole_word"] = "whole_word"


class Span(Config):
    """Runs of whole words with geometric lengths (Joshi et al., "SpanBERT", TACL 2020).

    Every row is cut into spans: a span ends after each word with probability ``stop_prob``, and
    after ``max_words`` words at the latest. Each span is then a unit, so the lengths of masked spans
    follow the same geometric law. Spans end where documents end.
    """

    kind: Literal["span"] = "span"
    stop_prob: Annotated[float, Field(gt=0, le=1)] = 0.2
    """p of the geometric distribution of span lengths in words"""
    max_words: Annotated[int, Field(ge=1)] = 10
    """longest span, in words"""


Strategy = Annotated[Token | WholeWord | Span, Field(discriminator="kind")]


def unit_id(strategy: Token | WholeWord | Span, rows: Rows, seed: int) -> Array:
    """Integer [B, T]: the unit of each token, −1 where nothing may be masked.

    Values only need to differ between neighbouring units; tokens of one unit are adjacent. For
    ``token`` these are the words: selection is told to take every token apart. Spans need rows of
    numpy arrays.
    """
    if isinstance(strategy, Span):
        return _spans(strategy, rows.word_id, rows, seed)
    return rows.word_id


def _spans(strategy: Span, word_id: np.ndarray, rows: Rows, seed: int) -> np.ndarray:
    """int32 [B, T]: spans of words, cut at random and at specials."""
    keys = keyed.row_keys(seed, keyed.Stream.SPAN, rows.epoch, rows.row_id)
    spread = keyed.spread_of_range(word_id.shape[1])
    stop_below = round(strategy.stop_prob * 2**32)
    return _cut(word_id, keys, spread, stop_below, strategy.max_words)


@njit(cache=True, nogil=True)
def _cut(
    word_id: np.ndarray, keys: np.ndarray, spread: np.ndarray, stop_below: Scalar, max_words: Scalar
) -> np.ndarray:
    out = np.empty(word_id.shape, np.int32)
    for row in range(word_id.shape[0]):
        low = np.uint32(keys[row] & np.uint64(0xFFFFFFFF))
        odd = np.uint32(keys[row] >> np.uint64(32)) | np.uint32(1)
        span, words, previous = -1, 0, np.int32(-1)
        for column in range(word_id.shape[1]):
            word = word_id[row, column]
            if word < 0:
                out[row, column] = -1
            else:
                if word != previous:
                    stops = keyed.scalar_mix(spread[column], low, odd) < stop_below
                    if previous < 0 or stops or words == max_words:
                        span, words = span + 1, 0
                    words += 1
                out[row, column] = span
            previous = word
    return out
