"""Sources: files, folders and installed packages become documents in a fixed order.

Text that cannot be used is skipped, counted and named; a source that gives nothing at all, or cannot
be what it claims, is refused. May enter: readers, one per file format, and finding the files.
"""

from __future__ import annotations

import glob
import io
import json
import lzma
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from chronomask.errors import DataError, UsageError, nearest
from chronomask.prepare.config import Files, InstalledPackages, Source
from chronomask.types import Document

__all__ = ["Skipped", "SourceFile", "find_sources", "read_documents", "snapshot"]

FORMATS = (".txt", ".jsonl", ".parquet")
COMPRESSIONS = (".gz", ".xz", ".zst")
_NAMES_KEPT = 20


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

    def to_dict(self) -> dict[str, Any]:
        """``{reason: {count, names}}``; at most 20 names each."""
        return {
            reason: {"count": self.counts[reason], "names": self.names[reason]}
            for reason in sorted(self.counts)
        }


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One text file of a known format."""

    path: Path
    format: str
    compression: str
    named: bool
    """Given by name rather than found in a folder: then an empty file is an error."""


def find_sources(
    sources: Sequence[Source], skipped: Skipped
) -> list[SourceFile | InstalledPackages]:
    """Every file to read, in order; files of other kinds in a folder are skipped and counted.

    Raises :class:`UsageError` for a path that does not exist, has an unknown extension or holds no
    file of a known format.
    """
    found: list[SourceFile | InstalledPackages] = []
    for source in sources:
        if isinstance(source, InstalledPackages):
            found.append(source)
        else:
            found.extend(_find_files(source, skipped))
    return found


def _find_files(source: Files, skipped: Skipped) -> list[SourceFile]:
    path = Path(source.path).expanduser()
    if path.is_file():
        return [_source_file(path, named=True)]
    if path.is_dir():
        candidates = sorted(p for p in path.rglob("*") if p.is_file())
    else:
        # Not Path.glob, which refuses absolute patterns.
        names = sorted(glob.glob(str(path), recursive=True))  # noqa: PTH207
        candidates = [file for file in map(Path, names) if file.is_file()]
        if not candidates:
            raise UsageError(f"source {source.path} does not exist; {_nearest_path(path)}")
    files = []
    for candidate in candidates:
        if _format_of(candidate)[0] in FORMATS:
            files.append(_source_file(candidate, named=False))
        else:
            skipped.add("file of another format", str(candidate))
    if not files:
        raise UsageError(
            f"source {source.path} holds no {', '.join(FORMATS)} file (each also with "
            f"{', '.join(COMPRESSIONS)})"
        )
    return files


def _nearest_path(path: Path) -> str:
    parent = path.parent
    if not parent.is_dir():
        return f"nor does the folder {parent}"
    return nearest(path.name, [p.name for p in sorted(parent.iterdir())[:50]])


def _format_of(path: Path) -> tuple[str, str]:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    compression = suffixes.pop() if suffixes and suffixes[-1] in COMPRESSIONS else ""
    return (suffixes[-1] if suffixes else ""), compression


def _source_file(path: Path, named: bool) -> SourceFile:
    format_, compression = _format_of(path)
    if format_ not in FORMATS:
        raise UsageError(
            f"source {path} has the unknown extension '{format_}'; "
            f"{nearest(format_, FORMATS)} (each also with {', '.join(COMPRESSIONS)})"
        )
    return SourceFile(path, format_, compression, named)


def snapshot(sources: Sequence[SourceFile | InstalledPackages]) -> list[dict[str, Any]]:
    """What the sources are now: equal snapshots mean that nothing has to be read again."""
    result: list[dict[str, Any]] = []
    for source in sources:
        if isinstance(source, InstalledPackages):
            from chronomask.prepare.installed import installed_versions

            result += [{"package": name} for name in installed_versions()]
        else:
            result.append(file_state(source.path))
    return result


def file_state(path: Path) -> dict[str, Any]:
    """Name, size and time of change of a file."""
    status = path.stat()
    return {"file": str(path), "bytes": status.st_size, "modified_ns": status.st_mtime_ns}


def read_documents(
    source: SourceFile | InstalledPackages, text_key: str, skipped: Skipped
) -> Iterator[Document]:
    """The documents of one source in order.

    Raises :class:`DataError` for a named file that is empty, a file that is not of its format, or a
    first record without the text field.
    """
    if isinstance(source, InstalledPackages):
        from chronomask.prepare.installed import read_installed

        yield from read_installed(source.max_bytes)
        return
    try:
        empty = source.path.stat().st_size == 0
    except OSError as error:
        raise DataError(f"{source.path} cannot be read: {error.strerror}") from None
    if empty:
        if source.named:
            raise DataError(f"{source.path} is empty (0 bytes); give a file with text")
        skipped.add("empty file", str(source.path))
        return
    if source.format == ".txt":
        yield from _read_text(source, skipped)
    elif source.format == ".jsonl":
        yield from _read_jsonl(source, text_key, skipped)
    else:
        yield from _read_parquet(source, text_key, skipped)


def _read_text(source: SourceFile, skipped: Skipped) -> Iterator[Document]:
    """Documents are blocks of lines parted by blank lines."""
    number = 0
    lines: list[bytes] = []
    for line in _lines(source, skipped):
        if line.strip():
            lines.append(line)
        elif lines:
            yield from _decoded(b"".join(lines), f"{source.path}:{number}", skipped)
            number += 1
            lines = []
    if lines:
        yield from _decoded(b"".join(lines), f"{source.path}:{number}", skipped)


def _read_jsonl(source: SourceFile, text_key: str, skipped: Skipped) -> Iterator[Document]:
    """One JSON object a line."""
    first = True
    for number, line in enumerate(_lines(source, skipped)):
        if not line.strip():
            continue
        name = f"{source.path}:{number}"
        try:
            record = json.loads(line.decode("utf-8-sig"))
        except UnicodeDecodeError:
            skipped.add("invalid UTF-8", name)
            continue
        except ValueError:
            skipped.add("not JSON", name)
            continue
        if first and (not isinstance(record, dict) or text_key not in record):
            keys = list(record) if isinstance(record, dict) else []
            raise DataError(
                f"{source.path} has no text field '{text_key}'; {nearest(text_key, keys)}; "
                "set it with --set text_key=NAME"
            )
        first = False
        text = record.get(text_key) if isinstance(record, dict) else None
        if not isinstance(text, str):
            skipped.add(f"no text in field '{text_key}'", name)
            continue
        yield from _checked(text, name, skipped)


def _read_parquet(source: SourceFile, text_key: str, skipped: Skipped) -> Iterator[Document]:
    """One row a document; only the text column is read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with _open(source) as handle:
            file = pq.ParquetFile(handle)
            names = file.schema_arrow.names
            if text_key not in names:
                raise DataError(
                    f"{source.path} has no text column '{text_key}'; {nearest(text_key, names)}; "
                    "set it with --set text_key=NAME"
                )
            column = file.schema_arrow.field(text_key).type
            if not (pa.types.is_string(column) or pa.types.is_large_string(column)):
                raise DataError(f"{source.path}: column '{text_key}' is {column}, not text")
            number = 0
            for batch in file.iter_batches(batch_size=1024, columns=[text_key]):
                for value in batch.column(0):
                    name = f"{source.path}:{number}"
                    number += 1
                    try:
                        text = value.as_py()
                    except UnicodeDecodeError:
                        skipped.add("invalid UTF-8", name)
                        continue
                    if text is None:
                        skipped.add(f"no text in field '{text_key}'", name)
                    else:
                        yield from _checked(text, name, skipped)
    except (pa.ArrowException, OSError, *_decompression_errors()) as error:
        raise DataError(f"{source.path} is not a readable Parquet file: {error}") from None


