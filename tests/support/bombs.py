"""Small files that hold much: what reading each costs in memory, in a process of its own.

    python -m tests.support.bombs --megabytes 2000 [KIND …]

prints the peak of each above what the process held before, in MiB, and fails above 300.
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import lzma
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import zstandard

from tests.support.processes import python_path

MEGABYTE = 1_000_000
LIMIT_MIB = 300
Parts = Iterator[bytes]


def repeated(piece: bytes, megabytes: float) -> Parts:
    """A piece again and again, a megabyte at a time."""
    block = piece * (MEGABYTE // len(piece))
    left = int(megabytes * MEGABYTE)
    while left > 0:
        yield block[:left] if len(piece) == 1 else block
        left -= len(block)


def conllu_word(number: int, length: int) -> bytes:
    """A line of CoNLL-U, and an empty one at the end of each sentence of so many words."""
    place = number % length
    line = b"%d\ta\t_\tNOUN" % (place + 1) + b"\t_" * 6 + b"\n"
    return line + b"\n" * (place == length - 1)


def around(before: bytes, parts: Parts, after: bytes = b"") -> Parts:
    """Parts between two others."""
    yield before
    yield from parts
    yield after


TEXTS: dict[str, Callable[[int], Parts]] = {
    "line.txt": lambda n: repeated(b"a", n),
    "no-blank-line.txt": lambda n: repeated(b"a" * 99 + b"\n", min(n, 17)),
    "line-ends.txt": lambda n: repeated(b"\r", min(n, 17)),
    "wide.txt": lambda n: around("😀".encode(), repeated(b"a", 14.9)),
    "line.jsonl": lambda n: around(b'{"text": "', repeated(b"a", n), b'"}\n{"text": "last"}'),
    "deep.jsonl": lambda n: repeated(b"[", 14.9),
    "groups.jsonl": lambda n: around(b'{"text": "a", "x": [', repeated(b"{},", 4.9), b"{}]}"),
    "numbers.jsonl": lambda n: around(b'{"text": "a", "x": [', repeated(b"1.5,", 14.9), b"1]}"),
    "keys.jsonl": lambda n: around(b"{", (f'"{k}":"{k}",'.encode() for k in range(800_000)), b'"text":""}'),
    "field.csv": lambda n: around(b'text\n"', repeated(b"a", n), b'"\n'),
    "longest-field.csv": lambda n: around('text\n"😀'.encode(), repeated(b"a", 14.9), b'"\n'),
    "open.csv": lambda n: around(b'text\n"', repeated(b"a" * 99 + b"\n", min(n, 17))),
    "fields.csv": lambda n: around(b"text\n", repeated(b",", n)),
    "most-fields.csv": lambda n: around(b"text\n", repeated(b"ab,", 14.9)),
    "most-fields.tsv": lambda n: around(b"text\n", repeated(b"ab\t", 14.9)),
    "columns.csv": lambda n: repeated(b"ab,", 14.9),
    "columns.tsv": lambda n: repeated(b"ab\t", 14.9),
    "fields.tsv": lambda n: around(b"text\n", repeated(b"\t", n)),
    "header.csv": lambda n: repeated(b"a", n),
    "document.conllu": lambda n: around(b"# newdoc\n", (conllu_word(k, 9) for k in range(1_500_000))),
    "sentence.conllu": lambda n: (conllu_word(k, 10**9) for k in range(1_500_000)),
    "header.warc": lambda n: around(b"WARC/1.0\r\n", repeated(b"a", n)),
    "record.warc": lambda n: around(
        b"WARC/1.0\nWARC-Type: conversion\nContent-Type: text/plain\nContent-Length: 9999999999\n\n",
        repeated(b"a", n),
    ),
}  # fmt: skip
"""Names, of which the ending is the format, and their bytes for a number of megabytes."""


def write_gzip(file: Path, parts: Parts) -> None:
    """Compress as quickly as may be."""
    with gzip.open(file, "wb", compresslevel=1) as handle:
        handle.writelines(parts)


def write_zip(file: Path, parts: Parts) -> None:
    """An archive of one file."""
    with (
        zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("a.txt", "w", force_zip64=True) as handle,
    ):
        handle.writelines(parts)


def write_tar(file: Path, megabytes: int) -> None:
    """A packed archive of one file."""
    member = tarfile.TarInfo("a.txt")
    member.size = megabytes * MEGABYTE
    with tarfile.open(file, "w:gz", compresslevel=1) as archive:
        archive.addfile(member, io.BufferedReader(_Endless()))


class _Endless(io.RawIOBase):
    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        buffer[:] = b"a" * len(buffer)
        return len(buffer)


def write_parquet(file: Path, megabytes: int) -> None:
    """One text as large as asked for."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"text": ["a" * (megabytes * MEGABYTE)]}), file, compression="zstd")


