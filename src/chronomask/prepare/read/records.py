"""Records: what of them becomes a document, with its id and metadata, and what is left out and counted."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, time
from typing import Any, Literal

from chronomask.errors import DataError, nearest, printable, shown
from chronomask.prepare.read.left_out import Skipped
from chronomask.text_files import can_be_encoded
from chronomask.types import Document, TaggedWords

__all__ = [
    "NOT_UTF8",
    "Fields",
    "TxtDocuments",
    "decode",
    "document_of",
    "from_record",
    "how_to_read",
    "keep_metadata",
]

TxtDocuments = Literal["auto", "blank_lines", "lines"]
"""What a document of a .txt file is: the text between blank lines, or every line. ``auto``: between
blank lines, but every line of a file that begins with more than ``max_document_bytes`` without one."""
Metadata = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Fields:
    """Fields of a record that are read: one with its text, or one with words and one with tags."""

    text: str
    words_and_tags: tuple[str, str] | None = None
    max_bytes: int = 16_000_000
    """A document of more bytes is skipped."""
    txt_documents: TxtDocuments = "auto"
    """What a document of a .txt file is."""
    id_key: str | None = None
    """A field with the document's id; without it, or a value, its place in the file is its id."""
    metadata_keys: tuple[str, ...] = ()
    """Fields that are kept with the document."""

    @property
    def too_long(self) -> str:
        """The reason given for it."""
        return f"more than {self.max_bytes:,} bytes (max_document_bytes)"

    @property
    def read(self) -> tuple[str, ...]:
        """The names of the fields."""
        own = self.words_and_tags or (self.text,)
        others = (*([self.id_key] if self.id_key else []), *self.metadata_keys)
        return tuple(dict.fromkeys((*own, *others)))

    @property
    def text_columns(self) -> tuple[str, ...]:
        """Those among them that make the text."""
        return self.words_and_tags or (self.text,)

    def require(
        self, names: Iterable[str], source: object, wanted: Sequence[str] | None = None
    ) -> None:
        """Raises :class:`DataError` for the first field that is not among ``names``, or there twice.

        ``wanted``: the fields that must be there; None: all that are read.
        """
        names = list(names)
        for name in self.read if wanted is None else wanted:
            if names.count(name) > 1:
                raise DataError(
                    f"{source}: {names.count(name)} columns are called {shown(name)}; give each a name of "
                    "its own"
                )
            if name not in names:
                raise DataError(
                    f"{source} has no field '{printable(name)}'; "
                    f"{nearest(name, [printable(known)[:60] for known in names[:50]])}; "
                    f"set it with --set {self.key_of(name)}=NAME, which holds for every file: prepare files "
                    "with other names apart, or rename the field"
                )

    def key_of(self, name: str) -> str:
        """The config key that names a field."""
        if self.words_and_tags and name in self.words_and_tags:
            return f"tagger.{'words' if name == self.words_and_tags[0] else 'tags'}_key"
        if not self.words_and_tags and name == self.text:
            return "text_key"
        return "id_key" if name == self.id_key else "metadata_keys"


NOT_UTF8 = "invalid UTF-8"
"""The reason given for text in another encoding."""
_NUL = "NUL character"
"""The reason given for such text too, where every letter of it is two bytes and one of them often 0."""


def how_to_read(skipped: Skipped) -> str:
    """How text in another encoding can be read after all, behind what was left out; "" if there is none."""
    if NOT_UTF8 in skipped.reasons:
        return (
            "; convert text in another encoding first, such as with iconv -f WINDOWS-1252 -t UTF-8"
        )
    if _NUL in skipped.reasons:
        return (
            "; text in UTF-16 has such: convert it first, such as with iconv -f UTF-16LE -t UTF-8"
        )
    return ""


