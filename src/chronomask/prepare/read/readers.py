"""Readers: the documents in a file, one function per format.

A record that cannot be used is skipped, counted and named; a file that is not of its format, or has no
such field at all, is refused. WARC files are read where their records are text, such as the WET files of
Common Crawl; HTML is not taken apart.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

from chronomask.conllu import as_text, by_document, sentences
from chronomask.errors import DataError, nearest, need
from chronomask.prepare.read.files import Skipped, SourceFile, lines_of, opened
from chronomask.storage import damage_errors
from chronomask.types import Document, TaggedWords

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["READERS", "TAGGED_FORMATS", "Fields", "from_record"]

Metadata = Mapping[str, str]

_TOO_LONG = "\0a line that is too long\0\n"
"""Stands for a line that was not read as a whole: nothing that a text may hold."""


@dataclass(frozen=True, slots=True)
class Fields:
    """Fields of a record that are read: one with its text, or one with words and one with tags."""

    text: str
    words_and_tags: tuple[str, str] | None = None
    max_bytes: int = 64_000_000
    """A document of more bytes is skipped."""
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
        """The names of the fields that a record must have."""
        own = self.words_and_tags or (self.text,)
        others = (*([self.id_key] if self.id_key else []), *self.metadata_keys)
        return tuple(dict.fromkeys((*own, *others)))

    @property
    def text_columns(self) -> tuple[str, ...]:
        """Those among them that make the text."""
        return self.words_and_tags or (self.text,)

    def require(self, names: Iterable[str], source: object) -> None:
        """Raises :class:`DataError` for the first field that is not among ``names``."""
        names = list(names)
        for name in self.read:
            if name not in names:
                raise DataError(
                    f"{source} has no field '{name}'; {nearest(name, names)}; "
                    f"set it with --set {self._key_of(name)}=NAME"
                )

    def _key_of(self, name: str) -> str:
        """The config key that names a field."""
        if self.words_and_tags and name in self.words_and_tags:
            return f"tagger.{'words' if name == self.words_and_tags[0] else 'tags'}_key"
        if not self.words_and_tags and name == self.text:
            return "text_key"
        return "id_key" if name == self.id_key else "metadata_keys"


def read_text(source: SourceFile, fields: Fields, skipped: Skipped) -> Iterator[Document]:
    """Documents are blocks of lines parted by blank lines."""
    number = held = 0
    lines: list[bytes] = []
    for line in chain(lines_of(source, skipped, fields.max_bytes), [b""]):
        if line is None or line.strip():
            held += fields.max_bytes + 1 if line is None else len(line)
            if held > fields.max_bytes:  # nothing of it is kept, however long it goes on
                lines = []
            else:
                lines.append(line or b"")
        elif held:
            name = f"{source.path}:{number}"
            if held > fields.max_bytes:
                skipped.add(fields.too_long, name)
            else:
                yield from _decode(b"".join(lines), name, skipped)
            number += 1
            lines, held = [], 0


def read_jsonl(source: SourceFile, fields: Fields, skipped: Skipped) -> Iterator[Document]:
    """One JSON object a line."""
    first = True
    for number, line in enumerate(lines_of(source, skipped, fields.max_bytes)):
        name = f"{source.path}:{number}"
        if line is None:
            skipped.add(fields.too_long, name)
            continue
        if not line.strip():
            continue
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
            fields.require(record, source.path)
        first = False
        yield from from_record(record, fields, name, skipped)


def read_table(source: SourceFile, fields: Fields, skipped: Skipped) -> Iterator[Document]:
    """One record a document, the first line names the columns; fields may be quoted with ``"``."""
    csv.field_size_limit(fields.max_bytes)  # the library's own limit is 131,072 characters
    lines = lines_of(source, skipped, fields.max_bytes)
    decoded = (
        _TOO_LONG if line is None else line.decode("utf-8", "surrogateescape") for line in lines
    )
    records = csv.reader(decoded, delimiter="," if source.format == ".csv" else "\t")
    names = [name.removeprefix("\ufeff").strip() for name in next(records, [])]
    fields.require(names, source.path)
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
        if any(_TOO_LONG.strip() in value for value in values):
            skipped.add(fields.too_long, name)
        elif len(values) != len(names):
            skipped.add("another number of fields than the first line", name)
        elif not _encodable(text := values[names.index(fields.text)]):
            skipped.add("invalid UTF-8", name)
        else:
            record = dict(zip(names, values, strict=True))
            yield from _checked(text, *_place_id_and_metadata(record, fields, name), skipped)


def read_parquet(source: SourceFile, fields: Fields, skipped: Skipped) -> Iterator[Document]:
    """One row a document; only the columns needed are read."""
    pa = need("pyarrow", "prepare", "reading Parquet files")
    pq = need("pyarrow.parquet", "prepare", "reading Parquet files")

    try:
        with opened(source) as handle:
            file = pq.ParquetFile(handle)
            fields.require(file.schema_arrow.names, source.path)
            for name in fields.text_columns:
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
                    yield from from_record(record, fields, name, skipped)
    except (pa.ArrowException, OSError, *damage_errors()) as error:
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
    lines = lines_of(source, skipped, fields.max_bytes)
    decoded = (_TOO_LONG if line is None else line.decode("utf-8-sig") for line in lines)
    documents = by_document(sentences(decoded, str(source.path)))
    number = 0
    while True:
        try:
            document = next(documents, None)
        except UnicodeDecodeError as error:
            raise DataError(f"{source.path} is not UTF-8 text: {error}") from None
        if document is None:
            return
        text, words = as_text(document)
        name = f"{source.path}:{number}"
        yield from _checked(text, name, name, {}, skipped, words)
        number += 1


