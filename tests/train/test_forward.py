"""What a compiled run hands to its model keeps its shapes."""

from __future__ import annotations

import numpy as np
import pytest

from chronomask.data.folder import PreparedData
from chronomask.train.forward import room_for_documents


@pytest.mark.parametrize("number", [1, 7, 32])
def test_rows_drawn_at_random_hold_no_more_documents_than_room_is_made_for(
    tiny_data: PreparedData, number: int
) -> None:
    split, pad = tiny_data.split("train"), tiny_data.manifest.pad_token_id
    room = room_for_documents(split, number, pad)
    rng, found = np.random.default_rng(0), []
    for _ in range(200):
        rows = split.read(rng.integers(0, split.num_rows, number))
        padded = int((rows.input_ids == pad).any(1).sum())
        found.append(len(rows.cu_seqlens) - 1 + padded)
    assert max(found) <= room
    # Not more than twice as many, so that kernels are not asked for nothing, where rows even one another out.
    assert number < 32 or room <= 2 * max(found)
