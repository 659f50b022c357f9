"""Prepared rows as Parquet and back: for Hugging Face ``datasets``, DuckDB, pandas and their like.

Every Parquet file says in its schema's metadata what the prepared folder was (manifest, tokenizer and the
other files, but for large ones, which lie beside the rows), so any complete export becomes the same folder
again, byte for byte.
"""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from chronomask.data import annotation as marks
from chronomask.data.folder import PreparedData
from chronomask.data.manifest import (
    ADDED,
    MANIFEST,
    Column,
    Manifest,
    SplitEntry,
    fingerprint,
    manifest_of,
)
from chronomask.data.writer import RowWriter, id_dtype, write_column
from chronomask.errors import DataError, UsageError, in_words, need, shown
from chronomask.storage import (
    as_a_shell_has_it,
    names_file,
    refuse_dead_end,
    refuse_file,
    replacing,
    replacing_folder,
    stays_below,
    write_bytes,
)

if TYPE_CHECKING:
    import pyarrow as pa
    from pyarrow.parquet import ParquetFile

__all__ = ["COLUMNS", "export_parquet", "import_parquet"]

COLUMNS = ("split", "input_ids", "word_ids", "token_class", "special_tokens_mask", "bounds")
"""``word_ids``: words of a row counted from 0, −1 without one; ``special_tokens_mask``: 1 for tokens that
are never masked; ``bounds``: positions at which a document, or the padding, begins inside the row. Rows
that were given scores or collocations have a column more for each, ``scores`` and ``ngrams``."""

_KEY = b"chronomask"
_BESIDE = "__files__"
"""Name of the folder for large files in an export; libraries that read folders pass over such a name."""
_MOST_WITHIN = 1 << 25
"""Bytes of files that the schema of each Parquet file holds; readers refuse a file from 56 million on."""
_GROUP_TOKENS = 1 << 21
_AGAIN = "export the data again"
_NO_ROWS = (
    ArithmeticError, LookupError, NotImplementedError, StopIteration, TypeError, ValueError,
)  # fmt: skip
"""What pyarrow and numpy raise for columns that are absent, of other types or too short."""


def export_parquet(data: PreparedData, out: str | Path) -> list[Path]:
    """Write prepared rows as one file ``out`` (*.parquet), or into a folder, a file per shard.

    Large files of the data, such as the table of documents, are copied into a folder beside the rows. Raises
    :class:`UsageError` where ``out`` exists, or is one file while there are large ones, :class:`DataError`
    for damaged data, :class:`RunError` where writing fails.
    """
    need("pyarrow", "prepare", "Reading and writing Parquet")
    out = as_a_shell_has_it(out)
    refuse_dead_end(out)
    if out.exists():
        raise UsageError(f"{out} exists; choose another place to export to, or remove it")
    data.verify()
    single = out.suffix.lower() == ".parquet"
    if names_file(out) and not single:
        raise UsageError(
            f"--out {out}: rows are exported as Parquet; give a name that ends in .parquet, such as "
            f"{out.with_suffix('.parquet')}, or one for a folder"
        )
    if single and (large := _beside_rows(data.manifest)):
        raise UsageError(
            f"--out {out}: {large[0]} of {data.path} is too large to be written into the file of the "
            f"rows; name a folder, such as {out.with_suffix('')}"
        )
    with replacing(out) if single else replacing_folder(out, new=True) as partial:
        names = _write(data, partial, single)
    return [out] if single else [out / name for name in names]


def _write(data: PreparedData, target: Path, single: bool) -> list[str]:
    """Write ``target``, a file if ``single``, else a folder; the names of the files in the folder."""
    from pyarrow.parquet import ParquetWriter

    schema = _schema(data)
    options: dict[str, Any] = {"compression": "zstd", "use_dictionary": ["split", "input_ids"]}
    for name in _beside_rows(data.manifest):
        copy = target / _BESIDE / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(data.path / name, copy)
    names = []
    writer = ParquetWriter(target, schema, **options) if single else None
    try:
        for split, entry in data.manifest.splits.items():
            first = 0
            for number, shard in enumerate(entry.shards):
                if not single:
                    names.append(f"{split}-{number:05d}.parquet")
                    if writer is not None:
                        writer.close()
                    writer = ParquetWriter(target / names[-1], schema, **options)
                assert writer is not None
                for table in _tables(data, split, first, first + shard.num_rows, schema):
                    writer.write_table(table)
                first += shard.num_rows
    finally:
        if writer is not None:
            writer.close()
    return names


def _beside_rows(manifest: Manifest) -> list[str]:
    """Names of the files that are too large for the schema of others, the largest first."""
    room, large = _MOST_WITHIN, []
    for entry in sorted(manifest.files, key=lambda entry: entry.bytes):
        room -= entry.bytes
        if room < 0:
            large.insert(0, entry.file)
    return large


