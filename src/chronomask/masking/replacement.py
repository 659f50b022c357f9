"""What the model sees in place of a predicted token: [MASK], a random ordinary token, or itself."""

from __future__ import annotations

import numpy as np
from numba import njit

from chronomask import keyed
from chronomask.compiled import KEPT
from chronomask.keyed import Scalar

# numba keeps compiled code by this file's contents; those of the compiled files that it imports are:
# compiled in: 423aeb35f00b

__all__ = ["replace"]

_U32 = np.uint64(0xFFFFFFFF)


@njit(cache=KEPT, nogil=True)
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
    n, size = np.uintp(0), np.uintp(positions.size)
    for row in range(num_rows):  # row by row: what was copied is still near when it is changed
        begin, end = np.uintp(row * length), np.uintp((row + 1) * length)
        ids, seen, own_labels = input_ids[row], shown[row], labels[row]
        low, odd = _halves(replace_keys[row])
        token_low, token_odd = _halves(token_keys[row])
        for column in range(length):
            seen[column] = ids[column]
            own_labels[column] = -100
        while n < size and np.uintp(positions[n]) < end:
            column = np.uintp(positions[n]) - begin
            token = ids[column]
            own_labels[column] = token
            targets[n] = token
            target_class[n] = token_class[row, column]
            place = np.uintp(unit_id[row, column]) if by_unit else column
            draw = keyed.scalar_mix(spread[place], low, odd)
            if draw < mask_below:
                seen[column] = mask_token_id
            elif draw < random_below:
                bits = np.uint64(keyed.scalar_mix(spread[column], token_low, token_odd))
                seen[column] = ordinary_ids[(bits * np.uint64(ordinary_ids.size)) >> np.uint64(32)]
            n += np.uintp(1)


@njit(inline="always")
def _halves(key: Scalar) -> Scalar:
    """The two halves of a row key, as :func:`chronomask.keyed.scalar_mix` takes them."""
    return np.uint32(key & _U32), np.uint32(key >> np.uint64(32)) | np.uint32(1)
