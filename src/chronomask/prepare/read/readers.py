"""Readers: the documents in a file, one function per format.

A record that cannot be used is skipped, counted and named; a file that is not of its format, or has no
such field at all, is refused. WARC files are read where their records are text, such as the WET files of
Common Crawl; HTML is not taken apart.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal

from chronomask.conllu import as_text, by_document, sentences
from chronomask.errors import DataError, nearest, need, printable
from chronomask.prepare.read.files import Skipped, SourceFile, in_words, lines_of, opened
from chronomask.storage import LongLine, lines_in
from chronomask.types import Document, TaggedWords

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["READERS", "TAGGED_FORMATS", "Fields", "TxtDocuments", "from_record"]

TxtDocuments = Literal["auto", "blank_lines", "lines"]
"""What a document of a .txt file is: what stands between blank lines, or every line. ``auto``: between
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
                    f"{source} has no field '{printable(name)}'; "
                    f"{nearest(name, [printable(known)[:60] for known in names[:50]])}; "
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
    """Documents are what stands between blank lines, or every line, as ``txt_documents`` says."""
    for number, (data, size) in enumerate(_texts(source, fields, skipped)):
        name = f"{source.name}:{number}"
        if size > fields.max_bytes:
            skipped.add(fields.too_long, name, size)
        elif document := _decode(data, name, skipped):
            yield document


def _texts(
    source: SourceFile, fields: Fields, skipped: Skipped
) -> Iterator[tuple[bytes | bytearray, int]]:
    """The bytes of each document of a .txt file, and how many there were.

    A document of more than ``max_bytes`` is not held. If the first would be one because there is no blank
    line, and nothing else is asked for, the lines are taken for documents instead.
    """
    by_lines, may_guess = fields.txt_documents == "lines", fields.txt_documents == "auto"
    held, size, num_lines = bytearray(), 0, 0  # of the document that has not ended yet
    for line in chain(lines_of(source, skipped, fields.max_bytes), [b""]):
        text, length = (b"", line.size) if isinstance(line, LongLine) else (line, len(line))
        is_blank = not length or (bool(text) and not text.strip())
        if is_blank and num_lines:
            yield held, size
            may_guess = False
            held, size, num_lines = bytearray(), 0, 0
        if is_blank:
            continue
        if by_lines:
            yield text, length
            continue
        num_lines += 1
        size += length + 1
        if may_guess and num_lines > 1 and size > fields.max_bytes:
            skipped.by_lines.append(source.name)
            by_lines = True
            yield from _lines_again(held, size - length - 1, fields.max_bytes)
            yield text, length
            held, size, num_lines = bytearray(), 0, 0
        elif size > fields.max_bytes:  # nothing of it is kept, however long it goes on
            held = bytearray()
        else:
            held += text + b"\n"


def _lines_again(held: bytearray, size: int, limit: int) -> Iterator[tuple[bytes, int]]:
    """Lines that were held as one text; ``size`` beyond the limit: one line, which was not held."""
    if size > limit:
        yield b"", size
    else:
        yield from ((line.rstrip(b"\n"), len(line)) for line in io.BytesIO(held))


_MOST_GROUPS = 2_000_000
"""Lists and objects of one line of JSON: three bytes of text are some 70 of memory."""


def read_jsonl(source: SourceFile, fields: Fields, skipped: Skipped) -> Iterator[Document]:
    """One JSON object a line."""
    first = True
    for number, line in enumerate(lines_of(source, skipped, fields.max_bytes)):
        name = f"{source.name}:{number}"
        if isinstance(line, LongLine):
            if first and line.start.lstrip().startswith(b"["):
                raise DataError(_not_one_a_line(source, "one JSON array"))
            skipped.add(fields.too_long, name, line.size)
            continue
        if not line.strip():
            continue
        record, reason = _parse(line)
        if first and reason in ("", _NOT_JSON):
            _require_objects(source, line, record, reason)
        if reason:
            skipped.add(reason, name, len(line))
            continue
        if first:
            fields.require(record, source.name)
        first = False
        record = record if isinstance(record, dict) else {}
        document = from_record(record, fields, name, skipped, len(line))
        if document is not None:
            yield document


