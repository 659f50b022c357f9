"""Files: replaced whole or not at all, known by their hash, opened whatever packs them, read as text.

A file is written under another name, flushed to the disk, renamed, and its folder flushed too. So a
reader never meets half of one, whatever moment a process is killed or the power fails.

One rule for text: UTF-8, with or without a byte order mark. A line ends with LF, CR LF or CR, and with
nothing else: U+2028 and a form feed are characters of their line. Bytes that are not UTF-8 are refused
by their line, never replaced.
"""

from __future__ import annotations

import codecs
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
    "UNPACKED_LIMIT",
    "Bounded",
    "bytes_sha256",
    "damage_errors",
    "decompressed",
    "file_sha256",
    "files_sha256",
    "flush",
    "lines_in",
    "read_lines",
    "read_object",
    "read_text",
    "replacing",
    "text_of",
    "write_bytes",
    "write_json",
    "write_text",
]

COMPRESSIONS = (".gz", ".xz", ".zst")
"""Ends of the names of compressed files that :func:`decompressed` opens."""

UNPACKED_LIMIT = 80_000_000
"""Most bytes that :func:`read_text` and :func:`read_lines` take out of a compressed file."""

_BLOCK = 1 << 16
_MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
"""Byte order marks of other encodings; UTF-32's first, which begin with one of UTF-16's."""


def write_text(path: Path, text: str) -> None:
    """Replace a file's text (UTF-8, line ends as they are); made and refused as in :func:`write_bytes`."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: object, indent: int | None = 2) -> None:
    """Replace a file by a value as JSON; made and refused as in :func:`write_bytes`."""
    write_text(path, json.dumps(value, indent=indent, ensure_ascii=False) + "\n")


def write_bytes(path: Path, content: bytes, *, writer: str = "") -> None:
    """Replace a file's content; its folder is made where there is none.

    ``writer`` as in :func:`replacing`. Raises UsageError if the folder cannot be made, RunError if writing
    fails; both name the path.
    """
    with replacing(path, writer=writer) as writing:
        writing.write_bytes(content)


@contextlib.contextmanager
def replacing(path: Path, *, writer: str = "") -> Iterator[Path]:
    """A path to write a new file to; when the block ends the file takes the place of ``path``.

    For writers that need a path of their own, such as Parquet's. If the block fails, ``path`` stays
    what it was. ``writer`` names the process where several may write the same file at once: each then
    writes beside the others, and the last one's file stays. Raises as :func:`write_bytes` does.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{path.parent} cannot be used as a folder: {error.strerror}") from None
    writing = path.with_name(f".{path.name}{writer and '.' + writer}.writing")
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


def read_text(path: Path) -> str:
    """The text of a file, its line ends as they are; see :func:`read_lines` for the rest."""
    with _open_unpacked(path) as handle:
        return text_of(handle.read(), path)


def read_lines(path: Path) -> Iterator[str]:
    """The lines of a text file without their ends, one at a time.

    A file whose name ends in one of :data:`COMPRESSIONS` is decompressed. Raises DataError, naming the
    file and where it can the line, for what cannot be read, is damaged, is not UTF-8, or unpacks to
    more than :data:`UNPACKED_LIMIT` bytes.
    """
    with _open_unpacked(path) as handle:
        yield from lines_in(handle, path)


def text_of(content: bytes, name: object) -> str:
    """Bytes as text; raises DataError, naming ``name`` and the line, for what is not UTF-8."""
    return _decode(_without_mark(content, name), name, 1)


def lines_in(handle: IO[bytes], name: object) -> Iterator[str]:
    """The lines in a stream of bytes without their ends; raises as :func:`text_of` does."""
    number = 1
    for block in handle:  # up to a line feed; a carriage return may end lines inside it
        block = _without_mark(block, name) if number == 1 else block
        lines = block.splitlines()  # of bytes: at CR, LF and CR LF alone
        del block  # a line may be large: it is held once as bytes, once as text
        for line in lines:
            yield _decode(line, name, number)
            number += 1


class Bounded(io.RawIOBase):
    """A stream that is read at most ``limit`` bytes far, so that few bytes cannot unpack to a full memory.

    Reading further raises DataError, with ``refusal`` for its message.
    """

    def __init__(self, raw: IO[bytes], limit: int, refusal: str) -> None:
        self._raw, self._left, self._refusal = raw, limit, refusal

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        block = self._raw.read(min(len(buffer), self._left + 1))
        if len(block) > self._left:
            raise DataError(self._refusal)
        self._left -= len(block)
        buffer[: len(block)] = block
        return len(block)


@contextlib.contextmanager
def _open_unpacked(path: Path) -> Iterator[IO[bytes]]:
    """The bytes of a file, decompressed if its name says so; raises DataError where they cannot be read."""
    compression = path.suffix if path.suffix in COMPRESSIONS else ""
    refusal = (
        f"{path} unpacks to more than {UNPACKED_LIMIT:,} bytes: if that is right, decompress it and "
        "name the decompressed file"
    )
    try:
        with path.open("rb") as raw, decompressed(raw, compression) as handle:
            if compression:
                handle = io.BufferedReader(Bounded(handle, UNPACKED_LIMIT, refusal), _BLOCK)
            yield handle
    except damage_errors() as error:
        raise DataError(f"{path} is damaged or cut short ({error}): get it again") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from None


def _without_mark(content: bytes, name: object) -> bytes:
    """Bytes without UTF-8's byte order mark; raises DataError for that of another encoding."""
    for mark, encoding in _MARKS.items():
        if content.startswith(mark):
            raise DataError(
                f"{name} is {encoding}, by its byte order mark: convert it to UTF-8, such as with "
                f"iconv -f {encoding} -t UTF-8"
            )
    return content.removeprefix(codecs.BOM_UTF8)


def _decode(content: bytes, name: object, first_line: int) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        # The characters before the bad byte are whole; one stands in for it, so that it has a line.
        number = first_line - 1 + len((content[: error.start] + b"?").splitlines())
        raise DataError(
            f"{name}, line {number}: byte 0x{content[error.start]:02x} is not UTF-8: convert the file "
            "to UTF-8, such as with iconv -f LATIN1 -t UTF-8 if it is Latin-1"
        ) from None


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
