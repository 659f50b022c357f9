"""Files: replaced whole or not at all, known by their hash, opened whatever packs them.

A file is written under another name, flushed to the disk, renamed, and its folder flushed too. So a
reader never meets half of one, whatever moment a process is killed or the power fails.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import lzma
import os
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from chronomask.errors import DataError, RunError, UsageError

__all__ = [
    "COMPRESSIONS",
    "bytes_sha256",
    "damage_errors",
    "decompressed",
    "file_sha256",
    "files_sha256",
    "flush",
    "read_object",
    "replacing",
    "write_bytes",
    "write_json",
    "write_text",
]

COMPRESSIONS = (".gz", ".xz", ".zst")
"""Ends of the names of compressed files that :func:`decompressed` opens."""

_BLOCK = 1 << 16


def write_text(path: Path, text: str) -> None:
    """Replace a file's text (UTF-8, line ends as they are); made and refused as in :func:`write_bytes`."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: object, indent: int | None = 2) -> None:
    """Replace a file by a value as JSON; made and refused as in :func:`write_bytes`."""
    write_text(path, json.dumps(value, indent=indent, ensure_ascii=False) + "\n")


def write_bytes(path: Path, content: bytes) -> None:
    """Replace a file's content; its folder is made where there is none.

    Raises UsageError if the folder cannot be made, RunError if writing fails; both name the path.
    """
    with replacing(path) as writing:
        writing.write_bytes(content)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path to write a new file to; when the block ends the file takes the place of ``path``.

    For writers that need a path of their own, such as Parquet's. If the block fails, ``path`` stays
    what it was. Raises as :func:`write_bytes` does.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{path.parent} cannot be used as a folder: {error.strerror}") from None
    writing = path.with_name(f".{path.name}.writing")
    try:
        yield writing
        flush(writing)
        writing.replace(path)
        flush(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            writing.unlink(missing_ok=True)
        raise RunError(
            f"{path} cannot be written: {error.strerror or error}; make room or choose another "
            "folder, then run the same command again"
        ) from error
    except BaseException:
        with contextlib.suppress(OSError):
            writing.unlink(missing_ok=True)
        raise


def flush(path: Path) -> None:
    """Make a file's bytes, or a folder's entries, outlive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_object(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file, None if there is no such file; raises DataError for anything else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(value, dict):
        raise DataError(f"{path} must hold a JSON object, not {type(value).__name__}")
    return value


def bytes_sha256(content: bytes) -> str:
    """SHA-256 of bytes, in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def files_sha256(paths: Iterable[Path]) -> str:
    """SHA-256 over the content of files, in order; their names and places do not enter."""
    total = hashlib.sha256()
    for path in paths:
        total.update(bytes.fromhex(file_sha256(path)))
    return total.hexdigest()


def decompressed(raw: IO[bytes], compression: str) -> IO[bytes]:
    """The bytes inside ``raw``; ``compression`` is one of :data:`COMPRESSIONS`, or "" for none.

    Reading it raises one of :func:`damage_errors` where the data are damaged or end too early. Seekable
    for all but ``.zst``. Raises UsageError where ``.zst`` is asked for without the package it needs.
    """
    if compression == ".gz":
        import gzip

        return gzip.GzipFile(fileobj=raw)  # pyright: ignore[reportReturnType]
    if compression == ".xz":
        return lzma.LZMAFile(raw)  # pyright: ignore[reportReturnType]
    if compression == ".zst":
        return io.BufferedReader(_ZstdFile(raw))
    return raw


def damage_errors() -> tuple[type[Exception], ...]:
    """What reading damaged compressed data raises, beside OSError for the disk's own errors."""
    import gzip

    known = (EOFError, gzip.BadGzipFile, lzma.LZMAError, zlib.error)
    try:
        import zstandard
    except ImportError:
        return known
    return (*known, zstandard.ZstdError)


class _ZstdFile(io.RawIOBase):
    """Decompressed bytes of a .zst file; unlike the library's reader it notices a missing end."""

    def __init__(self, raw: IO[bytes]) -> None:
        try:
            import zstandard
        except ImportError:
            raise UsageError(
                ".zst files need the 'zstandard' package: pip install 'chronomask[prepare]', "
                "or decompress the file first"
            ) from None
        self._raw = raw
        self._new_frame = zstandard.ZstdDecompressor().decompressobj
        self._frame = self._new_frame()
        self._left = b""  # decompressed and not yet read

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        while not self._left:
            data = self._frame.unused_data if self._frame.eof else b""
            data = data or self._raw.read(_BLOCK)
            if not data:
                if not self._frame.eof:
                    raise EOFError("compressed file ended before the end of its frame")
                return 0
            if self._frame.eof:
                self._frame = self._new_frame()
            self._left = self._frame.decompress(data)
        size = min(len(buffer), len(self._left))
        buffer[:size], self._left = self._left[:size], self._left[size:]
        return size
