"""Arrays that are appended to."""

from __future__ import annotations

import numpy as np

from chronomask.prepare.words.growing import Growing


def test_rows_are_what_was_appended() -> None:
    grown = Growing(np.uint8, (2,), room=3)
    expected = np.arange(40).reshape(20, 2)
    for part in np.split(expected, [1, 2, 7, 7, 15]):
        grown.append(part)
    assert len(grown) == 20
    assert grown.rows.dtype == np.uint8
    assert np.array_equal(grown.rows, expected)


def test_extended_rows_are_written_in_place() -> None:
    grown = Growing(np.int64, room=1)
    grown.append(np.array([7]))
    grown.extend(5)[...] = 3
    assert grown.rows.tolist() == [7, 3, 3, 3, 3, 3]


def test_emptied_it_begins_anew() -> None:
    grown = Growing(np.int64)
    grown.append(np.arange(5))
    grown.clear()
    assert grown.rows.size == 0
    grown.append(np.array([9]))
    assert grown.rows.tolist() == [9]
