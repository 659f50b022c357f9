"""Readers: the documents in a file, one function per format.

A record that cannot be used is left out, counted and named; a file that is not of its format, or has no
such field at all, is refused. WARC files are read where their records are text, such as the WET files of
Common Crawl; HTML is not taken apart. No reader holds more than a document, which is bounded, and whatever
a file can raise becomes one sentence in :func:`files.open_source`.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import logging
import re
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import IO, Any

from chronomask.conllu import COLUMNS, as_text, by_document, sentences
from chronomask.errors import DataError, nearest, printable, shown
from chronomask.prepare.read.files import SourceFile, lines_of, open_source
from chronomask.prepare.read.left_out import Skipped
from chronomask.prepare.read.parquet import read_parquet
from chronomask.prepare.read.records import (
    NOT_UTF8,
    Fields,
    decode,
    document_of,
    from_record,
    keep_metadata,
)
from chronomask.text_files import LongLine, can_be_encoded, lines_in
from chronomask.types import UPOS, Document

__all__ = ["READERS", "TAGGED_FORMATS"]

logger = logging.getLogger(__name__)


def read_text(source: SourceFile, fields: Fields, skipped: Skipped) -> Iterator[Document]:
    """Documents are the texts between blank lines, or every line, as ``txt_documents`` says."""
    for number, (data, size) in enumerate(_texts(source, fields, skipped)):
        name = f"{source.name}:{number}"
        if size > fields.max_bytes:
            skipped.add(fields.too_long, name, size)
        elif document := decode(data, name, skipped):
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
        is_blank = not length or (bool(text) and _BLANK.fullmatch(text) is not None)
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
        size += length + (num_lines > 1)  # the end of the line before, if there is one
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


# White space of any script in UTF-8, such as the ideographic space; \x1c to \x1f are none.
_BLANK = re.compile(
    rb"(?:[\t-\r ]|\xc2[\x85\xa0]|\xe1\x9a\x80|\xe2(?:\x80[\x80-\x8a\xa8\xa9\xaf]|\x81\x9f)|\xe3\x80\x80)*"
)


def _lines_again(held: bytearray, size: int, limit: int) -> Iterator[tuple[bytes, int]]:
    """Lines that were held as one text; ``size`` beyond the limit: one line, which was not held."""
    if size > limit:
        yield b"", size
    else:
        yield from ((line.rstrip(b"\n"), len(line)) for line in io.BytesIO(held))


_MOST_GROUPS = 2_000_000
"""Lists and objects of one line of JSON, or fields of CSV: three bytes of text are some 70 of memory."""
_LONGEST_HEADER = 1 << 16
"""Bytes of the line of a table that names its columns, or of a header of WARC."""


def read_jsonl(source: SourceFile, fields: Fields, skipped: Skipped) -> Iterator[Document]:
    """One JSON object a line; the first must have the text, while id and metadata may be in later ones."""
    first = True
    missing: set[str] = set()
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
            fields.require(record, source.name, fields.text_columns)
            missing.update(fields.read)
        first = False
        record = record if isinstance(record, dict) else {}
        if missing:
            missing.difference_update(record)
        document = from_record(record, fields, name, skipped, len(line))
        if document is not None:
            yield document
    for name in sorted(missing - skipped.lacking):
        logger.warning(
            "%s: no record has a field '%s'; correct %s, unless other files have it",
            source.name, printable(name), fields.key_of(name),
        )  # fmt: skip
    skipped.lacking |= missing


_NOT_JSON = "not JSON"


def _parse(line: bytes) -> tuple[Any, str]:
    """The value of a line of JSON, or None and why there is none."""
    if line.count(b"[") + line.count(b"{") > _MOST_GROUPS:
        return None, f"JSON with more than {_MOST_GROUPS:,} lists and objects"
    try:
        return json.loads(line.decode("utf-8-sig")), ""
    except UnicodeDecodeError:
        return None, NOT_UTF8
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
    values, reason, size = next(records, ([], "", 0))
    if reason or size > _LONGEST_HEADER:
        reason = reason or f"{size:,} bytes"
        raise DataError(f"{source.name}, line 1: {reason}; it must name the columns")
    names = [name.strip() for name in values]
    if not all(map(can_be_encoded, names)):
        raise DataError(f"{source.name}, line 1 is not UTF-8: convert the file to UTF-8")
    _check_separator(source, names, fields)
    _check_names(source, names, fields)
    for number, (values, reason, size) in enumerate(records):
        name = f"{source.name}:{number}"
        if reason:
            skipped.add(reason, name, size)
        elif len(values) != len(names):
            skipped.add("another number of fields than the first line", name, size)
        elif not all(map(can_be_encoded, values)):
            skipped.add(NOT_UTF8, name, size)
        else:
            record = dict(zip(names, values, strict=True))
            if document := from_record(record, fields, name, skipped, size):
                yield document


Record = tuple[list[str], str, int]
"""Fields of a record, or none and why it is no record; and its size in bytes."""


def _read_tabbed(lines: Iterable[bytes | LongLine], fields: Fields) -> Iterator[Record]:
    """The records of .tsv: a line each."""
    most = -1  # a record of more fields than the first is of no use, however many it has
    for line in lines:
        if isinstance(line, LongLine):
            yield [], fields.too_long, line.size
        elif line:
            values = line[: None if most >= 0 else _LONGEST_HEADER + 1].decode(
                "utf-8", "surrogateescape"
            )
            found = values.split("\t", most)
            most = len(found) if most < 0 else most
            yield found, "", len(line)


def _check_names(source: SourceFile, names: list[str], fields: Fields) -> None:
    """Refuse a table whose first line does not name the columns that are read, or names one twice."""
    try:
        fields.require(names, source.name)
    except DataError as error:
        raise DataError(
            f"{error}; the first line of a {source.format} file names its columns"
        ) from None


def _check_separator(source: SourceFile, names: list[str], fields: Fields) -> None:
    """Refuse a table whose columns stand apart by another character than its format's."""
    if len(names) != 1 or names[0] in fields.read:
        return
    usual, way_out = {
        ".csv": (",", "save it with commas, or as .tsv with tabs"),
        ".tsv": ("\t", "save it with tabs, or as .csv with commas"),
    }[source.format]
    other = next((c for c in ";\t,|" if c != usual and c in names[0]), None)
    if other is not None:
        raise DataError(
            f"{source.name} has a single column, {shown(names[0])}, whose parts stand apart by "
            f"{shown(other)}: {way_out}"
        )


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
        self.wants_more, self.too_long, self._unheld, self._commas = False, "", 0, 0

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
        self._commas += line.count(b",")
        if self._unheld or len(self.held) > self._fields.max_bytes + 1:
            self.too_long = self._fields.too_long
        elif self._commas > _MOST_GROUPS:
            self.too_long = f"a record of more than {_MOST_GROUPS:,} commas"
        if self.too_long:
            raise csv.Error
        return line.decode("utf-8", "surrogateescape")

    def give_up(self) -> int:
        """Leave the record; the bytes that are lost with it: its first line, and what was not held."""
        first = self.held.find(b"\n") + 1
        if not self._is_alone:
            self._again = io.BytesIO(self.held[first:])
        return first + self._unheld


