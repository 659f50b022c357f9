"""Text comes in from files of every kind; what cannot be used is counted and named."""

from __future__ import annotations

import gzip
import io
import json
import lzma
import re
import tarfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from chronomask.errors import ChronomaskError, DataError, UsageError
from chronomask.prepare.read.left_out import Skipped
from tests.support.reading import read

DOCUMENTS = [
    "First document.\nWith two lines.",
    "Zweites Dokument: Übergröße.",
    "Third, the last 👍.",
]


def as_text() -> bytes:
    return "\n\n".join(DOCUMENTS).encode()


def as_jsonl() -> bytes:
    return "\n".join(
        json.dumps({"id": k, "text": text}) for k, text in enumerate(DOCUMENTS)
    ).encode()


def as_parquet() -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table({"text": DOCUMENTS, "n": [1, 2, 3]}), buffer)
    return buffer.getvalue()


def as_csv() -> bytes:
    import csv

    buffer = io.StringIO()
    writer = csv.writer(buffer)
    writer.writerows([["id", "text"], *([k, text] for k, text in enumerate(DOCUMENTS))])
    return buffer.getvalue().encode()


def as_tsv() -> bytes:
    """A record is a line: no text has two."""
    lines = ["id\ttext", *(f"{k}\t{one_line(text)}" for k, text in enumerate(DOCUMENTS))]
    return "\n".join(lines).encode()


def one_line(text: str) -> str:
    return text.replace("\n", " ")


FORMATS: dict[str, Callable[[], bytes]] = {
    ".txt": as_text,
    ".jsonl": as_jsonl,
    ".csv": as_csv,
    ".tsv": as_tsv,
    ".parquet": as_parquet,
}
COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    "": lambda data: data,
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.ZstdCompressor().compress,
}


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("format_", FORMATS)
def test_every_format_in_every_compression(tmp_path: Path, format_: str, compression: str) -> None:
    file = tmp_path / f"some.text{format_}{compression}"
    file.write_bytes(COMPRESSIONS[compression](FORMATS[format_]()))
    documents, skipped = read(file)
    expected = list(map(one_line, DOCUMENTS)) if format_ == ".tsv" else DOCUMENTS
    assert [d.text for d in documents] == expected
    assert [d.id for d in documents] == [f"{file}:{k}" for k in range(3)]
    assert not skipped.counts


def test_folders_and_globs_are_read_in_sorted_order(tmp_path: Path) -> None:
    for name in ("b/2.txt", "a.txt", "b/1.jsonl", "c.md"):
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        text = f"in {name}"
        file.write_text(json.dumps({"text": text}) if name.endswith("l") else text)
    documents, skipped = read(tmp_path)
    assert [d.text for d in documents] == ["in a.txt", "in b/1.jsonl", "in b/2.txt"]
    assert skipped.to_dict() == {
        "file of another format": {
            "count": 1,
            "bytes": 7,
            "unit": "files",
            "names": [str(tmp_path / "c.md")],
        }
    }
    documents, _ = read(tmp_path / "b" / "*.txt")
    assert [d.text for d in documents] == ["in b/2.txt"]


