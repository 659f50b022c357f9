"""The manifest of a prepared folder: what is in it, and a hash of every byte.

The manifest is written last, so a folder without one is not prepared data; it holds size and SHA-256 of
every file, and one over itself. docs/contracts.md states the layout.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from chronomask.config import Config
from chronomask.errors import ChronomaskError, DataError, shown
from chronomask.folders import way_to_prepare_again
from chronomask.storage import bytes_sha256, file_sha256, is_file_name, stays_below, way_to_read

__all__ = [
    "ADDED",
    "ARRAYS",
    "MANIFEST",
    "SCHEMA_VERSION",
    "WORK",
    "Array",
    "Column",
    "FileEntry",
    "Manifest",
    "ShardEntry",
    "SplitEntry",
    "file_entry",
    "fingerprint",
    "manifest_of",
    "read_manifest",
    "values_sha256",
]

SCHEMA_VERSION = 1
"""Version of the layout of prepared folders that this package writes and reads."""
MANIFEST = "manifest.json"
"""Name of the manifest in a prepared folder."""
WORK = ".work"
"""Name of the folder within it that a preparation works in until it has finished."""

Array = Literal["ids", "annotation", "bounds", "scores", "ngrams"]
"""One of the files of a shard."""
ARRAYS: tuple[Array, ...] = ("ids", "annotation", "bounds", "scores", "ngrams")
"""The files of a shard, in the order in which they are hashed; not every folder has the last two."""
Column = Literal["scores", "ngrams"]
"""A number for every token that is added to rows which are there."""
ADDED: tuple[Column, ...] = ("scores", "ngrams")
"""All of them."""


def _check_path(name: str) -> str:
    """A name that becomes a path below the prepared folder; raises ValueError for any other."""
    if not stays_below(name):
        raise ValueError("it names a file outside its folder")
    return name


def _check_name(name: str) -> str:
    """A name that becomes part of a file's; raises ValueError for any other."""
    if not is_file_name(name):
        raise ValueError("it cannot be part of a file's name")
    return name


_Path = Annotated[str, AfterValidator(_check_path)]
_Name = Annotated[str, AfterValidator(_check_name)]
_Count = Annotated[int, Field(ge=0, lt=1 << 48)]
"""Sums and products of a few of them with numbers of a row stay far below what int64 holds."""
_Small = Annotated[int, Field(ge=1, lt=1 << 31)]


class FileEntry(Config):
    """One file of a shard."""

    file: _Path
    """Path relative to the prepared folder, below it."""
    sha256: str
    """SHA-256 of the whole file, in hexadecimal."""
    bytes: _Count
    """Size of the file in bytes."""