def read_conllu(source: SourceFile, fields: Fields, skipped: Skipped) -> Iterator[Document]:
    """A document from every ``# newdoc`` to the next; without any, every sentence is one.

    Tags are the universal ones, which no other may stand among, or those of the column that is asked for;
    ``_`` is none.
    """
    column = _column_of(fields, source)
    tags = (*UPOS, "_") if fields.words_and_tags and column == "upos" else None
    with open_source(source, skipped) as handle:
        lines = _of_bounded_documents(
            lines_in(handle, source.name, fields.max_bytes), source, fields
        )
        found = sentences(lines, source.name, tags, column, _OWN_TAGS)
        for number, document in enumerate(by_document(found)):
            text, words = as_text(document)
            name = f"{source.name}:{number}"
            if checked := document_of(text, name, name, {}, skipped, words):
                yield checked


_OWN_TAGS = (
    "; tags of your own are taken from another column, such as with tagger.tags_key=xpos, or from .jsonl "
    "with a list of words and one of tags"
)


def _column_of(fields: Fields, source: SourceFile) -> str:
    """The column of CoNLL-U that tags its words; raises :class:`DataError` for a key that it has not."""
    if not fields.words_and_tags:
        return "upos"
    words, tags = fields.words_and_tags
    for name, key, known in (
        ("words", words, ("words", "form")),
        ("tags", tags, ("tags", *COLUMNS)),
    ):
        if key not in known:
            raise DataError(
                f"{source.name}: CoNLL-U has no column '{printable(key)}' of {name} "
                f"(tagger.{name}_key); {nearest(key, known)}: prepare files of other formats apart"
            )
    return "upos" if tags == "tags" else tags


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


_OF_NO_DOCUMENT = ("warcinfo", "request", "metadata", "revisit")


def read_warc(source: SourceFile, fields: Fields, skipped: Skipped) -> Iterator[Document]:
    """One record of plain text a document, its id the address it came from.

    Metadata that can be kept: ``url``, ``date``, ``language``. The format is ISO 28500
    (https://iipc.github.io/warc-specifications).
    """
    number = -1
    with open_source(source, skipped) as handle:
        while (headers := _warc_headers(handle)) is not None:
            kind, size = headers.get("warc-type", ""), int(headers["content-length"])
            name = f"{source.name}:{number + 1}"
            number += kind not in _OF_NO_DOCUMENT
            content = headers.get("content-type", "").partition(";")[0].strip()
            is_text = kind in ("conversion", "resource") and content == "text/plain"
            if is_text and size <= fields.max_bytes:
                data = handle.read(size)
                if len(data) < size:
                    raise EOFError("the file ends inside a record")
                known = {
                    "url": headers.get("warc-target-uri"),
                    "date": headers.get("warc-date"),
                    "language": headers.get("warc-identified-content-language"),
                }
                metadata = keep_metadata(known, fields)
                if document := decode(data, name, skipped, known["url"], metadata):
                    yield document
                continue
            if kind not in _OF_NO_DOCUMENT:
                reason = fields.too_long if is_text else "WARC record that is not text"
                skipped.add(reason, name, size)
            _pass_over(handle, size)


def _warc_headers(handle: IO[bytes]) -> dict[str, str] | None:
    """Names, in small letters, and values of the next record's header; None at the end of the file.

    Raises EOFError where what comes next is no record, so that it counts as damage.
    """
    lines = iter(lambda: handle.readline(_LONGEST_HEADER), b"")
    version = next((line for line in lines if line.strip()), None)
    if version is None:
        return None
    found: dict[str, str] = {}
    size = 0
    for line in lines if version.startswith(b"WARC/") else ():
        size += len(line)
        name, colon, value = line.decode("utf-8", "backslashreplace").partition(":")
        if not line.strip() and found.get("content-length", "").isdecimal():
            return found
        if not colon or size > _LONGEST_HEADER:
            break
        found[name.strip().lower()] = value.strip()
    raise EOFError("not a WARC record")


def _pass_over(handle: IO[bytes], size: int) -> None:
    """Read so many bytes and forget them."""
    while size > 0:
        block = handle.read(min(size, _LONGEST_HEADER))
        if not block:
            raise EOFError("the file ends inside a record")
        size -= len(block)


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
