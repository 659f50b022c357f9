"""Columns that say where tokens stand: of texts that are flattened into one row, where each begins.

Rows are counted from 0 by the models themselves, so columns that say the same are of no use, and those that
say something else would be left out unseen.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from chronomask.errors import UsageError

__all__ = ["refuse_positions"]

_BOUNDS = ("cu_seq_lens_q", "cu_seq_lens_k", "cu_seqlens")
"""Where the texts begin that are flattened into one row, its end among them."""
_WAY_OUT = (
    "give every text as a row of its own, as chronomask.RowCollator joins them, and leave the column out; "
    "texts packed into rows are for chronomask prepare and chronomask pretrain"
)


def refuse_positions(given: Mapping[str, Any], place: int = 0) -> None:
    """Raise UsageError for a row or batch whose columns place its tokens otherwise than one text in each row.

    ``position_ids``, integers [T], [1, T] or [B, T], must count from 0 in each row; ``seq_idx``, of the same
    shape, must be the same throughout a row; ``cu_seq_lens_q``, ``cu_seq_lens_k`` or ``cu_seqlens`` [D + 1]
    must be the bounds of one text. What a row has where its ``attention_mask`` is 0 is not looked at.
    ``place`` is that of the first row in its batch.
    """
    for name in _BOUNDS:
        if name in given and given[name] is not None and np.size(_on_host(given[name])) > 2:
            number = np.size(_on_host(given[name])) - 1
            raise UsageError(
                f"{name} says that {number} texts are flattened into one row, and no model is told here "
                f"where they begin: {_WAY_OUT}"
            )
    for name, fault in (("position_ids", _not_counted), ("seq_idx", _not_alike)):
        if name not in given or given[name] is None:
            continue
        masks = _rows_of(given.get("attention_mask"))
        for index, row in enumerate(_rows_of(given[name])):
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


def _rows_of(column: Any) -> list[np.ndarray]:
    """The column of a row, or of each row of a batch, as arrays [T]."""
    column = _on_host(column)
    if column is None or not len(column):
        return []
    several = np.ndim(column[0]) > 0
    rows = [np.asarray(_on_host(row)) for row in (column if several else [column])]
    return [part for row in rows for part in row.reshape(-1, row.shape[-1])]


def _on_host(values: Any) -> Any:
    """A tensor as numpy array; anything else as it is."""
    return values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else values
