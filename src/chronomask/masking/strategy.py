"""Which tokens are masked together: strategies turn rows into units, masked whole or not at all.

A strategy is one class: ``units`` gives every maskable token the number of its unit within the row,
rising from left to right, and −1 to the others. A new one is one more class, here or anywhere (see
:class:`~chronomask.config.Alternative`).
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from chronomask.config import Alternative, Config, kind_of
from chronomask.errors import UsageError
from chronomask.masking.ratio.base import (
    NumberOrCourse,
    PureSchedule,
    Ratio,
    Share,
    refuse_laws,
    value_at,
)
from chronomask.masking.ratio.courses import check_ends
from chronomask.masking.ratio.laws import check_shares
from chronomask.types import VISIT_BITS, Array, Rows

__all__ = ["Explored", "Mixed", "Phased", "PmiNgrams", "Span", "Strategy", "Token", "WholeWord"]


class Strategy(Alternative):
    """What every strategy can do; ``units`` is the one thing a new one must define."""

    each_token: ClassVar[bool] = False
    """whether every maskable token is a unit of its own, whatever :meth:`units` numbers"""
    mixes_classes: ClassVar[bool] = True
    """whether a unit can hold tokens of several classes; its weight is then the mean of its tokens'"""
    has_dense_form: ClassVar[bool] = False
    """whether :meth:`units` takes rows of torch tensors on any device, and waits for none"""

    @property
    def inner(self) -> tuple[Strategy, ...]:
        """The strategies that it is made of."""
        return ()

    @property
    def needs_ngrams(self) -> bool:
        """Whether rows must say where collocations begin, so that data without any will not do."""
        return any(part.needs_ngrams for part in self.inner)

    @property
    def turns(self) -> int:
        """In how many epochs every unit has its turn once: in each, one of so many may be masked."""
        return 1

    def at(self, progress: float) -> Strategy:
        """The strategy in force at ``progress`` in [0, 1]: itself, unless it is made of others."""
        return self

    def shares_at(self, progress: float) -> dict[str, float]:
        """The share of the rows that follows each kind of strategy at ``progress``; they add up to 1."""
        return {kind_of(self): 1.0}

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
        from chronomask.masking import unit_loops

        keys = keyed.row_keys(seed, keyed.Stream.SPAN, rows.epoch, rows.row_id)
        spread = keyed.spread_of_range(rows.row_length)
        spans = unit_loops.cut_spans(
            rows.word_id, keys, spread, round(self.stop_prob * 2**32), self.max_words
        )
        return _cut_at_documents(spans, rows.cu_seqlens)


class PmiNgrams(Strategy):
    """Collocations of two to five words, found in the data beforehand, and the words in none.

    Levine et al., "PMI-Masking" (ICLR 2021, arXiv 2010.01825): words that give each other away are masked
    together. Of n-grams that overlap one is drawn, anew in every epoch, and the other's words are units of
    their own; one within another is part of it.
    """

    kind: Literal["pmi"] = "pmi"

    @property
    def needs_ngrams(self) -> bool:
        return True

    def units(self, rows: Rows, seed: int) -> Array:
        """Raises UsageError for rows that do not say where collocations begin."""
        from chronomask import keyed
        from chronomask.masking import unit_loops

        if rows.ngrams is None:
            raise UsageError(
                "strategy 'pmi' masks collocations together, and these rows do not mark any: find "
                "them in prepared data with  chronomask data ngrams FOLDER , or choose another strategy"
            )
        keys = keyed.row_keys(seed, keyed.Stream.NGRAM, rows.epoch, rows.row_id)
        return unit_loops.join_ngrams(
            rows.word_id, rows.ngrams, keys, keyed.spread_of_range(rows.row_length)
        )


class StrategyPhase(Config):
    """One stretch of :class:`Phased`."""

    until: Share
    """progress at which the stretch ends (exclusive)"""
    strategy: Strategy
    """which tokens are masked together during it"""


class Phased(Strategy):
    """Strategies one after another: tokens first, then words, then spans, or in any other order."""

    kind: Literal["phased"] = "phased"
    phases: tuple[StrategyPhase, ...] = Field(min_length=1)
    """in order; the last one must reach 1"""

    @model_validator(mode="after")
    def _check_coverage(self) -> Phased:
        check_ends([phase.until for phase in self.phases])
        _refuse_turns(self)
        return self

    @property
    def inner(self) -> tuple[Strategy, ...]:
        return tuple(phase.strategy for phase in self.phases)

    def at(self, progress: float) -> Strategy:
        last = self.phases[-1]
        phase = next((phase for phase in self.phases if progress < phase.until), last)
        return phase.strategy.at(progress)

    def shares_at(self, progress: float) -> dict[str, float]:
        return self.at(progress).shares_at(progress)

    def units(self, rows: Rows, seed: int) -> Array:
        return self.at(0.0).units(rows, seed)


class StrategyShare(Config):
    """One part of :class:`Mixed`."""

    share: Annotated[Ratio | PureSchedule, NumberOrCourse]
    """share of the rows that follow it; a number, or a schedule of progress"""
    strategy: Strategy
    """which of their tokens are masked together"""

    @model_validator(mode="after")
    def _check_one_for_all(self) -> StrategyShare:
        refuse_laws(self, "share")
        return self