def test_line_ends_and_marks_of_windows(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes("\ufeffone\r\ntwo\r\n \t\r\n\r\n\r\nthree\r\n".encode())
    documents, _ = read(file)
    assert [d.text for d in documents] == ["one\ntwo", "three"]


@pytest.mark.parametrize("format_", [".txt", ".jsonl"])
def test_invalid_utf8_costs_its_document(tmp_path: Path, format_: str) -> None:
    file = tmp_path / f"a{format_}"
    parts = [b"good one", b"bad \xff\xfe one", b"good two"]
    if format_ == ".jsonl":
        file.write_bytes(b"\n".join(b'{"text": "' + part + b'"}' for part in parts))
    else:
        file.write_bytes(b"\n\n".join(parts))
    documents, skipped = read(file)
    assert [d.text for d in documents] == ["good one", "good two"]
    size = {".txt": 11, ".jsonl": 22}[format_]
    assert skipped.to_dict() == {
        "invalid UTF-8": {"count": 1, "bytes": size, "unit": "documents", "names": [f"{file}:1"]}
    }


def test_a_line_of_white_space_of_any_script_is_blank(tmp_path: Path) -> None:
    spaces = [
        chr(code) for code in range(0x110000) if chr(code).isspace() and code not in range(10, 32)
    ]
    assert "\u3000" in spaces
    file = tmp_path / "a.txt"
    file.write_text(
        "\n".join(f"{k}猫\n{space * 3} \n\u3000吾輩は" for k, space in enumerate(spaces))
    )
    documents, _ = read(file)
    assert [d.text for d in documents][:2] == ["0猫", "吾輩は\n1猫"]
    assert len(documents) == len(spaces) + 1


def test_nul_and_lone_surrogates_cost_their_document(tmp_path: Path) -> None:
    text, lines = tmp_path / "a.txt", tmp_path / "b.jsonl"
    text.write_bytes("good\n\nbäd \0 one".encode())
    lines.write_text('{"text": "good"}\n{"text": "bad \\ud800"}\n{"text": "b\\u0000"}')
    documents, skipped = read(text, lines)
    assert [d.text for d in documents] == ["good", "good"]
    assert skipped.counts == {"NUL character": 2, "lone surrogate": 1}
    assert [skipped.reasons[reason].bytes for reason in skipped.counts] == [10 + 2, 4 + 3]


def test_broken_lines_of_jsonl_are_counted(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text(
        '{"text": "good"}\n{"text": \n{"other": 1}\n{"text": null}\n\n[1]\n{"text": "fine"}'
    )
    documents, skipped = read(file)
    assert [d.text for d in documents] == ["good", "fine"]
    assert skipped.counts == {"not JSON": 1, "no text in field 'text'": 3}


@pytest.mark.parametrize("compression", [".gz", ".xz", ".zst"])
@pytest.mark.parametrize("damage", ["cut", "garbled"])
def test_the_tail_of_a_corrupt_file_is_skipped(
    tmp_path: Path, compression: str, damage: str
) -> None:
    import random

    choose = random.Random(0)
    texts = [choose.randbytes(200).hex() for _ in range(3000)]
    data = COMPRESSIONS[compression]("\n\n".join(texts).encode())
    middle = len(data) // 2
    rest = b"" if damage == "cut" else bytes(64) + data[middle + 64 :]
    data = data[:middle] + rest
    file = tmp_path / f"a.txt{compression}"
    file.write_bytes(data)
    documents, skipped = read(file)
    kept = [d.text for d in documents]
    assert 0 < len(kept) < 3000
    # A garbled .gz or .xz goes on with nonsense for a while before its checks notice.
    sure = len(kept) if damage == "cut" else 1000
    assert kept[:sure] == texts[:sure]
    assert skipped.counts["corrupt data: rest of file"] == 1
    (told,) = skipped.to_dict().values()
    assert str(file) in told["names"][0]
    assert told["unit"] == "files"
    if damage == "cut":  # nothing is left to read
        assert told["bytes"] == 0
    elif compression != ".gz":  # whose check comes last: the rest, but for what was read ahead
        assert told["bytes"] > len(data) // 3


def test_a_corrupt_parquet_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    file.write_bytes(as_parquet()[:-20])
    with pytest.raises(
        DataError, match=r"not a readable Parquet file .*: copy or download it again"
    ):
        read(file)


_WORD = b"1\ta\ta\tNOUN\t_\t_\t0\troot\t_\t_\n"


@pytest.mark.parametrize(
    ("name", "content", "error", "message"),
    [
        ("a.pdf", b"x", UsageError, r"unknown extension '\.pdf'.*\.txt, \.jsonl, .*\.parquet"),
        ("a.txtt", b"x", UsageError, r"did you mean '\.txt'"),
        ("a", b"x", UsageError, "unknown extension ''"),
        ("a.txt", b"", DataError, "is empty"),
        (
            "a.jsonl",
            b'{"txt": "x"}',
            DataError,
            r"no field 'text'; did you mean 'txt'\?.*text_key",
        ),
        ("a.jsonl", b'["x"]', DataError, "is one JSON array"),
        (
            "a.txt",
            gzip.compress(b"x", mtime=0),
            DataError,
            r"gzip: give it a name that ends in \.gz",
        ),
        ("a.jsonl", lzma.compress(b"x"), DataError, r"xz: give it a name that ends in \.xz"),
        ("a.csv", b"PK\x03\x04..", DataError, "a ZIP archive: unpack it"),
        ("a.txt", b"%PDF-1.7", DataError, "a PDF document: take its text out first"),
        ("a.csv", b"text,text\na,b", DataError, "a.csv: 2 columns are called 'text'; give each"),
        ("a.csv", b"1,some text", DataError, r"the first line of a \.csv file names its columns"),
        ("a.conllu", _WORD, DataError, "ends inside a sentence.*add an empty line"),
        *(
            (f"a.{end}", b"x", UsageError, "it is an archive: unpack it, and name the folder")
            for end in ("tar.zst", "tgz", "txz", "tbz2")
        ),
        *(
            (f"a.{end}", b"x", UsageError, rf"are read as 'tar://\*\*::/.*a\.{end}', or unpack it")
            for end in ("tar", "tar.gz", "tar.xz", "tar.bz2")
        ),
        ("a.zip", b"PK\x03\x04", UsageError, r"are read as 'zip://\*\*::/.*a\.zip', or unpack it"),
    ],
)
def test_files_that_cannot_be_sources(
    tmp_path: Path, name: str, content: bytes, error: type[ChronomaskError], message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(error, match=message):
        read(tmp_path / name)


def test_a_missing_column_of_parquet(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    file.write_bytes(as_parquet())
    with pytest.raises(DataError, match=r"no field 'txt'; did you mean 'text'\?"):
        read(file, text_key="txt")
    with pytest.raises(
        DataError, match=r"column 'n' is int64, not text; --set text_key=NAME .*: text"
    ):
        read(file, text_key="n")


def test_a_column_of_parquet_that_is_no_text_is_named_with_what_to_do(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    pq.write_table(pa.table({"doc": [{"text": "a b"}], "n": [1]}), file)
    with pytest.raises(
        DataError, match=r"'doc' is struct<.*, not text; write its text as a column"
    ):
        read(file, text_key="doc")


def test_two_columns_of_parquet_of_one_name(tmp_path: Path) -> None:
    """As a join of two tables leaves them; others than the text may be called alike."""
    file, columns = tmp_path / "a.parquet", [pa.array(["one text"]), pa.array(["another"])]
    pq.write_table(pa.Table.from_arrays(columns, names=["text", "text"]), file)
    with pytest.raises(
        DataError, match=r"a\.parquet: 2 columns are called 'text'; give each a name"
    ):
        read(file)
    pq.write_table(pa.Table.from_arrays([*columns, columns[0]], names=["n", "text", "n"]), file)
    assert [document.text for document in read(file)[0]] == ["another"]


def test_text_that_parquet_keeps_once_is_text(tmp_path: Path) -> None:
    """As pandas writes a column of categories."""
    file = tmp_path / "a.parquet"
    texts = pa.array(["one text", "another", "one text"])
    pq.write_table(pa.table({"text": texts.dictionary_encode()}), file)
    documents, _ = read(file)
    assert [document.text for document in documents] == texts.to_pylist()


def test_text_of_any_layout_in_parquet_is_text(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": pa.array(["one text"]).cast(pa.string_view())}), file)
    documents, _ = read(file)
    assert [document.text for document in documents] == ["one text"]


def test_an_archive_is_read_as_its_refusal_says(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("in/a.txt", "one text")
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as archive:
        (tmp_path / "a.txt").write_text("one text")
        archive.add(tmp_path / "a.txt", "a.txt")
    for name in ("a.zip", "a.tar.gz"):
        with pytest.raises(UsageError) as refused:
            read(tmp_path / name)
        address = re.search("read as '([^']+)'", str(refused.value))
        assert address is not None
        documents, _ = read(address[1])
        assert [document.text for document in documents] == ["one text"]


def test_a_source_that_leads_nowhere(tmp_path: Path) -> None:
    (tmp_path / "link.txt").symlink_to("gone.txt")
    with pytest.raises(UsageError, match=r"link\.txt is a link to gone\.txt, which is not there"):
        read(tmp_path / "link.txt")
    with pytest.raises(UsageError, match=r"\*\.nothing matches no file"):
        read(tmp_path / "*.nothing")
    with pytest.raises(
        UsageError, match="a source is empty text, as of a variable without a value"
    ):
        read("")
    with pytest.raises(UsageError, match="Protocol not known: s4; did you mean 's3'"):
        read("s4://bucket/a.txt")


def test_missing_paths_and_empty_folders(tmp_path: Path) -> None:
    (tmp_path / "corpus.txt").write_text("x")
    with pytest.raises(UsageError, match=r"does not exist; did you mean 'corpus\.txt'"):
        read(tmp_path / "corpsu.txt")
    with pytest.raises(UsageError, match="nor does the folder"):
        read(tmp_path / "no" / "corpus.txt")
    for k in range(30):
        (tmp_path / f"{k:02}.md").write_text("x")
    with pytest.raises(UsageError, match=r"matches no file; valid: 00.md.*09.md and 21 more$"):
        read(tmp_path / "*.markup")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=r"holds no \.txt, \.jsonl, .*file"):
        read(tmp_path / "empty")


def test_an_empty_file_in_a_folder_is_counted(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("")
    (tmp_path / "b.txt").write_text("text")
    documents, skipped = read(tmp_path)
    assert [d.text for d in documents] == ["text"]
    assert skipped.counts == {"empty file": 1}


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.txt", b" \n\n\t\n"), ("a.jsonl.gz", gzip.compress(b"", mtime=0)), ("a.csv", b"text\n")],
)
def test_a_file_that_gives_no_document_is_counted(
    tmp_path: Path, name: str, content: bytes
) -> None:
    """Also where it is given by name, beside others that give some."""
    (tmp_path / name).write_bytes(content)
    (tmp_path / "b.txt").write_text("text")
    documents, skipped = read(tmp_path / name, tmp_path / "b.txt")
    assert [d.text for d in documents] == ["text"]
    assert skipped.counts == {"file without a document": 1}
    assert skipped.summary().endswith(f"/{name}")  # a long path is cut in its middle


def test_names_of_skipped_documents_are_bounded() -> None:
    skipped = Skipped()
    for number in range(100):
        skipped.add("reason", str(number))
    assert skipped.to_dict()["reason"]["count"] == 100
    assert len(skipped.to_dict()["reason"]["names"]) == 20


def test_a_zst_file_of_several_frames(tmp_path: Path) -> None:
    file = tmp_path / "a.txt.zst"
    compress = COMPRESSIONS[".zst"]
    file.write_bytes(compress(b"one\n\nt") + compress(b"wo\n\n") + compress(b"three"))
    documents, skipped = read(file)
    assert [d.text for d in documents] == ["one", "two", "three"]
    assert not skipped.counts


def test_no_file_is_left_open(tmp_path: Path) -> None:
    file = tmp_path / "a.txt.zst"
    file.write_bytes(COMPRESSIONS[".zst"](as_text()))
    with warnings.catch_warnings():
        warnings.simplefilter("error", ResourceWarning)
        read(file)


def test_broken_records_of_csv_are_counted(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_bytes(
        b'\xef\xbb\xbfid,"text"\r\n1,"a ""quoted"", one"\r\n2\r\n\r\n3,bad \xff one\r\n'
        b'4,"two\r\nlines"\r\n5,nul \0 here\r\n6,a,b\r\n7,bare\rreturn\r\n8,last'
    )
    documents, skipped = read(file)
    assert [d.text for d in documents] == ['a "quoted", one', "two\nlines", "bare", "last"]
    assert skipped.counts == {
        "another number of fields than the first line": 3,  # what follows a bare CR is a line too
        "invalid UTF-8": 1,
        "NUL character": 1,
    }


def test_long_fields_of_csv(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text("text\tn\n" + "long " * 100_000 + "\t1\n")
    documents, _ = read(tmp_path / "a.tsv")
    assert len(documents[0].text) == 500_000


def test_a_missing_column_of_csv(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id,txt\n1,x")
    with pytest.raises(DataError, match=r"no field 'text'; did you mean 'txt'"):
        read(tmp_path / "a.csv")
    documents, _ = read(tmp_path / "a.csv", text_key="txt")
    assert [d.text for d in documents] == ["x"]