def write_repetitive_parquet(file: Path, megabytes: int) -> None:
    """A text of 15 MB, written once, in many rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = max(1, megabytes // 15)
    column = pa.DictionaryArray.from_arrays(pa.array([0] * number, pa.int32()), ["a" * 15_000_000])
    pq.write_table(pa.table({"text": column}), file, compression="zstd", store_schema=False)


def write_xz(file: Path, parts: Parts) -> None:
    """Compress as quickly as may be."""
    with lzma.open(file, "wb", preset=0) as handle:
        handle.writelines(parts)


def write_wide_xz(file: Path, megabytes: int) -> None:
    """A little text that asks for a dictionary of 512 MiB."""
    filters = [{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 29, "preset": 0}]
    file.write_bytes(lzma.compress(b"a" * 1000, filters=filters))


def write_zstd(file: Path, parts: Parts, window_log: int = 23) -> None:
    """Compress with a window of so many bits."""
    parameters = zstandard.ZstdCompressionParameters(window_log=window_log)
    made = zstandard.ZstdCompressor(compression_params=parameters)
    with file.open("wb") as raw, made.stream_writer(raw) as handle:
        for part in parts:
            handle.write(part)


PACKED: dict[str, Callable[[Path, int], None]] = {
    "a.txt.gz": lambda file, n: write_gzip(file, repeated(b"a", n)),
    "a.txt.xz": lambda file, n: write_xz(file, repeated(b"a", n)),
    "a.txt.zst": lambda file, n: write_zstd(file, repeated(b"a", n)),
    "window.txt.zst": lambda file, n: write_zstd(file, repeated(b"a", n), 30),
    "dictionary.txt.xz": write_wide_xz,
    "a.parquet.gz": lambda file, n: write_gzip(file, repeated(b"a", n)),
    "a.zip": lambda file, n: write_zip(file, repeated(b"a", n)),
    "a.tar.gz": write_tar,
    "page.parquet": write_parquet,
    "dictionary.parquet": write_repetitive_parquet,
}
"""Names and what writes them."""
KINDS = (*TEXTS, *PACKED)

CHILD = """
import sys
from pathlib import Path
from chronomask.errors import DataError
from chronomask.prepare.config import PrepareConfig
from chronomask.prepare.read.left_out import Skipped
from chronomask.prepare.read.sources import find_sources
import csv, json, lzma, gzip, zstandard, fsspec
from fsspec.implementations import zip, tar
import pyarrow.parquet
def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
config = PrepareConfig.parse({"sources": [sys.argv[1]]})
fields, skipped = config.fields(), Skipped()
before = peak()
try:
    for source in find_sources(config.sources, fields, skipped):
        for document in source.documents(fields, skipped):
            pass
except DataError as error:
    print(error, file=sys.stderr)
print(peak() - before)
"""


def write(kind: str, megabytes: int, folder: Path) -> str:
    """Write a file of a kind; the source that reads it."""
    file = folder / kind
    if kind in TEXTS:
        file = folder / f"{kind}.gz"
        write_gzip(file, TEXTS[kind](megabytes))
    else:
        PACKED[kind](file, megabytes)
    protocol = {"a.zip": "zip", "a.tar.gz": "tar"}.get(kind)
    return f"{protocol}://*.txt::file://{file}" if protocol else str(file)


def peak_mib(source: str) -> float:
    """MiB that reading a source adds to a process."""
    environment = os.environ | {"PYTHONPATH": python_path(), "ARROW_DEFAULT_MEMORY_POOL": "system"}
    done = subprocess.run(
        [sys.executable, "-c", CHILD, source], env=environment, capture_output=True, text=True, check=False
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return int(done.stdout) / 1024


def main() -> int:
    """Measure as many kinds as asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kinds", nargs="*", default=KINDS)
    parser.add_argument("--megabytes", type=int, default=2000)
    asked = parser.parse_args()
    peaks = {}
    for kind in asked.kinds:
        with tempfile.TemporaryDirectory() as folder:
            peaks[kind] = round(peak_mib(write(kind, asked.megabytes, Path(folder))))
        print(json.dumps({kind: peaks[kind]}), flush=True)
    return max(peaks.values()) > LIMIT_MIB


if __name__ == "__main__":
    sys.exit(main())
