"""Arrays that are appended to. May enter: room for more rows, and nothing about what they hold."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["Growing"]


class Growing:
    """An array whose first axis grows; room doubles when it is full, and is kept when it is emptied.

    ``rows`` is a view of what was appended, [N, *shape] of ``dtype``, good until more is.
    """

    def __init__(self, dtype: Any, shape: tuple[int, ...] = (), room: int = 1 << 10) -> None:
        self._array = np.zeros((room, *shape), dtype)
        self._size = 0

    def __len__(self) -> int:
        return self._size

    @property
    def rows(self) -> np.ndarray:
        return self._array[: self._size]

    def extend(self, num: int) -> np.ndarray:
        """Room for ``num`` more rows, to be written at once: their view."""
        begin, self._size = self._size, self._size + num
        if self._size > len(self._array):
            shape = (max(self._size, 2 * len(self._array)), *self._array.shape[1:])
            larger = np.empty(shape, self._array.dtype)
            larger[:begin] = self._array[:begin]
            self._array = larger
        return self._array[begin : self._size]

    def append(self, rows: np.ndarray) -> None:
        """Append rows, converted to the array's dtype."""
        self.extend(len(rows))[...] = rows

    def clear(self) -> None:
        """Forget every row."""
        self._size = 0
