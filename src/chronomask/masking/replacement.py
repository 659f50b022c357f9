"""What the model sees in place of a predicted token: [MASK], a random ordinary token, or itself."""

from __future__ import annotations

import numpy as np
from numba import njit

from chronomask import keyed
from chronomask.keyed import Scalar

__all__ = ["replace"]

_U32 = np.uint64(0xFFFFFFFF)


@njit(cache=True, nogil=True)
def replace(
    input_ids: np.ndarray,
    token_class: np.ndarray,
    positions: np.ndarray,
    unit_id: np.ndarray,
    by_unit: bool,
    replace_keys: np.ndarray,
    token_keys: np.ndarray,
    spread: np.ndarray,
    mask_below: Scalar,
    random_below: Scalar,
    mask_token_id: Scalar,
    ordinary_ids: np.ndarray,
    shown: np.ndarray,
    labels: np.ndarray,
    targets: np.ndarray,
    target_class: np.ndarray,
) -> None:
    """Fill ``shown``, what the model sees, and the labels, targets and classes of ``positions``.

    ``input_ids``, ``shown``, ``labels`` int64 [B, T]; ``positions``, ``targets`` int64 [N], rising;
    ``target_class`` uint8 [N]; ``replace_keys``, ``token_keys`` uint64 [B]; ``spread`` uint32 [T] of
    :func:`chronomask.keyed.spread_of_range`. A token's draw in [0, 2³²) makes it [MASK] below
    ``mask_below`` and random below ``random_below``; with ``by_unit`` a unit's tokens share a draw.
    """
    num_rows, length = input_ids.shape
    n = 0
    for row in range(num_rows):  # row by row: what was copied is still near when it is changed
        begin = row * length
        for column in range(length):
            shown[row, column] = input_ids[row, column]
            labels[row, column] = -100
        while n < positions.size and positions[n] < begin + length:
            column = np.uintp(positions[n] - begin)
            token = input_ids[row, column]
            labels[row, column] = token
            targets[n] = token
            target_class[n] = token_class[row, column]
            place = np.uintp(unit_id[row, column]) if by_unit else column
            draw = _bits(replace_keys[row], spread[place])
            if draw < mask_below:
                shown[row, column] = mask_token_id
            elif draw < random_below:
                bits = np.uint64(_bits(token_keys[row], spread[column]))
                shown[row, column] = ordinary_ids[
                    (bits * np.uint64(ordinary_ids.size)) >> np.uint64(32)
                ]
            n += 1


@njit(inline="always")
def _bits(key: Scalar, spread: Scalar) -> Scalar:
    low = np.uint32(key & _U32)
    odd = np.uint32(key >> np.uint64(32)) | np.uint32(1)
    return keyed.scalar_mix(spread, low, odd)
