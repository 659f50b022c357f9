"""Which rows of the data a step trains on, and how long they are: pure functions of (seed, step).

The order of all rows is a keyed permutation of each epoch (:func:`visits`). A step takes the next so many of
them (:class:`Sizes`: fewer at first with a :class:`BatchWarmUp`), whole or cut into shorter rows
(:class:`LengthWarmUp`). There is nothing to remember: any step is reached at once, and sizes change in
stages, so that compiled shapes change a few times in all.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import accumulate, pairwise
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field

from chronomask.config import Config
from chronomask.errors import UsageError
from chronomask.types import VISIT_BITS, Rows

__all__ = ["BatchWarmUp", "LengthWarmUp", "Sizes", "cut_rows", "shorten_rows", "visits"]

Positive = Annotated[int, Field(ge=1)]


def visits(
    num_rows: int, seed: int, number: np.ndarray, part: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Rows and epochs (int64 [B] each) of visits ``number`` to a data set of ``num_rows``.

    Every epoch visits every row once, in a keyed order of its own; ``part`` distinguishes the data sets
    of one training.
    """
    # Brings numba, which opening data spares.
    from chronomask.keyed import Stream, permute, row_keys

    epoch, index = np.divmod(np.asarray(number, np.int64), num_rows)
    row_ids = np.empty_like(index)
    for value in np.unique(epoch).tolist():
        inside = epoch == value
        key = int(row_keys(seed, Stream.ORDER, value, part))
        row_ids[inside] = permute(index[inside], num_rows, key)
    return row_ids, epoch


class BatchWarmUp(Config):
    """Steps of few rows at first, growing in equal stages to ``rows_per_step`` (ModernBERT does so)."""

    start_rows: Positive
    """rows of the first steps"""
    steps: Positive
    """steps until ``rows_per_step`` is reached"""
    stages: Annotated[int, Field(ge=1, le=10_000)] = 4
    """number of sizes on the way, the first of them ``start_rows``"""
    at_its_end: ClassVar[str] = "steps have rows_per_step rows"


