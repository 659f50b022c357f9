"""Keyed random numbers: independent of everything but their key, and random."""

import numpy as np
import pytest
import torch
from scipy import stats

from chronomask import keyed
from chronomask.keyed import Stream

NUM_ROWS, LENGTH = 20_000, 512


@pytest.fixture(scope="module")
def draws() -> np.ndarray:
    """uint32 [20000, 512]: 10⁷ draws."""
    return keyed.bits(keyed.row_keys(7, Stream.SELECT, 0, np.arange(NUM_ROWS)), LENGTH)


@pytest.mark.parametrize("shift", [0, 7, 15, 22])
def test_every_window_of_bits_is_uniform(draws: np.ndarray, shift: int) -> None:
    counts = np.bincount(((draws >> np.uint32(shift)) & np.uint32(1023)).ravel(), minlength=1024)
    assert stats.chisquare(counts).pvalue > 1e-4


def test_every_bit_is_balanced(draws: np.ndarray) -> None:
    ones = np.array([((draws >> np.uint32(bit)) & np.uint32(1)).mean() for bit in range(32)])
    assert np.abs(ones - 0.5).max() * 2 * np.sqrt(draws.size) < 4.5


@pytest.mark.parametrize("lag", [1, 2, 3, 8, LENGTH - 1, LENGTH, LENGTH + 1, 7 * LENGTH])
def test_no_serial_correlation_within_or_across_rows(draws: np.ndarray, lag: int) -> None:
    flat = draws.ravel()
    pairs = np.histogram2d(flat[:-lag], flat[lag:], bins=32)[0]
    assert stats.chisquare(pairs.ravel()).pvalue > 1e-4
    u = keyed.unit_interval(flat)
    assert abs(np.corrcoef(u[:-lag], u[lag:])[0, 1]) * np.sqrt(flat.size) < 4.5


@pytest.mark.parametrize(
    "other",
    [
        keyed.row_keys(7, Stream.REPLACE, 0, np.arange(NUM_ROWS)),
        keyed.row_keys(7, Stream.SELECT, 1, np.arange(NUM_ROWS)),
        keyed.row_keys(8, Stream.SELECT, 0, np.arange(NUM_ROWS)),
        keyed.row_keys(7, Stream.SELECT, 0, np.arange(1, NUM_ROWS + 1)),
    ],
    ids=["stream", "epoch", "seed", "row"],
)
def test_streams_epochs_seeds_and_rows_are_unrelated(draws: np.ndarray, other: np.ndarray) -> None:
    second = keyed.bits(other, LENGTH)
    pairs = np.histogram2d(draws.ravel(), second.ravel(), bins=32)[0]
    assert stats.chisquare(pairs.ravel()).pvalue > 1e-4
    assert (draws == second).mean() < 1e-6


def test_the_smallest_of_a_row_is_anywhere(draws: np.ndarray) -> None:
    places = np.bincount(draws.argmin(axis=1), minlength=LENGTH)
    assert stats.chisquare(places).pvalue > 1e-4


def test_positions_of_a_row_never_share_bits(draws: np.ndarray) -> None:
    assert all(np.unique(row).size == LENGTH for row in draws[:500])


def test_a_number_depends_on_its_own_key_alone(draws: np.ndarray) -> None:
    keys = keyed.row_keys(7, Stream.SELECT, 0, np.array([123, 4567]))
    assert np.array_equal(keyed.bits(keys, 100), draws[[123, 4567], :100])


def test_torch_gives_the_same_bits(draws: np.ndarray) -> None:
    keys = keyed.row_keys(7, Stream.SELECT, 0, np.arange(300))
    on_device = keyed.torch_bits(keys, LENGTH, torch.device("cpu"))
    assert np.array_equal(on_device.numpy(), draws[:300].astype(np.int64))


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 1000, 65_537])
def test_permute_is_a_permutation(size: int) -> None:
    assert np.array_equal(np.sort(keyed.permute(np.arange(size), size, 5)), np.arange(size))


def test_permute_is_random_and_pointwise() -> None:
    first = keyed.permute(np.arange(5040), 5040, 1)
    assert not np.array_equal(first, keyed.permute(np.arange(5040), 5040, 2))
    assert abs(stats.spearmanr(first, np.arange(5040)).statistic) < 0.06
    assert np.array_equal(keyed.permute(np.array([17, 4000]), 5040, 1), first[[17, 4000]])
    firsts = [int(keyed.permute(np.array([0]), 16, key)[0]) for key in range(4000)]
    assert stats.chisquare(np.bincount(firsts, minlength=16)).pvalue > 1e-4


def test_weyl_covers_evenly() -> None:
    values = keyed.unit_interval(keyed.weyl(3, Stream.BUDGET, np.arange(1000, 2000)))
    assert np.abs(np.sort(values) - (np.arange(1000) + 0.5) / 1000).max() < 0.004


def test_all_streams_at_once_are_the_streams_one_by_one() -> None:
    epoch, row = np.array([0, 3, 3]), np.array([5, 5, 2**40])
    together = keyed.keys_by_stream(11, epoch, row)
    for stream in Stream:
        np.testing.assert_array_equal(together[stream], keyed.row_keys(11, stream, epoch, row))


def test_a_seed_may_be_a_number_of_numpy() -> None:
    """As ``rng.integers`` gives them."""
    for seed in (np.int64(3), np.int32(3), np.uint8(3), np.int64(-1)):
        assert keyed.row_keys(seed, Stream.SELECT, 0, 5) == keyed.row_keys(
            int(seed), Stream.SELECT, 0, 5
        )  # pyright: ignore[reportArgumentType]
        one = np.array([5])
        both = [keyed.keys_by_stream(given, one, one) for given in (seed, int(seed))]  # pyright: ignore[reportArgumentType]
        assert np.array_equal(*both)
