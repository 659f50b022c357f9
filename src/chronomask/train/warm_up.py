"""Warm-up of size: steps that begin with fewer rows, rows that begin shorter.

Both are pure functions of the step, in stages of equal length, so that compiled shapes change a few
times in all and any step is reached at once. The order of the data stays what it is without them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from chronomask.config import Config
from chronomask.data.cut import cut_rows
from chronomask.errors import UsageError
from chronomask.types import Rows

__all__ = ["BatchWarmUp", "LengthWarmUp", "Sizes", "shorten_rows"]

Positive = Annotated[int, Field(ge=1)]


class BatchWarmUp(Config):
    """Steps of few rows at first, growing in equal stages to ``rows_per_step`` (ModernBERT does so)."""

    start_rows: Positive
    """rows of the first steps"""
    steps: Positive
    """steps until ``rows_per_step`` is reached"""
    stages: Positive = 4
    """number of sizes on the way, the first of them ``start_rows``"""


class LengthWarmUp(Config):
    """Rows cut into pieces at first; the pieces double in length until rows are whole.

    A step has the same tokens throughout. BERT trained 90 % of its steps on 128 of 512 tokens
    (Devlin et al. 2019, appendix A.2).
    """

    start_length: Positive
    """tokens of the first pieces: the data's row length, or a half, a quarter, … of it"""
    steps: Positive
    """steps until rows are whole"""

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
    """Rows of every step (a :class:`~chronomask.data.loader.StepSizes`)."""

    full: int
    warm_up: BatchWarmUp | None = None

    def rows_at(self, step: int) -> int:
        """Rows of 0-based ``step``."""
        if self.warm_up is None or step >= self.warm_up.steps:
            return self.full
        return self._rows_of(step * self.warm_up.stages // self.warm_up.steps)

    def rows_before(self, step: int) -> int:
        """Rows of all steps before ``step``."""
        if self.warm_up is None:
            return self.full * step
        rows = self.full * max(0, step - self.warm_up.steps)
        for stage in range(self.warm_up.stages):
            inside = min(step, self._first_of(stage + 1)) - self._first_of(stage)
            rows += self._rows_of(stage) * max(0, inside)
        return rows

    def parts_at(self, step: int, parts: int) -> int:
        """Micro-batches of ``step`` if a full step has ``parts``: they keep their size, not their number."""
        return -(-self.rows_at(step) * parts // self.full)

    def _rows_of(self, stage: int) -> int:
        assert self.warm_up is not None
        start, stages = self.warm_up.start_rows, self.warm_up.stages
        return start + (self.full - start) * stage // stages

    def _first_of(self, stage: int) -> int:
        """The first step s with s · stages // steps = ``stage``."""
        assert self.warm_up is not None
        return -(-stage * self.warm_up.steps // self.warm_up.stages)


def shorten_rows(rows: Iterable[Rows], warm_up: LengthWarmUp | None, step: int) -> Iterator[Rows]:
    """The rows of ``step``, ``step`` + 1, … cut as the warm-up says."""
    for number, each in enumerate(rows, start=step):
        yield (
            each if warm_up is None else cut_rows(each, warm_up.pieces_at(number, each.row_length))
        )
