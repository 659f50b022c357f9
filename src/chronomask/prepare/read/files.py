"""Source files as bytes: opened, decompressed, line by line; and the account of what was left out.

May enter: compressions. What the bytes mean is the readers' business.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from chronomask.errors import DataError
from chronomask.prepare.read.addresses import RemoteFile
from chronomask.storage import damage_errors, decompressed

__all__ = ["Skipped", "SourceFile", "lines_of", "opened"]

_NAMES_KEPT = 20
_SKIPPED_AT_A_TIME = 1 << 20


@dataclass
class Skipped:
    """What was left out: how many by reason, and the first names of each."""

    counts: dict[str, int] = field(default_factory=dict)
    names: dict[str, list[str]] = field(default_factory=dict)

    def add(self, reason: str, name: str) -> None:
        self.counts[reason] = self.counts.get(reason, 0) + 1
        kept = self.names.setdefault(reason, [])
        if len(kept) < _NAMES_KEPT:
            kept.append(name)

    def merge(self, other: Mapping[str, Mapping[str, Any]]) -> None:
        """Add what :meth:`to_dict` of another account says."""
        for reason, told in other.items():
            self.counts[reason] = self.counts.get(reason, 0) + told["count"]
            kept = self.names.setdefault(reason, [])
            kept.extend(told["names"][: _NAMES_KEPT - len(kept)])

    def to_dict(self) -> dict[str, Any]:
        """``{reason: {count, names}}``; at most 20 names each."""
        return {
            reason: {"count": self.counts[reason], "names": self.names[reason]}
            for reason in sorted(self.counts)
        }


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
