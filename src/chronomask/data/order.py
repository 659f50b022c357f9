"""The order of rows in training: pure functions of (seed, number), with nothing to remember.

Any place in such an order is reached in O(1).
"""

from __future__ import annotations

import numpy as np

__all__ = ["visits"]


def visits(
    num_rows: int, seed: int, number: np.ndarray, part: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Rows and epochs (int64 [B] each) of visits ``number`` to a data set of ``num_rows``.

    Every epoch visits every row once, in a keyed order of its own; ``part`` distinguishes the data sets
    of one training.
    """
    from chronomask.keyed import (
        Stream,
        permute,
        row_keys,
    )  # brings numba, which opening data spares

    epoch, index = np.divmod(np.asarray(number, np.int64), num_rows)
    row_ids = np.empty_like(index)
    for value in np.unique(epoch).tolist():
        inside = epoch == value
        key = int(row_keys(seed, Stream.ORDER, value, part))
        row_ids[inside] = permute(index[inside], num_rows, key)
    return row_ids, epoch