_NOT_JSON, _NOT_UTF8 = "not JSON", "invalid UTF-8"


def _parse(line: bytes) -> tuple[Any, str]:
    """The value of a line of JSON, or None and why there is none."""
    if line.count(b"[") + line.count(b"{") > _MOST_GROUPS:
        return None, f"JSON with more than {_MOST_GROUPS:,} lists and objects"
    try:
        return json.loads(line.decode("utf-8-sig")), ""
    except UnicodeDecodeError:
        return None, _NOT_UTF8
    except ValueError:
        return None, _NOT_JSON
    except RecursionError:
        return None, "JSON that is nested too deeply"


def _require_objects(source: SourceFile, line: bytes, record: Any, reason: str) -> None:
    """Raises DataError where a first line shows that the file holds something else than objects."""
    start = line.removeprefix(codecs.BOM_UTF8).lstrip()
    if start.startswith(b"["):
        raise DataError(_not_one_a_line(source, "one JSON array"))
    if reason and start.rstrip() == b"{":
        raise DataError(_not_one_a_line(source, "JSON printed over many lines", "jq -c ."))
    if not reason and not isinstance(record, dict):
        kinds = {str: "a string", bool: "true or false", type(None): "null"}
        found = f"JSON of which the first line is {kinds.get(type(record), 'a number')}"
        raise DataError(_not_one_a_line(source, found, ""))


def _not_one_a_line(source: SourceFile, found: str, command: str = "jq -c '.[]'") -> str:
    way = f": {command} OLD > NEW.jsonl" if command else ""
    return f"{source.name} is {found}, not one object a line; write a line for each object{way}"


def read_table(source: SourceFile, fields: Fields, skipped: Skipped) -> Iterator[Document]:
    """One record a document, the first line names the columns.

    Fields of .csv may be quoted with ``"``; in .tsv a quotation mark is text, and a record is a line.
    """
    lines = lines_of(source, skipped, fields.max_bytes)
    records = (_read_quoted if source.format == ".csv" else _read_tabbed)(lines, fields)
    values, reason, _ = next(records, ([], "", 0))
    if reason:
        raise DataError(f"{source.name}, line 1: {reason}; it must name the columns")
    names = [name.strip() for name in values]
    if not all(map(_encodable, names)):
        raise DataError(f"{source.name}, line 1 is not UTF-8: convert the file to UTF-8")
    fields.require(names, source.name)
    for number, (values, reason, size) in enumerate(records):
        name = f"{source.name}:{number}"
        if reason:
            skipped.add(reason, name, size)
        elif len(values) != len(names):
            skipped.add("another number of fields than the first line", name, size)
        elif not all(map(_encodable, values)):
            skipped.add(_NOT_UTF8, name, size)
        else:
            record = dict(zip(names, values, strict=True))
            if document := from_record(record, fields, name, skipped, size):
                yield document


Record = tuple[list[str], str, int]
"""Fields of a record, or none and why it is no record; and its size in bytes."""


def _read_tabbed(lines: Iterable[bytes | LongLine], fields: Fields) -> Iterator[Record]:
    """The records of .tsv: a line each."""
    for line in lines:
        if isinstance(line, LongLine):
            yield [], fields.too_long, line.size
        elif line:
            yield line.decode("utf-8", "surrogateescape").split("\t"), "", len(line)


def _read_quoted(lines: Iterator[bytes | LongLine], fields: Fields) -> Iterator[Record]:
    """The records of .csv; where one is left because of a quotation mark, its other lines are read alone."""
    csv.field_size_limit(_LONGEST_FIELD)  # a record is bounded by its lines
    feed = _Feed(lines, fields)
    reader = csv.reader(feed, strict=True)
    while True:
        feed.begin()
        try:
            values = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            open_quote = "unexpected end" in str(error) or feed.wants_more
            reason = (
                "a quotation mark that is never closed" if open_quote else f"not a record: {error}"
            )
            yield [], feed.too_long or reason, feed.give_up()
        else:
            if values:
                yield values, "", len(feed.held)


