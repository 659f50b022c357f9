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
import errno
import hashlib
import io
import json
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from chronomask.compressed import COMPRESSIONS, Bounded, damage_errors, decompressed
from chronomask.errors import ChronomaskError, DataError, RunError, UsageError
from chronomask.locks import hold

__all__ = [
    "AGAIN",
    "READABLE",
    "UNPACKED_LIMIT",
    "LongLine",
    "as_a_shell_has_it",
    "byte_lines",
    "bytes_sha256",
    "check_text",
    "file_sha256",
    "files_sha256",
    "flush",
    "lines_in",
    "make_folder",
    "names_file",
    "read_lines",
    "read_object",
    "read_text",
    "refuse_dead_end",
    "refuse_file",
    "replacing",
    "replacing_folder",
    "said_by_system",
    "share",
    "text_of",
    "unwritten",
    "way_to_read",
    "way_to_write",
    "write_bytes",
    "write_json",
    "write_text",
]

UNPACKED_LIMIT = 80_000_000
"""Most bytes that :func:`read_text` and :func:`read_lines` take out of a compressed file."""

READABLE = "its owner can make it readable, such as with chmod -R a+rX"
"""What to do where this user may not read something."""
_BLOCK = 1 << 16
_ENDINGS = frozenset(
    (
        ".csv", ".htm", ".html", ".ipynb", ".jpeg", ".jpg", ".json", ".jsonl", ".md", ".parquet", ".pdf",
        ".png", ".svg", ".tsv", ".txt", ".xml",
    )
)  # fmt: skip
"""Of files in formats that people give a name to; no folder is called so."""
_SYSTEM_ERROR = re.compile(r"([^\s:(][^:(]*) \(os error \d+\)")
"""How Rust's libraries write an error of the system into the text of theirs."""
_FULL = {os.strerror(number) for number in (errno.ENOSPC, errno.EDQUOT)}
"""What a system says where there is no room left."""
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


def as_a_shell_has_it(path: str | Path) -> Path:
    """A path with the home folder for its ``~``, unless there is a file of that very name."""
    path = Path(path)
    if os.path.lexists(path):
        return path
    with contextlib.suppress(RuntimeError):  # of a user who is not known
        return path.expanduser()
    return path


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


def names_file(path: Path) -> bool:
    """Whether a path is named as a file of a common format is, and is no folder.

    Nobody who names it expects a folder of that name.
    """
    return path.suffix.lower() in _ENDINGS and not path.is_dir()


def refuse_file(out: Path, what: str) -> None:
    """Raise UsageError where ``out``, which is to be a folder, is none or is named as a file, or where no
    folder can be made.

    ``what``: that which goes there, for the message, such as "a report".
    """
    refuse_dead_end(out)
    if not (names_file(out) or _is_taken(out)):
        return
    named = out.with_suffix("") if names_file(out) else out
    free = named.with_name(f"{named.stem}-folder") if _is_taken(named) else named
    raise UsageError(
        f"--out {out}: {what} goes into a folder; give the name of one, such as {free}"
    )