class Mixed(Strategy):
    """Every row follows one of several strategies, drawn by key; their shares may follow progress.

    A unit's weight is the mean over its tokens, as for spans.
    """

    kind: Literal["mixed"] = "mixed"
    parts: tuple[StrategyShare, ...] = Field(min_length=1)
    """the strategies; at every progress their shares must add up to 1"""

    @model_validator(mode="after")
    def _check_shares(self) -> Mixed:
        check_shares([part.share for part in self.parts])
        _refuse_turns(self)
        return self

    @property
    def inner(self) -> tuple[Strategy, ...]:
        return tuple(part.strategy for part in self.parts)

    def at(self, progress: float) -> Strategy:
        """The mixture with the shares of that moment as numbers."""
        parts = [
            part.model_copy(
                update={
                    "share": value_at(part.share, progress),
                    "strategy": part.strategy.at(progress),
                }
            )
            for part in self.parts
        ]
        return self.model_copy(update={"parts": tuple(parts)})

    def shares_at(self, progress: float) -> dict[str, float]:
        shares: dict[str, float] = {}
        for part in self.parts:
            for kind, share in part.strategy.shares_at(progress).items():
                shares[kind] = shares.get(kind, 0.0) + share * value_at(part.share, progress)
        return shares

    def units(self, rows: Rows, seed: int) -> Array:
        from chronomask import keyed

        keys = keyed.row_keys(seed, keyed.Stream.STRATEGY, rows.epoch, rows.row_id)
        ends = np.cumsum([value_at(part.share, 0.0) for part in self.parts])
        drawn = np.searchsorted(ends[:-1], keyed.unit_interval(keys >> np.uint64(32)), "right")
        out = np.full(rows.word_id.shape, -1, np.int32)
        for number, part in enumerate(self.parts):
            own = drawn == number
            if own.any():
                out[own] = _units_of_tokens_too(part.strategy, rows, seed)[own]
        return out


class Explored(Strategy):
    """Masks of a row in consecutive epochs share no unit, until all have had their turn.

    After Zheng et al., "Improving self-supervised pre-training via a fully-explored masked language
    model" (arXiv 2010.06040), who cut a row into segments that are masked in turn. Here the units of a row
    are dealt at random into ``epochs`` turns of as many tokens, anew for every ``epochs`` epochs; what an
    epoch masks is chosen among the units whose turn it is, with ``epochs`` times the ratio.
    """

    kind: Literal["explored"] = "explored"
    epochs: Annotated[int, Field(ge=2, le=64)] = 4
    """epochs until every unit has had its turn; the ratio can be at most 1 / epochs"""
    strategy: Strategy = WholeWord()
    """which tokens are masked together"""

    @model_validator(mode="after")
    def _check_single(self) -> Explored:
        _refuse_turns(self)
        return self

    @property
    def inner(self) -> tuple[Strategy, ...]:
        return (self.strategy,)

    @property
    def turns(self) -> int:
        return self.epochs

    def at(self, progress: float) -> Strategy:
        return self.model_copy(update={"strategy": self.strategy.at(progress)})

    def shares_at(self, progress: float) -> dict[str, float]:
        return self.strategy.shares_at(progress)

    def units(self, rows: Rows, seed: int) -> Array:
        from chronomask import keyed
        from chronomask.masking import unit_loops

        which, visit = np.divmod(rows.epoch, 1 << VISIT_BITS)  # of a row's parts; visits of it
        cycle, turn = np.divmod(visit, self.epochs)
        cycle += which << VISIT_BITS
        keys = keyed.row_keys(seed, keyed.Stream.EXPLORE, cycle, rows.row_id)
        spread = keyed.spread_of_range(rows.row_length)
        # The same units in all epochs of a cycle, also where they are drawn.
        units = _units_of_tokens_too(self.strategy, replace(rows, epoch=cycle), seed)
        return unit_loops.deal_units(units, keys, spread, turn, self.epochs)


def _cut_at_documents(units: np.ndarray, cu_seqlens: np.ndarray) -> np.ndarray:
    """int32 [B, T]: units that end where documents do, also where no special token stands between these."""
    flat = units.ravel()
    begins = cu_seqlens[cu_seqlens % units.shape[1] > 0]
    inside = begins[(flat[begins] >= 0) & (flat[begins] == flat[begins - 1])]
    if not inside.size:
        return units
    more = np.zeros(flat.shape, np.int32)
    more[inside] = 1
    return np.where(units >= 0, units + more.reshape(units.shape).cumsum(1, dtype=np.int32), units)


def _units_of_tokens_too(strategy: Strategy, rows: Rows, seed: int) -> Any:
    """int32 [B, T]: units of host rows, numbered also where every token is one."""
    if not strategy.each_token:
        return strategy.units(rows, seed)
    column = np.arange(rows.row_length, dtype=np.int32)
    return np.where(rows.word_id >= 0, column, np.int32(-1))


def _refuse_turns(whole: Strategy) -> None:
    """Raise ValueError for a strategy of turns within another: turns must be the same for all rows."""
    for part in whole.inner:
        if part.turns > 1:
            raise ValueError(
                f"strategy '{kind_of(part)}' cannot be part of '{kind_of(whole)}': put "
                f"'{kind_of(whole)}' inside it, as its 'strategy'"
            )