_LONGEST_FIELD = 2**31 - 1


class _Feed:
    """Lines for the library's reader of CSV, held until their record is read.

    A mark that is never closed would swallow all that follows. So when a record fails, all its lines but
    the first are read again, each as a record of its own: no line is read more than twice.
    """

    def __init__(self, lines: Iterator[bytes | LongLine], fields: Fields) -> None:
        self._lines, self._fields = lines, fields
        self._again = io.BytesIO()
        self._is_alone = False
        self.begin()

    def begin(self) -> None:
        """Expect a new record."""
        self.held = bytearray()
        self.wants_more, self.too_long, self._unheld = False, "", 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        if self.held and self._is_alone:
            self.wants_more = True
            raise csv.Error
        line = self._again.readline()
        self._is_alone = bool(line)
        if not line:
            found = next(self._lines)
            self._unheld = found.size if isinstance(found, LongLine) else 0
            line = b"" if isinstance(found, LongLine) else found + b"\n"
        self.held += line
        if self._unheld or len(self.held) > self._fields.max_bytes + 1:
            self.too_long = self._fields.too_long
            raise csv.Error
        return line.decode("utf-8", "surrogateescape")

    def give_up(self) -> int:
        """Leave the record; the bytes that are lost with it: its first line, and what was not held."""
        first = self.held.find(b"\n") + 1
        if not self._is_alone:
            self._again = io.BytesIO(self.held[first:])
        return first + self._unheld


_PAGE_BYTES = 1 << 27
"""Largest page of a Parquet file: it is unpacked as a whole."""
_BATCH_BYTES = 1 << 25


def read_parquet(source: SourceFile, fields: Fields, skipped: Skipped) -> Iterator[Document]:
    """One row a document; only the columns needed are read."""
    need("pyarrow", "prepare", "reading Parquet files")
    pq = need("pyarrow.parquet", "prepare", "reading Parquet files")

    with opened(source, skipped) as handle:
        try:
            file = pq.ParquetFile(handle, buffer_size=1 << 20)
        except (OSError, ValueError) as error:
            raise DataError(
                f"{source.name} is not a readable Parquet file: {in_words(error)}"
            ) from None
        fields.require(file.schema_arrow.names, source.name)
        for name in fields.text_columns:
            _check_column(file.schema_arrow.field(name), bool(fields.words_and_tags), source)
        number = 0
        batches = file.iter_batches(batch_size=1024, columns=list(fields.read))
        for batch in batches:
            columns = [batch.column(name) for name in fields.read]
            for values in zip(*columns, strict=True):
                name = f"{source.name}:{number}"
                number += 1
                try:
                    plain = [value.as_py() for value in values]
                except UnicodeDecodeError:
                    skipped.add(_NOT_UTF8, name)
                    continue
                record = dict(zip(fields.read, plain, strict=True))
                if document := from_record(record, fields, name, skipped):
                    yield document


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
    with opened(source, skipped) as handle:
        lines = _of_bounded_documents(
            lines_in(handle, source.name, fields.max_bytes), source, fields
        )
        for number, document in enumerate(by_document(sentences(lines, source.name))):
            text, words = as_text(document)
            name = f"{source.name}:{number}"
            if checked := _checked(text, name, name, {}, skipped, words):
                yield checked


def _of_bounded_documents(
    lines: Iterable[str], source: SourceFile, fields: Fields
) -> Iterator[str]:
    """The lines of a CoNLL-U file; raises DataError before a document is too large to be held."""
    held, ends_at_blank = 0, True
    for number, line in enumerate(lines, start=1):
        if line.startswith("# newdoc"):
            held, ends_at_blank = 0, ends_at_blank and number > 1
        held = 0 if ends_at_blank and not line else held + len(line)
        if held > fields.max_bytes:
            raise DataError(f"{source.name}, line {number}: its document has {fields.too_long}")
        yield line


