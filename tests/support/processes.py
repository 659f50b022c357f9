"""What tests that start other processes, or wait for another thread, need."""

from __future__ import annotations

import os
import sys

HANG = 3600
"""Seconds after which something is taken to hang: so long that no busy machine makes a test fail."""


def python_path() -> str:
    """``PYTHONPATH`` under which another process imports what this one does."""
    return os.pathsep.join(filter(None, sys.path))
