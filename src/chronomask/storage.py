"""Files: replaced whole or not at all, and known by their hash.

A file is written under another name, flushed to the disk, renamed, and its folder flushed too. So a
reader never meets half of one, whatever moment a process is killed or the power fails.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from chronomask.errors import ChronomaskError, DataError, RunError, UsageError
from chronomask.locks import LOCK, hold

__all__ = [
    "AGAIN",
    "READABLE",
    "as_a_shell_has_it",
    "bytes_sha256",
    "file_sha256",
    "files_sha256",
    "flush",
    "is_file_name",
    "lock_of",
    "make_folder",
    "names_file",
    "read_object",
    "refuse_dead_end",
    "refuse_file",
    "remove_all",
    "replacing",
    "replacing_folder",
    "said_by_system",
    "share",
    "stays_below",
    "unwritten",
    "way_to_read",
    "way_to_write",
    "write_bytes",
    "write_json",
    "write_text",
]

READABLE = "its owner can make it readable, such as with chmod -R a+rX"
"""What to do where this user may not read something."""
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
    raise UsageError(f"{out}: {what} goes into a folder; give the name of one, such as {free}")


def stays_below(name: object) -> bool:
    """Whether a name that a file gives is that of a file below a folder, and can become a path there.

    It is text, relative, of plain names with ``/`` between them: none of them is empty, ``.`` or ``..``, or
    has a character that is not printed. One without ``/`` lies in the folder itself.

    >>> [stays_below(name) for name in ("train/ids.npy", "../ids.npy", "/ids.npy", "")]
    [True, False, False, False]
    """
    if not isinstance(name, str) or "\\" in name or not name.isprintable():
        return False
    return all(part not in ("", ".", "..") for part in name.split("/"))


def is_file_name(name: object) -> bool:
    """Whether a name that a file gives is that of a file in a folder itself; see :func:`stays_below`."""
    return stays_below(name) and "/" not in str(name)


def remove_all(path: Path, *, ignore_errors: bool = False) -> None:
    """Remove a file, or a folder with what is in it; of a link the link alone, whatever it leads to.

    Nothing is done where there is nothing. Raises OSError where it cannot be removed, unless this is to be
    ignored: then what can be removed is.
    """
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=ignore_errors)
        return
    with contextlib.suppress(*[OSError] if ignore_errors else []):
        path.unlink(missing_ok=True)


def make_folder(path: Path) -> None:
    """Make a folder where there is none; raises UsageError where it cannot be one, or be written to."""
    with _used_as_folder(path):
        path.mkdir(parents=True, exist_ok=True)
    if not os.access(path, os.W_OK):
        raise UsageError(f"{path} cannot be written to; choose another folder")


def lock_of(folder: Path) -> Path:
    """The file whose lock says who writes a folder, which is made; raises as :func:`make_folder` does."""
    make_folder(folder)
    with _used_as_folder(folder):
        (folder / LOCK).touch()
    return folder / LOCK


@contextlib.contextmanager
def _used_as_folder(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UsageError(f"{path} cannot be used as a folder: {error.strerror}") from None


def refuse_dead_end(out: Path) -> None:
    """Raise UsageError where nothing can be made at ``out``: within a file, or at links in a circle."""
    try:
        out.stat()
    except NotADirectoryError:
        within = next(path for path in out.parents if _is_taken(path))
        raise UsageError(
            f"{out}: {within} is a file, and nothing can be made in one; give another place, such as "
            f"{within.with_name(out.name)}"
        ) from None
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise UsageError(
                f"{out}: its links lead back to one another and to no place; remove them, or give "
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
        if writing.is_file() or writing.is_symlink():
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
        remove_all(writing, ignore_errors=True)
        _tell_unwritten(path, error)
        raise
    finally:
        if held is not None:
            os.close(held)


def _take_place(writing: Path, path: Path, *, new: bool) -> None:
    """Rename a folder; another process may put its own there between the removal and the renaming."""
    for _ in range(_ATTEMPTS):
        if not new:
            _remove_folder(path)
        try:
            writing.rename(path)
            return
        except OSError as error:
            if new or error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
    shutil.rmtree(path)  # says what cannot be removed
    writing.rename(path)


def _remove_folder(path: Path) -> None:
    """Remove the folder whose place another takes, or the link to one; a file stays, and is an error then."""
    if path.is_symlink() or path.is_dir():
        remove_all(path, ignore_errors=True)


def _own() -> str:
    """What no other writer of this machine is called."""
    return f"{os.getpid()}-{threading.get_ident()}"


def _empty(folder: Path) -> None:
    """Remove what a writer that was killed left in a folder."""
    for path in folder.iterdir():
        remove_all(path)


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
        value = json.loads(path.read_text(encoding="utf-8"), parse_int=_whole)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(value, dict):
        raise DataError(f"{path} must hold a JSON object, not {type(value).__name__}")
    return value


def _whole(digits: str) -> int:
    """A whole number of a JSON file; raises ValueError for one that no float64 holds."""
    if len(digits) > 300:
        raise ValueError(f"it holds a number of {len(digits):,} digits")
    return int(digits)


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
