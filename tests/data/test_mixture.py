"""Several data sets mixed: shares, epochs, and the same rows however they are reached."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chronomask.data.folder import PreparedData
from chronomask.data.loader import RowLoader, validation_batches
from chronomask.data.mixture import (
    MOST_ROWS,
    DataPart,
    MixedData,
    MixedSplit,
    open_data,
    shares,
)
from chronomask.data.writer import RowWriter, write_manifest
from chronomask.errors import DataError, UsageError
from chronomask.train.config import RunConfig
from tests.support.prepared_rows import FACTS, assert_equal, made_rows


def data_of(folder: Path, num_rows: int, seed: int, held_out: int = 4, **facts: object) -> str:
    """Prepared rows whose first id says which data set they are of."""
    splits = {}
    for split, number in (("train", num_rows), ("held_out", held_out)):
        ids, annotation, bounds = made_rows(number, seed)
        ids[:, 0] = seed
        writer = RowWriter(folder, split, 8, 1000, shard_tokens=11 * 8)
        writer.write(ids, annotation, bounds, number * 8)
        splits[split] = writer.finish(3)
    write_manifest(folder, FACTS | facts, splits)
    return str(folder)


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("parts")
    return [data_of(folder / str(k), rows, k) for k, rows in enumerate((50, 23, 7))]


def mixed(paths: list[str], weights: tuple[float, ...] = (5, 3, 2)) -> MixedSplit:
    parts = [DataPart(path=p, weight=w) for p, w in zip(paths, weights, strict=True)]
    split = open_data(parts).split("train")
    assert isinstance(split, MixedSplit)
    return split


@given(st.lists(st.floats(0.01, 100).map(lambda w: round(w, 2)), min_size=1, max_size=5))
def test_every_part_is_less_than_a_row_from_its_share(weights: list[float]) -> None:
    counts = shares(weights)
    assert min(counts) >= 1
    wanted = np.asarray(weights) / sum(weights)
    np.testing.assert_allclose(np.asarray(counts) / sum(counts), wanted, atol=1e-3)
    from chronomask.data.mixture import _cycle

    cycle = _cycle(counts)
    had = np.cumsum(cycle[:, None] == np.arange(len(counts)), axis=0)
    assert had[-1].tolist() == counts  # over a cycle the shares are exact
    due = np.arange(1, cycle.size + 1)[:, None] * np.asarray(counts) / cycle.size
    assert np.abs(had - due).max() < 1


def test_weights_are_proportions() -> None:
    assert shares([1, 1]) == [1, 1]
    assert shares([0.7, 0.3]) == shares([70, 30]) == [7, 3]
    assert sum(shares([1, 1e-9])) <= 10_001
    assert shares([1, 1e-9])[1] == 1
    weights = [0.123456, 1, 7.7]  # no whole numbers that are few enough have their proportions
    rounded = shares(weights)
    assert sum(rounded) == MOST_ROWS
    wanted = MOST_ROWS * np.array(weights) / sum(weights)
    assert np.abs(rounded - wanted).max() < 1


def test_every_step_has_its_shares(paths: list[str]) -> None:
    loader = RowLoader(mixed(paths), seed=2, rows_per_step=20)
    for rows in islice(loader, 30):
        assert np.bincount(rows.input_ids[:, 0], minlength=3).tolist() == [10, 6, 4]


def test_parts_have_epochs_of_their_own(paths: list[str]) -> None:
    split = mixed(paths)
    row_ids, epochs = split.order(4, np.arange(600))
    part = split.part_of(row_ids)
    for k, (rows, first) in enumerate(zip((50, 23, 7), (0, 50, 73), strict=True)):
        of_part, epoch = row_ids[part == k] - first, epochs[part == k]
        assert (np.diff(epoch) >= 0).all()
        for number in range(epoch[-1]):
            assert sorted(of_part[epoch == number].tolist()) == list(range(rows))
        assert not np.array_equal(of_part[epoch == 0], of_part[epoch == 1][:rows])
    seen = set(zip(row_ids.tolist(), epochs.tolist(), strict=True))
    assert len(seen) == 600  # what keys a row's masks never comes twice


@pytest.mark.parametrize("num_workers", [0, 1, 3])
@pytest.mark.parametrize("world_size", [1, 3])
def test_resuming_at_any_step_equals_never_having_stopped(
    paths: list[str], num_workers: int, world_size: int
) -> None:
    split = mixed(paths)
    whole = list(islice(RowLoader(split, seed=3, rows_per_step=7), 40))
    for start in (0, 1, 13, 39):
        ranks = [
            iter(
                RowLoader(
                    split, seed=3, rows_per_step=7, rank=rank, world_size=world_size,
                    num_workers=num_workers, start_step=start,
                )
            )
            for rank in range(world_size)
        ]  # fmt: skip
        for step in range(start, min(start + 5, 40)):
            shared = [next(rank) for rank in ranks]
            for name in ("input_ids", "word_id", "token_class", "row_id", "epoch", "order"):
                together = np.concatenate([getattr(rows, name) for rows in shared])
                np.testing.assert_array_equal(together, getattr(whole[step], name))
        for rank in ranks:
            rank.close()  # type: ignore[attr-defined]


def test_rows_are_those_of_the_parts(paths: list[str]) -> None:
    split = mixed(paths)
    rows = split.read(np.array([79, 3, 60, 73, 3]), epoch=2)
    for place, (part, row) in enumerate([(2, 6), (0, 3), (1, 10), (2, 0), (0, 3)]):
        single = PreparedData.open(paths[part]).split("train").read(np.array([row]), epoch=2)
        of_mixture = rows.slice(place, place + 1)
        for name in ("input_ids", "word_id", "token_class", "epoch", "cu_seqlens"):
            np.testing.assert_array_equal(getattr(of_mixture, name), getattr(single, name))
    assert rows.row_id.tolist() == [79, 3, 60, 73, 3]
    with pytest.raises(DataError, match="the mixture has no row 80"):
        split.read(np.array([80]))


def test_a_mixture_of_one_is_the_data_itself(paths: list[str]) -> None:
    single = PreparedData.open(paths[0]).split("train")
    alone = open_data([DataPart(path=paths[0])]).split("train")
    left = RowLoader(single, seed=1, rows_per_step=9)
    right = RowLoader(alone, seed=1, rows_per_step=9)
    for step in (0, 8, 1000):
        assert_equal(left.rows_at(step), right.rows_at(step))


def test_parts_are_named_as_in_a_config(paths: list[str]) -> None:
    weights = [3.0, 1.0, 2.0]
    named = open_data([DataPart(path=p, weight=w) for p, w in zip(paths, weights, strict=True)])
    parts = [{"path": Path(path), "weight": w} for path, w in zip(paths, weights, strict=True)]
    assert open_data(parts).fingerprint == named.fingerprint
    assert open_data([{"path": path} for path in paths]).fingerprint == open_data(paths).fingerprint
    with pytest.raises(UsageError, match="unknown key 'wieght'; did you mean 'weight'"):
        open_data([{"path": paths[0], "wieght": 3}])
    with pytest.raises(UsageError, match="weight"):
        open_data([{"path": paths[0], "weight": 0}])


def test_a_late_step_is_arithmetic(paths: list[str]) -> None:
    split = mixed(paths)
    _, epochs = split.order(0, np.arange(10**12, 10**12 + 10))
    assert epochs.min() > 10**9


def test_validation_takes_from_every_part(paths: list[str]) -> None:
    parts = [DataPart(path=path) for path in paths]
    held_out = open_data(parts).split("held_out")
    rows = validation_batches(held_out, 6, 4, shuffled=False)
    assert np.concatenate([each.row_id for each in rows]).tolist() == [0, 4, 8, 1, 5, 9]
    every = np.concatenate([each.row_id for each in validation_batches(held_out, 99, 5)])
    assert sorted(every.tolist()) == list(range(12))
    assert (every // 4).tolist() == [0, 1, 2] * 4
    assert (
        open_data([paths[0]]).split("train").num_rows
        == open_data(parts[:1]).split("train").num_rows
    )
    alone = open_data(parts[:1]).split("held_out")
    assert every[::3].tolist() == alone.first_rows(99, shuffled=True).tolist()


def test_the_fingerprint_names_parts_and_shares(paths: list[str]) -> None:
    def of(*weights: float) -> str:
        parts = [DataPart(path=p, weight=w) for p, w in zip(paths, weights, strict=False)]
        return open_data(parts).fingerprint

    assert of(2, 1) == of(4, 2)
    assert len({of(2, 1), of(1, 2), of(2, 1, 1), PreparedData.open(paths[0]).fingerprint}) == 4


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"tokenizer_sha256": "1" * 64}, "different tokenizers .*--tokenizer FOLDER/tokenizer"),
        ({"class_names": ("none", "a", "c")}, "different classes .*prepare both"),
        ({"pad_token_id": 3}, "different padding"),
        ({"scores": "pmi"}, "different scores .*chronomask data score"),
        ({"ngrams": "pmi"}, "different n-grams .*chronomask data ngrams"),
    ],
)
def test_parts_that_do_not_go_together_are_refused(
    paths: list[str], tmp_path: Path, facts: dict[str, object], message: str
) -> None:
    other = data_of(tmp_path / "other", 9, 5, **facts)
    with pytest.raises(UsageError, match=f"cannot be mixed: they have {message}"):
        open_data([DataPart(path=paths[0]), DataPart(path=other)])


def test_the_path_of_a_part_stands_for_it() -> None:
    parts = (DataPart(path="a"), DataPart(path="b", weight=3))
    assert RunConfig.parse({"data": ["a", {"path": "b", "weight": 3}]}).data == parts
    assert RunConfig.of({}, data=[Path("a"), parts[1]]).data == parts
    assert RunConfig.parse_with({}, ["data=[a, {path: b, weight: 3}]"]).data == parts
    with pytest.raises(UsageError, match=r"data\.1 is 5"):
        RunConfig.parse({"data": ["a", 5]})


def test_what_is_no_mixture_is_refused(paths: list[str], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="empty list"):
        open_data([])
    with pytest.raises(UsageError, match="list it once"):
        open_data([DataPart(path=paths[0]), DataPart(path=paths[0])])
    empty = data_of(tmp_path / "empty", 0, 6)
    mixture = open_data([DataPart(path=paths[0]), DataPart(path=empty)])
    assert isinstance(mixture, MixedData)
    with pytest.raises(DataError, match="no rows to train on"):
        RowLoader(mixture.split("train"), seed=0, rows_per_step=4)
