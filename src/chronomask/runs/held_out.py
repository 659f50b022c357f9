"""What the last validation of a run found of every held-out row: ``validation-rows.npz`` of its folder.

A loss is a mean over held-out rows, and these are a sample of the text there is. With the loss of every row a
comparison of runs can ask how far it might have come out otherwise on other rows.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from chronomask.errors import DataError
from chronomask.runs.arrays import read_arrays
from chronomask.storage import write_bytes
from chronomask.yardsticks import YARDSTICKS

__all__ = ["LOSSES_OF_ROWS", "RowLosses", "mean_of_rows", "read_rows", "write_rows"]

LOSSES_OF_ROWS = ("tokens-15", *(own.name for own in YARDSTICKS))
"""The losses that are kept by row: at the fixed ratio, and of every yardstick."""
RowLosses = Mapping[str, NDArray[np.float64]]
"""One of :data:`LOSSES_OF_ROWS` → float64 [2, rows]: of every row the sum of its losses in nats, and the
number of its predictions. A yardstick that uses fewer rows has zeros beyond."""


def write_rows(path: Path, step: int, losses: NDArray[np.float64]) -> None:
    """Write the file after a validation; ``losses`` float64 [6, 2, rows], in the order of the names.

    Raises RunError where it cannot be written.
    """
    buffer = io.BytesIO()
    arrays = dict(zip(LOSSES_OF_ROWS, losses, strict=True))
    np.savez_compressed(buffer, step=np.int64(step), **arrays)
    write_bytes(path, buffer.getvalue())


def read_rows(path: Path, step: int) -> RowLosses | None:
    """What the file says of the validation at ``step``.

    None where there is no file, as of runs of before it was written, or where it is of another step, as
    after a crash between two writes. Raises DataError for a file that is not whole.
    """
    try:
        arrays = read_arrays(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path} cannot be read ({error}): delete it, and comparisons with this run take no rows"
        ) from error
    if not np.array_equal(arrays.pop("step", -1), step) or set(arrays) != set(LOSSES_OF_ROWS):
        return None
    first = arrays[LOSSES_OF_ROWS[0]]
    for name, values in arrays.items():
        if values.dtype != np.float64 or values.ndim != 2 or values.shape != (2, first.size // 2):
            raise DataError(
                f"{path} holds {values.dtype} {values.shape} for {name}, and not two numbers for each of as "
                "many rows: delete it, and comparisons with this run take no rows"
            )
    return arrays


def mean_of_rows(losses: RowLosses, names: tuple[str, ...]) -> NDArray[np.float64]:
    """float64 [rows] whose mean is the mean of the losses ``names``, each a sum over rows by a number of
    predictions, and whose scatter over rows is theirs (the first order of ratios of sums: Cochran, Sampling
    Techniques, 1977, section 2.11).
    """
    rows = next(iter(losses.values())).shape[1]
    values = np.zeros(rows)
    for name in names:
        total, number = losses[name]
        mean = total.sum() / number.sum()
        values += (mean + rows * (total - mean * number) / number.sum()) / len(names)
    return values