class LengthWarmUp(Config):
    """Rows cut into pieces at first; the pieces double in length until rows are whole.

    A step has the same tokens throughout. BERT trained 90 % of its steps on 128 of 512 tokens
    (Devlin et al. 2019, appendix A.2).
    """

    start_length: Positive
    """tokens of the first pieces: a half of the data's row length, a quarter, an eighth, …"""
    steps: Positive
    """steps until rows are whole"""
    at_its_end: ClassVar[str] = "rows are whole"

    def pieces_at(self, step: int, row_length: int) -> int:
        """How many pieces a row is cut into at 0-based ``step``; raises UsageError if it cannot be."""
        most = row_length // self.start_length
        if most < 2 or most & (most - 1) or most * self.start_length != row_length:
            lengths = [row_length >> n for n in range(1, 5) if row_length % (1 << n) == 0]
            raise UsageError(
                f"length_warmup.start_length is {self.start_length}; rows of {row_length} tokens can "
                f"start with pieces of {', '.join(map(str, lengths)) or 'no other length'} tokens"
            )
        stages = most.bit_length() - 1
        return most >> min(stages, step * stages // self.steps)


@dataclass(frozen=True, slots=True)
class Sizes:
    """Rows of every step: ``full``, or fewer while a warm-up lasts, or those of a course.

    ``course``: rows of the stages of equal length that ``steps`` are cut into, the last one's after them.
    """

    full: int
    warm_up: BatchWarmUp | None = None
    course: tuple[int, ...] = ()
    steps: int = 0

    def rows_at(self, step: int) -> int:
        """Rows of 0-based ``step``."""
        if self.course:
            return self.course[min(step * len(self.course) // self.steps, len(self.course) - 1)]
        if self.warm_up is None or step >= self.warm_up.steps:
            return self.full
        return self._rows_of(step * self.warm_up.stages // self.warm_up.steps)

    @property
    def fewest(self) -> int:
        """Rows of the smallest step."""
        return min(self.course) if self.course else self.rows_at(0)

    def refuse_too_few(self, processes: int) -> None:
        """Raise UsageError where the smallest step has no row for one of the processes that share it."""
        if self.fewest >= processes:
            return
        mends = []
        if self.warm_up is not None:
            mends.append(f"set batch_warmup.start_rows={processes}")
        if self.course:  # which has fewer rows wherever the ratio is higher
            mends.append(f"raise rows_per_step (now {self.full})")
        elif self.full < processes:
            mends.append(f"set rows_per_step={processes}")
        raise UsageError(
            f"the smallest step has too few rows: {self.fewest}, fewer than the {processes} processes that "
            f"share it; {' and '.join(mends)}, or use fewer processes"
        )

    def rows_before(self, step: int) -> int:
        """Rows of all steps before ``step``."""
        if self.course:
            stage = min(step * len(self.course) // self.steps, len(self.course) - 1)
            first = _first_of(stage, self.steps, len(self.course))
            return (
                _rows_before_stages(self.course, self.steps)[stage]
                + (step - first) * self.course[stage]
            )
        if self.warm_up is None:
            return self.full * step
        rows = self.full * max(0, step - self.warm_up.steps)
        steps, stages = self.warm_up.steps, self.warm_up.stages
        for stage in range(stages):
            end = min(step, _first_of(stage + 1, steps, stages))
            rows += self._rows_of(stage) * max(0, end - _first_of(stage, steps, stages))
        return rows

    def parts_at(self, step: int, parts: int) -> int:
        """Micro-batches of ``step`` if a full step has ``parts``: they keep their size, not their number."""
        return -(-self.rows_at(step) * parts // self.full)

    def _rows_of(self, stage: int) -> int:
        assert self.warm_up is not None
        start, stages = self.warm_up.start_rows, self.warm_up.stages
        return start + (self.full - start) * stage // stages


def _first_of(stage: int, steps: int, stages: int) -> int:
    """The first step s with s · stages // steps = ``stage``."""
    return -(-stage * steps // stages)


@lru_cache(maxsize=16)
def _rows_before_stages(course: tuple[int, ...], steps: int) -> list[int]:
    """Rows of all steps before each stage of a course."""
    firsts = [_first_of(stage, steps, len(course)) for stage in range(len(course) + 1)]
    rows = [
        number * (end - first)
        for number, (first, end) in zip(course, pairwise(firsts), strict=True)
    ]
    return [0, *accumulate(rows)]


def shorten_rows(rows: Iterable[Rows], warm_up: LengthWarmUp | None, step: int) -> Iterator[Rows]:
    """The rows of ``step``, ``step`` + 1, … cut as the warm-up says."""
    for number, each in enumerate(rows, start=step):
        yield (
            each if warm_up is None else cut_rows(each, warm_up.pieces_at(number, each.row_length))
        )


def cut_rows(rows: Rows, pieces: int) -> Rows:
    """Each host row as ``pieces`` rows of equal length, one after the other.

    A word that lies on both sides of a cut is predicted in neither piece, so that no word is masked in
    part. Pieces keep their row's number in the data; ``epoch`` distinguishes them from the whole row and
    from pieces of other lengths: it holds the visit in the low 32 bits and pieces − 1 + the piece's place
    above them (unique where numbers of pieces are powers of 2).
    """
    if pieces == 1:
        return rows
    num_rows, length = rows.input_ids.shape
    short = length // pieces
    assert short * pieces == length  # LengthWarmUp allows no other lengths
    shape = (num_rows * pieces, short)

    place = np.tile(np.arange(pieces, dtype=np.int64), num_rows)
    order = None if rows.order is None else np.repeat(rows.order, pieces) * pieces + place
    every = np.arange(0, num_rows * length + 1, short, dtype=rows.cu_seqlens.dtype)
    return replace(
        rows,
        input_ids=rows.input_ids.reshape(shape),
        word_id=_recount(_exclude_split_words(rows.word_id, short).reshape(shape)),
        token_class=rows.token_class.reshape(shape),
        row_id=np.repeat(rows.row_id, pieces),
        epoch=np.repeat(rows.epoch, pieces) + ((pieces - 1 + place) << VISIT_BITS),
        cu_seqlens=np.union1d(rows.cu_seqlens, every),
        order=order,
        scores=None if rows.scores is None else rows.scores.reshape(shape),
        ngrams=None if rows.ngrams is None else rows.ngrams.reshape(shape),
    )


def _exclude_split_words(word_id: np.ndarray, short: int) -> np.ndarray:
    """``word_id`` [B, T] with −1 at every token of a word that lies on both sides of a cut."""
    before, after = word_id[:, short - 1 : -1 : short], word_id[:, short::short]
    row, cut = np.nonzero((before == after) & (after >= 0))
    is_split = np.zeros((word_id.shape[0], int(word_id.max(initial=0)) + 2), bool)
    is_split[row, after[row, cut]] = True  # the last column, which −1 reads, stays False
    return np.where(np.take_along_axis(is_split, word_id.astype(np.intp), 1), -1, word_id)


def _recount(word_id: np.ndarray) -> np.ndarray:
    """Words of each row counted from 0."""
    before = np.concatenate((np.full((len(word_id), 1), -1, word_id.dtype), word_id[:, :-1]), 1)
    begins = (word_id >= 0) & (word_id != before)
    return np.where(word_id >= 0, begins.cumsum(1) - 1, -1).astype(np.int32)
