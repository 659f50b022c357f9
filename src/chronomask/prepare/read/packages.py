"""English prose of the installed Python packages: READMEs from their metadata, and docstrings.

Files are read, never imported. Packages take turns, a file each, in a fixed order, so the text is the
same for the same versions and no package fills the budget alone. What of a docstring or README is prose,
whole sentences without the markup around them, is found by patterns.
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
from chronomask.types import Document

__all__ = ["installed_versions", "prose_paragraphs", "read_installed"]

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
                text = _cut(text, max_bytes - held)
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


def _cut(text: str, max_bytes: int) -> str:
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


_FUNCTION_WORDS = frozenset((
    "a", "an", "and", "are", "as", "at", "be", "but", "by", "can", "for", "from", "has", "have", "if", "in",
    "into", "is", "it", "its", "may", "not", "of", "on", "one", "or", "so", "that", "the", "their", "them",
    "then", "there", "these", "they", "this", "to", "was", "were", "when", "which", "will", "with", "you",
))  # fmt: skip
_SECTION = re.compile(
    r"^(args?|arguments|attributes|deprecated|examples?|fields|inputs?|keyword arguments|keywords|"
    r"methods|note to self|notes?|other parameters|outputs?|parameters?|params|raises|"
    r"references|returns?|see also|shapes?|todo|usage|versionadded|warns?|warnings?|yields?)\s*:?\s*$",
    re.IGNORECASE,
)
_PROSE_SECTION = re.compile(r"^(notes?|warnings?|deprecated)\s*:?\s*$", re.IGNORECASE)
_UNDERLINE = re.compile(r"^([-=~^\"'`*+#.])\1{2,}\s*$")
_NO_PROSE_LINE = re.compile(r"^\s*(>>>|\.\.\.|\.\. |:[\w ]+:|@\w|\||\+[-=]|#|!\[|<|\$ |%)")
_FENCE = re.compile(r"^\s*(```|~~~)")
_ITEM = re.compile(r"^\s*([-*+•]|\(?\d+[.)]|\(?[a-zA-Z][.)])\s+")

_INLINE = (
    (re.compile(r"\s*\[[\d, ]+\]_?"), ""),  # citations
    (re.compile(r"!\[[^\]]*\]\([^)]*\)"), ""),  # images
    (re.compile(r"\[([^\]]+)\]\([^)]*\)"), r"\1"),  # Markdown links
    (re.compile(r"\[`?([^\]`]+)`?\](?:\[[^\]]*\])?"), r"\1"),
    (re.compile(r":[\w:+.-]+:`~?(?:[\w.]*\.)?([^`<]+?)(?:\s*<[^`>]*>)?`"), r"\1"),  # roles
    (re.compile(r"`([^`<]+?)\s*<[^`>]*>`_{1,2}"), r"\1"),  # reStructuredText links
    (re.compile(r"`{1,2}([^`]+)`{1,2}_{0,2}"), r"\1"),
    (re.compile(r"\*{1,3}([^\s*](?:[^*]*[^\s*])?)\*{1,3}"), r"\1"),
    (re.compile(r"(?<!\w)_([^\s_](?:[^_]*[^\s_])?)_(?!\w)"), r"\1"),
    (re.compile(r"</?\w[^>]*>"), ""),  # HTML
    (re.compile(r"\s+"), " "),
)
_NO_PROSE = re.compile(
    r"https?:|www\.|::|->|=>|==|\w\(\)|\w\(\w|[{}<>|\\^~@#$=`*_]|\w/\w+/|\.(py|md|rst|txt|json|toml)\b"
)
_MIN_PARAGRAPH, _MAX_PARAGRAPH = 50, 5000
_ENDS = frozenset(".!?\"')”’`*_]>")
"""Last characters of a sentence, before its markup is undone."""
_SENTENCE = re.compile(r"""^["'(“]?[A-Z].*[.!?]["')”]?$""")
_BOILERPLATE = re.compile(
    r"copyright|all rights reserved|without warrant|licen[cs]ed? under|merchantability|sponsor|"
    r"pip install|pull request|automatically generated",
    re.IGNORECASE,
)


def prose_paragraphs(text: str) -> Iterator[str]:
    """The paragraphs of ``text`` that read as English sentences, each on one line, unmarked."""
    for block in _blocks(text):
        if len(block) < _MIN_PARAGRAPH or block[-1] not in _ENDS:
            continue
        for pattern, replacement in _INLINE:
            block = pattern.sub(replacement, block)
        block = block.strip()
        if _reads_as_prose(block):
            yield block


def _blocks(text: str) -> Iterator[str]:
    """Runs of flush-left lines outside code, lists of parameters, tables and headings."""
    lines = text.expandtabs(4).split("\n")
    block: list[str] = []
    in_fence = False
    hidden_below: int | None = None  # lines indented deeper than this belong to a dropped section
    for number, line in enumerate([*lines, ""]):
        if _FENCE.match(line):
            in_fence = not in_fence
            line = ""
        if in_fence:
            continue
        stripped = line.strip()
        indent = len(line) - len(line.lstrip())
        following = lines[number + 1].strip() if number + 1 < len(lines) else ""
        if stripped and (_SECTION.match(stripped) or _UNDERLINE.match(following)):
            yield from _join(block)
            block = []
            keeps = _PROSE_SECTION.match(stripped) or not _SECTION.match(stripped)
            # Under a numpy heading the entries are flush left; they end at the next heading.
            hidden_below = None if keeps else indent - bool(_UNDERLINE.match(following))
            continue
        if stripped and hidden_below is not None:
            if indent > hidden_below:
                continue
            hidden_below = None
        if not stripped or _UNDERLINE.match(stripped) or indent or _breaks(line):
            yield from _join(block)
            block = []
        else:
            block.append(stripped)
    yield from _join(block)


def _breaks(line: str) -> bool:
    """Whether a line is code, a table, markup or the item of a list: no part of a paragraph."""
    return bool(_NO_PROSE_LINE.match(line) or _ITEM.match(line))


def _join(block: list[str]) -> Iterator[str]:
    if block:
        yield " ".join(block)


def _reads_as_prose(text: str) -> bool:
    """Whether a paragraph is sentences: ordinary words, enough function words, no code or licence."""
    if not _MIN_PARAGRAPH <= len(text) <= _MAX_PARAGRAPH or not _SENTENCE.match(text):
        return False
    if _NO_PROSE.search(text) or _BOILERPLATE.search(text):
        return False
    words = text.split()
    plain = [word.strip("\"'“”‘’(),.;:!?-–—") for word in words]
    alphabetic = sum(
        word.replace("-", "").replace("'", "").replace("’", "").isalpha() for word in plain
    )
    function = sum(word.lower() in _FUNCTION_WORDS for word in plain)
    ascii_letters = sum(c.isascii() for c in text)
    return (
        len(words) >= 8
        and alphabetic >= 0.88 * len(words)
        and function >= 0.2 * len(words)
        and ascii_letters >= 0.97 * len(text)
    )