def _decoded(data: bytes, name: str, skipped: Skipped) -> Iterator[Document]:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        skipped.add("invalid UTF-8", name)
        return
    yield from _checked(text.strip(), name, skipped)


def _checked(text: str, name: str, skipped: Skipped) -> Iterator[Document]:
    if "\0" in text:
        skipped.add("NUL character", name)
    elif not _encodable(text):
        skipped.add("lone surrogate", name)
    else:
        yield Document(name, text.replace("\r\n", "\n"))


def _encodable(text: str) -> bool:
    """False for the lone surrogates that JSON escapes can spell."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _lines(source: SourceFile, skipped: Skipped) -> Iterator[bytes]:
    """Lines as bytes; what follows a corrupt place of a compressed file is skipped and counted."""
    with _open(source) as handle:
        try:
            yield from handle
        except _decompression_errors() as error:
            skipped.add("corrupt compressed data: rest of file", f"{source.path} ({error})")
        except OSError as error:
            raise DataError(f"{source.path} cannot be read: {error.strerror}") from None


def _decompression_errors() -> tuple[type[Exception], ...]:
    import gzip

    import zstandard

    return (EOFError, gzip.BadGzipFile, lzma.LZMAError, zlib.error, zstandard.ZstdError)


@contextmanager
def _open(source: SourceFile) -> Iterator[IO[bytes]]:
    """The decompressed bytes of a file; seekable for .gz and .xz, and for Parquet in .zst."""
    import gzip

    try:
        with source.path.open("rb") as raw:
            if source.compression == ".gz":
                handle: Any = gzip.GzipFile(fileobj=raw)
            elif source.compression == ".xz":
                handle = lzma.LZMAFile(raw)  # noqa: SIM115
            elif source.compression == ".zst":
                stream = io.BufferedReader(_ZstdFile(raw))
                handle = io.BytesIO(stream.read()) if source.format == ".parquet" else stream
            else:
                handle = raw
            with handle:
                yield handle
    except PermissionError:
        raise DataError(f"{source.path} cannot be read: permission denied") from None


class _ZstdFile(io.RawIOBase):
    """Decompressed bytes of a .zst file; unlike the library's reader it notices a missing end."""

    def __init__(self, raw: IO[bytes]) -> None:
        import zstandard

        self._raw = raw
        self._new_frame = zstandard.ZstdDecompressor().decompressobj
        self._frame = self._new_frame()
        self._left = b""  # decompressed and not yet read

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        while not self._left:
            data = self._frame.unused_data if self._frame.eof else b""
            data = data or self._raw.read(1 << 16)
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
