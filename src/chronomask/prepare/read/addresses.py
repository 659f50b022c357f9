"""Files that are not on this machine: any address that fsspec opens (``s3://``, ``https://``, …).

May enter: finding and opening files by address.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import IO, Any

from chronomask.errors import DataError, UsageError

__all__ = ["RemoteFile", "find_remote", "is_address"]


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
        raise DataError(f"source {address} cannot be reached: {_told(error)}") from None
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
        raise DataError(f"source {address} cannot be reached: {_told(error)}") from None
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


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
