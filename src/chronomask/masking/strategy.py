"""Which tokens are masked together: strategies turn rows into units, masked whole or not at all.

A strategy is one class: ``units`` gives every maskable token the number of its unit within the row,
rising from left to right, and −1 to the others. A new one is one more class, here or anywhere (see
:class:`~chronomask.config.Alternative`).
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from chronomask.config import Alternative
from chronomask.types import Array, Rows

__all__ = ["Strategy"]


class Strategy(Alternative):
    """What every strategy can do; ``units`` is the one thing a new one must define."""

    each_token: ClassVar[bool] = False
    """whether every maskable token is a unit of its own, whatever :meth:`units` numbers"""
    mixes_classes: ClassVar[bool] = True
    """whether a unit can hold tokens of several classes; its weight is then the mean of its tokens'"""
    has_dense_form: ClassVar[bool] = False
    """whether :meth:`units` takes rows of torch tensors on any device, and waits for none"""

    def at(self, progress: float) -> Strategy:
        """The strategy in force at ``progress`` in [0, 1]: itself, unless it is made of others."""
        return self

    @abstractmethod
    def units(self, rows: Rows, seed: int) -> Array:
        """Integer [B, T]: the unit of each token, −1 where nothing may be masked.

        Values only need to differ between neighbouring units; tokens of one unit are adjacent. Rows are
        numpy arrays unless :attr:`has_dense_form`.
        """


class Token(Strategy):
    """Every token is a unit (Devlin et al., NAACL 2019)."""

    each_token: ClassVar[bool] = True
    mixes_classes: ClassVar[bool] = False
    has_dense_form: ClassVar[bool] = True

    kind: Literal["token"] = "token"

    def units(self, rows: Rows, seed: int) -> Array:
        return rows.word_id


class WholeWord(Strategy):
    """The tokens of a word are a unit; words are those of the tagger, or Unicode words."""

    mixes_classes: ClassVar[bool] = False
    has_dense_form: ClassVar[bool] = True

    kind: Literal["whole_word"] = "whole_word"

    def units(self, rows: Rows, seed: int) -> Array:
        return rows.word_id


class Span(Strategy):
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

    def units(self, rows: Rows, seed: int) -> Array:
        from chronomask import keyed
        from chronomask.masking.select import draws

        keys = keyed.row_keys(seed, keyed.Stream.SPAN, rows.epoch, rows.row_id)
        spread = keyed.spread_of_range(rows.row_length)
        return draws.cut_spans(
            rows.word_id, keys, spread, round(self.stop_prob * 2**32), self.max_words
        )
