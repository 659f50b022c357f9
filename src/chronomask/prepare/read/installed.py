"""English prose of the installed Python packages: READMEs from their metadata, and docstrings.

Files are read, never imported. Packages take turns, a file each, in a fixed order, so the text is the
same for the same versions and no package fills the budget alone. May enter: finding the files.
What counts as prose is in :mod:`chronomask.prepare.read.prose`.
"""

from __future__ import annotations

import hashlib
import re
from collections import deque
from collections.abc import Iterator
from email import message_from_string
from importlib.metadata import Distribution, distributions
from inspect import cleandoc
from pathlib import Path

from chronomask.errors import DataError
from chronomask.prepare.read.prose import prose_paragraphs
from chronomask.types import Document

__all__ = ["installed_versions", "read_installed"]

_SKIPPED_FOLDERS = {"tests", "test", "testing", "__pycache__", "_vendor", "vendored", "extern"}
_MAX_FILE_BYTES = 1_000_000
_MIN_CHARACTERS = 200
"""Shorter documents are not worth a place: a file with one sentence of prose."""
_MIN_DOCSTRING = 50
_TRIPLE_QUOTED = re.compile(r'"""(.*?)"""', re.DOTALL)
_BEFORE_DOCSTRING = re.compile(r":[ \t]*(?:#[^\n]*)?\n\s*[rR]?\Z")
_BEFORE_MODULE_DOCSTRING = re.compile(r"\A(?:[ \t]*(?:#[^\n]*)?\n)*[rR]?\Z")


def installed_versions() -> list[str]:
    """``name version`` of every installed package, sorted."""
    return [f"{name} {dist.version}" for name, dist in _packages()]


def read_installed(max_bytes: int) -> Iterator[Document]:
    """One document per README and per module, until ``max_bytes`` of UTF-8; no paragraph twice.

    Raises :class:`DataError` where no package has prose.
    """
    queue = deque((name, _texts(dist)) for name, dist in _packages())
    seen: set[bytes] = set()
    held = 0
    while queue and held < max_bytes:
        name, texts = queue.popleft()
        for origin, docstrings in texts:
            paragraphs = []
            for docstring in docstrings:
                for paragraph in prose_paragraphs(docstring):
                    key = _letters(paragraph)
                    if key not in seen:
                        seen.add(key)
                        paragraphs.append(paragraph)
            text = "\n".join(paragraphs)
            if len(text) >= _MIN_CHARACTERS:
                text = _bounded(text, max_bytes - held)
                held += len(text.encode())
                yield Document(f"{name}:{origin}", text)
                queue.append((name, texts))
                break
    if not held:
        raise DataError(
            "the installed packages hold no English prose; give a text file as the source instead"
        )


def _letters(paragraph: str) -> bytes:
    """Equal for paragraphs that differ only in case and in what is no letter."""
    letters = "".join(filter(str.isalpha, paragraph.lower()))
    return hashlib.blake2b(letters.encode(), digest_size=16).digest()


def _bounded(text: str, max_bytes: int) -> str:
    """``text``, or its whole paragraphs that fit (at least one)."""
    if len(text.encode()) <= max_bytes:
        return text
    kept: list[str] = []
    for paragraph in text.split("\n"):
        max_bytes -= len(paragraph.encode()) + 1
        if kept and max_bytes < 0:
            break
        kept.append(paragraph)
    return "\n".join(kept)


def _packages() -> list[tuple[str, Distribution]]:
    """Installed packages by name, each once, in sorted order."""
    found: dict[str, Distribution] = {}
    for dist in distributions():
        name = dist.metadata["Name"]
        if name:
            found.setdefault(name.lower().replace("_", "-"), dist)
    return sorted(found.items())


def _texts(dist: Distribution) -> Iterator[tuple[str, list[str]]]:
    """(origin, docstrings) of a package: its README, then its modules by path."""
    metadata = dist.read_text("METADATA")
    if metadata:
        readme = message_from_string(metadata).get_payload()
        if isinstance(readme, str):
            yield "README", [readme]
    files = sorted(str(file) for file in dist.files or () if file.suffix == ".py")
    for name in files:
        if _SKIPPED_FOLDERS.isdisjoint(Path(name).parts[:-1]) and ".." not in name:
            docstrings = _docstrings(Path(str(dist.locate_file(name))))
            if docstrings:
                yield name, docstrings


def _docstrings(file: Path) -> list[str]:
    """The docstrings of a module in order; empty for a file that cannot be read as UTF-8.

    Found by their shape rather than by parsing, which would take five times as long: a string
    between triple quotes that is the first thing in the file or after a line that ends with a colon.
    """
    try:
        if file.stat().st_size > _MAX_FILE_BYTES:
            return []
        source = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return []
    texts = []
    for found in _TRIPLE_QUOTED.finditer(source):  # all of them, so that quotes pair up
        start = found.start()
        before = source[max(0, start - 200) : start]
        if len(found[1]) >= _MIN_DOCSTRING and (
            _BEFORE_DOCSTRING.search(before)
            or (not texts and _BEFORE_MODULE_DOCSTRING.match(source, 0, start))
        ):
            texts.append(cleandoc(found[1]))
    return texts
