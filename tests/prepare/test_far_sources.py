"""Sources that are no local file: addresses, WARC text and hub datasets; ids and metadata of all."""

from __future__ import annotations

import gzip
import io
import json
import shutil
import sys
import zipfile
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import datasets
import fsspec
import pytest
import zstandard

from chronomask.errors import ChronomaskError, DataError, UsageError
from chronomask.prepare.config import PrepareConfig
from chronomask.prepare.pipeline import prepare
from chronomask.prepare.read.left_out import Skipped
from chronomask.prepare.read.sources import are_as_noted, find_sources, snapshot
from tests.support.corpus import made_up_text
from tests.support.reading import read

TEXTS = ["First document.\nWith two lines.", "Zweites: Übergröße.", "Third, the last 👍."]


def put(address: str, data: bytes) -> None:
    with fsspec.open(address, "wb") as handle:
        handle.write(data)  # type: ignore[union-attr]


@pytest.fixture
def memory() -> str:
    address = "memory://corpus"
    system = fsspec.filesystem("memory")
    system.store.clear()
    put(f"{address}/b/2.txt.gz", gzip.compress(TEXTS[1].encode()))
    put(f"{address}/a.txt", TEXTS[0].encode())
    put(f"{address}/b/3.jsonl", json.dumps({"text": TEXTS[2]}).encode())
    put(f"{address}/c.md", b"other")
    return address


def test_folders_at_an_address(memory: str) -> None:
    documents, skipped = read(memory)
    assert [d.text for d in documents] == TEXTS
    assert documents[0].id.startswith("memory://")
    assert documents[0].id.endswith("a.txt:0")
    assert skipped.counts == {"file of another format": 1}


def test_patterns_and_single_files_at_an_address(memory: str) -> None:
    assert [d.text for d in read(f"{memory}/b/*")[0]] == TEXTS[1:]
    assert [d.text for d in read(f"{memory}/**/*.gz")[0]] == TEXTS[1:2]
    assert [d.text for d in read(f"{memory}/a.txt")[0]] == TEXTS[:1]
    put(f"{memory}/empty.txt", b"")
    with pytest.raises(DataError, match="is empty"):
        read(f"{memory}/empty.txt")


def test_parquet_at_an_address(memory: str) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    pq.write_table(pa.table({"text": TEXTS}), buffer)
    put(f"{memory}/a.parquet", buffer.getvalue())
    assert [d.text for d in read(f"{memory}/a.parquet")[0]] == TEXTS


@pytest.mark.parametrize(
    ("address", "error", "message"),
    [
        ("memory://nowhere/a.txt", DataError, "does not exist"),
        ("nosuch://a.txt", UsageError, "nosuch"),
        ("memory://corpus/c.md", UsageError, r"unknown extension '\.md'"),
    ],
)
def test_addresses_that_cannot_be(
    memory: str, address: str, error: type[ChronomaskError], message: str
) -> None:
    with pytest.raises(error, match=message):
        read(address)


def test_a_file_inside_an_archive(tmp_path: Path) -> None:
    archive = tmp_path / "corpus.zip"
    with zipfile.ZipFile(archive, "w") as made:
        for number, text in enumerate(TEXTS):
            made.writestr(f"in/{number}.txt", text)
    assert [d.text for d in read(f"zip://in/1.txt::file://{archive}")[0]] == TEXTS[1:2]
    assert [d.text for d in read(f"zip://in/*.txt::file://{archive}")[0]] == TEXTS
    assert [d.text for d in read(f"zip://in/?.txt::{archive}")[0]] == TEXTS
    assert [d.text for d in read(f"zip://in/[1-9].t?t::{archive}")[0]] == TEXTS[1:]
    for pattern in ("?.md", "[5-9].txt"):
        with pytest.raises(DataError, match="does not exist"):
            read(f"zip://in/{pattern}::{archive}")


def test_a_file_whose_name_is_a_pattern_is_that_file(memory: str) -> None:
    put(f"{memory}/a[1].txt", b"in brackets")
    assert [d.text for d in read(f"{memory}/a[1].txt")[0]] == ["in brackets"]


