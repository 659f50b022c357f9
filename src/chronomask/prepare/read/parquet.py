"""Parquet: the documents in its rows, with the memory of a page, whatever the file says or holds."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import IO, TYPE_CHECKING, Any

from chronomask.errors import DataError, in_words, need, printable
from chronomask.prepare.read.files import SourceFile, open_source
from chronomask.prepare.read.left_out import Skipped
from chronomask.prepare.read.records import NOT_UTF8, Fields, from_record
from chronomask.types import Document

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["read_parquet"]

_PAGE_BYTES = 1 << 27
"""Largest page of a Parquet file that is read: it is unpacked as a whole."""
_PAGE_VALUES = 1 << 24
_BATCH_BYTES = 1 << 24
_MOST_ROWS = 1024


def read_parquet(source: SourceFile, fields: Fields, skipped: Skipped) -> Iterator[Document]:
    """One row a document; only the columns needed are read, a few rows at a time."""
    need("pyarrow", "prepare", "reading Parquet files")
    pq = need("pyarrow.parquet", "prepare", "reading Parquet files")

    with open_source(source, skipped) as handle:
        try:
            # Buffered: else a column is read as a whole, row group by row group.
            file = pq.ParquetFile(handle, buffer_size=1 << 20)
        except (OSError, ValueError) as error:
            raise DataError(
                f"{source.name} is not a readable Parquet file ({in_words(error)}): copy or download it "
                "again, or leave it out of sources"
            ) from None
        fields.require(file.schema_arrow.names, source.name)
        for name in fields.text_columns:
            _check_column(file.schema_arrow, name, fields, source)
        number = 0
        for group, largest in enumerate(_largest_pages(handle, fields, source)):
            rows = max(1, min(_MOST_ROWS, _BATCH_BYTES // max(1, largest)))
            for batch in file.iter_batches(rows, row_groups=[group], columns=list(fields.read)):
                columns = [batch.column(name) for name in fields.read]
                for row, values in enumerate(zip(*columns, strict=True)):
                    name = f"{source.name}:{number}"
                    number += 1
                    try:
                        plain = [_plain(value) for value in values]
                    except UnicodeDecodeError:
                        skipped.add(
                            NOT_UTF8, name, sum(column.slice(row, 1).nbytes for column in columns)
                        )
                        continue
                    record = dict(zip(fields.read, plain, strict=True))
                    if document := from_record(record, fields, name, skipped):
                        yield document


def _plain(value: pa.Scalar[Any]) -> Any:
    """A value as Python has it, or as text where that has none, as for a date after the year 9999.

    Raises UnicodeDecodeError for text that is not UTF-8.
    """
    try:
        return value.as_py()
    except UnicodeDecodeError:
        raise
    except (OverflowError, ValueError):
        return value.cast("string").as_py()


def _check_column(schema: pa.Schema, name: str, fields: Fields, source: SourceFile) -> None:
    """Raise DataError, with the names of columns that would do, unless one holds text, or lists of it."""
    holds, wanted = (_is_lists, "lists of text") if fields.words_and_tags else (_is_text, "text")
    if holds(schema.field(name).type):
        return
    others = [printable(column.name)[:60] for column in schema if holds(column.type)]
    way_out = "write its text as a column of its own"
    if others:
        way_out = f"--set {fields.key_of(name)}=NAME takes one that does: {', '.join(others[:10])}"
    raise DataError(
        f"{source.path}: column '{name}' is {schema.field(name).type}, not {wanted}; {way_out}"
    )


def _is_text(kind: pa.DataType) -> bool:
    """Whether values are strings, also where each is kept once, as pandas keeps categories."""
    import pyarrow as pa

    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    tests = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    return any(is_of(kind) for is_of in tests)


def _is_lists(kind: pa.DataType) -> bool:
    import pyarrow as pa

    return (pa.types.is_list(kind) or pa.types.is_large_list(kind)) and _is_text(kind.value_type)


def _largest_pages(handle: IO[bytes], fields: Fields, source: SourceFile) -> list[int]:
    """Bytes of the largest page, unpacked, of the columns that are read, for every row group.

    A page is what a reader must hold at once, and nothing but its own header says how large it is. The
    footer is read here too: pyarrow ends the process where it does not like what a column says of itself.
    Raises DataError for a page that is too large, ValueError for what is none.
    """
    end = handle.seek(-8, os.SEEK_END)
    size = int.from_bytes(handle.read(4), "little")
    handle.seek(max(0, end - size))
    largest = []
    for group in _Struct(handle.read(size)).structs(4):
        pages = [0]
        for column in (chunk.struct(3) for chunk in group.structs(1)):
            name = b".".join(column.texts(3)).decode("utf-8", "backslashreplace")
            if name.partition(".")[0] in fields.read:
                at = column.number(11) or column.number(9)
                pages += _page_sizes(
                    handle, at, at + column.number(7), f"{source.name}: column '{name}'"
                )
        largest.append(max(pages))
    return largest


def _page_sizes(handle: IO[bytes], at: int, end: int, name: str) -> Iterator[int]:
    """Bytes of each page between two places of a file, unpacked; raises as :func:`_largest_pages` does."""
    while at < end:
        handle.seek(at)
        header = _Struct(handle.read(_LONGEST_PAGE_HEADER))
        unpacked, packed = header.number(2), header.number(3)
        # Number of values, in the header of a page of either version.
        values = max(header.struct(5).number(1), header.struct(8).number(1))
        if unpacked > _PAGE_BYTES or values > _PAGE_VALUES:
            raise DataError(
                f"{printable(name)} has a page of {unpacked:,} bytes and {values:,} values; at most "
                f"{_PAGE_BYTES:,} and {_PAGE_VALUES:,} are read at once: write it again in smaller pages "
                "(pyarrow.parquet.write_table(…, write_batch_size=16))"
            )
        if packed < 0 or unpacked < 0:
            raise ValueError("a page of a negative size")
        yield unpacked
        at += header.size + packed


_LONGEST_PAGE_HEADER = 1 << 16


class _Struct:
    """A struct in Thrift's compact protocol, as Parquet's headers are, and its size in bytes.

    https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md; raises ValueError for
    what is none.
    """

    def __init__(self, content: bytes, at: int = 0, depth: int = 0) -> None:
        self._content, self._at, self._depth = content, at, depth
        self._fields: dict[int, Any] = {}
        number = 0
        while (head := self._byte()) != 0:
            number = number + (head >> 4) if head >> 4 else self._integer()
            # Of a truth value the kind is the value.
            self._fields[number] = None if head & 15 in (1, 2) else self._value(head & 15)
        self.size = self._at - at

    def number(self, key: int) -> int:
        """A field that is a number; 0 where there is none."""
        found = self._fields.get(key)
        return found if isinstance(found, int) else 0

    def struct(self, key: int) -> _Struct:
        """A field that is a struct; an empty one where there is none."""
        found = self._fields.get(key)
        return found if isinstance(found, _Struct) else _Struct(b"\0")

    def structs(self, key: int) -> list[_Struct]:
        """A field that is a list of structs."""
        return [item for item in self._list(key) if isinstance(item, _Struct)]

    def texts(self, key: int) -> list[bytes]:
        """A field that is a list of texts."""
        return [item for item in self._list(key) if isinstance(item, bytes)]

    def _list(self, key: int) -> list[Any]:
        found = self._fields.get(key)
        return found if isinstance(found, list) else []

    def _value(self, kind: int) -> Any:
        """The value of a kind that comes next: a number, bytes, a list or a struct."""
        match kind:
            case 1 | 2 | 3:
                return self._byte()
            case 4 | 5 | 6:
                return self._integer()
            case 7:
                return self._bytes(8)
            case 8:
                return self._bytes(self._varint())
            case 9 | 10:
                head = self._byte()
                size = self._varint() if head >> 4 == 15 else head >> 4
                return [self._value(head & 15) for _ in range(size)]
            case 12 if self._depth < _DEEPEST:
                struct = _Struct(self._content, self._at, self._depth + 1)
                self._at += struct.size
                return struct
        raise ValueError("a header that cannot be read")

    def _byte(self) -> int:
        return self._bytes(1)[0]

    def _bytes(self, size: int) -> bytes:
        self._at += size
        if self._at > len(self._content):
            raise ValueError("a header that is cut short")
        return self._content[self._at - size : self._at]

    def _varint(self) -> int:
        number = shift = 0
        while (byte := self._byte()) & 0x80 and shift < 64:
            number |= (byte & 0x7F) << shift
            shift += 7
        return number | byte << shift

    def _integer(self) -> int:
        number = self._varint()
        return (number >> 1) ^ -(number & 1)


_DEEPEST = 10
