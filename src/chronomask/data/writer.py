"""Writing prepared rows: shards first, each under a temporary name until it is whole; manifest last."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from chronomask.data.manifest import (
    MANIFEST,
    SCHEMA_VERSION,
    Column,
    FileEntry,
    Manifest,
    ShardEntry,
    SplitEntry,
    file_entry,
    fingerprint,
    values_sha256,
)
from chronomask.errors import DataError
from chronomask.storage import bytes_sha256, write_bytes

__all__ = ["RowWriter", "id_dtype", "write_column", "write_manifest"]

_LARGEST = float(np.finfo(np.float16).max)
SHARD_TOKENS = 1 << 25
"""Tokens of a full shard: 64 MiB of 16-bit ids, well inside the 32 bits of a bound."""


def id_dtype(vocab_size: int) -> type[np.unsignedinteger]:
    """The smallest stored type that holds every id."""
    return np.uint16 if vocab_size <= 1 << 16 else np.uint32


class RowWriter:
    """Collects the rows of one split and writes them as shards.

    Rows are cut into shards at fixed row counts, so the files depend on the rows alone and not on how
    they were handed over.
    """

    def __init__(
        self,
        folder: Path,
        split: str,
        row_length: int,
        vocab_size: int,
        shard_tokens: int = SHARD_TOKENS,
    ) -> None:
        self._root = folder
        self._split = split
        self._row_length = row_length
        self._dtype = id_dtype(vocab_size)
        self._shard_rows = max(1, shard_tokens // row_length)
        self._pending: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self._pending_rows = 0
        self._shards: list[ShardEntry] = []
        self._num_tokens = 0
        (folder / split).mkdir(parents=True, exist_ok=True)

    def write(
        self, ids: np.ndarray, annotation: np.ndarray, bounds: np.ndarray, num_tokens: int
    ) -> None:
        """Add rows: ``ids`` and ``annotation`` [B, T], of which ``num_tokens`` tokens are not padding.

        ``bounds`` int64: ascending flat positions (row · T + token within these rows) at which a document,
        or the padding, begins inside a row.
        """
        self._pending.append((ids.astype(self._dtype), annotation.astype(np.uint8), bounds))
        self._pending_rows += len(ids)
        self._num_tokens += num_tokens
        while self._pending_rows >= self._shard_rows:
            self._flush(self._shard_rows)

    def finish(self, num_documents: int) -> SplitEntry:
        """Write what is left and describe the split."""
        if self._pending_rows:
            self._flush(self._pending_rows)
        return SplitEntry(
            num_rows=sum(shard.num_rows for shard in self._shards),
            num_tokens=self._num_tokens,
            num_documents=num_documents,
            shards=tuple(self._shards),
        )

    def _flush(self, num_rows: int) -> None:
        """Write the first ``num_rows`` pending rows as a shard."""
        length = self._row_length
        ids = np.concatenate([part[0] for part in self._pending])
        annotation = np.concatenate([part[1] for part in self._pending])
        sizes = np.cumsum([0, *(len(part[0]) for part in self._pending)])
        bounds = np.concatenate(
            [part[2] + start * length for part, start in zip(self._pending, sizes, strict=False)]
        )
        cut = int(np.searchsorted(bounds, num_rows * length))
        number = len(self._shards)
        entries = {
            name: self._save(f"{self._split}/{name}-{number:05d}.npy", array)
            for name, array in (
                ("ids", ids[:num_rows]),
                ("annotation", annotation[:num_rows]),
                ("bounds", bounds[:cut].astype(np.uint32)),
            )
        }
        self._shards.append(ShardEntry(num_rows=num_rows, **entries))
        rest = (ids[num_rows:], annotation[num_rows:], bounds[cut:] - num_rows * length)
        self._pending = [rest] if len(rest[0]) else []
        self._pending_rows -= num_rows

    def _save(self, name: str, array: np.ndarray) -> FileEntry:
        data = _as_npy(array)
        write_bytes(self._root / name, data)
        return FileEntry(file=name, sha256=bytes_sha256(data), bytes=len(data))


def _as_npy(array: np.ndarray) -> bytes:
    """The array as the bytes of an ``.npy`` file."""
    array, header = np.ascontiguousarray(array), BytesIO()
    np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(array))
    return header.getvalue() + array.tobytes()


def write_column(
    folder: Path, split: str, entry: SplitEntry, column: Column, blocks: Iterable[np.ndarray]
) -> SplitEntry:
    """Write a column beside the shards of a split, and describe it with it: scores as float16, else uint8.

    ``blocks``: numbers [B, T] of consecutive rows, all rows of the split together. A file's name holds
    part of its hash, so files that a manifest names are never written over. Raises :class:`DataError` for
    numbers that float16 does not hold.
    """
    held: list[np.ndarray] = []
    num_held, first = 0, 0
    incoming = iter(blocks)
    shards = []
    for number, shard in enumerate(entry.shards):
        while num_held < shard.num_rows:
            block = next(incoming)
            held.append(
                _as_float16(block, split, first + num_held)
                if column == "scores"
                else block.astype(np.uint8)
            )
            num_held += len(held[-1])
        together = np.concatenate(held)
        data = _as_npy(together[: shard.num_rows])
        name = f"{split}/{column}-{number:05d}-{bytes_sha256(data)[:8]}.npy"
        write_bytes(folder / name, data)
        file = FileEntry(file=name, sha256=bytes_sha256(data), bytes=len(data))
        shards.append(shard.model_copy(update={column: file}))
        held, num_held = [together[shard.num_rows :]], num_held - shard.num_rows
        first += shard.num_rows
    return entry.model_copy(update={"shards": tuple(shards)})


def _as_float16(block: np.ndarray, split: str, first: int) -> np.ndarray:
    """Numbers of rows from ``first`` on as float16; raises :class:`DataError` for one it does not hold."""
    with np.errstate(over="ignore"):
        out = block.astype(np.float16)
    if not np.isfinite(out).all():
        row, token = np.argwhere(~np.isfinite(out))[0].tolist()
        raise DataError(
            f"the score of token {token} of {split} row {first + row} is {block[row, token]}; a score must "
            f"be a finite number between {-_LARGEST:g} and {_LARGEST:g}"
        )
    return out


def write_manifest(
    folder: Path,
    values: Mapping[str, Any],
    splits: Mapping[str, SplitEntry],
    files: Sequence[str] = (),
) -> Manifest:
    """Complete the folder with its manifest.

    ``values``: the manifest's keys other than versions, splits and hashes; ``files``: names of the files
    beside the shards whose hashes it is to hold.
    """
    from chronomask import __version__

    complete = {
        "schema_version": SCHEMA_VERSION,
        "chronomask_version": __version__,
        **values,
        "splits": {name: entry.to_dict() for name, entry in splits.items()},
    }
    complete["fingerprint"] = fingerprint(complete)
    complete["files"] = [file_entry(folder, name).to_dict() for name in files]
    complete["values_sha256"] = values_sha256(complete)
    manifest = Manifest.parse(complete)
    text = json.dumps(manifest.to_dict(), indent=1, ensure_ascii=False) + "\n"
    write_bytes(folder / MANIFEST, text.encode())
    return manifest
