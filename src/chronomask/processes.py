"""Whether this machine lets several processes share work.

They wait for each other by semaphores, which the system keeps in shared memory. A container may have none, or
none that may be written; then one process does all.
"""

from __future__ import annotations

import logging
from functools import cache
from multiprocessing import get_context

__all__ = ["can_share_work"]

logger = logging.getLogger(__name__)


@cache
def can_share_work() -> bool:
    """Whether processes can share work here; warns, once a process, where they cannot."""
    try:
        get_context("spawn").Lock()
    except (OSError, ImportError) as error:  # without support the module itself is missing
        logger.warning(
            "this process works alone, because processes that share work need semaphores in shared memory, "
            "and there are none here (%s): let /dev/shm be written for several at a time",
            error,
        )
        return False
    return True