_TEXT_RECORDS = ("conversion", "resource")
_OF_NO_DOCUMENT = ("warcinfo", "request", "metadata", "revisit")


def read_warc(source: SourceFile, fields: Fields, skipped: Skipped) -> Iterator[Document]:
    """One record of plain text a document, its id the address it came from.

    Metadata that can be kept: ``url``, ``date``, ``language``.
    """
    archives = need("warcio.archiveiterator", "warc", "reading WARC files")
    failed = need("warcio.exceptions", "warc", "reading WARC files").ArchiveLoadFailed
    number = -1
    with opened(source) as handle:
        try:
            for record in archives.ArchiveIterator(handle, no_record_parse=True):
                if record.rec_type in _OF_NO_DOCUMENT:
                    continue
                number += 1
                name = f"{source.path}:{number}"
                headers = record.rec_headers
                content = str(headers.get_header("Content-Type") or "").partition(";")[0].strip()
                if record.rec_type not in _TEXT_RECORDS or content != "text/plain":
                    skipped.add("WARC record that is not text", name)
                    continue
                data = record.content_stream().read(fields.max_bytes + 1)
                if len(data) > fields.max_bytes:
                    skipped.add(fields.too_long, name)
                    continue
                known = {
                    "url": headers.get_header("WARC-Target-URI"),
                    "date": headers.get_header("WARC-Date"),
                    "language": headers.get_header("WARC-Identified-Content-Language"),
                }
                metadata = _metadata(known, fields)
                yield from _decode(data, name, skipped, known["url"], metadata)
        except damage_errors() as error:
            skipped.add("corrupt compressed data: rest of file", f"{source.path} ({error})")
        except failed as error:
            skipped.add("not a WARC record: rest of file", f"{source.path} ({error})")


READERS = {
    ".txt": read_text,
    ".jsonl": read_jsonl,
    ".csv": read_table,
    ".tsv": read_table,
    ".parquet": read_parquet,
    ".conllu": read_conllu,
    ".wet": read_warc,
    ".warc": read_warc,
}
"""Extension and reader of every format."""

TAGGED_FORMATS = (".jsonl", ".parquet", ".conllu")
"""Formats that can bring words with tags."""


def from_record(
    record: Mapping[str, Any], fields: Fields, name: str, skipped: Skipped
) -> Iterator[Document]:
    """The document in a record, if it can be used; ``name`` says where the record is."""
    if fields.words_and_tags:
        words, tags = (record.get(key) for key in fields.words_and_tags)
        yield from _joined(words, tags, *_place_id_and_metadata(record, fields, name), skipped)
        return
    text = record.get(fields.text)
    if isinstance(text, str):
        yield from _checked(text, *_place_id_and_metadata(record, fields, name), skipped)
    else:
        skipped.add(f"no text in field '{fields.text}'", name)


def _joined(
    words: Any, tags: Any, name: str, identifier: str, metadata: Metadata, skipped: Skipped
) -> Iterator[Document]:
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
    text = " ".join(word for word, _ in kept)
    yield from _checked(text, name, identifier, metadata, skipped, where)


def _decode(
    data: bytes,
    name: str,
    skipped: Skipped,
    identifier: str | None = None,
    metadata: Metadata | None = None,
) -> Iterator[Document]:
    """A document from its bytes, named ``name`` if it cannot be used, ``identifier`` otherwise."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        skipped.add("invalid UTF-8", name)
        return
    yield from _checked(text.strip(), name, identifier or name, metadata or {}, skipped)


def _place_id_and_metadata(
    record: Mapping[str, Any], fields: Fields, name: str
) -> tuple[str, str, Metadata]:
    """The document's place in its file, its id, and its metadata."""
    given = record.get(fields.id_key) if fields.id_key else None
    identifier = name if given in (None, "") else _as_text(given)
    return name, identifier, _metadata(record, fields)


def _metadata(record: Mapping[str, Any], fields: Fields) -> Metadata:
    """The fields to keep that the record has."""
    found = {key: record.get(key) for key in fields.metadata_keys}
    return {key: _as_text(value) for key, value in found.items() if value is not None}


def _as_text(value: Any) -> str:
    """A field's value as text: what is no text as JSON, lone surrogates as question marks."""
    text = value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)
    return text.encode("utf-8", "replace").decode()


def _checked(
    text: str,
    name: str,
    identifier: str,
    metadata: Metadata,
    skipped: Skipped,
    words: TaggedWords | None = None,
) -> Iterator[Document]:
    if "\0" in text:
        skipped.add("NUL character", name)
    elif not _encodable(text):
        skipped.add("lone surrogate", name)
    else:
        # Where words are known by their characters the text has no line ends to change.
        text = text.replace("\r\n", "\n") if words is None else text
        yield Document(identifier, text, dict(metadata), words)


def _encodable(text: str) -> bool:
    """False for the lone surrogates that JSON escapes can spell, and that stand for invalid bytes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