_TEXT_RECORDS = ("conversion", "resource")
_OF_NO_DOCUMENT = ("warcinfo", "request", "metadata", "revisit")


def read_warc(source: SourceFile, fields: Fields, skipped: Skipped) -> Iterator[Document]:
    """One record of plain text a document, its id the address it came from.

    Metadata that can be kept: ``url``, ``date``, ``language``.
    """
    archives = need("warcio.archiveiterator", "warc", "reading WARC files")
    failed = need("warcio.exceptions", "warc", "reading WARC files").ArchiveLoadFailed
    number = -1
    with opened(source, skipped) as handle:
        try:
            for record in archives.ArchiveIterator(handle, no_record_parse=True):
                if record.rec_type in _OF_NO_DOCUMENT:
                    continue
                number += 1
                name = f"{source.name}:{number}"
                headers = record.rec_headers
                content = str(headers.get_header("Content-Type") or "").partition(";")[0].strip()
                size = int(headers.get_header("Content-Length") or 0)
                if record.rec_type not in _TEXT_RECORDS or content != "text/plain":
                    skipped.add("WARC record that is not text", name, size)
                    continue
                if size > fields.max_bytes:
                    skipped.add(fields.too_long, name, size)
                    continue
                data = record.content_stream().read(fields.max_bytes + 1)
                known = {
                    "url": headers.get_header("WARC-Target-URI"),
                    "date": headers.get_header("WARC-Date"),
                    "language": headers.get_header("WARC-Identified-Content-Language"),
                }
                metadata = _metadata(known, fields)
                if document := _decode(data, name, skipped, known["url"], metadata):
                    yield document
        except failed as error:
            skipped.add("not a WARC record: rest of file", f"{source.name} ({error})", 0, "files")


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
            text, where = _joined(words, tags)
            return _checked(text, name, identifier, metadata, skipped, where)
    else:
        text = record.get(fields.text)
        if isinstance(text, str):
            return _checked(text, name, identifier, metadata, skipped)
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
    return ""


def _joined(words: Sequence[str], tags: Sequence[str | None]) -> tuple[str, TaggedWords]:
    """Words joined by spaces, and where they are; words of white space alone are left out."""
    kept = [(" ".join(w.split()), t or "") for w, t in zip(words, tags, strict=True) if w.strip()]
    starts, ends, at = [], [], 0
    for word, _ in kept:
        starts.append(at)
        ends.append(at + len(word))
        at = ends[-1] + 1
    where = TaggedWords(tuple(starts), tuple(ends), tuple(tag for _, tag in kept))
    return " ".join(word for word, _ in kept), where


def _decode(
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
        skipped.add(_NOT_UTF8, name, len(data))
        return None
    return _checked(text, name, identifier or name, metadata or {}, skipped)


def _id_and_metadata(record: Mapping[str, Any], fields: Fields, name: str) -> tuple[str, Metadata]:
    """The document's id, which is its place ``name`` where it has none, and its metadata."""
    given = record.get(fields.id_key) if fields.id_key else None
    return name if given in (None, "") else _as_text(given), _metadata(record, fields)


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
) -> Document | None:
    """A document of a text, unless it holds what no tokenizer takes."""
    if "\0" in text:
        skipped.add("NUL character", name, len(text))
    elif not _encodable(text):
        skipped.add("lone surrogate", name, len(text))
    else:
        # Where words are known by their characters the text has no line ends to change.
        text = text.replace("\r\n", "\n") if words is None else text
        return Document(identifier, text, dict(metadata), words)
    return None


def _encodable(text: str) -> bool:
    """False for the lone surrogates that JSON escapes can spell, and that stand for invalid bytes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
