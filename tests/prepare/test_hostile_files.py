"""Damaged files and files that hold more than they seem: one sentence, bounded memory, linear work."""

from __future__ import annotations

import io
import lzma
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from chronomask import compressed, text_files
from chronomask.compressed import decompressed
from chronomask.errors import DataError
from chronomask.prepare.config import PrepareConfig
from chronomask.prepare.read import files, parquet
from chronomask.prepare.read.left_out import Skipped
from chronomask.prepare.read.sources import find_sources
from chronomask.text_files import LongLine, byte_lines
from tests.support.bombs import KINDS, LIMIT_MIB, peak_mib, write
from tests.support.fuzz_files import PACKINGS, SAMPLES, fuzz
from tests.support.reading import read


@pytest.mark.slow
def test_six_hundred_damaged_files(tmp_path: Path) -> None:
    """Every format, packed and not; ``python -m tests.support.fuzz_files`` does more."""
    counts, failures = fuzz(600, 3, tmp_path)
    assert failures == []
    assert sum(found.total() for found in counts.values()) == 600
    for name in SAMPLES:  # every end is reached
        assert counts[name]["refused"] > 0, name
        assert counts[name]["left something out"] + counts[name]["whole"] > 0, name


def test_what_ends_in_another_error_is_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_file_errors", lambda source: ())
    _, failures = fuzz(200, 3, tmp_path)
    assert len(failures) > 0


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("format_", [".txt", ".jsonl", ".csv", ".tsv", ".conllu", ".warc"])
def test_a_file_four_times_as_large_is_four_times_the_work(
    tmp_path: Path, format_: str, packing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bytes read of the file, blocks taken, and steps of Python, at two sizes."""
    content = SAMPLES[format_]()
    at = content.index(b"\n") + 1 if format_ in (".csv", ".tsv") else 0
    head, record = content[:at], content[at:].rstrip(b"\n") + b"\n\n"
    blocks: list[int] = []
    real = text_files._blocks

    def counted(handle: Any, name: object) -> Iterator[bytes]:
        for block in real(handle, name):
            blocks.append(len(block))
            yield block

    monkeypatch.setattr(text_files, "_blocks", counted)
    work = []
    for times in (300, 1200):
        file = tmp_path / f"a{format_}{packing}"
        file.write_bytes(PACKINGS[packing](head + record * times))
        blocks.clear()
        calls = 0

        def count(frame: Any, event: str, argument: Any) -> None:
            nonlocal calls
            calls += event in ("call", "c_call")

        sys.setprofile(count)
        try:
            documents, _ = read(file)
        finally:
            sys.setprofile(None)
        assert sum(blocks) <= len(head + record * times)
        work.append((len(documents), calls))
    (few, calls_of_few), (many, calls_of_many) = work
    assert many >= 3.9 * few > 100
    assert calls_of_many < 4.5 * calls_of_few


@pytest.mark.parametrize("limit", [None, 3, 7, 101])
@pytest.mark.parametrize("size", [1, 2, 3, 5, 1000])
def test_lines_are_the_same_however_the_blocks_fall(
    limit: int | None, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CR LF across blocks, long lines across blocks, no last line end."""
    content = b"\xef\xbb\xbfone\r\n\r\ntwo\rlonger than a block\n\n\rend\r\nx" + b"y" * 100
    expected = [b"one", b"", b"two", b"longer than a block", b"", b"", b"end", b"x" + b"y" * 100]
    monkeypatch.setattr(text_files, "_BLOCK", size)
    found = list(byte_lines(io.BytesIO(content), "a", limit))
    assert [len(x) if isinstance(x, bytes) else x.size for x in found] == list(map(len, expected))
    for line, whole in zip(found, expected, strict=True):
        if limit is None or len(whole) <= limit:
            assert line == whole
        else:
            assert isinstance(line, LongLine)
            assert whole.startswith(line.start)


@pytest.mark.parametrize("compression", [".xz", ".zst"])
def test_frames_one_after_the_other(compression: str) -> None:
    """Many small ones, empty ones, and what pads .xz; each byte of the input is handed over once or twice."""
    pack = {".xz": lzma.compress, ".zst": zstandard.ZstdCompressor().compress}[compression]
    padding = b"\0\0\0\0" if compression == ".xz" else b""
    parts = [str(k).encode() for k in range(500)]
    data = padding.join(map(pack, [*parts, b"", b"end"]))
    assert decompressed(io.BytesIO(data), compression).read() == b"".join(parts) + b"end"
    with pytest.raises(EOFError):
        decompressed(io.BytesIO(data[:-3]), compression).read()


class Counting(io.BytesIO):
    """Counts what is read at once."""

    most = 0

    def readinto(self, buffer: Any, /) -> int:
        raise AssertionError("read in blocks")

    def read(self, size: int | None = -1, /) -> bytes:
        assert size is not None
        assert 0 <= size <= 1 << 20, "read as a whole"
        return super().read(size)


@pytest.mark.parametrize("compression", [".xz", ".zst"])
def test_little_is_unpacked_at_a_time(compression: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """50 MB that are packed to a few kilobytes: never more than a piece of them is held."""
    pack = {".xz": lzma.compress, ".zst": zstandard.ZstdCompressor().compress}[compression]
    frames = {".xz": compressed._XzFile, ".zst": compressed._ZstdFile}[compression]
    sizes: list[int] = []
    real = frames._unpack_some

    def measured(of: Any) -> bool:
        more = real(of)
        sizes.append(len(of._left))
        return more

    monkeypatch.setattr(frames, "_unpack_some", measured)
    handle = decompressed(Counting(pack(bytes(50_000_000))), compression)
    total = 0
    while block := handle.read(1 << 16):
        total += len(block)
    assert total == 50_000_000
    assert max(sizes) <= 34 << 20


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind",
    [
        "a.txt.zst", "a.zip", "dictionary.parquet", "groups.jsonl", "header.warc", "line.jsonl",
        "longest-field.csv", "wide.txt",
    ],
)  # fmt: skip
def test_no_bomb_takes_more_than_300_mib(tmp_path: Path, kind: str) -> None:
    """At the defaults; ``python -m tests.support.bombs --megabytes 10000`` has all kinds and unpacks more."""
    assert kind in KINDS
    assert peak_mib(write(kind, 330, tmp_path)) < LIMIT_MIB


def test_an_xz_dictionary_that_is_too_large(tmp_path: Path) -> None:
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 1 << 29}]
    (tmp_path / "a.txt.xz").write_bytes(lzma.compress(b"text", filters=filters))
    with pytest.raises(DataError, match=r"a\.txt\.xz takes more than 134,217,728 bytes of memory"):
        read(tmp_path / "a.txt.xz")


