"""Source files opened, decompressed, and read line by line; what the bytes mean is for :mod:`readers`."""

from __future__ import annotations

import csv
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from chronomask.compressed import Bounded, damage_errors, decompressed
from chronomask.errors import ChronomaskError, DataError, in_words, printable
from chronomask.prepare.read.find import RemoteFile
from chronomask.prepare.read.left_out import Skipped
from chronomask.text_files import LongLine, byte_lines

__all__ = ["SourceFile", "file_state", "lines_of", "open_source"]


def file_state(path: Path | RemoteFile) -> dict[str, Any]:
    """Name, size and time of change of a file, or what its file system has instead."""
    if isinstance(path, RemoteFile):
        return path.state()
    status = path.stat()
    return {
        "file": printable(path),
        "bytes": status.st_size,
        "modified_ns": status.st_mtime_ns,
    }


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One text file of a known format."""

    path: Path | RemoteFile
    format: str
    compression: str
    given: bool
    """Given by name rather than found in a folder: then an empty file is an error."""

    @property
    def name(self) -> str:
        """Its path or address as it can be printed and written."""
        return printable(self.path)


def lines_of(source: SourceFile, skipped: Skipped, limit: int) -> Iterator[bytes | LongLine]:
    """The lines of a file, as :func:`byte_lines` gives them; raises as :func:`open_source` does."""
    with open_source(source, skipped) as handle:
        yield from byte_lines(handle, source.name, limit)


_MOST_UNPACKED = 2_000_000_000
"""Most bytes of a compressed Parquet file, which is unpacked to the disk because it is read from its end."""


@contextmanager
def open_source(source: SourceFile, skipped: Skipped) -> Iterator[IO[bytes]]:
    """The decompressed bytes of a file; the one place for whatever reading a file can raise.

    What follows a damaged place of compressed data is counted as left out, and the reader ends there.
    Everything else is a DataError of one sentence that names the file.
    """
    try:
        with (
            source.path.open("rb") as raw,
            decompressed(raw, source.compression, source.name) as handle,
        ):
            if source.compression and source.format == ".parquet":
                with _on_disk(handle, source.name) as whole:
                    yield whole
                return
            try:
                yield handle
            except damage_errors() as error:
                reason = "corrupt data: rest of file"
                name = f"{source.name} ({in_words(error)})"
                skipped.add(reason, name, _bytes_behind(raw), "files")
    except ChronomaskError:
        raise
    except _file_errors(source) as error:
        raise DataError(f"{source.name} cannot be read: {in_words(error)}") from None


def _file_errors(source: SourceFile) -> tuple[type[Exception], ...]:
    """What the bytes of a file, or its file system, can make a reader raise."""
    if isinstance(source.path, RemoteFile):
        return (Exception,)  # every file system has errors of its own
    ours = (OSError, ValueError, ArithmeticError, RuntimeError, EOFError, MemoryError, csv.Error)
    return (*ours, *damage_errors())


def _bytes_behind(raw: IO[bytes]) -> int:
    """How many bytes of a file were not read, as far as that can be told."""
    try:
        at = raw.tell()
        return raw.seek(0, os.SEEK_END) - at
    except (OSError, ValueError):
        return 0


@contextmanager
def _on_disk(handle: IO[bytes], name: str) -> Iterator[IO[bytes]]:
    """All of a stream as a file that can be read from anywhere; removed afterwards."""
    refusal = (
        f"{name} unpacks to more than {_MOST_UNPACKED:,} bytes: decompress it and name the decompressed file "
        "(Parquet compresses by itself)"
    )
    with tempfile.TemporaryFile() as file:
        shutil.copyfileobj(Bounded(handle, _MOST_UNPACKED, refusal), file)  # type: ignore[arg-type]
        file.seek(0)
        yield file
