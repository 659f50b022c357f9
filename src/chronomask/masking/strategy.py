"""Which tokens are masked together: strategies turn rows into units, masked whole or not at all.

A strategy's ``unit_id`` gives every maskable token the number of its unit within the row, rising from
left to right, and −1 to the others. A new strategy is one class here and one line in the union.
"""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field

from chronomask import keyed
from chronomask.config import Config
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

    Values only need to differ between neighbouring units; tokens of one unit are adjacent.
    """
    if isinstance(strategy, WholeWord):
        return rows.word_id
    if isinstance(rows.word_id, torch.Tensor):
        if isinstance(strategy, Span):
            raise TypeError("spans are cut on the host: pass rows of numpy arrays")
        position = torch.arange(rows.row_length, device=rows.word_id.device)
        return torch.where(rows.word_id >= 0, position, -1)
    if isinstance(strategy, Token):
        return np.where(rows.word_id >= 0, np.arange(rows.row_length, dtype=np.int32), np.int32(-1))
    return _spans(strategy, rows.word_id, rows, seed)


def _spans(strategy: Span, word_id: np.ndarray, rows: Rows, seed: int) -> np.ndarray:
    """int32 [B, T]: spans of words, cut at random and at specials."""
    maskable = word_id >= 0
    previous = np.empty_like(word_id)
    previous[:, 0] = -1
    previous[:, 1:] = word_id[:, :-1]
    word_start = maskable & (word_id != previous)
    keys = keyed.row_keys(seed, keyed.Stream.SPAN, rows.epoch, rows.row_id)
    chance = keyed.bits(keys, rows.row_length)
    forced = word_start & (previous < 0)
    cut = forced | (word_start & (chance < strategy.stop_prob * 2.0**32))
    word_number = np.cumsum(word_start, axis=1, dtype=np.int32)
    span_begin = np.maximum.accumulate(np.where(cut, word_number, 0), axis=1)
    cut |= word_start & ((word_number - span_begin) % strategy.max_words == 0)
    return np.where(maskable, np.cumsum(cut, axis=1, dtype=np.int32) - 1, np.int32(-1))
