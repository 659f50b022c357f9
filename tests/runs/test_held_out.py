"""The losses of held-out rows: what is written is read, and their mean scatters as means over rows do."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chronomask.errors import DataError
from chronomask.runs.held_out import LOSSES_OF_ROWS, mean_of_rows, read_rows, write_rows
from tests.support.npz import npz, npz_of_header

ROWS = 60


@pytest.fixture
def losses() -> np.ndarray:
    """Made up, of rows with unlike numbers of predictions; the last yardsticks use fewer rows."""
    random = np.random.default_rng(3)
    counts = random.integers(1, 30, (len(LOSSES_OF_ROWS), ROWS)).astype(float)
    counts[2:5, 20:] = 0
    sums = counts * random.normal(4, 1, counts.shape)
    return np.stack([sums, counts], axis=1)


def test_what_is_written_is_read(tmp_path: Path, losses: np.ndarray) -> None:
    path = tmp_path / "validation-rows.npz"
    assert read_rows(path, 8) is None
    write_rows(path, 8, losses)
    found = read_rows(path, 8)
    assert found is not None
    for own, name in zip(losses, LOSSES_OF_ROWS, strict=True):
        np.testing.assert_array_equal(found[name], own)
    assert read_rows(path, 9) is None  # of another validation than the last
    whole = path.read_bytes()
    damaged = [
        whole[:place] + bytes([whole[place] ^ 255]) + whole[place + 1 :]
        for place in range(len(whole))
    ]
    for content in (whole[:200], b"", *damaged[::7]):
        path.write_bytes(content)
        with suppress(DataError):  # what else it raises would be a bare traceback
            read_rows(path, 8)
    path.write_bytes(whole[:200])
    with pytest.raises(DataError, match=r"validation-rows\.npz cannot be read .*: delete it"):
        read_rows(path, 8)


def test_rows_of_other_yardsticks_are_as_if_none_were_kept(
    tmp_path: Path, losses: np.ndarray
) -> None:
    path = tmp_path / "validation-rows.npz"
    names = [*LOSSES_OF_ROWS[:-1], "of another version"]
    kept: dict[str, Any] = dict(zip(names, losses, strict=True))
    np.savez(path, step=np.int64(8), **kept)
    assert read_rows(path, 8) is None


@pytest.mark.parametrize("names", [LOSSES_OF_ROWS[:1], LOSSES_OF_ROWS[1:], ("single",)])
def test_the_mean_scatters_over_rows_as_losses_of_resampled_rows_do(
    losses: np.ndarray, names: tuple[str, ...]
) -> None:
    """The plain way draws rows and divides sums anew each time."""
    kept = dict(zip(LOSSES_OF_ROWS, losses, strict=True))
    values = mean_of_rows(kept, names)
    expected = np.mean([kept[name][0].sum() / kept[name][1].sum() for name in names])
    assert values.mean() == pytest.approx(expected, abs=1e-12)
    drawn = np.random.default_rng(0).integers(0, ROWS, (4000, ROWS))
    plain = np.mean(
        [kept[name][0][drawn].sum(1) / kept[name][1][drawn].sum(1) for name in names], axis=0
    )
    assert values[drawn].mean(1).std() == pytest.approx(plain.std(), rel=0.08)
    assert np.corrcoef(values[drawn].mean(1), plain)[0, 1] > 0.95


def test_arrays_without_their_bytes_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "validation-rows.npz"
    path.write_bytes(npz_of_header((10**12,)))
    with pytest.raises(
        DataError, match=r"is to take 8,000,000,000,\d+ bytes, and has .*: delete it"
    ):
        read_rows(path, 8)


@pytest.mark.parametrize("values", [np.zeros(3), np.zeros((2, 5)), np.zeros((2, ROWS), np.int8)])
def test_arrays_of_other_shapes_are_refused(
    tmp_path: Path, losses: np.ndarray, values: np.ndarray
) -> None:
    path = tmp_path / "validation-rows.npz"
    kept = dict(zip(LOSSES_OF_ROWS, losses, strict=True)) | {LOSSES_OF_ROWS[2]: values}
    path.write_bytes(npz(step=np.int64(8), **kept))  # pyright: ignore[reportArgumentType]
    with pytest.raises(
        DataError, match=rf"for {LOSSES_OF_ROWS[2]}, and not two numbers.*: delete it"
    ):
        read_rows(path, 8)
