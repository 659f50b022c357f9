"""What Python processes that a test starts need to find the product and ``tests.support``."""

from __future__ import annotations

import os
import sys


def python_path() -> str:
    """``PYTHONPATH`` under which another process imports what this one does."""
    return os.pathsep.join(filter(None, sys.path))
