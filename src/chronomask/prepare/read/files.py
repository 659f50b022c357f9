"""Source files: found by path, pattern or address, opened, decompressed, and read line by line.

What the bytes mean is for :mod:`readers`. An address is anything that fsspec opens (``s3://``,
``https://``, …). The account of what was left out is kept here too. Folders, patterns and addresses
follow one rule: what is hidden (its name begins with a dot) is left out unless it is named, and so are
folders that a preparation wrote; a link is as good as what it leads to, and a folder is entered once.
"""

from __future__ import annotations

import csv
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import IO, Any, Literal

from chronomask.compressed import Bounded, damage_errors, decompressed
from chronomask.errors import ChronomaskError, DataError, UsageError, amount, nearest, printable
from chronomask.folders import is_of_preparation
from chronomask.storage import LongLine, byte_lines

__all__ = [
    "RemoteFile",
    "Skipped",
    "SourceFile",
    "check_regular",
    "file_state",
    "find_local",
    "find_remote",
    "in_words",
    "is_address",
    "lines_of",
    "list_names",
    "open_source",
]

Unit = Literal["documents", "files", "folders"]

_NAMES_KEPT = 20
_NAMES_SHOWN = 3
_LONGEST_NAME = 200
_REASONS_SHOWN = 12


@dataclass
class _LeftOut:
    """What was left out for one reason: how many, of how many bytes, and the first names."""

    unit: Unit
    count: int = 0
    bytes: int = 0
    names: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        """How many and how large, as people read it."""
        size = f" ({amount(self.bytes, 'bytes')})" if self.bytes else ""
        return amount(self.count, self.unit) + size


@dataclass
class Skipped:
    """What was left out, by reason; and what was read in another way than usual."""

    reasons: dict[str, _LeftOut] = field(default_factory=dict)
    by_lines: list[str] = field(default_factory=list)
    """Names of .txt files whose lines were taken for documents, because there was no blank line."""
    lacking: set[str] = field(default_factory=set)
    """Fields that no record of some file had, which is said of the first such file."""

    def add(
        self, reason: str, name: str, size: int = 0, unit: Unit = "documents", count: int = 1
    ) -> None:
        """Count one more, or several, of ``size`` bytes together, by a name."""
        entry = self.reasons.setdefault(reason, _LeftOut(unit))
        entry.count += count
        entry.bytes += size
        if len(entry.names) < _NAMES_KEPT:
            entry.names.append(_middle_out(printable(name), _LONGEST_NAME))

    def merge(self, other: Mapping[str, Mapping[str, Any]]) -> None:
        """Add what :meth:`to_dict` of another account says."""
        for reason, theirs in other.items():
            entry = self.reasons.setdefault(reason, _LeftOut(theirs.get("unit", "documents")))
            entry.count += theirs["count"]
            entry.bytes += theirs.get("bytes", 0)
            entry.names.extend(theirs["names"][: _NAMES_KEPT - len(entry.names)])

    @property
    def counts(self) -> dict[str, int]:
        """How many by reason."""
        return {reason: entry.count for reason, entry in self.reasons.items()}

    def listing(self) -> str:
        """The reasons with their counts, on one line."""
        return "; ".join(f"{count:,} × {reason}" for reason, count in self.counts.items())

    def lines(self) -> list[str]:
        """A line a reason, most bytes first: how much was left out, why, and the first names."""
        most_first = sorted(self.reasons.items(), key=lambda item: -item[1].bytes)
        return [f"{entry}, {reason}: {list_names(entry.names)}" for reason, entry in most_first]

    def summary(self) -> str:
        """What was left out on one line, for the end of a preparation; "" if nothing was."""
        lines = self.lines()
        more = len(lines) - _REASONS_SHOWN
        rest = [f"and for {more} other reasons"] if more > 0 else []
        return "left out: " + "; ".join(lines[:_REASONS_SHOWN] + rest) if lines else ""

    def to_dict(self) -> dict[str, Any]:
        """``{reason: {count, bytes, unit, names}}``; at most 20 names each."""
        return {
            reason: {
                "count": entry.count,
                "bytes": entry.bytes,
                "unit": entry.unit,
                "names": entry.names,
            }
            for reason, entry in sorted(self.reasons.items())
        }


def list_names(names: Sequence[str]) -> str:
    """The first names of some, on one line of bounded length."""
    shown = [_middle_out(name, 80) for name in names[:_NAMES_SHOWN]]
    return ", ".join(shown + ["…"] * (len(names) > len(shown)))


def _middle_out(name: str, limit: int) -> str:
    """A name of at most ``limit`` characters, the middle of a longer one left out."""
    half = limit // 2 - 1
    return name if len(name) <= limit else f"{name[:half]}…{name[-half:]}"


