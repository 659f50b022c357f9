"""Which rows come when, as a pure function of (seed, epoch): a loader that any step can be resumed at."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler

from chronomask.data.order import visits
from chronomask.errors import UsageError
from chronomask.masking.rows import number_of_tokens

__all__ = ["KeyedLoader", "KeyedSampler", "with_row_ids"]


def with_row_ids(dataset: Any) -> Any:
    """The data set with a ``row_id`` per row: its place in the data set, whatever order it is read in.

    A Hugging Face ``datasets.Dataset`` gets a column; any other sized, indexed data set of
    dictionaries is wrapped. The rows of a stream have no place of their own: each gets a hash of its
    ``input_ids``, which is the same in every epoch, process and run, unless it brings a ``row_id``. What has
    row ids is returned as it is.
    """
    columns = getattr(dataset, "column_names", None)
    if isinstance(columns, list) and "row_id" in columns:
        return dataset
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
        return dataset.map(_number) if hasattr(dataset, "map") else _NumberedStream(dataset)
    if isinstance(columns, list) and hasattr(dataset, "add_column"):
        return dataset.add_column("row_id", list(range(len(dataset))))
    return dataset if len(dataset) and "row_id" in dataset[0] else _Numbered(dataset)


class _Numbered(Dataset[dict[str, Any]]):
    """A map-style data set whose rows carry their index."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {**self.dataset[index], "row_id": int(index)}


def _number(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row with a number made of its tokens, if it has none; raises UsageError for one without any."""
    if "row_id" not in row and "input_ids" not in row:
        raise UsageError(
            f"a row of the stream has neither 'row_id' nor 'input_ids' (it has {', '.join(map(str, row))}): "
            "tokenise it first"
        )
    return {**row} if "row_id" in row else {**row, "row_id": number_of_tokens(row["input_ids"])}


class _NumberedStream(IterableDataset[dict[str, Any]]):
    """A stream whose rows carry a number made of their tokens."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return map(_number, self.dataset)

    def set_epoch(self, epoch: int) -> None:
        """Tell the stream, if it wants to know."""
        if hasattr(self.dataset, "set_epoch"):
            self.dataset.set_epoch(epoch)


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
        numbers = np.arange(self.epoch * self.num_rows, (self.epoch + 1) * self.num_rows)
        order, _ = visits(self.num_rows, self.seed, numbers)
        yield from order[rank::world][: len(self)][self.start :].tolist()


class KeyedLoader(DataLoader[Any]):
    """A DataLoader in keyed order that continues after the last batch that it returned.

    Takes a DataLoader's options except ``shuffle`` and ``sampler``. A batch that is a dictionary with
    ``row_id`` also gets ``epoch``, the number of its epoch, for the masker to read. The loader's state is
    two numbers, counted where batches are handed out, so what workers have read ahead does not matter.
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
            if isinstance(batch, MutableMapping) and "row_id" in batch:
                batch["epoch"] = self._order.epoch
            yield batch

    def state_dict(self) -> dict[str, int]:
        """``epoch``, and ``batches`` of it handed out so far."""
        return {"epoch": self._order.epoch, "batches": self._handed_out}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Continue where :meth:`state_dict` was taken; after a finished epoch, with the next one."""
        finished = state["batches"] >= len(self)
        self._order.set_epoch(state["epoch"] + finished)
        self._resume_at = 0 if finished else state["batches"]


def _rank_and_world() -> tuple[int, int]:
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return 0, 1
    return torch.distributed.get_rank(), torch.distributed.get_world_size()
