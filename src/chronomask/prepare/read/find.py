"""Source files found: by path, pattern or address.

An address is anything that fsspec opens (``s3://``, ``https://``, …). Folders, patterns and addresses
follow one rule: what is hidden (its name begins with a dot) is left out unless it is named, and so are
folders that a preparation wrote; a link is as good as what it leads to, and a folder is entered once.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import IO, Any

from chronomask.errors import DataError, UsageError, in_words, nearest, printable
from chronomask.folders import is_of_preparation
from chronomask.prepare.read.left_out import Skipped, Unit

__all__ = ["RemoteFile", "check_regular", "find_local", "find_remote", "is_address"]


def is_address(path: str) -> bool:
    """Whether a path names a protocol, also where several are chained (``zip://a.txt::s3://…``,
    ``simplecache::s3://…``).
    """
    return re.match(r"([a-z][a-z0-9+.-]*::)*[a-z][a-z0-9+.-]*://", path) is not None


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
