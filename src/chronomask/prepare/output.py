"""The folder that a preparation writes: whether it may, who does so now, and what is removed from it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from chronomask.data.manifest import MANIFEST, WORK
from chronomask.errors import UsageError, printable
from chronomask.folders import is_of_preparation
from chronomask.locks import LOCK, lock
from chronomask.prepare.rows.assemble import DOCUMENTS_FILE
from chronomask.prepare.words.tagger import Tagger
from chronomask.prepare.work import SPLITS
from chronomask.storage import lock_of, refuse_file, remove_all, write_text

__all__ = ["STATE", "alone", "check_output", "in_use", "remove"]

STATE = "state.json"
"""Name of the file in the work folder that says what is being prepared."""


def check_output(out: Path) -> None:
    """Raise :class:`UsageError` where ``out`` cannot be written, or holds what no preparation wrote."""
    try:
        str(out.resolve()).encode()
    except UnicodeEncodeError:  # the libraries that write there take UTF-8 alone
        raise UsageError(
            f"{printable(out)} has a name that is not UTF-8; choose another --out"
        ) from None
    refuse_file(out, "prepared data")
    if not _may_write(out):
        raise UsageError(f"{out} exists and is not prepared data; choose another --out")


def _may_write(out: Path) -> bool:
    """Whether ``out`` is free, or prepared data, or a preparation that did not finish."""
    if not out.exists() or is_of_preparation(out):
        return True
    work = out / WORK
    # A preparation that was killed at once leaves its lock, and a work folder in which nothing is written.
    begun = list(work.iterdir()) if work.is_dir() else []
    return all(path.name in (LOCK, WORK) for path in out.iterdir()) and all(
        path.name.startswith(f".{STATE}") for path in begun
    )


@contextmanager
def alone(out: Path) -> Iterator[None]:
    """No other preparation writes ``out`` meanwhile."""
    with lock(lock_of(out)) as mine:
        if not mine:
            raise in_use(out)
        try:
            yield
        finally:
            (out / LOCK).unlink(missing_ok=True)


def in_use(out: Path) -> UsageError:
    """The error where another process writes ``out``."""
    return UsageError(f"another process is preparing {out}; wait for it, or choose another --out")


def remove(out: Path) -> None:
    """Remove what a preparation writes, the manifest first; anything else in ``out`` stays.

    A work folder with the file :data:`STATE` is left, so that ``out`` is known for a preparation's also
    where the removal is interrupted.
    """
    state = out / WORK / STATE
    write_text(state, "{}")
    learnt = [tagger.learns for tagger in Tagger.kinds().values() if tagger.learns]
    files = ("config.yaml", "statistics.json", *learnt, DOCUMENTS_FILE)
    written = [out / name for name in (MANIFEST, *files, "tokenizer", *SPLITS)]
    for path in (*written, *(path for path in (out / WORK).iterdir() if path != state)):
        remove_all(path)