class _MayHaveColumns(Config):
    """Without a column it is written as it was before there were any."""

    @model_serializer(mode="wrap")
    def _leave_out_what_is_not_there(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = write(self)
        return {k: v for k, v in values.items() if k not in ADDED or v is not None}


class ShardEntry(_MayHaveColumns):
    """Consecutive rows of a split: a file for each array."""

    ids: FileEntry
    """uint16 or uint32 [rows, row_length]."""
    annotation: FileEntry
    """uint8 [rows, row_length]: class, word start, special."""
    bounds: FileEntry
    """uint32 [D]: ascending flat positions (row · row_length + token, token > 0)."""
    scores: FileEntry | None = None
    """float16 [rows, row_length]: how hard each token is; None where there are none."""
    ngrams: FileEntry | None = None
    """uint8 [rows, row_length]: words of the collocation that begins there, 0 for none; None as above."""
    num_rows: _Count
    """Rows of the shard."""

    @property
    def files(self) -> list[FileEntry]:
        """Its files, in the order of :data:`ARRAYS`."""
        entries = [getattr(self, array) for array in ARRAYS]
        return [entry for entry in entries if entry is not None]


class SplitEntry(Config):
    """The rows of one split, over its shards in order."""

    num_rows: _Count
    """Rows of all shards."""
    num_tokens: _Count
    """Tokens that are not padding, special tokens included."""
    num_documents: _Count
    """Documents the rows were made of."""
    shards: tuple[ShardEntry, ...]
    """Shards in row order."""


class Manifest(_MayHaveColumns):
    """What a prepared folder holds; equal rows give an equal ``fingerprint``."""

    schema_version: int
    """Version of this layout."""
    chronomask_version: str
    """Version of the package that wrote the folder."""
    fingerprint: _Name
    """SHA-256 over the shards' hashes and everything that shapes rows."""
    tokenizer_sha256: str
    """SHA-256 of ``tokenizer/tokenizer.json``."""
    tagger: str
    """Name and version of the tagger the classes came from."""
    class_names: tuple[str, ...]
    """Name of every class; class 0 is "none"."""
    row_length: _Small
    """Tokens of a row."""
    packing: str
    """How documents were put into rows."""
    pad_token_id: _Count
    """Id that fills a row's end."""
    vocab_size: _Small
    """Number of ids of the tokenizer; every id is below it."""
    scores: str | None = None
    """What the scores are, such as ``informativeness``, or ``given``; None where there are none."""
    ngrams: str | None = None
    """What the collocations were found by, ``pmi``; None where none were looked for."""
    splits: dict[_Name, SplitEntry]
    """Splits by name: ``train`` and ``held_out``."""
    files: tuple[FileEntry, ...] = ()
    """Every other file of the folder that the preparation wrote."""
    values_sha256: str | None = None
    """SHA-256 over every other value of the manifest; None where it was not kept yet."""

    @model_validator(mode="after")
    def _check_counts(self) -> Self:
        """Refuse counts that differ among themselves, or are more than the bytes of the files can hold."""
        for name, split in self.splits.items():
            in_shards = sum(shard.num_rows for shard in split.shards)
            if split.num_rows != in_shards:
                raise ValueError(
                    f"split {name} has {split.num_rows:,} rows, and its shards have {in_shards:,}"
                )
            for shard in split.shards:
                if shard.num_rows * self.row_length > shard.annotation.bytes:
                    raise ValueError(
                        f"{shard.annotation.file} has {shard.annotation.bytes:,} bytes, too few for "
                        f"{shard.num_rows:,} rows of {self.row_length:,} tokens"
                    )
        return self

    def shard_files(self) -> list[FileEntry]:
        """The files that hold rows, in order."""
        shards = (shard for split in self.splits.values() for shard in split.shards)
        return [entry for shard in shards for entry in shard.files]

    def all_files(self) -> list[FileEntry]:
        """Every file whose hash the manifest holds."""
        return [*self.shard_files(), *self.files]


def fingerprint(values: Mapping[str, Any]) -> str:
    """SHA-256 that names the rows: over the shards' hashes and the facts a reader interprets them by.

    ``values`` are the manifest's, with or without ``fingerprint``; versions and file names are left
    out, so moving or rewriting the same rows keeps the fingerprint.
    """
    shaping = {
        key: values[key]
        for key in ("schema_version", "tokenizer_sha256", "tagger", "class_names", "row_length")
    }
    shaping |= {key: values[key] for key in ("packing", "pad_token_id", "vocab_size")}
    shaping["splits"] = {
        name: [
            [shard[array]["sha256"] for array in ARRAYS if shard.get(array)]
            for shard in split["shards"]
        ]
        for name, split in sorted(values["splits"].items())
    }
    text = json.dumps(shaping, sort_keys=True, ensure_ascii=False)
    return bytes_sha256(text.encode())


def values_sha256(values: Mapping[str, Any]) -> str:
    """SHA-256 over the manifest's values as JSON, ``values_sha256`` itself left out."""
    others = {key: value for key, value in values.items() if key != "values_sha256"}
    text = json.dumps(others, sort_keys=True, ensure_ascii=False)
    return bytes_sha256(text.encode())


def read_manifest(file: Path) -> Manifest:
    """The manifest in ``file``; raises :class:`DataError` where it is damaged or of another version."""
    again = way_to_prepare_again(file.parent)
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        way_out = way_to_read(error, again)
        raise DataError(f"{file} is not a readable manifest ({error}); {way_out}") from None
    return manifest_of(text, str(file), again)


def manifest_of(text: str, where: str, way_out: str) -> Manifest:
    """The manifest that is written in ``text``.

    Raises :class:`DataError` where that is damaged or of another version, or names what cannot be in a
    prepared folder; it names ``where`` the text is and ends with the ``way_out``.
    """
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where} is not a readable manifest ({error}); {way_out}") from None
    version = values.get("schema_version") if isinstance(values, dict) else None
    if version != SCHEMA_VERSION:
        raise DataError(
            f"{where} has schema version {shown(version)}; this version of chronomask reads "
            f"{SCHEMA_VERSION}; {way_out}"
        )
    try:
        manifest = Manifest.parse(values, where=where)
    except ChronomaskError as error:
        raise DataError(f"{error}; {way_out}") from None
    if manifest.values_sha256 not in (None, values_sha256(values)):
        raise DataError(
            f"{where} is damaged: its values are not those it was written with; {way_out}"
        )
    return manifest


def file_entry(folder: Path, name: str) -> FileEntry:
    """The entry of a file that is in ``folder`` now."""
    file = folder / name
    return FileEntry(file=name, sha256=file_sha256(file), bytes=file.stat().st_size)