def test_an_address_may_begin_with_a_protocol_of_a_copy(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one")
    assert [d.text for d in read(f"simplecache::file://{tmp_path}/a.txt")[0]] == ["one"]
    folder = f"simplecache::file://{tmp_path}"
    assert [d.text for d in read(folder)[0]] == ["one"]
    (tmp_path / "x::y.txt").write_text("no address")
    assert [d.text for d in read(tmp_path / "x::y.txt")[0]] == ["no address"]


def test_another_text_in_an_archive_is_noticed(tmp_path: Path) -> None:
    """Its size and its time may be the same, but not its checksum."""
    archive = tmp_path / "corpus.zip"

    def state(text: str) -> Any:
        with zipfile.ZipFile(archive, "w") as made:
            made.writestr(zipfile.ZipInfo("a.txt"), text)
        config = PrepareConfig.parse({"sources": [f"zip://a.txt::{archive}"]})
        return snapshot(find_sources(config.sources, config.fields(), Skipped()))

    before = state("one")
    assert state("one") == before
    assert state("two") != before


def test_an_address_gives_the_rows_of_the_path(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("\n\n".join(made_up_text(60)))
    values = {
        "tagger": {"kind": "none"},
        "tokenizer": {"kind": "wordpiece", "vocab_size": 300},
        "part_characters": 3000,
        "workers": 1,
    }
    near, far = (
        prepare(PrepareConfig.parse({"sources": [source]} | values), tmp_path / out, progress=False)
        for source, out in ((str(file), "near"), (f"file://{file}", "far"))
    )
    assert near.fingerprint == far.fingerprint


def test_another_version_at_an_address_is_noticed(tmp_path: Path) -> None:
    def state() -> Any:
        config = PrepareConfig.parse({"sources": [f"file://{tmp_path}/a.txt"]})
        return snapshot(find_sources(config.sources, config.fields(), Skipped()))

    (tmp_path / "a.txt").write_text("one")
    before = state()
    assert state() == before
    (tmp_path / "a.txt").write_text("two")
    assert state() != before


def warc_record(kind: str, text: bytes, content: str = "text/plain", **headers: str) -> bytes:
    lines = {
        "WARC-Type": kind,
        "WARC-Record-ID": "<urn:uuid:00000000-0000-0000-0000-000000000000>",
        "WARC-Date": "2024-05-01T00:00:00Z",
        "Content-Type": content,
        "Content-Length": str(len(text)),
        **headers,
    }
    head = "".join(f"{key}: {value}\r\n" for key, value in lines.items())
    return b"WARC/1.0\r\n" + head.encode() + b"\r\n" + text + b"\r\n\r\n"


def wet_records() -> list[bytes]:
    language = {"WARC-Identified-Content-Language": "eng"}
    return [
        warc_record("warcinfo", b"software: test\r\n", "application/warc-fields"),
        *(
            warc_record(
                "conversion", text.encode(), **{"WARC-Target-URI": f"http://a/{k}"}, **language
            )
            for k, text in enumerate(TEXTS)
        ),
        warc_record("conversion", b"bad \xff", **{"WARC-Target-URI": "http://a/bad"}),
        warc_record("response", b"<html>", "application/http; msgtype=response"),
    ]


@pytest.mark.parametrize("name", ["a.warc.wet", "a.warc.wet.gz", "a.warc.zst"])
def test_text_of_warc_files(tmp_path: Path, name: str) -> None:
    # As Common Crawl does it: every record is a member of its own.
    compress = {"gz": gzip.compress, "zst": zstandard.ZstdCompressor().compress}
    wrap = compress.get(name.rsplit(".", 1)[-1], bytes)
    file = tmp_path / name
    file.write_bytes(b"".join(wrap(record) for record in wet_records()))
    documents, skipped = read(str(file), metadata_keys=["language", "date"])
    assert [d.text for d in documents] == TEXTS
    assert [d.id for d in documents] == [f"http://a/{k}" for k in range(3)]
    assert documents[0].metadata == {"language": "eng", "date": "2024-05-01T00:00:00Z"}
    assert skipped.to_dict() == {
        reason: {"count": 1, "bytes": size, "unit": "documents", "names": [f"{file}:{number}"]}
        for reason, size, number in (
            ("WARC record that is not text", 6, 4),
            ("invalid UTF-8", 5, 3),
        )
    }


def test_the_tail_of_a_corrupt_warc_file(tmp_path: Path) -> None:
    file = tmp_path / "a.wet.gz"
    texts = [f"{text} {number}" for number, text in enumerate(made_up_text(2000))]
    data = b"".join(gzip.compress(warc_record("conversion", t.encode())) for t in texts)
    file.write_bytes(data[: len(data) // 2])
    documents, skipped = read(str(file))
    assert [d.text for d in documents] == texts[: len(documents)]
    assert 500 < len(documents) < 1500
    assert skipped.counts == {"corrupt data: rest of file": 1}
    (tmp_path / "b.warc").write_bytes(b"<html>\n<p>no WARC file at all")
    _, skipped = read(str(tmp_path / "b.warc"))
    assert skipped.counts == {"corrupt data: rest of file": 1}
    assert "not a WARC record" in skipped.listing() + str(skipped.to_dict())


def test_packages_that_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UsageError, match=r"needs the package 'datasets', .*chronomask\[hub\]"):
        read("hub:a/b")


@pytest.mark.slow
def test_hub_datasets_are_read_as_a_stream(tmp_path: Path) -> None:
    for split in ("train", "test"):
        lines = [json.dumps({"text": f"{split} {t}", "url": f"u{k}"}) for k, t in enumerate(TEXTS)]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(lines))
    documents, _ = read(f"hub:{tmp_path}@test", id_key="url")
    assert [d.text for d in documents] == [f"test {text}" for text in TEXTS]
    assert [d.id for d in documents] == ["u0", "u1", "u2"]
    documents, _ = read(f"hub:{tmp_path}")
    assert documents[1].id == f"hub:{tmp_path}@train:1"
    with pytest.raises(DataError, match=r"has no field 'body'; .*valid: text, url"):
        read(f"hub:{tmp_path}", text_key="body")
    with pytest.raises(DataError, match=r"cannot be read: .*check its name, config and split"):
        read(f"hub:{tmp_path}@validation")


def test_a_changed_folder_of_a_dataset_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text('{"text": "one"}')
    config = PrepareConfig.parse({"sources": [f"hub:{tmp_path}"]})
    found = find_sources(config.sources, config.fields(), Skipped())
    before = snapshot(found)
    assert are_as_noted(snapshot(found), before)
    (tmp_path / "train.jsonl").write_text('{"text": "another"}')
    assert not are_as_noted(snapshot(found), before)
    earlier = [{key: before[0][key] for key in ("hub", "revision")}]  # noted without files
    assert are_as_noted(snapshot(found), earlier)


def test_names_of_hub_datasets(tmp_path: Path) -> None:
    def parsed(name: str) -> dict[str, Any]:
        return PrepareConfig.parse({"sources": [name]}).to_dict()["sources"][0]

    assert parsed("hub:owner/name:2024@train[:10]") == {
        "kind": "hub", "name": "owner/name", "config": "2024", "split": "train[:10]",
        "revision": None,
    }  # fmt: skip
    assert parsed("hub:name")["split"] == "train"
    with pytest.raises(UsageError, match="not of the form hub:owner/name"):
        parsed("hub:")


def test_a_hub_without_a_network_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*of: Any, **values: Any) -> Any:
        assert values["streaming"] is True
        raise ConnectionError("Couldn't reach the hub")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(DataError, match=r"hub:a/b@train cannot be read: Couldn't reach the hub"):
        read("hub:a/b")


@pytest.mark.parametrize("format_", [".jsonl", ".csv", ".parquet"])
def test_ids_and_metadata_are_kept(tmp_path: Path, format_: str) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    texts = made_up_text(30)
    file = tmp_path / f"a{format_}"
    records = [
        {"text": text, "name": f"n{k}", "year": 1900 + k, "topic": None if k == 3 else f"t{k % 2}"}
        for k, text in enumerate(texts)
    ]
    if format_ == ".jsonl":
        file.write_text("\n".join(map(json.dumps, records)))
    elif format_ == ".csv":
        lines = [",".join(records[0])]
        lines += [f'"{r["text"]}",{r["name"]},{r["year"]},{r["topic"] or ""}' for r in records]
        file.write_text("\n".join(lines))
    else:
        pq.write_table(pa.Table.from_pylist(records), file)
    values = {
        "sources": [str(file)],
        "id_key": "name",
        "metadata_keys": ["year", "topic"],
        "tagger": {"kind": "none"},
        "tokenizer": {"kind": "wordpiece", "vocab_size": 300},
        "part_characters": 1000,
        "held_out": 0.2,
    }
    one, two = (
        prepare(PrepareConfig.parse(values | {"workers": n}), tmp_path / str(n), progress=False)
        for n in (1, 2)
    )
    table = pq.read_table(one.path / "documents.parquet").to_pydict()
    assert table["id"] == [f"n{k}" for k in range(30)]
    assert table["metadata.year"] == [str(1900 + k) for k in range(30)]
    assert table["metadata.topic"][:3] == ["t0", "t1", "t0"]
    assert table["metadata.topic"][3] == ("" if format_ == ".csv" else None)
    assert table["num_characters"] == [len(text) for text in texts]
    for split in ("train", "held_out"):
        own = [n for n, s in zip(table["num_tokens"], table["split"], strict=True) if s == split]
        assert len(own) == one.split(split).num_documents
        assert sum(own) == one.statistics["splits"][split]["tokens_without_specials"]
    assert "documents.parquet" in [entry.file for entry in one.manifest.files]
    assert (one.path / "documents.parquet").read_bytes() == (
        two.path / "documents.parquet"
    ).read_bytes()


def test_ids_that_are_not_there(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"text": "one", "id": 7}\n{"text": "two", "id": null}\n{"text": "three"}')
    documents, _ = read(str(file), id_key="id")
    assert [d.id for d in documents] == ["7", f"{file}:1", f"{file}:2"]
    file.write_text('{"text": "one"}\n[]\n{"text": "two", "id": 7, "year": 2020}')
    documents, _ = read(str(file), id_key="id", metadata_keys=["year"])
    assert [d.id for d in documents] == [f"{file}:0", "7"]
    assert [d.metadata for d in documents] == [{}, {"year": "2020"}]
    assert not caplog.records
    shutil.copy(file, tmp_path / "b.jsonl")
    read(str(tmp_path / "*.jsonl"), id_key="uid", metadata_keys=["day"])
    assert [record.getMessage() for record in caplog.records] == [
        f"{file}: no record has a field 'day'; correct metadata_keys, unless other files have it",
        f"{file}: no record has a field 'uid'; correct id_key, unless other files have it",
    ]
    file = tmp_path / "a.csv"
    file.write_text("text,id\na text,7")
    with pytest.raises(DataError, match=r"no field 'uid'; did you mean 'id'.*--set id_key=NAME"):
        read(str(file), id_key="uid")
    with pytest.raises(DataError, match="--set metadata_keys=NAME"):
        read(str(file), metadata_keys=["year"])


def test_metadata_that_python_has_no_value_for(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {
        "text": pa.array(["a text"]),
        "day": pa.array([3_000_000], pa.int32()).cast(pa.date32()),
        "time": pa.array([2**62], pa.duration("s")),
        "days": pa.array([[3_000_000]], pa.list_(pa.int32())).cast(pa.list_(pa.date32())),
    }
    file = tmp_path / "a.parquet"
    pq.write_table(pa.table(columns), file)
    (document,), _ = read(file, metadata_keys=["day", "time"])
    assert document.metadata == {"day": "10183-09-21", "time": str(2**62)}
    with pytest.raises(DataError, match=r"a\.parquet cannot be read: .* list<"):
        read(file, metadata_keys=["days"])


def test_metadata_is_text_as_people_write_it(tmp_path: Path) -> None:
    """A single value stands without quotation marks; lists and groups are JSON."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    day = datetime(2024, 5, 1, 12, 30)
    values = {
        "day": day.date(), "moment": day, "bytes": b"caf\xc3\xa9", "price": Decimal("1.50"), "new": True,
        "number": 3, "words": ["a", "é"], "days": [day.date()], "group": {"day": day.date()},
    }  # fmt: skip
    file = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_pylist([{"text": "a text", **values}]), file)
    (document,), _ = read(file, metadata_keys=list(values))
    assert document.metadata == {
        "day": "2024-05-01", "moment": "2024-05-01T12:30:00", "bytes": "café", "price": "1.50",
        "new": "true", "number": "3", "words": '["a", "é"]', "days": '["2024-05-01"]',
        "group": '{"day": "2024-05-01"}',
    }  # fmt: skip
    with pytest.raises(UsageError, match="metadata_keys names 'day' 2 times: name it once"):
        read(file, metadata_keys=["day", "new", "day"])
