"""Readers: the documents in a file, one function per format.

A record that cannot be used is skipped, counted and named; a file that is not of its format, or has no
such field at all, is refused. May enter: formats.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from chronomask.conllu import as_text, by_document, sentences
from chronomask.errors import DataError, nearest
from chronomask.prepare.files import Skipped, SourceFile, decompression_errors, lines_of, opened
from chronomask.types import Document, TaggedWords

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["READERS", "TAGGED_FORMATS", "Fields"]

_LONGEST_FIELD = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Fields:
    """Fields of a record that are read: one with its text, or one with words and one with tags."""

    text: str
    words_and_tags: tuple[str, str] | None = None

    @property
    def read(self) -> tuple[str, ...]:
        """The names of the fields that a record must have."""
        return self.words_and_tags or (self.text,)

    def require(self, names: Iterable[str], source: SourceFile) -> None:
        """Raises :class:`DataError` for the first field that is not among ``names``."""
        names = list(names)
        for name in self.read:
            if name not in names:
                key = "text_key"
                if self.words_and_tags:
                    key = f"tagger.{'words' if name == self.read[0] else 'tags'}_key"
                raise DataError(
                    f"{source.path} has no field '{name}'; {nearest(name, names)}; "
                    f"set it with --set {key}=NAME"
                )


def read_text(source: SourceFile, fields: Fields, skipped: Skipped) -> Iterator[Document]:
    """Documents are blocks of lines parted by blank lines."""
    number = 0
    lines: list[bytes] = []
    for line in lines_of(source, skipped):
        if line.strip():
            lines.append(line)
        elif lines:
            yield from _decoded(b"".join(lines), f"{source.path}:{number}", skipped)
            number += 1
            lines = []
    if lines:
        yield from _decoded(b"".join(lines), f"{source.path}:{number}", skipped)


def read_jsonl(source: SourceFile, fields: Fields, skipped: Skipped) -> Iterator[Document]:
    """One JSON object a line."""
    first = True
    for number, line in enumerate(lines_of(source, skipped)):
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
        if not isinstance(record, dict):
            record = {}
        if first:
            fields.require(record, source)
        first = False
        yield from _from_record(record, fields, name, skipped)


def read_table(source: SourceFile, fields: Fields, skipped: Skipped) -> Iterator[Document]:
    """One record a document, the first line names the columns; fields may be quoted with ``"``."""
    csv.field_size_limit(_LONGEST_FIELD)  # the library's own limit is 131,072 characters
    decoded = (line.decode("utf-8", "surrogateescape") for line in lines_of(source, skipped))
    records = csv.reader(decoded, delimiter="," if source.format == ".csv" else "\t")
    names = [name.removeprefix("\ufeff").strip() for name in next(records, [])]
    fields.require(names, source)
    number = -1
    while True:
        try:
            values = next(records)
        except StopIteration:
            return
        except csv.Error as error:
            number += 1
            skipped.add(f"not a record: {error}", f"{source.path}:{number}")
            continue
        if not values:
            continue
        number += 1
        name = f"{source.path}:{number}"
        if len(values) != len(names):
            skipped.add("another number of fields than the first line", name)
        elif not _encodable(text := values[names.index(fields.text)]):
            skipped.add("invalid UTF-8", name)
        else:
            yield from _checked(text, name, skipped)