def is_address(path: str) -> bool:
    """Whether a path names a protocol, also where several are chained (``zip://a.txt::s3://…``,
    ``simplecache::s3://…``).
    """
    return re.match(r"([a-z][a-z0-9+.-]*::)*[a-z][a-z0-9+.-]*://", path) is not None


def find_local(path: Path, skipped: Skipped) -> list[Path]:
    """The files in a folder, in depth, or those that a pattern matches; in the order of their paths.

    ``*``, ``?`` and ``[…]`` match inside a name, ``**`` any number of folders. Raises DataError for a
    folder that cannot be listed.
    """
    search = _Search(skipped)
    if path.is_dir():
        return sorted(search.matches(path, ("**", "*")))
    parts = path.parts
    top = Path(parts[0]) if path.is_absolute() else Path()
    parts = parts[1:] if path.is_absolute() else parts
    # As glob has it, ** at the end means every file below, and two of them mean one.
    parts = [
        part
        for part, before in zip(parts, ("", *parts), strict=False)
        if not part == before == "**"
    ]
    return sorted(set(search.matches(top, [*parts, "*"] if parts[-1] == "**" else parts)))


class _Search:
    """One search of folders: what it met already, and what it counted as left out."""

    def __init__(self, skipped: Skipped) -> None:
        self._skipped = skipped
        self._entered: dict[tuple[int, int, int], Path] = {}
        self._told: set[str] = set()

    def matches(self, folder: Path, parts: Sequence[str], in_depth: bool = False) -> Iterator[Path]:
        """The files below a folder whose names match the parts of a pattern, folder by folder."""
        part, rest = parts[0], parts[1:]
        if part == "**":
            for below in self._in_depth(folder, parts):
                yield from self.matches(below, rest, in_depth=True)
        elif not re.search(r"[*?[]", part):  # named, and so also read where it is hidden
            path = folder / part
            if rest and path.is_dir():
                yield from self.matches(path, rest)
            elif not rest and path.is_file():
                yield path
        else:
            for entry in self._listing(folder):
                if not fnmatchcase(entry.name, part) or self._is_hidden(entry, part, parts[-1]):
                    continue
                if rest and _is_folder(entry) and not self._is_prepared(folder / entry.name):
                    yield from self.matches(folder / entry.name, rest)
                elif not rest and self._is_file(entry, in_depth):
                    yield folder / entry.name

    def _in_depth(self, top: Path, parts: Sequence[str]) -> Iterator[Path]:
        """A folder and all below it, each once, whatever links lead there."""
        left = [top]
        while left:
            folder = left.pop()
            try:
                status = folder.stat()
            except OSError as error:
                raise _cannot_list(folder, error) from None
            first = self._entered.setdefault((status.st_dev, status.st_ino, len(parts)), folder)
            if first is not folder:
                if first != folder:  # else a pattern with two ** leads there twice
                    self._tell("met again by a link", folder, "folders")
                continue
            yield folder
            below = (entry for entry in self._listing(folder) if _is_folder(entry))
            names = [e.name for e in below if not self._is_hidden(e, parts[0], parts[-1])]
            paths = [folder / name for name in sorted(names, reverse=True)]
            left += [path for path in paths if not self._is_prepared(path)]

    def _listing(self, folder: Path) -> list[os.DirEntry[str]]:
        try:
            with os.scandir(folder) as entries:
                return sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            raise _cannot_list(folder, error) from None

    def _is_hidden(self, entry: os.DirEntry[str], part: str, last: str) -> bool:
        """Whether an entry is left out because its name begins with a dot; then it is counted."""
        if not entry.name.startswith(".") or part.startswith("."):
            return False
        if _is_folder(entry):
            files = [
                os.path.join(folder, name)  # noqa: PTH118  # of os.walk, which Path.walk is not yet
                for folder, _, names in os.walk(entry.path)
                for name in names
                if fnmatchcase(name, last)
            ]
            size = sum(os.lstat(file).st_size for file in files)
            if files:
                self._tell("hidden", Path(entry.path), "files", size, len(files), folder=True)
        elif fnmatchcase(entry.name, last):
            # A link of such a name may lead nowhere: some editors lock files so.
            size = entry.stat(follow_symlinks=_is_regular(entry)).st_size
            self._tell("hidden", Path(entry.path), "files", size)
        return True

    def _is_prepared(self, folder: Path) -> bool:
        """Whether a preparation wrote a folder, such as the one to be prepared again; then it is counted."""
        if not is_of_preparation(folder):
            return False
        self._tell("prepared data", folder, "folders", folder=True)
        return True

    def _is_file(self, entry: os.DirEntry[str], in_depth: bool) -> bool:
        """Whether an entry can be read; what is neither file nor folder is counted."""
        if _is_regular(entry):
            return True
        if not _is_folder(entry):
            self._tell("a pipe, socket, device or broken link", Path(entry.path), "files")
        elif not in_depth:
            self._tell("not entered by the pattern (** would)", Path(entry.path), "folders")
        return False

    def _tell(
        self,
        reason: str,
        path: Path,
        unit: Unit,
        size: int = 0,
        count: int = 1,
        folder: bool = False,
    ) -> None:
        """Count what is left out, once, however often it is met."""
        if str(path) not in self._told:
            self._told.add(str(path))
            self._skipped.add(reason, f"{path}{'/' if folder else ''}", size, unit, count)


