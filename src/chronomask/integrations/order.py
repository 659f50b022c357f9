"""Which rows come when, as a pure function of (seed, epoch): a loader that any step can be resumed at."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler

from chronomask.data.order import visits
from chronomask.errors import UsageError
from chronomask.masking.columns import TABLES_AS_ROWS, is_table
from chronomask.masking.rows import number_of_tokens

__all__ = ["KeyedLoader", "KeyedSampler", "with_row_ids"]

FILLS = -(1 << 63)
"""Number of a row that only fills a batch up, and of which nothing is counted; no other row has it."""

_ORDERS = ("sampler", "batch_sampler", "shuffle")
"""Options of a DataLoader that say which rows come when."""


def with_row_ids(dataset: Any) -> Any:
    """The data set with a ``row_id`` per row: its place in the data set, whatever order it is read in.

    A Hugging Face ``datasets.Dataset`` gets a column; any other sized, indexed data set of
    dictionaries is wrapped. The rows of a stream have no place of their own: each gets a hash of its
    ``input_ids``, which is the same in every epoch, process and run, unless it brings a ``row_id``. What has
    row ids is returned as it is, and shows them where its format hid the column. Raises
    UsageError as :func:`check_rows` does, and for several data sets by
    name.
    """
    refuse_several(dataset, "the data set")
    check_rows(dataset)
    columns = getattr(dataset, "column_names", None)
    if made_on_reading(dataset):
        columns = None  # of what rows are made of, and not of the rows
    if isinstance(columns, list) and "row_id" in columns:
        return _show_row_ids(dataset)
    if not _has_places(dataset):
        if hasattr(dataset, "map"):
            return dataset.map(_number)
        return (_SizedStream if hasattr(dataset, "__len__") else _NumberedStream)(dataset)
    if isinstance(columns, list) and hasattr(dataset, "add_column"):
        return dataset.add_column("row_id", list(range(len(dataset))))
    return dataset if len(dataset) and "row_id" in dataset[0] else _Numbered(dataset)


def _show_row_ids(dataset: Any) -> Any:
    """A data set that has row ids, with a format that shows them."""
    form = getattr(dataset, "format", None)
    if not isinstance(form, Mapping):
        return dataset
    shown = form.get("columns")
    if shown is None or "row_id" in shown or form["output_all_columns"]:
        return dataset
    return dataset.with_format(form["type"], [*shown, "row_id"], **form["format_kwargs"])


def check_rows(dataset: Any, name: str = "the data set") -> None:
    """Raise UsageError for what holds no rows that have columns, by its first row where it has places."""
    if isinstance(dataset, Mapping) and "input_ids" in dataset:
        raise UsageError(
            f"{name} is columns by name ({', '.join(map(str, dataset))}), as a tokenizer or a slice of a "
            "data set gives them: make rows of them, such as datasets.Dataset.from_dict(dict(columns))"
        )
    if not hasattr(dataset, "__iter__") and not hasattr(dataset, "__getitem__"):
        raise UsageError(f"{name} is of type {type(dataset).__name__}: give one that has rows")
    if _has_places(dataset) and not isinstance(dataset, Mapping) and len(dataset):
        try:
            row = dataset[0]
        except KeyError as error:
            raise UsageError(
                f"{name} is of type {type(dataset).__name__}, and its first row is not at [0] (KeyError: "
                f"{error}): make rows of it, as datasets.Dataset.from_pandas does of a table of pandas"
            ) from None
        _check_row(row, name)


def refuse_several(dataset: Any, name: str) -> None:
    """Raise UsageError for a dict of data sets, such as ``datasets.load_dataset`` gives."""
    if isinstance(dataset, Mapping) and "input_ids" not in dataset:
        if all(isinstance(key, int) for key in dataset) and dataset:
            return  # rows by their places
        raise UsageError(
            f"{name} is a dict of {', '.join(map(str, dataset)) or 'nothing'}; give one of them, such as "
            f"dataset[{next(iter(dataset), 'train')!r}]"
        )


def _has_places(dataset: Any) -> bool:
    """Whether rows can be read by their places; torch gives a stream a ``__getitem__`` too, that raises."""
    if isinstance(dataset, IterableDataset):
        return False
    return hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")


def _check_row(row: Any, name: str) -> None:
    """Raise UsageError for a row that is no mapping of columns."""
    if hasattr(row, "keys"):
        return
    way_out = "give its rows as [{'input_ids': row} for row in rows]"
    if is_table(row):
        way_out = TABLES_AS_ROWS
    elif isinstance(row, str):
        way_out = (
            "tokenise it first, as [{'input_ids': ids} for ids in tokenizer(texts)['input_ids']]"
        )
    raise UsageError(f"a row of {name} is of type {type(row).__name__}, without columns: {way_out}")


def made_on_reading(dataset: Any) -> bool:
    """Whether rows are what a function makes of the columns (``datasets.Dataset.with_transform``)."""
    shape = getattr(dataset, "format", None)
    return isinstance(shape, Mapping) and shape.get("type") == "custom"


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
    if is_table(row):
        raise UsageError(
            f"a row of the stream is a table, a {type(row).__name__}: {TABLES_AS_ROWS}"
        )
    _check_row(row, "the stream")
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


class _SizedStream(_NumberedStream):
    """One that says how many rows it has."""

    def __len__(self) -> int:
        return len(self.dataset)


class FilledStream(_NumberedStream):
    """One whose rows are as many as some processes read together, batch by batch: it ends with rows that
    fill the last batches up and have the number :data:`FILLS`.

    It has no length: accelerate, which shares a stream out, would cut a wrong remainder off by it.
    """

    def __init__(self, dataset: Any, multiple: int) -> None:
        super().__init__(dataset)
        self.multiple = multiple

    def __iter__(self) -> Iterator[dict[str, Any]]:
        number, last = 0, {}
        for row in super().__iter__():
            number, last = number + 1, row
            yield row
        yield from [{**last, "row_id": FILLS}] * (-number % self.multiple)


def share_by_rows(dataset: Any) -> Any:
    """The data set, which accelerate shares out row by row also where it is a stream of several shards.

    Given whole shards, which differ in their numbers of rows, one process would wait at the end for another.
    """
    has_shards = isinstance(dataset, IterableDataset) and hasattr(dataset, "shard")
    return _NumberedStream(dataset) if has_shards else dataset


def fill_up(dataset: Any, multiple: int) -> Any:
    """The data set, which fills up the last of ``multiple`` rows where it is a stream."""
    return dataset if _has_places(dataset) else FilledStream(dataset, multiple)


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
        return self.num_rows // rank_and_world()[1]

    def __iter__(self) -> Iterator[int]:
        rank, world = rank_and_world()
        numbers = np.arange(self.epoch * self.num_rows, (self.epoch + 1) * self.num_rows)
        order, _ = visits(self.num_rows, self.seed, numbers)
        yield from order[rank::world][: len(self)][self.start :].tolist()


class ReadByItsLoader:
    """Mixed into a sampler: a loader's own order, which no other loader may read.

    What makes a loader of its own out of a given one, as ``accelerate`` does in ``prepare``, takes the
    order and leaves the rest: it would divide among processes what is divided already, and know no place
    to resume at.
    """

    _allowed = 0  # iterations that the loader began and that have read nothing yet

    def allow_reading(self) -> None:
        """Say that one of the iterations that come next is the loader's own."""
        self._allowed += 1

    def __iter__(self) -> Iterator[Any]:
        """Raises UsageError for another reader."""
        if not self._allowed:
            raise UsageError(
                "another loader, such as accelerate's prepare makes, reads the order of a KeyedLoader or "
                "MaskedLoader, which divides its rows among processes by itself: leave the loader out of "
                "prepare(...), and move its batches with accelerate.utils.send_to_device; to go on in the "
                "middle, give it load_state_dict (KeyedLoader) or start_step (MaskedLoader), not "
                "skip_first_batches"
            )
        self._allowed -= 1
        yield from super().__iter__()  # type: ignore[misc]


