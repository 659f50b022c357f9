"""Whether the code that numba compiles can be kept on disk for the next process.

numba keeps it beside the source or in the user's cache folder. In a container that runs as a user without a
home, neither may be written, and numba then refuses to compile at all what is to be kept.
"""

from __future__ import annotations

import logging
from pathlib import Path

from numba import njit

__all__ = ["KEPT"]

logger = logging.getLogger(__name__)


def _can_be_kept() -> bool:
    """Warns, once a process, where numba finds no folder to write to."""
    try:
        njit(cache=True)(_nothing)
    except RuntimeError:
        logger.warning(
            "compiled code cannot be kept: neither %s nor the user's cache folder may be written, so every "
            "process compiles it anew, which takes some seconds. Set NUMBA_CACHE_DIR to a folder that may be "
            "written",
            Path(__file__).parent,
        )
        return False
    return True


def _nothing() -> None:
    """Is never compiled."""


KEPT = _can_be_kept()
"""Value of numba's option ``cache``: False where no cache folder can be written."""
