"""Text files: opened whatever packs them, and read by one rule.

The rule: UTF-8, with or without a byte order mark. A line ends with LF, CR LF or CR, and with nothing
else: U+2028 and a form feed are characters of their line. Bytes that are not UTF-8 are refused by their
line, never replaced.
"""

from __future__ import annotations

import codecs
import contextlib
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from chronomask.compressed import COMPRESSIONS, Bounded, damage_errors, decompressed
from chronomask.errors import DataError

__all__ = [
    "UNPACKED_LIMIT",
    "LongLine",
    "byte_lines",
    "can_be_encoded",
    "check_text",
    "lines_in",
    "read_lines",
    "read_text",
    "text_of",
]

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
_OTHER_KINDS = {
    b"\x1f\x8b": "compressed with gzip: give it a name that ends in .gz",
    b"\xfd7zX": "compressed with xz: give it a name that ends in .xz",
    b"(\xb5/\xfd": "compressed with zstd: give it a name that ends in .zst",
    b"PK\x03\x04": "a ZIP archive: unpack it and name the files in it",
    b"%PDF": "a PDF document: take its text out first, such as with pdftotext",
}
"""What files of other kinds begin with, what they are, and what to do."""


def read_text(path: Path) -> str:
    """The text of a file, its line ends as they are; see :func:`read_lines` for the rest."""
    with _open_unpacked(path) as handle:
        return text_of(handle.read(), path)


def read_lines(path: Path) -> Iterator[str]:
    """The lines of a text file without their ends, one at a time.

    A file is decompressed if its name ends in one of :data:`chronomask.compressed.COMPRESSIONS`. Raises
    DataError, naming the file and where it can the line, for what cannot be read, is damaged, is not
    UTF-8, or unpacks to more than :data:`UNPACKED_LIMIT` bytes.
    """
    with _open_unpacked(path) as handle:
        yield from lines_in(handle, path)


def text_of(content: bytes, name: object, line: int = 1) -> str:
    """Bytes as text; raises DataError, naming ``name`` and the line, for what is not UTF-8.

    ``line``: the number of the first of them.
    """
    return _decode(_without_mark(content, name), name, line)


def check_text(text: str, where: str) -> str:
    """The text; raises DataError for a lone surrogate, which JSON can spell and no tokenizer can read."""
    if not can_be_encoded(text):
        half = next(character for character in text if not can_be_encoded(character))
        raise DataError(
            f"{where}: {half!r} is half of a character (a lone surrogate): write the file anew from its "
            "source"
        )
    return text


def can_be_encoded(text: str) -> bool:
    """False for the lone surrogates that JSON escapes can spell, and that stand for invalid bytes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def lines_in(handle: IO[bytes], name: object, limit: int | None = None) -> Iterator[str]:
    """The lines in a stream of bytes without their ends.

    Raises as :func:`text_of` does, and DataError for a line of more than ``limit`` bytes.
    """
    for number, line in enumerate(byte_lines(handle, name, limit), start=1):
        if isinstance(line, LongLine):
            raise DataError(
                f"{name}, line {number}: {line.size:,} bytes; at most {limit:,} are read"
            )
        yield _decode(line, name, number)


@dataclass(frozen=True, slots=True)
class LongLine:
    """Stands for a line that is longer than the limit: its first bytes, and how many there were."""

    start: bytes
    size: int


def byte_lines(
    handle: IO[bytes], name: object, limit: int | None = None
) -> Iterator[bytes | LongLine]:
    """The lines in a stream of bytes, without their ends and the file's byte order mark, undecoded.

    A line of more than ``limit`` bytes is never held: a :class:`LongLine` stands for it. Raises
    DataError, naming ``name``, for a byte order mark of UTF-16 or UTF-32.
    """
    held, size = bytearray(), 0  # of the line that has not ended yet, and how long it is by now
    after_return = False
    for block in _blocks(handle, name):
        if after_return and block.startswith(b"\n"):
            block = block[1:]  # the second half of a CR LF
        after_return = block.endswith(b"\r")
        lines = block.splitlines()  # of bytes: at CR, LF and CR LF alone
        rest = lines.pop() if lines and not block.endswith((b"\n", b"\r")) else b""
        for line in lines:
            if size:
                size += len(line)
                held += line if limit is None or size <= limit else b""
                line, whole = bytes(held), size
                held, size = bytearray(), 0
            else:
                whole = len(line)
            yield line if limit is None or whole <= limit else LongLine(line[:_START], whole)
        size += len(rest)
        if limit is None or size <= limit:
            held += rest
        else:
            held = (held + rest)[:_START]
    if size:
        whole = limit is None or size <= limit
        yield bytes(held) if whole else LongLine(bytes(held[:_START]), size)


_START = 64
"""Bytes that are kept of a line that is too long."""


def _blocks(handle: IO[bytes], name: object) -> Iterator[bytes]:
    """The bytes of a stream, as they come, without a byte order mark; see :func:`_without_mark`."""
    yield _without_mark(handle.read(4), name)
    # What can be read before a damaged place comes out before the damage is raised.
    read: Callable[[int], bytes] = getattr(handle, "read1", handle.read)
    while block := read(_BLOCK):
        yield block


@contextlib.contextmanager
def _open_unpacked(path: Path) -> Iterator[IO[bytes]]:
    """The bytes of a file, decompressed if its name says so; raises DataError where they cannot be read."""
    compression = path.suffix if path.suffix in COMPRESSIONS else ""
    refusal = (
        f"{path} unpacks to more than {UNPACKED_LIMIT:,} bytes: if that is right, decompress it and "
        "name the decompressed file"
    )
    try:
        with path.open("rb") as raw, decompressed(raw, compression, path) as handle:
            if compression:
                handle = io.BufferedReader(Bounded(handle, UNPACKED_LIMIT, refusal), _BLOCK)
            yield handle
    except damage_errors() as error:
        raise DataError(
            f"{path} is damaged or cut short ({error}): download or copy it again"
        ) from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from None


def _without_mark(content: bytes, name: object) -> bytes:
    """Bytes without UTF-8's byte order mark; raises DataError for that of another encoding, and for the
    beginning of a file that is no text.
    """
    for mark, encoding in _MARKS.items():
        if content.startswith(mark):
            raise DataError(
                f"{name} is {encoding}, by its byte order mark: convert it to UTF-8, such as with "
                f"iconv -f {encoding} -t UTF-8"
            )
    for start, found in _OTHER_KINDS.items():
        if content.startswith(start):
            raise DataError(f"{name} is no text, but {found}")
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