def test_parquet_pages_that_are_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The way out that the message names works."""
    texts = [f"text {k} " * 100 for k in range(300)]
    table = pa.table({"text": texts, "other": [text * 20 for text in texts]})
    file = tmp_path / "a.parquet"
    pq.write_table(table, file, compression="zstd", use_dictionary=False)
    monkeypatch.setattr(parquet, "_PAGE_BYTES", 100_000)
    with pytest.raises(
        DataError, match=r"'text' has a page of \d{3},\d{3} bytes.*write_batch_size=16"
    ):
        read(file)
    pq.write_table(
        table,
        file,
        compression="zstd",
        use_dictionary=False,
        write_batch_size=16,
        data_page_size=50_000,
    )
    assert [d.text for d in read(file)[0]] == texts
    monkeypatch.setattr(parquet, "_PAGE_BYTES", 1 << 27)
    pq.write_table(pa.table({"text": pa.nulls(1000, pa.string())}), file)
    monkeypatch.setattr(parquet, "_PAGE_VALUES", 999)
    with pytest.raises(DataError, match="and 1,000 values"):
        read(file)


@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("dictionary", [True, False])
def test_parquet_pages_are_measured(
    tmp_path: Path, dictionary: bool, version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of every row group, of dictionaries too, and of nested columns."""
    tags = [["X"] * (k % 5) for k in range(4000)]
    words = [[f"w{j}" for j in range(k % 5)] for k in range(4000)]
    file = tmp_path / "a.parquet"
    pq.write_table(
        pa.table({"words": words, "tags": tags}), file, row_group_size=1500,
        use_dictionary=dictionary, data_page_version=version,
    )  # fmt: skip
    config = PrepareConfig.parse({"sources": [str(file)], "tagger": {"kind": "column"}})
    skipped = Skipped()
    (source,) = find_sources(config.sources, config.fields(), skipped)
    with file.open("rb") as handle:
        sizes = parquet._largest_pages(handle, config.fields(), source.file)  # type: ignore[attr-defined]
    assert len(sizes) == 3
    assert all(10 < size < 100_000 for size in sizes)
    batches: list[int] = []
    real = pq.ParquetFile.iter_batches
    monkeypatch.setattr(
        pq.ParquetFile,
        "iter_batches",
        lambda of, rows, **v: batches.append(rows) or real(of, rows, **v),
    )
    monkeypatch.setattr(parquet, "_BATCH_BYTES", max(sizes) * 7)
    assert len(list(source.documents(config.fields(), skipped))) == 4000
    assert min(batches) == 7


def test_a_multiword_token_that_reaches_beyond_its_sentence(tmp_path: Path) -> None:
    row = "\t_" * 8 + "\n"
    (tmp_path / "a.conllu").write_text(f"1-9\tdon't{row}1\tdo\t_\tAUX" + "\t_" * 6 + "\n\n")
    with pytest.raises(DataError, match="inside a multiword token that ends at 9"):
        read(tmp_path / "a.conllu")


@pytest.mark.parametrize("size", [3000, 100_000])
def test_a_conllu_document_that_is_never_ended(tmp_path: Path, size: int) -> None:
    row = "\tword\t_\tNOUN" + "\t_" * 6 + "\n"
    lines = "".join(f"{k + 1}{row}" for k in range(size))
    (tmp_path / "a.conllu").write_text(lines + "\n")
    with pytest.raises(
        DataError, match=r"a\.conllu, line \d\d: its document has more than 1,000 by"
    ):
        read(tmp_path / "a.conllu", max_document_bytes=1000)
    (tmp_path / "b.conllu").write_text("".join(f"1{row}\n" for _ in range(100)))
    assert len(read(tmp_path / "b.conllu", max_document_bytes=1000)[0]) == 100


def test_whatever_a_remote_file_raises_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import zipfile

    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w") as made:
        made.writestr("a.txt", "text " * 100)
    content = bytearray(archive.read_bytes())
    for place in (6, content.index(b"PK\x01\x02") + 8):  # the flag that says that it is encrypted
        content[place] |= 1
    archive.write_bytes(content)
    with pytest.raises(DataError, match=r"a\.txt.* cannot be read: .*encrypted"):
        read(f"zip://a.txt::file://{archive}")