def _schema(data: PreparedData) -> pa.Schema:
    """The columns' types, and in their metadata the manifest and every file that is not beside the rows."""
    import pyarrow as pa

    def row_of(kind: pa.DataType) -> pa.DataType:
        return pa.list_(kind, data.row_length)

    large = _beside_rows(data.manifest)
    names = [entry.file for entry in data.manifest.files if entry.file not in large]
    description = {
        "manifest": (data.path / MANIFEST).read_text(encoding="utf-8"),
        "files": {n: base64.b64encode((data.path / n).read_bytes()).decode() for n in names},
    }
    kinds = [
        pa.string(),
        row_of(pa.from_numpy_dtype(np.dtype(id_dtype(data.vocab_size)))),
        row_of(pa.int32()),
        row_of(pa.uint8()),
        row_of(pa.uint8()),
        pa.list_(pa.int32()),
    ]
    numbers = {"scores": pa.float32(), "ngrams": pa.uint8()}
    kinds += [row_of(numbers[column]) for column in _columns_beside(data.manifest)]
    columns = zip(_columns(data.manifest), kinds, strict=True)
    return pa.schema(columns, {_KEY: json.dumps(description).encode()})


def _columns(manifest: Manifest) -> tuple[str, ...]:
    return (*COLUMNS, *_columns_beside(manifest))


def _columns_beside(manifest: Manifest) -> list[Column]:
    """The columns that the rows were given after they were made."""
    return [column for column in ADDED if getattr(manifest, column) is not None]


