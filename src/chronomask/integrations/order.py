"""Which rows come when, as a pure function of (seed, epoch): a loader that any step can be resumed at."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler

from chronomask.integrations.rows import with_row_ids
from chronomask.keyed import Stream, permute, row_keys

__all__ = ["KeyedLoader", "KeyedSampler"]


class KeyedSampler(Sampler[int]):
    """Every epoch a keyed permutation of the rows; ranks of torch.distributed share it out.

    ``epoch`` and ``start`` (rows of this rank to leave out) say where it stands; what is left over
    when ranks cannot share evenly is dropped.
    """

    def __init__(self, num_rows: int, seed: int = 0) -> None:
        self.num_rows = num_rows
        self.seed = seed
        self.epoch = 0
        self.start = 0

    def set_epoch(self, epoch: int) -> None:
        """Frameworks call this before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.num_rows // _rank_and_world()[1]

    def __iter__(self) -> Iterator[int]:
        rank, world = _rank_and_world()
        key = int(row_keys(self.seed, Stream.ORDER, self.epoch, 0))
        order = permute(np.arange(self.num_rows), self.num_rows, key)
        yield from order[rank::world][: len(self)][self.start :].tolist()


class KeyedLoader(DataLoader[Any]):
    """A DataLoader in keyed order that goes on after the last batch it handed out.

    Takes a DataLoader's options except ``shuffle`` and ``sampler``. Its state is two numbers, counted
    where batches are handed out, so batches that workers have read ahead do not matter.
    """

    def __init__(self, dataset: Any, *, batch_size: int = 1, seed: int = 0, **options: Any) -> None:
        self._order = KeyedSampler(len(dataset), seed)
        self._resume_at = 0
        self._handed_out = 0
        super().__init__(
            with_row_ids(dataset), batch_size=batch_size, sampler=self._order, **options
        )

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch the next iteration is."""
        self._order.set_epoch(epoch)

    def __iter__(self) -> Any:
        self._handed_out, self._resume_at = self._resume_at, 0
        self._order.start = self._handed_out * (self.batch_size or 1)
        for batch in super().__iter__():
            self._handed_out += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """``epoch``, and ``batches`` of it handed out so far."""
        return {"epoch": self._order.epoch, "batches": self._handed_out}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on where :meth:`state_dict` was taken; a finished epoch goes on with the next."""
        finished = state["batches"] >= len(self)
        self._order.set_epoch(state["epoch"] + finished)
        self._resume_at = 0 if finished else state["batches"]


def _rank_and_world() -> tuple[int, int]:
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return 0, 1
    return torch.distributed.get_rank(), torch.distributed.get_world_size()
