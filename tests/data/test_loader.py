"""The rows of a step are a pure function of (data, seed, step)."""

from __future__ import annotations

from dataclasses import fields
from itertools import islice
from typing import Any

import numpy as np
import pytest

from chronomask.data import loader
from chronomask.data.folder import PreparedData, PreparedSplit
from chronomask.data.loader import RowLoader, rows_of_pass, validation_batches
from chronomask.data.order import BatchWarmUp, Sizes, visits
from chronomask.errors import UsageError
from chronomask.types import Rows
from tests.support.prepared_rows import assert_equal


@pytest.fixture
def train(tiny_data: PreparedData) -> PreparedSplit:
    return tiny_data.split("train")


def test_every_epoch_visits_every_row_once(train: PreparedSplit) -> None:
    loader = RowLoader(train, seed=1, rows_per_step=7)
    steps = -(-2 * train.num_rows // 7)
    parts = [loader.row_ids_at(step) for step in range(steps)]
    rows, epochs = (
        np.concatenate(column)[: 2 * train.num_rows] for column in zip(*parts, strict=True)
    )
    for epoch in (0, 1):
        seen = rows[epochs == epoch]
        assert sorted(seen.tolist()) == list(range(train.num_rows))
    assert not np.array_equal(rows[epochs == 0], rows[epochs == 1])


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("together", [1, 3, 8])
@pytest.mark.parametrize("num_workers", [1, 3])
def test_workers_only_read_ahead(
    train: PreparedSplit,
    num_workers: int,
    together: int,
    rank: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """However many steps they read at once, also where steps grow."""
    monkeypatch.setattr(loader, "_TOKENS_TOGETHER", together * 8 * train.row_length)
    sizes = Sizes(13, BatchWarmUp(start_rows=5, steps=9, stages=3))
    share: dict[str, Any] = {"rank": rank, "world_size": 2, "rows_per_step": sizes}
    plain = islice(RowLoader(train, seed=3, start_step=2, **share), 20)
    ahead = iter(RowLoader(train, seed=3, start_step=2, num_workers=num_workers, **share))
    for left, right in zip(plain, ahead, strict=False):
        assert_equal(left, right)
    ahead.close()  # type: ignore[attr-defined]


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows were read at once, each time."""
    sizes: list[int] = []
    read_rows = PreparedSplit.read

    def count(self: PreparedSplit, row_ids: np.ndarray, epoch: np.ndarray) -> Rows:
        sizes.append(row_ids.size)
        return read_rows(self, row_ids, epoch)

    monkeypatch.setattr(PreparedSplit, "read", count)
    return sizes


def test_small_steps_are_read_together(
    train: PreparedSplit, read: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader, "_TOKENS_TOGETHER", 4 * 8 * train.row_length)
    for rows_per_step, at_once in ((2, 16), (8, 32), (16, 32), (32, 32), (33, 33)):
        rows = iter(RowLoader(train, seed=3, rows_per_step=rows_per_step, num_workers=1))
        next(rows)
        rows.close()  # type: ignore[attr-defined]
        assert read[0] == at_once
        read.clear()


@pytest.mark.parametrize("num_workers", [0, 1, 5, 100])
def test_nothing_is_read_beyond_the_last_step(
    train: PreparedSplit, read: list[int], num_workers: int
) -> None:
    numbers: dict[str, Any] = {"num_workers": num_workers, "start_step": 2}
    steps = list(RowLoader(train, seed=3, rows_per_step=3, stop_step=13, **numbers))
    assert len(steps) == 11
    assert sum(read) == 33
    endless = islice(RowLoader(train, seed=3, rows_per_step=3, **numbers), 11)
    for left, right in zip(steps, endless, strict=True):
        assert_equal(left, right)
    assert list(RowLoader(train, seed=3, rows_per_step=3, stop_step=2, **numbers)) == []


@pytest.mark.parametrize("world_size", [2, 3, 5])
def test_ranks_share_the_rows_of_one_process(train: PreparedSplit, world_size: int) -> None:
    whole = RowLoader(train, seed=5, rows_per_step=11).rows_at(9)
    shares = [
        RowLoader(train, seed=5, rows_per_step=11, rank=rank, world_size=world_size).rows_at(9)
        for rank in range(world_size)
    ]
    np.testing.assert_array_equal(whole.input_ids, np.concatenate([s.input_ids for s in shares]))
    np.testing.assert_array_equal(whole.row_id, np.concatenate([s.row_id for s in shares]))


def test_resuming_at_a_step_gives_the_same_rows(train: PreparedSplit) -> None:
    straight = list(islice(RowLoader(train, seed=2, rows_per_step=6), 12))
    resumed = list(islice(RowLoader(train, seed=2, rows_per_step=6, start_step=8), 4))
    for left, right in zip(straight[8:], resumed, strict=True):
        assert_equal(left, right)


def test_a_step_may_be_longer_than_the_data(train: PreparedSplit) -> None:
    rows = RowLoader(train, seed=2, rows_per_step=2 * train.num_rows + 1).rows_at(0)
    assert rows.epoch.tolist() == sorted([0, 1] * train.num_rows + [2])


def test_a_late_step_costs_what_the_first_costs(
    train: PreparedSplit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Places in the order that are computed, and rows that are read, for step 0, for step 15, whose rows end
    a block of the order, and for step 10⁶.
    """
    computed, read = [], []

    def counted(num_rows: int, seed: int, number: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        computed.append(number.size)
        return visits(num_rows, seed, number)

    def read_counted(self: PreparedSplit, row_ids: np.ndarray, epoch: np.ndarray) -> Rows:
        read.append(row_ids.size)
        return read_rows(self, row_ids, epoch)

    read_rows = PreparedSplit.read
    monkeypatch.setattr(loader, "visits", counted)
    monkeypatch.setattr(PreparedSplit, "read", read_counted)
    costs = []
    for step in (0, 15, 10**6):
        next(iter(RowLoader(train, seed=0, rows_per_step=256, start_step=step)))
        costs.append((sum(computed), sum(read)))
        computed.clear()
        read.clear()
    assert costs == [(loader._BLOCK_ROWS, 256)] * 3


@pytest.mark.parametrize("beside", [-1, 0, 1])
def test_steps_that_end_beside_a_block_of_the_order_have_its_rows(
    train: PreparedSplit, beside: int
) -> None:
    size = loader._BLOCK_ROWS + beside
    whole = RowLoader(train, seed=4, rows_per_step=3 * size).row_ids_at(0)
    steps = [RowLoader(train, seed=4, rows_per_step=size).row_ids_at(step) for step in range(3)]
    for column, parts in zip(whole, zip(*steps, strict=True), strict=True):
        assert [part.size for part in parts] == [size] * 3
        np.testing.assert_array_equal(column, np.concatenate(parts))
    expected = visits(train.num_rows, 4, np.arange(3 * size))
    np.testing.assert_array_equal(whole, expected)


def test_seeds_give_other_orders(train: PreparedSplit) -> None:
    first, second = (RowLoader(train, seed=seed, rows_per_step=64).rows_at(0) for seed in (0, 1))
    assert not np.array_equal(first.row_id, second.row_id)


def test_document_bounds_cut_at_rows_and_follow_them(train: PreparedSplit) -> None:
    rows = RowLoader(train, seed=0, rows_per_step=16).rows_at(0)
    edges = set(rows.cu_seqlens.tolist())
    assert edges >= set(range(0, 16 * train.row_length + 1, train.row_length))
    for position in range(16):
        alone = train.read(rows.row_id[position : position + 1])
        assert_equal(
            alone,
            Rows(
                *(getattr(rows.slice(position, position + 1), item.name) for item in fields(rows))
            ),
        )


@pytest.mark.parametrize(
    ("row_length", "rows"), [(16, 64), (512, 64), (1024, 32), (8192, 4), (65_536, 1)]
)
def test_validation_takes_fewer_long_rows_at_a_time(row_length: int, rows: int) -> None:
    assert rows_of_pass(row_length) == rows
    assert rows_of_pass(row_length, 300) == 300  # whoever says so


def test_validation_takes_as_many_rows_at_a_time_as_fit(tiny_data: PreparedData) -> None:
    split = tiny_data.split("held_out")
    sizes = [rows.num_rows for rows in validation_batches(split, 10**9)]
    assert sizes[0] == rows_of_pass(split.row_length) < split.num_rows == sum(sizes)


def test_validation_takes_rows_of_the_whole_split(tiny_data: PreparedData) -> None:
    split = tiny_data.split("held_out")

    def ids(number: int, **options: bool) -> list[int]:
        batches = list(validation_batches(split, number, 4, **options))
        assert [batch.num_rows for batch in batches[:-1]] == [4] * (len(batches) - 1)
        assert all((batch.epoch == 0).all() for batch in batches)
        return np.concatenate([batch.row_id for batch in batches]).tolist()

    every = ids(10**9)
    assert sorted(every) == list(range(split.num_rows))
    assert ids(10) == every[:10]  # and so a yardstick of fewer rows has the first of these
    quarters = [4 * row // split.num_rows for row in every[: split.num_rows // 3]]
    assert min(map(quarters.count, range(4))) > split.num_rows / 24
    assert ids(10, shuffled=False) == list(range(10))
    assert ids(10**9, shuffled=False) == list(range(split.num_rows))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rows_per_step": 1, "world_size": 2}, "rows: 1, fewer than the 2 processes"),
        ({"rows_per_step": 4, "rank": 2, "world_size": 2}, "rank must lie in 0 to 1; it is 2"),
        ({"rows_per_step": 4, "num_workers": -1}, "must not be negative; they are -1 and 0"),
    ],
)
def test_impossible_shares_are_refused(
    train: PreparedSplit, values: dict[str, int], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        RowLoader(train, seed=0, **values)


def test_rows_know_their_place_in_training_on_any_rank(train: PreparedSplit) -> None:
    ranks = [
        RowLoader(train, seed=1, rows_per_step=6, rank=rank, world_size=4).rows_at(3).order
        for rank in range(4)
    ]
    assert all(order is not None for order in ranks)
    np.testing.assert_array_equal(
        np.concatenate([o for o in ranks if o is not None]), 18 + np.arange(6)
    )