class _LoaderOrder(ReadByItsLoader, KeyedSampler):
    """The order of a :class:`KeyedLoader`."""


def _refuse_columns_of_tokens(batch: Mapping[str, Any]) -> None:
    """Raise UsageError for what torch makes of rows that are lists: a tensor for each place in them."""
    ids = batch.get("input_ids")
    own = batch["row_id"]  # one number, where a batch is a row by itself
    if isinstance(ids, list) and np.ndim(own) and len(ids) != len(own):
        raise UsageError(
            "the batch has its tokens place by place, as torch's own collate_fn joins rows that are lists: "
            "give the loader collate_fn=cm.RowCollator(tokenizer)"
        )


class KeyedLoader(DataLoader[Any]):
    """A DataLoader in keyed order that continues after the last batch that it returned.

    Takes a DataLoader's options except ``shuffle``, ``sampler``, ``batch_sampler`` and ``in_order=False``. A
    batch that is a dictionary with ``row_id`` also gets ``epoch``, the number of its epoch, for the masker to
    read. The loader's state is counted where batches are handed out, so what workers have read ahead does
    not matter; the size of batches may be another where it is restored. Ranks of torch.distributed share the
    rows out. ``batch_size`` None gives single rows. Raises UsageError for another order and for a data set
    without a length.
    """

    def __init__(
        self, dataset: Any, *, batch_size: int | None = 1, seed: int = 0, **options: Any
    ) -> None:
        if not number_of_rows(dataset):
            raise UsageError("the data set of a KeyedLoader has no rows: give one that has some")
        refuse_other_orders("KeyedLoader", "seed and epoch", options)
        self._order = _LoaderOrder(len(dataset), seed)
        self._place = 0, 0  # an epoch, and how many rows of it were handed out to this process
        self._goes_on = False  # whether the next iteration begins there
        super().__init__(
            with_row_ids(dataset), batch_size=batch_size, sampler=self._order, **options
        )

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch the next iteration is; any but a restored one begins with its first row."""
        self._order.set_epoch(epoch)

    def __iter__(self) -> Any:
        epoch = self._order.epoch
        start = self._rows_of(epoch) if self._goes_on else 0
        self._place = epoch, start
        self._goes_on = False
        self._order.start = start
        self._order.allow_reading()
        for number, batch in enumerate(super().__iter__(), start=1):
            self._place = epoch, min(start + number * (self.batch_size or 1), len(self._order))
            if isinstance(batch, MutableMapping) and "row_id" in batch:
                _refuse_columns_of_tokens(batch)
                batch["epoch"] = epoch
            yield batch

    def _rows_of(self, epoch: int) -> int:
        return self._place[1] if self._place[0] == epoch else 0

    def state_dict(self) -> dict[str, int]:
        """``epoch``, and ``rows`` of it handed out so far to each process; and what decides their order:
        ``num_rows`` of the data set, ``seed`` and ``num_processes``.
        """
        epoch = self._order.epoch
        return {"epoch": epoch, "rows": self._rows_of(epoch), **self._decides_order()}

    def _decides_order(self) -> dict[str, int]:
        order = self._order
        return {
            "num_rows": order.num_rows,
            "seed": int(order.seed),
            "num_processes": rank_and_world()[1],
        }

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Continue where :meth:`state_dict` was taken; after a finished epoch, with the next one.

        The state of version 0.2.0, ``epoch`` and ``batches``, is taken for one of a loader like this one.
        Raises UsageError for another state, and for that of a loader whose rows come in another order.
        """
        own = self._decides_order()
        names = ["epoch", "rows", *own]
        given = state if isinstance(state, Mapping) else {}
        if given.keys() == {"epoch", "batches"} and type(given["batches"]) is int:
            rows = min(given["batches"] * (self.batch_size or 1), len(self._order))
            given = {"epoch": given["epoch"], "rows": rows, **own}
        for name in names:
            if isinstance(given.get(name), bool) or not isinstance(given.get(name), int):
                what = f"{name} = {given[name]!r}" if name in given else f"no {name!r}"
                raise UsageError(
                    f"the state of a KeyedLoader has whole numbers {', '.join(map(repr, names))}, this one "
                    f"has {what} (it has {', '.join(map(repr, given)) or 'nothing'}): give what "
                    "loader.state_dict() returned"
                )
        for name, value in own.items():
            if given[name] != value:
                raise UsageError(
                    f"the state was taken from a KeyedLoader with {name} = {given[name]}, this one has "
                    f"{value}, and its rows come in another order: make it as that one was, or begin an "
                    "epoch anew with set_epoch"
                )
        batch = (self.batch_size or 1) if self.drop_last else 1
        finished = len(self._order) - given["rows"] < batch
        self._order.set_epoch(given["epoch"] + finished)
        self._place = self._order.epoch, 0 if finished else given["rows"]
        self._goes_on = True


