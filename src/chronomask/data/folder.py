"""Prepared rows on disk: a folder of flat ``.npy`` shards described by one manifest.

A token costs two (or four) bytes of id and one byte of annotation; documents that begin inside a row
cost four bytes each. Everything is read through a memory map, nothing is ever unpickled. docs/contracts.md
states the layout. Reading rows needs neither a tokenizer nor a tagger.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from chronomask.data import annotation as marks
from chronomask.data.manifest import (
    MANIFEST,
    WORK,
    Array,
    Column,
    FileEntry,
    Manifest,
    SplitEntry,
    fingerprint,
    read_manifest,
)
from chronomask.data.order import visits
from chronomask.errors import DataError, UsageError, nearest
from chronomask.folders import way_to_prepare_again, what_it_is
from chronomask.machine import make_room_for_files
from chronomask.storage import as_a_shell_has_it, file_sha256, read_object, way_to_read
from chronomask.types import Rows

__all__ = [
    "PreparedData",
    "PreparedSplit",
    "WithManifest",
]


_KINDS: dict[Array, tuple[Any, ...]] = {
    "ids": (np.uint16, np.uint32),
    "annotation": (np.uint8,),
    "scores": (np.float16,),
    "ngrams": (np.uint8,),
}
"""Types of the arrays with a number for every token."""


class PreparedSplit:
    """Random access to the rows of one split; cheap to open, safe to share between threads."""

    def __init__(self, path: Path, entry: SplitEntry, row_length: int, fingerprint: str) -> None:
        self.path = path
        self.entry = entry
        self.row_length = row_length
        self.fingerprint = fingerprint
        """The prepared data's fingerprint."""
        self._first_rows = np.cumsum([0, *(shard.num_rows for shard in entry.shards)])
        self._open: dict[tuple[int, Array], np.ndarray] = {}

    @property
    def num_rows(self) -> int:
        return self.entry.num_rows

    @property
    def num_tokens(self) -> int:
        """Tokens that are not padding, special tokens included."""
        return self.entry.num_tokens

    @property
    def num_documents(self) -> int:
        return self.entry.num_documents

    def has(self, column: Column) -> bool:
        """Whether every token has a number in ``column``."""
        return bool(self.entry.shards) and getattr(self.entry.shards[0], column) is not None

    def first_rows(self, num: int, shuffled: bool = False) -> np.ndarray:
        """int64: up to ``num`` rows from the beginning, in the data or in a fixed order of all rows."""
        rows = np.arange(min(num, self.num_rows))
        return visits(self.num_rows, 0, rows)[0] if shuffled and rows.size else rows

    def read(self, row_ids: np.ndarray, epoch: np.ndarray | int = 0) -> Rows:
        """The rows of ``row_ids`` (int64 [B]) in that order; ``epoch`` is copied into the result.

        Raises :class:`DataError` where a row does not exist or a shard cannot be read.
        """
        row_ids = np.asarray(row_ids, np.int64)
        ids, annotation, cu_seqlens = self.read_raw(row_ids)
        return Rows(
            input_ids=ids.astype(np.int64),
            word_id=marks.word_id(annotation),
            token_class=marks.token_class(annotation),
            row_id=row_ids,
            epoch=np.broadcast_to(np.asarray(epoch, np.int64), row_ids.shape).copy(),
            cu_seqlens=cu_seqlens,
            scores=self.read_column("scores", row_ids),
            ngrams=self.read_column("ngrams", row_ids),
        )

    def read_column(self, column: Column, row_ids: np.ndarray) -> np.ndarray | None:
        """[B, T] of rows that exist, as :class:`Rows` has it; None where the data has no such column."""
        if not self.has(column):
            return None
        kind = np.float32 if column == "scores" else np.uint8
        values = np.empty((row_ids.size, self.row_length), kind)
        shard_of = np.searchsorted(self._first_rows, row_ids, side="right") - 1
        for shard in np.unique(shard_of).tolist():
            where = np.flatnonzero(shard_of == shard)
            values[where] = self._array(shard, column)[row_ids[where] - self._first_rows[shard]]
        return values

    def read_raw(self, row_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Ids [B, T] and annotation [B, T] as stored, and ``cu_seqlens`` int32 [D + 1]."""
        if row_ids.size and (row_ids.min() < 0 or row_ids.max() >= self.num_rows):
            bad = row_ids[(row_ids < 0) | (row_ids >= self.num_rows)][0]
            raise DataError(f"{self.path} has no row {bad}; its rows are 0 to {self.num_rows - 1}")
        num_rows, length = row_ids.size, self.row_length
        shard_of = np.searchsorted(self._first_rows, row_ids, side="right") - 1
        starts = np.arange(num_rows + 1, dtype=np.int32) * np.int32(length)
        touched = np.unique(shard_of)
        if not touched.size:
            return np.empty((0, length), np.uint16), np.empty((0, length), np.uint8), starts
        ids = np.empty((num_rows, length), self._array(int(touched[0]), "ids").dtype)
        annotation = np.empty((num_rows, length), np.uint8)
        inner = [starts]
        for shard in touched.tolist():
            where = np.flatnonzero(shard_of == shard)
            local = row_ids[where] - self._first_rows[shard]
            if where.size == num_rows:  # the common case: no second copy
                # mode="clip" because "raise" would go through a buffer; the rows were checked above
                np.take(self._array(shard, "ids"), local, axis=0, out=ids, mode="clip")
                np.take(
                    self._array(shard, "annotation"), local, axis=0, out=annotation, mode="clip"
                )
            else:
                ids[where] = self._array(shard, "ids")[local]
                annotation[where] = self._array(shard, "annotation")[local]
            bounds = self._array(shard, "bounds")
            begin = np.searchsorted(bounds, (local * length).astype(np.uint32))
            counts = np.searchsorted(bounds, ((local + 1) * length).astype(np.uint32)) - begin
            if counts.any():
                first = np.cumsum(counts) - counts
                index = np.repeat(begin - first, counts) + np.arange(counts.sum())
                shift = np.repeat((where - local) * length, counts)
                inner.append((bounds[index] + shift).astype(np.int32))
        cu_seqlens = starts if len(inner) == 1 else np.sort(np.concatenate(inner))
        return ids, annotation, cu_seqlens

    def annotations(self) -> Iterator[np.ndarray]:
        """The annotation bytes of every shard in order, uint8 [rows, T] each."""
        for shard in range(len(self.entry.shards)):
            yield self._array(shard, "annotation")

    def _array(self, shard: int, name: Array) -> np.ndarray:
        array = self._open.get((shard, name))
        if array is None:
            array = self._open[shard, name] = self._map(shard, name)
        return array

    def _map(self, shard: int, name: Array) -> np.ndarray:
        """An array of a shard, read from disk as it is used; raises DataError where it is damaged."""
        entry = self.entry.shards[shard]
        file = self.path.parent / getattr(entry, name).file
        if not len(self._open) % 64:
            make_room_for_files()
        try:
            array = np.load(file, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            way_out = way_to_read(error, way_to_prepare_again(self.path.parent))
            raise DataError(f"{file} cannot be read ({error}); {way_out}") from None
        if name == "bounds":
            good = array.ndim == 1 and array.dtype == np.uint32
        else:
            good = array.shape == (entry.num_rows, self.row_length) and array.dtype in _KINDS[name]
        if not good:
            raise DataError(
                f"{file} holds {array.dtype} {array.shape}, not what the manifest says; "
                f"{way_to_prepare_again(self.path.parent)}"
            )
        return np.asarray(array)  # a plain view: np.memmap makes every slice slow


class WithManifest:
    """What a manifest says of rows, in one prepared folder or in several that agree on it."""

    path: Path
    """the folder; of a mixture the first part's"""
    manifest: Manifest
    """the manifest in that folder"""

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.manifest.class_names

    @property
    def row_length(self) -> int:
        return self.manifest.row_length

    @property
    def vocab_size(self) -> int:
        return self.manifest.vocab_size

    @property
    def tokenizer_path(self) -> Path:
        """Folder that ``AutoTokenizer.from_pretrained`` opens."""
        return self.path / "tokenizer"


class PreparedData(WithManifest):
    """A prepared folder, opened for reading."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path.absolute()  # a notebook may change its folder
        self.manifest = manifest
        self._splits: dict[str, PreparedSplit] = {}

    @classmethod
    def open(cls, path: str | Path, verify: bool = False) -> PreparedData:
        """Open a prepared folder; the size of every shard and of the tokenizer's files is checked, with
        ``verify`` every byte.

        Raises :class:`UsageError` where there is no prepared data, :class:`DataError` where it is
        damaged or of another schema version.
        """
        path = as_a_shell_has_it(path)
        file = path / MANIFEST
        if not path.is_dir():
            way_out = (
                f"name the folder that it is in, {path.parent}"
                if path.name == MANIFEST and path.is_file()
                else "`chronomask prepare` makes one"
            )
            raise UsageError(f"{path} is not a folder of prepared data; {way_out}")
        if not file.is_file():
            if instead := what_it_is(path):
                raise UsageError(f"{path} is not prepared data{instead}")
            raise UsageError(
                f"{path} has no {MANIFEST}: its preparation did not finish, and the same command continues it"
                if (path / WORK).is_dir()
                else f"{path} has no {MANIFEST}: it is not prepared data, or was not copied whole; "
                "chronomask prepare TEXT --out FOLDER makes it of text"
            )
        manifest = read_manifest(file)
        data = cls(path, manifest)
        tokenizer = [entry for entry in manifest.files if entry.file.startswith("tokenizer/")]
        for entry in (*manifest.shard_files(), *tokenizer):
            _check_size(path, entry)
        if verify:
            data.verify()
        return data

    def verify(self) -> int:
        """Read every byte again and give their number.

        Raises :class:`DataError` naming each file that is damaged, cut or missing.
        """
        if damaged := self.damage():
            raise DataError(
                f"{self.path}: damaged: {', '.join(damaged)}; {way_to_prepare_again(self.path)}"
            )
        return sum(entry.bytes for entry in self.manifest.all_files())

    def damage(self) -> list[str]:
        """The name of each file that is damaged, cut or missing, after every byte was read again."""
        damaged = []
        for entry in self.manifest.all_files():
            file = self.path / entry.file
            if not file.is_file():
                damaged.append(f"{entry.file} (missing)")
            elif file.stat().st_size != entry.bytes or file_sha256(file) != entry.sha256:
                damaged.append(entry.file)
        tokenizer = self.tokenizer_path / "tokenizer.json"
        name = str(tokenizer.relative_to(self.path))
        if name not in {entry.file for entry in self.manifest.files} and (
            not tokenizer.is_file() or file_sha256(tokenizer) != self.manifest.tokenizer_sha256
        ):
            damaged.append(name)
        if self.manifest.fingerprint != fingerprint(self.manifest.to_dict()):
            damaged.append(MANIFEST)
        return damaged

    @property
    def fingerprint(self) -> str:
        return self.manifest.fingerprint

    @cached_property
    def statistics(self) -> dict[str, Any]:
        """Counts for people, as written by the preparation; empty if the file is gone.

        Raises :class:`DataError` where it is damaged, or holds other values than such counts.
        """
        file = self.path / "statistics.json"
        try:
            found = read_object(file) or {}
            if strange := _no_counts(found):
                raise DataError(f"{file} does not hold what a preparation counts: '{strange}'")
        except DataError as error:
            raise DataError(f"{error}; {way_to_prepare_again(self.path)}") from None
        return found

    def unknown_share(self, *splits: str) -> float | None:
        """Share of the characters in unknown tokens ([UNK]) in the text of ``splits``, or of all, in [0, 1].

        Of the tokens where an earlier version counted these alone; None where neither is counted.
        """
        counts = self.statistics.get("splits", {})
        chosen = [counts.get(name, {}) for name in splits or counts]
        if not chosen or any("unknown_tokens" not in split for split in chosen):
            return None
        if all("unknown_characters" in split for split in chosen):
            characters = sum(split.get("characters", 0) for split in chosen)
            return sum(split["unknown_characters"] for split in chosen) / max(characters, 1)
        unknown = sum(split["unknown_tokens"] for split in chosen)
        known = sum(split.get("tokens_without_specials", 0) for split in chosen)
        return unknown / max(unknown + known, 1)

    def split(self, name: str) -> PreparedSplit:
        """The split ``train`` or ``held_out``; raises :class:`UsageError` for another name."""
        entry = self.manifest.splits.get(name)
        if entry is None:
            raise UsageError(
                f"{self.path} has no split '{name}'; {nearest(name, self.manifest.splits)}"
            )
        if name not in self._splits:
            self._splits[name] = PreparedSplit(
                self.path / name, entry, self.row_length, self.fingerprint
            )
        return self._splits[name]


def _no_counts(values: dict[str, Any]) -> str | None:
    """The first part of ``statistics.json`` that is of another form than a preparation writes; None if all
    are as they should be.
    """
    checks: dict[str, Callable[[Any], bool]] = {
        "splits": lambda part: _is_table(part, lambda split: _is_table(split, _is_share)),
        "skipped": lambda part: _is_table(part, _is_account),
        "sources": lambda part: isinstance(part, list) and all(isinstance(s, dict) for s in part),
    }
    return next((key for key in checks if key in values and not checks[key](values[key])), None)


def _is_table(value: object, is_good: Callable[[Any], bool]) -> bool:
    return isinstance(value, dict) and all(map(is_good, value.values()))


def _is_number(value: object) -> bool:
    """Whether it is a number that float64 holds, or NaN, as a mean over nothing is, or None for one."""
    return value is None or (isinstance(value, int | float) and not abs(value) > 1e300)


def _is_share(value: object) -> bool:
    """Whether it is a number, or one for each class."""
    return _is_number(value) or _is_table(value, _is_number)


def _is_account(value: object) -> bool:
    """Whether it says how much was left out for one reason, as ``Skipped.to_dict`` does."""
    if not isinstance(value, dict):
        return False
    names, unit = value.get("names"), value.get("unit", "")
    numbers = (value.get("count"), value.get("bytes", 0))
    texts = [unit, *names] if isinstance(names, list) else [None]
    return all(isinstance(n, int) for n in numbers) and all(isinstance(t, str) for t in texts)


def _check_size(folder: Path, entry: FileEntry) -> None:
    """Raise DataError where a file of prepared data is missing or has another size."""
    file, expected = folder / entry.file, entry.bytes
    try:
        size = file.stat().st_size
    except FileNotFoundError:
        raise DataError(f"{file} is missing; {way_to_prepare_again(folder)}") from None
    if size != expected:
        raise DataError(
            f"{file} has {size:,} bytes instead of {expected:,}: it is truncated or was changed; "
            f"{way_to_prepare_again(folder)}"
        )
