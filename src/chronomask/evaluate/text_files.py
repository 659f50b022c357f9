"""Text files of a line each example, as they are or packed with gzip or xz."""

from __future__ import annotations

import gzip
import lzma
import zlib
from pathlib import Path
from typing import IO

__all__ = ["UNREADABLE", "open_text"]

UNREADABLE = (EOFError, lzma.LZMAError, zlib.error, UnicodeDecodeError, OSError)
"""What reading a damaged file raises."""


def open_text(path: Path) -> IO[str]:
    """A file's lines, UTF-8; its name's end says how it is packed."""
    opener = {".gz": gzip.open, ".xz": lzma.open}.get(path.suffix, open)
    return opener(path, "rt", encoding="utf-8")
