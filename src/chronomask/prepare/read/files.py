"""Source files: found by path, pattern or address, opened, decompressed, and read line by line.

What the bytes mean is for :mod:`readers`. An address is anything that fsspec opens (``s3://``,
``https://``, …). The account of what was left out is kept here too.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from chronomask.errors import DataError, UsageError
from chronomask.storage import damage_errors, decompressed

__all__ = [
    "RemoteFile",
    "Skipped",
    "SourceFile",
    "file_state",
    "find_remote",
    "is_address",
    "lines_of",
    "opened",
]

_NAMES_KEPT = 20
_SKIPPED_AT_A_TIME = 1 << 20


@dataclass
class Skipped:
    """What was left out: how many by reason, and the first names of each."""

    counts: dict[str, int] = field(default_factory=dict)
    names: dict[str, list[str]] = field(default_factory=dict)

    def add(self, reason: str, name: str) -> None:
        """Count one more, by its name."""
        self.counts[reason] = self.counts.get(reason, 0) + 1
        kept = self.names.setdefault(reason, [])
        if len(kept) < _NAMES_KEPT:
            kept.append(name)

    def merge(self, other: Mapping[str, Mapping[str, Any]]) -> None:
        """Add what :meth:`to_dict` of another account says."""
        for reason, theirs in other.items():
            self.counts[reason] = self.counts.get(reason, 0) + theirs["count"]
            kept = self.names.setdefault(reason, [])
            kept.extend(theirs["names"][: _NAMES_KEPT - len(kept)])

    def listing(self) -> str:
        """The reasons with their counts, on one line."""
        return "; ".join(f"{count} × {reason}" for reason, count in self.counts.items())

    def to_dict(self) -> dict[str, Any]:
        """``{reason: {count, names}}``; at most 20 names each."""
        return {
            reason: {"count": self.counts[reason], "names": self.names[reason]}
            for reason in sorted(self.counts)
        }


def is_address(path: str) -> bool:
    """Whether a path names a protocol, also where several are chained (``zip://a.txt::s3://…``)."""
    return re.match(r"[a-z][a-z0-9+.-]*://", path) is not None


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file by its address; opened like a path."""

    address: str
    system: Any = field(repr=False, compare=False)
    """The fsspec file system that it is on."""
    inside: str = field(repr=False, compare=False)
    """Its path there."""

    def __str__(self) -> str:
        return self.address

    def open(self, mode: str = "rb") -> IO[bytes]:
        """The file's bytes; read where they are wanted, block by block."""
        return self.system.open(self.inside, mode)

    def state(self) -> dict[str, Any]:
        """Name, size and what tells two versions apart, as far as the file system knows them."""
        info = self.system.info(self.inside)
        marks = ("ETag", "etag", "checksum", "md5", "LastModified", "mtime", "modified", "created")
        mark = next((str(info[key]) for key in marks if info.get(key) is not None), None)
        return {"file": self.address, "bytes": info.get("size"), "version": mark}


def find_remote(address: str) -> tuple[list[RemoteFile], bool]:
    """The files at an address, sorted, and whether it names a single file.

    A folder is searched in depth; ``*`` and ``**`` are patterns. Raises :class:`UsageError` for a
    protocol that is not installed, :class:`DataError` for what cannot be reached or is not there.
    """
    import fsspec

    try:
        system, inside = fsspec.core.url_to_fs(address)
    except (ImportError, ValueError) as error:
        raise UsageError(
            f"source {address} cannot be opened: {error}; install the file system's package (s3fs for "
            "s3://, gcsfs for gs://, aiohttp for https://)"
        ) from None
    except Exception as error:
        raise DataError(f"source {address} cannot be reached: {_in_words(error)}") from None
    try:
        if "*" in inside:
            names = sorted(system.glob(inside))
        elif system.isdir(inside):
            names = sorted(system.find(inside))
        elif system.exists(inside):
            return [RemoteFile(address, system, inside)], True
        else:
            names = []
        names = [name for name in names if system.isfile(name)]
    except Exception as error:  # every file system has errors of its own
        raise DataError(f"source {address} cannot be reached: {_in_words(error)}") from None
    if not names:
        raise DataError(f"source {address} does not exist, or holds no file")
    chained = "::" in address
    tail = address.partition("::")[2]
    named = [
        f"{system.protocol if isinstance(system.protocol, str) else system.protocol[0]}://{name}::{tail}"
        if chained
        else system.unstrip_protocol(name)
        for name in names
    ]
    return [
        RemoteFile(*item) for item in zip(named, [system] * len(names), names, strict=True)
    ], False


def _in_words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def file_state(path: Path | RemoteFile) -> dict[str, Any]:
    """Name, size and time of change of a file, or what its file system has instead."""
    if isinstance(path, RemoteFile):
        return path.state()
    status = path.stat()
    return {"file": str(path), "bytes": status.st_size, "modified_ns": status.st_mtime_ns}


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One text file of a known format."""

    path: Path | RemoteFile
    format: str
    compression: str
    named: bool
    """Given by name rather than found in a folder: then an empty file is an error."""


def lines_of(source: SourceFile, skipped: Skipped, limit: int) -> Iterator[bytes | None]:
    """Lines as bytes; None for a line of more than ``limit`` bytes, which is never held as a whole.

    What follows a corrupt place of a compressed file is skipped and counted.
    """
    with opened(source) as handle:
        try:
            while line := handle.readline(limit + 1):
                if len(line) <= limit or line.endswith(b"\n"):
                    yield line
                    continue
                while line and not line.endswith(b"\n"):
                    line = handle.readline(_SKIPPED_AT_A_TIME)
                yield None
        except damage_errors() as error:
            skipped.add("corrupt compressed data: rest of file", f"{source.path} ({error})")
        except OSError as error:
            raise DataError(f"{source.path} cannot be read: {error.strerror}") from None


@contextmanager
def opened(source: SourceFile) -> Iterator[IO[bytes]]:
    """The decompressed bytes of a file; seekable for .gz and .xz, and for Parquet in .zst."""
    try:
        with source.path.open("rb") as raw, decompressed(raw, source.compression) as handle:
            if source.compression == ".zst" and source.format == ".parquet":
                yield io.BytesIO(handle.read())
            else:
                yield handle
    except PermissionError:
        raise DataError(f"{source.path} cannot be read: permission denied") from None