def read_parquet(source: SourceFile, fields: Fields, skipped: Skipped) -> Iterator[Document]:
    """One row a document; only the columns needed are read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with opened(source) as handle:
            file = pq.ParquetFile(handle)
            fields.require(file.schema_arrow.names, source)
            for name in fields.read:
                _check_column(file.schema_arrow.field(name), bool(fields.words_and_tags), source)
            number = 0
            for batch in file.iter_batches(batch_size=1024, columns=list(fields.read)):
                columns = [batch.column(name) for name in fields.read]
                for values in zip(*columns, strict=True):
                    name = f"{source.path}:{number}"
                    number += 1
                    try:
                        plain = [value.as_py() for value in values]
                    except UnicodeDecodeError:
                        skipped.add("invalid UTF-8", name)
                        continue
                    record = dict(zip(fields.read, plain, strict=True))
                    yield from _from_record(record, fields, name, skipped)
    except (pa.ArrowException, OSError, *decompression_errors()) as error:
        raise DataError(f"{source.path} is not a readable Parquet file: {error}") from None


def _check_column(column: pa.Field, lists: bool, source: SourceFile) -> None:
    import pyarrow as pa

    kind = column.type
    if lists:
        kind = kind.value_type if pa.types.is_list(kind) or pa.types.is_large_list(kind) else None
    if kind is None or not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        wanted = "lists of text" if lists else "text"
        raise DataError(f"{source.path}: column '{column.name}' is {column.type}, not {wanted}")


def read_conllu(source: SourceFile, fields: Fields, skipped: Skipped) -> Iterator[Document]:
    """A document from every ``# newdoc`` to the next; without any, every sentence is one."""
    decoded = (line.decode("utf-8-sig") for line in lines_of(source, skipped))
    documents = by_document(sentences(decoded, source.path))
    number = 0
    while True:
        try:
            document = next(documents, None)
        except UnicodeDecodeError as error:
            raise DataError(f"{source.path} is not UTF-8 text: {error}") from None
        if document is None:
            return
        text, words = as_text(document)
        yield from _checked(text, f"{source.path}:{number}", skipped, words)
        number += 1


READERS = {
    ".txt": read_text,
    ".jsonl": read_jsonl,
    ".csv": read_table,
    ".tsv": read_table,
    ".parquet": read_parquet,
    ".conllu": read_conllu,
}
"""Extension and reader of every format."""

TAGGED_FORMATS = (".jsonl", ".parquet", ".conllu")
"""Formats that can bring words with tags."""


def _from_record(
    record: Mapping[str, Any], fields: Fields, name: str, skipped: Skipped
) -> Iterator[Document]:
    if fields.words_and_tags:
        words, tags = (record.get(key) for key in fields.words_and_tags)
        yield from _joined(words, tags, name, skipped)
        return
    text = record.get(fields.text)
    if isinstance(text, str):
        yield from _checked(text, name, skipped)
    else:
        skipped.add(f"no text in field '{fields.text}'", name)


def _joined(words: Any, tags: Any, name: str, skipped: Skipped) -> Iterator[Document]:
    """Words joined by spaces; words of white space alone are left out."""
    if not (isinstance(words, list) and isinstance(tags, list)):
        skipped.add("no list of words and of tags", name)
        return
    if len(words) != len(tags):
        skipped.add("not as many tags as words", name)
        return
    if not all(isinstance(word, str) for word in words):
        skipped.add("words that are not text", name)
        return
    if not all(tag is None or isinstance(tag, str) for tag in tags):
        skipped.add("tags that are not text", name)
        return
    kept = [(" ".join(w.split()), t or "") for w, t in zip(words, tags, strict=True) if w.strip()]
    starts, ends, at = [], [], 0
    for word, _ in kept:
        starts.append(at)
        ends.append(at + len(word))
        at = ends[-1] + 1
    where = TaggedWords(tuple(starts), tuple(ends), tuple(tag for _, tag in kept))
    yield from _checked(" ".join(word for word, _ in kept), name, skipped, where)


def _decoded(data: bytes, name: str, skipped: Skipped) -> Iterator[Document]:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        skipped.add("invalid UTF-8", name)
        return
    yield from _checked(text.strip(), name, skipped)


def _checked(
    text: str, name: str, skipped: Skipped, words: TaggedWords | None = None
) -> Iterator[Document]:
    if "\0" in text:
        skipped.add("NUL character", name)
    elif not _encodable(text):
        skipped.add("lone surrogate", name)
    else:
        # Where words are known by their characters the text has no line ends to change.
        yield Document(name, text.replace("\r\n", "\n") if words is None else text, words=words)


def _encodable(text: str) -> bool:
    """False for the lone surrogates that JSON escapes can spell, and that stand for invalid bytes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
