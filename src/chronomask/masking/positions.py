"""Columns that say which tokens are there and where they stand: in rows, or flattened texts in one row.

Rows are counted from 0 by the models themselves, so columns that say the same are of no use, and those that
say something else would be left out unseen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from chronomask.errors import DataError, UsageError, shown
from chronomask.masking.columns import on_host

__all__ = ["check_attention", "refuse_positions"]

_BOUNDS = ("cu_seq_lens_q", "cu_seq_lens_k", "cu_seqlens")
"""Where the texts begin that are flattened into one row, its end among them."""
_WAY_OUT = (
    "give every text as a row of its own, as chronomask.RowCollator joins them, and leave the column out; "
    "texts packed into rows are for chronomask prepare and chronomask pretrain"
)


def check_attention(mask: np.ndarray, features: Sequence[Mapping[str, Any]]) -> None:
    """Raise for an attention mask, float64 [B, T], with another value than 0 and 1; ``features``: its rows.

    UsageError where it numbers texts that are packed into one row from 1, else DataError.
    """
    wrong = (mask != 0) & (mask != 1)
    if not wrong.any():
        return
    index, at = np.argwhere(wrong)[0].tolist()
    number, there = features[index].get("row_id", index), mask[index][mask[index] != 0]
    says = f"attention_mask of row {number} has {mask[index, at]:g} at token {at}"
    if there[0] == 1 and np.isin(np.diff(there), (0, 1)).all():
        raise UsageError(
            f"{says}, as where texts are numbered that are packed into one row, and no model is told here "
            f"where they begin: {_WAY_OUT}"
        )
    raise DataError(f"{says}; give 1 for each token and 0 for padding, or leave the column out")


def refuse_positions(given: Mapping[str, Any], place: int = 0) -> None:
    """Raise UsageError for a row or batch whose columns place its tokens otherwise than one text in each row.

    ``position_ids``, integers [T], [1, T] or [B, T], must count from 0 in each row; ``seq_idx``, of the same
    shape, must be the same throughout a row; ``cu_seq_lens_q``, ``cu_seq_lens_k`` or ``cu_seqlens`` [D + 1]
    must be the bounds of one text. What a row has where its ``attention_mask`` is 0 is not looked at.
    ``place`` is that of the first row in its batch. Raises DataError for a column that holds no numbers so.
    """
    for name in _BOUNDS:
        number = sum(row.size for row in _rows_of(name, given.get(name))) - 1
        if number > 1:
            raise UsageError(
                f"{name} says that {number} texts are flattened into one row, and no model is told here "
                f"where they begin: {_WAY_OUT}"
            )
    for name, fault in (("position_ids", _not_counted), ("seq_idx", _not_alike)):
        if name not in given or given[name] is None:
            continue
        masks = _rows_of("attention_mask", given.get("attention_mask"))
        for index, row in enumerate(_rows_of(name, given[name])):
            mask = masks[index] if index < len(masks) else None
            seen = np.ones(row.shape, bool)
            if mask is not None and mask.shape == row.shape:
                seen = mask != 0
            at = np.flatnonzero(fault(row) & seen)
            if at.size:
                number = given.get("row_id", ())
                number = place + index if np.ndim(number) else number
                raise UsageError(
                    f"{name} of row {number} has {row[at[0]]} at token {at[0]}, and models count the "
                    f"tokens of a row from 0 here, as one text: {_WAY_OUT}"
                )


def _not_counted(row: np.ndarray) -> np.ndarray:
    """Where a position is not the token's place in its row, bool [T]."""
    return row != np.arange(row.size)


def _not_alike(row: np.ndarray) -> np.ndarray:
    """Where a text is not that of the first token, bool [T]."""
    return row != row[:1]


def _rows_of(name: str, column: Any) -> list[np.ndarray]:
    """The column of a row, or of each row of a batch, as arrays [T]; raises DataError where it has none."""
    if column is None:
        return []
    try:
        values = on_host(column, name)
        several = len(values) > 0 and np.ndim(on_host(values[0], name)) > 0
        rows: list[Any] = [
            np.asarray(on_host(row, name)) for row in (values if several else [values])
        ]
        rows = [np.asarray(row.tolist()) if row.dtype.kind == "O" else row for row in rows]
    except (TypeError, ValueError):
        rows = [np.array(None)]
    if any(row.ndim == 0 or row.dtype.kind not in "biuf" for row in rows):
        raise DataError(
            f"{name} is {shown(column)}; give one number per token of each row, or leave the column out"
        )
    return [
        part
        for row in rows
        for part in (row.reshape(-1, row.shape[-1]) if row.size else [row.ravel()])
    ]