def from_record(
    record: Mapping[str, Any], fields: Fields, name: str, skipped: Skipped, size: int = 0
) -> Document | None:
    """The document in a record of ``size`` bytes, if it can be used; ``name`` says where the record is."""
    try:
        identifier, metadata = _id_and_metadata(record, fields, name)
    except RecursionError:
        skipped.add("JSON that is nested too deeply", name, size)
        return None
    if fields.words_and_tags:
        words, tags = (record.get(key) for key in fields.words_and_tags)
        reason = _why_not_words(words, tags)
        if not reason:
            assert words is not None
            assert tags is not None
            text, where = _join(words, tags)
            return document_of(text, name, identifier, metadata, skipped, where)
    else:
        text = record.get(fields.text)
        if isinstance(text, str):
            return document_of(text, name, identifier, metadata, skipped)
        reason = f"no text in field '{printable(fields.text)}'"
    skipped.add(reason, name, size)
    return None


def _why_not_words(words: Any, tags: Any) -> str:
    """Why two values are no words with their tags; "" where they are."""
    if not (isinstance(words, list) and isinstance(tags, list)):
        return "no list of words and of tags"
    if len(words) != len(tags):
        return "not as many tags as words"
    if not all(isinstance(word, str) for word in words):
        return "words that are not text"
    if not all(tag is None or isinstance(tag, str) for tag in tags):
        return "tags that are not text"
    if not all(can_be_encoded(tag) for tag in set(tags) if tag):
        return "lone surrogate in a tag"
    return ""


def _join(words: Sequence[str], tags: Sequence[str | None]) -> tuple[str, TaggedWords]:
    """Words joined by spaces, and where they are; words of white space alone are left out."""
    kept = [(" ".join(w.split()), t or "") for w, t in zip(words, tags, strict=True) if w.strip()]
    starts, ends, at = [], [], 0
    for word, _ in kept:
        starts.append(at)
        ends.append(at + len(word))
        at = ends[-1] + 1
    where = TaggedWords(tuple(starts), tuple(ends), tuple(tag for _, tag in kept))
    return " ".join(word for word, _ in kept), where


def decode(
    data: bytes | bytearray,
    name: str,
    skipped: Skipped,
    identifier: str | None = None,
    metadata: Metadata | None = None,
) -> Document | None:
    """A document from its bytes, named ``name`` if it cannot be used, ``identifier`` otherwise."""
    try:
        text = data.decode("utf-8-sig").strip()
    except UnicodeDecodeError:
        skipped.add(_NUL if b"\0" in data else NOT_UTF8, name, len(data))
        return None
    return document_of(text, name, identifier or name, metadata or {}, skipped)


def _id_and_metadata(record: Mapping[str, Any], fields: Fields, name: str) -> tuple[str, Metadata]:
    """The document's id, which is its place ``name`` where it has none, and its metadata."""
    given = record.get(fields.id_key) if fields.id_key else None
    return name if given in (None, "") else _as_text(given), keep_metadata(record, fields)


def keep_metadata(record: Mapping[str, Any], fields: Fields) -> Metadata:
    """The fields to keep that the record has."""
    found = {key: record.get(key) for key in fields.metadata_keys}
    return {key: _as_text(value) for key, value in found.items() if value is not None}


def _as_text(value: Any) -> str:
    """A field's value as text: lists and groups as JSON, lone surrogates as question marks."""
    if not isinstance(value, str):
        plain = isinstance(value, bool | int | float | list | tuple | dict)
        value = (
            json.dumps(value, default=_as_text, ensure_ascii=False)
            if plain
            else _scalar_text(value)
        )
    return value.encode("utf-8", "replace").decode()


def _scalar_text(value: Any) -> str:
    """A single value that JSON has no form for, such as a date or bytes, without quotation marks."""
    if isinstance(value, date | time):  # a moment is a date too
        return value.isoformat()
    return bytes(value).decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def document_of(
    text: str,
    name: str,
    identifier: str,
    metadata: Metadata,
    skipped: Skipped,
    words: TaggedWords | None = None,
) -> Document | None:
    """A document of a text, unless it holds what no tokenizer takes."""
    if "\0" in text:
        skipped.add(_NUL, name, _num_bytes(text))
    elif not can_be_encoded(text):
        skipped.add("lone surrogate", name, _num_bytes(text))
    else:
        # Where words are known by their characters the text has no line ends to change.
        text = text.replace("\r\n", "\n") if words is None else text
        return Document(identifier, text, dict(metadata), words)
    return None


def _num_bytes(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))