def refuse_other_orders(loader: str, keys: str, options: Mapping[str, Any]) -> None:
    """Raise UsageError for options of a DataLoader that would hand rows out in another order.

    ``loader`` is the kind of the loader, and ``keys`` what its own order is keyed by.
    """
    for name in _ORDERS:
        if options.get(name):
            raise UsageError(
                f"a {loader} has an order of its own, keyed by {keys}, and takes no {name}: leave "
                "it out; where Lightning adds one, give its Trainer use_distributed_sampler=False and no "
                "overfit_batches"
            )
    if not options.get("in_order", True):
        raise UsageError(
            f"a {loader} hands batches out in an order of its own, keyed by {keys}, and goes on by their "
            "number, so that with in_order=False some would come twice and others never after a resume: "
            "leave in_order out"
        )


def number_of_rows(dataset: Any) -> int:
    """How many rows a data set has; raises UsageError where rows have no places."""
    refuse_several(dataset, "the data set")
    if not _has_places(dataset):
        lacks = (
            "gives rows in an order of its own" if hasattr(dataset, "__len__") else "has no length"
        )
        raise UsageError(
            f"the data set, of type {type(dataset).__name__}, {lacks}, and this loader orders rows by "
            "their places: read a stream with torch's DataLoader(chronomask.with_row_ids(stream), ...)"
        )
    return len(dataset)


def rank_and_world() -> tuple[int, int]:
    """Of torch.distributed; 0 of 1 where it does not run."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return 0, 1
    return torch.distributed.get_rank(), torch.distributed.get_world_size()
