"""Which rows step s trains on: a pure function of (data, seed, s), with no state to save.

Row number n of the run (n = s · rows_per_step + i, unless steps differ in size) belongs to epoch
n // num_rows; a keyed permutation of the epoch says which row of the data it is (in a mixture every part
has epochs of its own). Any step is reached in O(1), by any rank, and workers only read ahead. Rows are
unmasked: masks depend on the state of training, and rows read ahead of time must not.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import lru_cache
from itertools import accumulate, count, pairwise, takewhile

import numpy as np

from chronomask.data.folder import PreparedSplit
from chronomask.data.mixture import MixedSplit
from chronomask.data.order import Sizes, visits
from chronomask.errors import DataError, UsageError
from chronomask.types import Rows

__all__ = ["RowLoader", "rows_of_pass", "validation_batches"]

_BLOCK_ROWS = 4096
_TOKENS_TOGETHER = 2**17
"""Tokens of small steps that are read at once: a thread that reads interrupts the one that trains."""
_STEPS_TOGETHER = 8
"""Steps that are read at once at most, however small they are: the first one waits for all of them."""
_ROWS_OF_PASS, _TOKENS_OF_PASS = 64, 2**15
"""Of a forward pass of validation at most: 32,768 tokens keep a GPU busy and fit into a small one."""


class RowLoader:
    """The rows of every step for one rank.

    ``rows_per_step`` is the whole step's, over all ranks; rank r takes rows r·n/w to (r + 1)·n/w, so
    the ranks' rows in order are the single process's rows. ``num_workers`` threads read ahead:
    threads, because the work is copying out of a memory map inside numpy, which releases the
    interpreter lock, and a batch handed over between processes would be copied once more.
    ``stop_step``: the step before which iteration ends, so that nothing is read ahead beyond a run's last;
    None for one without end. ``first_row``: rows of the order that an earlier run took, which are left out.
    Steps of different :class:`~chronomask.data.order.Sizes` take them in the same order.
    """

    def __init__(
        self,
        split: PreparedSplit | MixedSplit,
        *,
        seed: int,
        rows_per_step: int | Sizes,
        rank: int = 0,
        world_size: int = 1,
        num_workers: int = 0,
        start_step: int = 0,
        stop_step: int | None = None,
        first_row: int = 0,
    ) -> None:
        """Raises DataError for data without rows, UsageError for numbers that do not fit together."""
        for part in split.splits if isinstance(split, MixedSplit) else [split]:
            if not part.num_rows:
                raise DataError(f"{part.path} has no rows to train on; prepare more text")
        sizes = rows_per_step if isinstance(rows_per_step, Sizes) else Sizes(rows_per_step)
        sizes.refuse_too_few(world_size)
        if not 0 <= rank < world_size:
            raise UsageError(f"rank must lie in 0 to {world_size - 1}; it is {rank}")
        if num_workers < 0 or start_step < 0:
            raise UsageError(
                f"num_workers and start_step must not be negative; they are {num_workers} and {start_step}"
            )
        self.split = split
        self.seed = seed
        self.num_workers = num_workers
        self.start_step = start_step
        self.stop_step = stop_step
        self.sizes = sizes
        self._rank, self._world_size = rank, world_size
        self._first_row = first_row
        self._block = lru_cache(maxsize=8)(self._order_block)

    def row_ids_at(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """int64 [B] row numbers and int64 [B] epochs of this rank's rows at ``step``."""
        start, stop = self.row_range(step)
        blocks = range(start // _BLOCK_ROWS, (stop - 1) // _BLOCK_ROWS + 1)
        parts = [self._block(block) for block in blocks]
        cut = slice(start - blocks[0] * _BLOCK_ROWS, stop - blocks[0] * _BLOCK_ROWS)
        return (
            np.concatenate([row_ids for row_ids, _ in parts])[cut],
            np.concatenate([epoch for _, epoch in parts])[cut],
        )

    def rows_before(self, step: int) -> int:
        """Rows of the order before ``step``, over all ranks."""
        return self._first_row + self.sizes.rows_before(step)

    def row_range(self, step: int) -> tuple[int, int]:
        """First and last (exclusive) of this rank's rows at ``step``, counted over the order."""
        base = self.rows_before(step)
        rows = self.sizes.rows_at(step)
        first, last = (rows * (self._rank + k) // self._world_size for k in (0, 1))
        return base + first, base + last

    def _order_block(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        """Row numbers and epochs of one block of the run's rows.

        The whole block costs little more than a few rows: most of the permutation's time is calls into
        numpy.
        """
        number = np.arange(block * _BLOCK_ROWS, (block + 1) * _BLOCK_ROWS, dtype=np.int64)
        if isinstance(self.split, MixedSplit):
            return self.split.order(self.seed, number)
        return visits(self.split.num_rows, self.seed, number)

    def rows_at(self, step: int) -> Rows:
        """Rows of ``step`` (0-based) for this rank; the same for any number of workers."""
        rows = self.split.read(*self.row_ids_at(step))
        return replace(rows, order=np.arange(*self.row_range(step)))

    def __iter__(self) -> Iterator[Rows]:
        """Rows of ``start_step``, ``start_step`` + 1, … up to ``stop_step``, if there is one."""
        if not self.num_workers:
            yield from map(self.rows_at, takewhile(self._is_read, count(self.start_step)))
            return
        step = self.start_step
        pool = ThreadPoolExecutor(self.num_workers, thread_name_prefix="rows")
        ahead: deque[Future[list[Rows]]] = deque()
        try:
            while True:
                while len(ahead) <= self.num_workers and self._is_read(step):
                    tokens = self.sizes.rows_at(step) * self.split.row_length
                    number = min(max(1, _TOKENS_TOGETHER // tokens), _STEPS_TOGETHER)
                    if self.stop_step is not None:
                        number = min(number, self.stop_step - step)
                    ahead.append(pool.submit(self._rows_from, step, number))
                    step += number
                if not ahead:
                    return
                yield from ahead.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _is_read(self, step: int) -> bool:
        """Whether iteration reaches ``step``."""
        return self.stop_step is None or step < self.stop_step

    def _rows_from(self, step: int, number: int) -> list[Rows]:
        """Rows of so many steps from ``step`` on, read at once."""
        if number == 1:
            return [self.rows_at(step)]
        ranges = [self.row_range(each) for each in range(step, step + number)]
        ids, epochs = zip(*map(self.row_ids_at, range(step, step + number)), strict=True)
        rows = self.split.read(np.concatenate(ids), np.concatenate(epochs))
        rows = replace(rows, order=np.concatenate([np.arange(*each) for each in ranges]))
        edges = accumulate((last - first for first, last in ranges), initial=0)
        return [rows.slice(start, stop) for start, stop in pairwise(edges)]


def rows_of_pass(row_length: int, batch_rows: int | None = None) -> int:
    """Rows of ``row_length`` tokens in a forward pass of validation: ``batch_rows`` where it is set."""
    return batch_rows or max(1, min(_ROWS_OF_PASS, _TOKENS_OF_PASS // row_length))


def validation_batches(
    split: PreparedSplit | MixedSplit,
    rows: int,
    batch_rows: int | None = None,
    *,
    shuffled: bool = True,
) -> Iterator[Rows]:
    """``rows`` rows of a split (all of them if there are fewer), epoch 0, the same for every run.

    They come as many at once as :func:`rows_of_pass` says.
    ``shuffled``: the first of a fixed order in which rows of all documents come; else the first in the data,
    which are those of its first documents. Of a mixture: those of its parts, in the turns of training.
    """
    total = min(rows, split.num_rows)
    chosen = split.first_rows(total, shuffled)
    at_once = rows_of_pass(split.row_length, batch_rows)
    for start in range(0, total, at_once):
        yield split.read(chosen[start : start + at_once])