def _cannot_list(folder: Path, error: OSError) -> DataError:
    return DataError(f"folder {printable(folder)} cannot be listed: {error.strerror}")


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a folder or a link to one; False also for a link in a ring of links."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def _is_regular(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a file or a link to one; False also for a link in a ring of links."""
    try:
        return entry.is_file()
    except OSError:
        return False


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
        hashes = ("ETag", "etag", "checksum", "md5", "CRC", "sha", "blob_id")
        marks = (*hashes, "LastModified", "mtime", "modified", "created")
        mark = next((str(info[key]) for key in marks if info.get(key) is not None), None)
        return {"file": printable(self.address), "bytes": info.get("size"), "version": mark}


def find_remote(address: str, skipped: Skipped) -> tuple[list[RemoteFile], bool]:
    """The files at an address, sorted, and whether it names a single file.

    A folder is searched in depth; ``*``, ``**``, and where no file has the name ``?`` and ``[…]``, are
    patterns. Raises :class:`UsageError` for a
    protocol that is not installed, :class:`DataError` for what cannot be reached or is not there.
    """
    import fsspec

    source = f"source {printable(address)}"
    try:
        system, inside = fsspec.core.url_to_fs(address)
    except (ImportError, ValueError) as error:
        protocol, known = address.partition("://")[0], fsspec.available_protocols()
        way_out = (
            nearest(protocol, [name for name in known if name.isalnum()])
            if protocol not in known and "::" not in address
            else "install the file system's package (s3fs for s3://, gcsfs for gs://, aiohttp for https://)"
        )
        raise UsageError(f"{source} cannot be opened: {error}; {way_out}") from None
    except Exception as error:
        raise DataError(f"{source} cannot be reached: {in_words(error)}") from None
    top, pattern = inside, ""
    try:
        if "*" not in inside and system.isdir(inside):
            found = system.find(inside, detail=True)
        elif "*" not in inside and system.exists(inside):
            return [RemoteFile(address, system, inside)], True
        else:
            marks = r"\*" if "http" in system.protocol else r"[*?[]"  # there ? begins a query
            first = re.search(marks, inside)
            at = first.start() if first else len(inside)
            top, pattern = inside[:at].rpartition("/")[0], inside[at:]
            found = system.glob(inside, detail=True) if pattern else {}
        found = {name: info for name, info in found.items() if info["type"] != "directory"}
    except Exception as error:  # every file system has errors of its own
        raise DataError(f"{source} cannot be reached: {in_words(error)}") from None
    names = [
        name
        for name in sorted(found)
        if not _is_hidden_remote(name, top, pattern, found[name].get("size") or 0, skipped)
    ]
    if not names:
        raise DataError(f"{source} does not exist, or holds no file that is not hidden")
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


def _is_hidden_remote(name: str, top: str, pattern: str, size: int, skipped: Skipped) -> bool:
    """Whether a file found below ``top`` is hidden, by itself or in a folder; then it is counted."""
    below = name.lstrip("/").removeprefix(top.strip("/")).lstrip("/").split("/")
    if re.search(r"(^|/)\.", pattern) or not any(part.startswith(".") for part in below):
        return False
    skipped.add("hidden", name, size, "files")
    return True


def in_words(error: BaseException) -> str:
    """An error of a file or of what reads it, as part of a sentence on one line."""
    text = " ".join(str(getattr(error, "strerror", None) or error).split())
    kind = "" if isinstance(error, OSError) and text else type(error).__name__
    return _middle_out(printable(": ".join(filter(None, (kind, text)))), 300)


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


def check_regular(path: Path) -> None:
    """Raises UsageError for a path that is there and neither a file nor a folder, or leads nowhere."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        if path.is_symlink():
            raise UsageError(
                f"source {printable(path)} is a link to {printable(path.readlink())}, which is not there; "
                "name a file or folder that is"
            ) from None
        return
    kinds = {stat.S_ISFIFO: "a named pipe", stat.S_ISSOCK: "a socket"}
    kind = next((name for test, name in kinds.items() if test(mode)), "a device")
    raise UsageError(
        f"source {printable(path)} is {kind}, which cannot be read twice: write its text to a file "
        "and name that"
    )