def make_folder(path: Path) -> None:
    """Make a folder where there is none; raises UsageError where it cannot be one, or be written to."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{path} cannot be used as a folder: {error.strerror}") from None
    if not os.access(path, os.W_OK):
        raise UsageError(f"{path} cannot be written to; choose another folder")


def refuse_dead_end(out: Path) -> None:
    """Raise UsageError where nothing can be made at ``out``: within a file, or at links in a circle."""
    try:
        out.stat()
    except NotADirectoryError:
        within = next(path for path in out.parents if _is_taken(path))
        raise UsageError(
            f"--out {out}: {within} is a file, and nothing can be made in one; give another place, such as "
            f"{within.with_name(out.name)}"
        ) from None
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise UsageError(
                f"--out {out}: its links lead back to one another and to no place; remove them, or give "
                "another name"
            ) from None


def _is_taken(path: Path) -> bool:
    """Whether there is a file, a device or a pipe."""
    return path.exists() and not path.is_dir()


@contextlib.contextmanager
def replacing(path: Path, *, writer: str = "") -> Iterator[Path]:
    """A path to write a new file to; when the block ends the file takes the place of ``path``.

    For writers that need a path of their own, such as Parquet's. If the block fails, ``path`` stays
    what it was. Where several processes write the same file at once, each writes beside the others, and the
    last one's file stays. ``writer`` names the process where the others may be on other machines, whose
    locks are not seen everywhere. Raises as :func:`write_bytes` does.
    """
    make_folder(path.parent)
    writing = path.with_name(f".{path.name}{writer and '.' + writer}.writing")
    held = None
    try:
        if (held := hold(writing)) is None:
            writing = path.with_name(f".{path.name}.{_own()}.writing")
        yield writing
        flush(writing)
        writing.replace(path)
        flush(path.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            writing.unlink(missing_ok=True)
        _tell_unwritten(path, error)
        raise
    finally:
        if held is not None:
            os.close(held)


@contextlib.contextmanager
def replacing_folder(path: Path, *, new: bool = False) -> Iterator[Path]:
    """A new, empty folder to fill; when the block ends it takes the place of ``path``, which it replaces.

    If the block fails, ``path`` stays what it was. A process killed between the removal of the old folder
    and the renaming leaves none, never half of one. Several processes write beside one another as in
    :func:`replacing`. ``new``: nothing is replaced; what has come to ``path`` meanwhile is an error. Raises
    as :func:`write_bytes` does.
    """
    writing = path.with_name(f".{path.name}.writing")
    held = None
    try:
        if writing.is_file():
            writing.unlink()
        if (held := hold(writing, folder=True)) is None:
            writing = path.with_name(f".{path.name}.{_own()}.writing")
            writing.mkdir()
        _empty(writing)
        yield writing
        for file in writing.rglob("*"):
            share(file)
            flush(file)
        _take_place(writing, path, new=new)
        flush(path.parent)
    except BaseException as error:
        shutil.rmtree(writing, ignore_errors=True)
        _tell_unwritten(path, error)
        raise
    finally:
        if held is not None:
            os.close(held)


def _take_place(writing: Path, path: Path, *, new: bool) -> None:
    """Rename a folder; another process may put its own there between the removal and the renaming."""
    for _ in range(_ATTEMPTS):
        if not new:
            shutil.rmtree(path, ignore_errors=True)
        try:
            writing.rename(path)
            return
        except OSError as error:
            if new or error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
    shutil.rmtree(path)  # says what cannot be removed
    writing.rename(path)


def _own() -> str:
    """What no other writer of this machine is called."""
    return f"{os.getpid()}-{threading.get_ident()}"


def _empty(folder: Path) -> None:
    """Remove what a writer that was killed left in a folder."""
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def said_by_system(error: BaseException) -> str | None:
    """What the system said where it could not read or write; None for an error of another kind.

    tokenizers and safetensors raise errors of their own, with the system's words and number in their text.
    """
    if isinstance(error, OSError):
        return os.strerror(error.errno) if error.errno else str(error)
    found = None if isinstance(error, ChronomaskError) else _SYSTEM_ERROR.search(str(error))
    return None if found is None else found[1]


def _tell_unwritten(path: Path, error: BaseException) -> None:
    """Raise RunError if ``error`` is the system's."""
    if (why := said_by_system(error)) is not None:
        raise unwritten(path, why) from error


_ATTEMPTS = 100
"""How often a folder takes the place of one that other processes put there."""
AGAIN = "run the same command again"
"""How an error of what could not be written ends, where nothing else is said of how to go on."""


def unwritten(path: Path, why: str) -> RunError:
    """The error of what could not be written; ``why``: as :func:`said_by_system` gives it."""
    way_out = "make room or choose another folder" if why in _FULL else "choose another folder"
    return RunError(f"{path} cannot be written: {why}; {way_out}, then {AGAIN}")


def flush(path: Path) -> None:
    """Make a file's bytes, or a folder's entries, outlive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def share(path: Path) -> None:
    """Let those read and write a file who may do so in its folder; safetensors makes it for its owner alone.

    Nothing is done where the system knows no such rights.
    """
    if path.is_file():
        with contextlib.suppress(OSError):
            path.chmod(path.stat().st_mode | path.parent.stat().st_mode & 0o666)


def read_object(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file, None if there is no such file; raises DataError for anything else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(value, dict):
        raise DataError(f"{path} must hold a JSON object, not {type(value).__name__}")
    return value


def way_to_read(error: BaseException | None, otherwise: str) -> str:
    """What to do about a file that cannot be read: ``otherwise``, unless it is not at fault, because this
    user may not read it or this process has too many files open.
    """
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
        return "let a process open more files, such as with  ulimit -n 65536"
    return READABLE if isinstance(error, PermissionError) else otherwise


def way_to_write(why: str) -> str:
    """What to do where files cannot be written; ``why``: as :func:`said_by_system` gives it."""
    return "Make room" if why in _FULL else "See to it that files can be written there"


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
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(
            f"{where}: {text[error.start : error.end]!r} is half of a character (a lone surrogate): "
            "write the file anew from its source"
        ) from None
    return text


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