def _tables(
    data: PreparedData, split: str, first: int, stop: int, schema: pa.Schema
) -> Iterator[pa.Table]:
    """Rows ``first`` to ``stop`` (exclusive) of a split, some two million tokens at a time."""
    import pyarrow as pa

    length = data.row_length
    step = max(1, _GROUP_TOKENS // length)
    for start in range(first, stop, step):
        numbers = np.arange(start, min(start + step, stop))
        ids, annotation, edges = data.split(split).read_raw(numbers)
        inner = edges[edges % length > 0]
        offsets = np.searchsorted(inner, np.arange(numbers.size + 1) * length)
        flat = (
            ids,
            marks.word_id(annotation),
            marks.token_class(annotation),
            marks.is_special(annotation).astype(np.uint8),
        )
        lists = [pa.FixedSizeListArray.from_arrays(a.ravel(), length) for a in flat]
        bounds = pa.ListArray.from_arrays(offsets.astype(np.int32), inner % length)
        name = pa.array([split]).take(pa.array(np.zeros(numbers.size, np.int64)))
        columns = [name, *lists, bounds]
        for column in _columns_beside(data.manifest):
            values = data.split(split).read_column(column, numbers)
            assert values is not None
            columns.append(pa.FixedSizeListArray.from_arrays(values.ravel(), length))
        yield pa.Table.from_arrays(columns, schema=schema)


def import_parquet(source: str | Path, out: str | Path) -> PreparedData:
    """Make the prepared folder ``out`` of what :func:`export_parquet` wrote, and open it.

    Raises :class:`UsageError` where ``source`` is no export or ``out`` exists, :class:`DataError` where
    rows are missing or not those that were exported.
    """
    need("pyarrow", "prepare", "Reading and writing Parquet")
    source, out = as_a_shell_has_it(source), as_a_shell_has_it(out)
    files = sorted(source.glob("*.parquet")) if source.is_dir() else [source]
    if not files or not all(file.is_file() for file in files):
        raise UsageError(
            f"{source} is neither a Parquet file nor a folder that holds Parquet files"
        )
    refuse_file(out, "prepared data")
    if out.exists():
        raise UsageError(f"{out} exists; choose another folder to import to, or remove it")
    with replacing_folder(out, new=True) as partial:
        _read(source, files, partial)
    return PreparedData.open(out)


def _read(source: Path, files: list[Path], target: Path) -> None:
    """Write to ``target`` what an export holds, and read it again.

    Raises :class:`DataError` where that is not all that was exported, or is something else.
    """
    manifest, text, others = _read_description(files)
    again = f"export {manifest.fingerprint[:16]} again, or copy its files again"
    splits = {}
    try:
        for split, entry in manifest.splits.items():
            splits[split] = _read_split(files, target, split, entry, manifest)
    except _NO_ROWS as error:
        raise DataError(f"the rows in {source} are damaged ({in_words(error)}); {again}") from None
    values = manifest.to_dict() | {"splits": {name: e.to_dict() for name, e in splits.items()}}
    if fingerprint(values) != manifest.fingerprint:
        raise DataError(f"the rows in {source} are not those that were exported; {again}")
    beside = files[0].parent / _BESIDE
    for name in dict.fromkeys((*others, *(entry.file for entry in manifest.files))):
        if name in others:
            write_bytes(target / name, others[name])
        elif (beside / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(beside / name, target / name)
        else:
            raise DataError(f"{beside / name} is missing: it belongs to the rows in {source}")
    write_bytes(target / MANIFEST, text.encode())
    if damaged := PreparedData(target, manifest).damage():
        raise DataError(
            f"the files in {source} are not those that were exported: {', '.join(damaged)}; {again}"
        )


def _read_description(files: list[Path]) -> tuple[Manifest, str, dict[str, bytes]]:
    """The manifest, its text and the other files of an export whose parts agree."""
    found = set()
    for file in files:
        found.add((_open(file).schema_arrow.metadata or {}).get(_KEY))
    if found == {None} or not found:
        raise UsageError(
            f"{files[0]} was not written by `chronomask data export`: its schema does not say what "
            "the rows are"
        )
    if len(found) > 1:
        raise UsageError(
            f"{files[0].parent} holds files of several exports; put each into a folder of its own"
        )
    try:
        description = json.loads(found.pop() or b"")
        text = str(description["manifest"])
        others = {n: base64.b64decode(coded) for n, coded in description["files"].items()}
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(
            f"{files[0]}: the description of its rows is damaged ({in_words(error)}); {_AGAIN}"
        ) from None
    for name in others:
        if not stays_below(name):
            raise DataError(f"{files[0]}: {shown(name)} names a file outside its folder; {_AGAIN}")
    return manifest_of(text, f"the manifest in {files[0]}", _AGAIN), text, others


def _open(file: Path) -> ParquetFile:
    import pyarrow as pa
    from pyarrow.parquet import ParquetFile

    try:
        return ParquetFile(file, memory_map=True)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(
            f"{file} is not a readable Parquet file ({in_words(error)}): copy it again, or {_AGAIN}"
        ) from None


def _read_split(
    files: list[Path], target: Path, split: str, entry: SplitEntry, manifest: Manifest
) -> SplitEntry:
    length = manifest.row_length
    rows = max((shard.num_rows for shard in entry.shards), default=1)
    writer = RowWriter(target, split, length, manifest.vocab_size, shard_tokens=rows * length)
    for file in files:
        for table in _row_groups(file, split, COLUMNS):
            writer.write(*_arrays(table, length, file), num_tokens=0)
    written = writer.finish(entry.num_documents)
    written = written.model_copy(update={"num_tokens": entry.num_tokens})
    for column in _columns_beside(manifest):
        values = (
            _numbers(table, column, length, file)
            for file in files
            for table in _row_groups(file, split, ("split", column))
        )
        written = write_column(target, split, written, column, values)
    return written


def _row_groups(file: Path, split: str, columns: Sequence[str]) -> Iterator[pa.Table]:
    """Columns of a file's rows of a split, some of them at a time; raises :class:`DataError`."""
    import pyarrow as pa

    parquet = _open(file)
    try:
        for number in range(parquet.num_row_groups):
            table = parquet.read_row_group(number, columns=list(columns))
            table = table.filter(_is_of(table, split))
            if table.num_rows:
                yield table
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{file} is damaged ({error}); export the data again") from None


def _is_of(table: pa.Table, split: str) -> Any:
    """Bool: the rows of a table that belong to a split."""
    import pyarrow.compute as pc

    return pc.equal(table["split"], split)  # type: ignore[attr-defined]


def _arrays(table: pa.Table, length: int, file: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """``ids``, ``annotation`` [B, T] and flat ``bounds`` of a row group."""

    def column(name: str) -> np.ndarray:
        return _numbers(table, name, length, file)

    words, special = column("word_ids"), column("special_tokens_mask") > 0
    before = np.full_like(words, -1)
    np.maximum.accumulate(words[:, :-1], axis=1, out=before[:, 1:])
    annotation = marks.annotate(column("token_class").astype(np.uint8), words > before, special)
    bounds = table["bounds"].combine_chunks()
    counts = np.asarray(bounds.value_lengths())
    rows = np.repeat(np.arange(table.num_rows, dtype=np.int64), counts)
    return column("input_ids"), annotation, rows * length + np.asarray(bounds.flatten())


def _numbers(table: pa.Table, name: str, length: int, file: Path) -> np.ndarray:
    """A column of a row group [B, T]; raises :class:`DataError` for rows of another length."""
    flat = table[name].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    if flat.size != table.num_rows * length:
        raise DataError(f"{file}: column {name} does not have {length} values in every row")
    return flat.reshape(-1, length)
