"""Numbers in bfloat16 for code that numba compiles, which has no such type: as their bits.

They are the upper half of the bits of float32.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from chronomask.compiled import KEPT

__all__ = ["of_bits", "to_bits"]


@njit(cache=KEPT, nogil=True, error_model="numpy", inline="always")
def of_bits(bits: np.uint16) -> np.float32:
    """The number that some bits stand for."""
    return np.uint32(np.uint32(bits) << np.uint32(16)).view(np.float32)


@njit(cache=KEPT, nogil=True, error_model="numpy", inline="always")
def to_bits(value: np.float32) -> np.uint16:
    """The bits of the number that is nearest to a float32, and of two as near those of the even one."""
    bits = np.float32(value).view(np.uint32)
    odd = np.uint32((bits >> np.uint32(16)) & np.uint32(1))
    rounded = np.uint16(np.uint32(bits + np.uint32(np.uint32(0x7FFF) + odd)) >> np.uint32(16))
    return rounded if value == value else np.uint16(0x7FC0)
