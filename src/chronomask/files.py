"""Files that are replaced whole or not at all: a reader never meets half of one."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from chronomask.errors import RunError, UsageError

__all__ = ["write_bytes", "write_text"]


def write_text(path: Path, text: str) -> None:
    """Replace a file's text (UTF-8, line ends as they are); made and refused as in :func:`write_bytes`."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    """Replace a file's content; its folder is made where there is none.

    Raises UsageError if the folder cannot be made, RunError if writing fails; both name the path.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{path.parent} cannot be used as a folder: {error.strerror}") from None
    writing = path.with_name(f".{path.name}.writing")
    try:
        with writing.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        writing.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            writing.unlink(missing_ok=True)
        raise RunError(f"{path} cannot be written: {error.strerror or error}") from error
