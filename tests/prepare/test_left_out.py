"""What does not become a document is counted, named and said; what should become one does."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest

from chronomask.data.folder import PreparedData
from chronomask.errors import DataError, UsageError
from chronomask.prepare.config import PrepareConfig
from chronomask.prepare.pipeline import prepare
from chronomask.prepare.read import files, readers
from chronomask.prepare.read.find import find_local
from chronomask.prepare.read.left_out import Skipped
from chronomask.show.prepared import as_text, look_into
from tests.support.corpus import made_up_text
from tests.support.reading import read


def texts(*paths: str | Path, **values: Any) -> list[str]:
    return [document.text for document in read(*paths, **values)[0]]


def prepared(out: Path, *sources: Path, **values: Any) -> PreparedData:
    config = {
        "sources": [str(source) for source in sources],
        "tagger": {"kind": "none"},
        "tokenizer": {"kind": "wordpiece", "vocab_size": 200},
        "row_length": 32,
        "workers": 1,
    }
    return prepare(PrepareConfig.parse(config | values), out, progress=False)


def write(folder: Path, **contents: str) -> Path:
    """Files of a folder by their names, ``__`` for a slash and ``_`` for the dot of the ending."""
    for name, content in contents.items():
        stem, ending = name.replace("__", "/").rsplit("_", 1)
        file = folder / f"{stem}.{ending}"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
    return folder


def test_what_a_preparation_wrote_beside_its_sources_is_no_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder of documents' ids and metadata is a Parquet file, and would be read as text."""
    monkeypatch.chdir(tmp_path)
    records = [json.dumps({"id": k, "text": text}) for k, text in enumerate(made_up_text(20))]
    source = write(Path("in"), a_jsonl="\n".join(records))
    first = prepared(source / "data", source, id_key="id")
    assert (source / "data" / "documents.parquet").is_file()
    second = prepared(source / "data", source, id_key="id")
    assert second.fingerprint == first.fingerprint
    for pattern in (source, source / "**" / "*", source / "*" / "*.parquet"):
        skipped = Skipped()
        found = [path for path in find_local(pattern, skipped) if path.suffix != ".jsonl"]
        assert (found, skipped.counts) == ([], {"prepared data": 1})
    named = find_local(source / "data" / "*.parquet", Skipped())
    assert named == [source / "data" / "documents.parquet"]


def test_a_preparation_ends_with_what_it_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # long paths are shortened
    source = write(Path("in"), a_txt="\n\n".join([*made_up_text(20), "x"]), b_md="# no text")
    (source / ".cache").mkdir()
    (source / ".cache" / "a.txt").write_text("hidden text")
    data = prepared(tmp_path / "out", source)
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        f"left out: 1 file (11 bytes), hidden: {source}/.cache/; 1 file (9 bytes), file of another format: "
        f"{source}/b.md; 1 document (1 byte), fewer than 2 characters: {source}/a.txt:20; more in "
        "statistics.json"
    )
    assert data.statistics["skipped"] == json.loads(json.dumps(data.statistics["skipped"]))
    shown = as_text(look_into(data))
    assert f"left out          1 file (11 bytes), hidden: {source}/.cache/\n" in shown
    assert f"1 document (1 byte), fewer than 2 characters: {source}/a.txt:20\n" in shown
    write(tmp_path / "whole", a_txt="\n\n".join(made_up_text(20)))
    prepared(tmp_path / "quiet", tmp_path / "whole")
    assert capsys.readouterr().err == ""


def test_the_line_is_bounded_whatever_was_left_out() -> None:
    skipped = Skipped()
    for reason in range(50):
        for number in range(100):
            skipped.add(f"reason {reason}", "very long name " * 1000 + str(number), 10**12)
    line = skipped.summary()
    assert len(line) < 12 * 350
    assert line.endswith("; and for 38 other reasons")
    assert "100 documents (100,000,000,000,000 bytes), reason 0: very long" in line
    told = skipped.to_dict()["reason 0"]
    assert (told["count"], len(told["names"])) == (100, 20)
    assert max(map(len, told["names"])) <= 200


def test_accounts_add_up() -> None:
    one, two = Skipped(), Skipped()
    one.add("hidden", "a/", 5, "files", 3)
    two.add("hidden", "b", 2, "files")
    two.add("empty", "c")
    both = Skipped()
    for account in (one, two):
        both.merge(account.to_dict())
    assert both.to_dict() == {
        "empty": {"count": 1, "bytes": 0, "unit": "documents", "names": ["c"]},
        "hidden": {"count": 4, "bytes": 7, "unit": "files", "names": ["a/", "b"]},
    }


def linked(folder: Path) -> Path:
    """A folder with a link to another one, a link to itself, and one to a folder that holds it."""
    write(folder / "texts", here__a_txt="in here", top_txt="on top")
    write(folder / "elsewhere", b_txt="elsewhere", deep__c_txt="deep")
    (folder / "texts" / "linked").symlink_to("../elsewhere")
    (folder / "texts" / "self").symlink_to(".")
    (folder / "elsewhere" / "back").symlink_to("../texts")
    return folder / "texts"


@pytest.mark.parametrize(
    "as_source",
    [str, "{}/**".format, "{}/**/*.txt".format, "file://{}".format, "{}/../texts/**/**".format],
)
def test_links_are_as_good_as_what_they_lead_to(
    tmp_path: Path, as_source: Callable[[Any], str]
) -> None:
    documents, skipped = read(as_source(linked(tmp_path)))
    assert sorted(d.text for d in documents) == ["deep", "elsewhere", "in here", "on top"]
    assert skipped.counts == {"met again by a link": 2}
    assert skipped.reasons["met again by a link"].unit == "folders"


def test_many_links_take_no_longer_than_the_folders_they_lead_to(tmp_path: Path) -> None:
    """Twelve folders that all link to each other: 12 factorial ways through them."""
    folders = [tmp_path / "in" / str(k) for k in range(12)]
    for folder in folders:
        write(folder, a_txt=f"text {folder.name}")
        for other in folders:
            if other != folder:
                (folder / other.name).symlink_to(other)
    documents, skipped = read(tmp_path / "in")
    assert len(documents) == 12
    assert skipped.counts == {"met again by a link": 12 * 11}


def test_hidden_files_are_left_out_unless_they_are_named(tmp_path: Path) -> None:
    write(tmp_path, a_txt="shown", sub__b_txt="shown below")
    hidden = write(tmp_path / ".ipynb_checkpoints", a_txt="old", more__c_txt="older", x_bin="0")
    (tmp_path / ".secret.txt").write_text("secret")
    for source in (tmp_path, tmp_path / "**", tmp_path / "**" / "*.txt"):
        documents, skipped = read(source)
        assert [d.text for d in documents] == ["shown", "shown below"]
        told = skipped.reasons["hidden"]
        all_files = source.name != "*.txt"
        assert (told.count, told.bytes) == ((4, 15) if all_files else (3, 14))
        assert sorted(told.names) == [f"{hidden}/", f"{tmp_path}/.secret.txt"]
    assert texts(hidden) == ["old", "older"]
    assert texts(hidden / "*.txt") == ["old"]
    assert texts(tmp_path / ".secret.txt") == ["secret"]
    assert texts(tmp_path / ".*.txt") == ["secret"]
    assert texts(tmp_path / ".*" / "*.txt") == ["old"]


def test_hidden_files_at_an_address(tmp_path: Path) -> None:
    system = fsspec.filesystem("memory")
    system.store.clear()
    for name in ("a.txt", ".cache/b.txt", "sub/.git/c.txt", "sub/.d.txt"):
        with fsspec.open(f"memory://corpus/{name}", "wb") as handle:
            handle.write(name.encode())  # type: ignore[union-attr]
    for source in ("memory://corpus", "memory://corpus/**"):
        documents, skipped = read(source)
        assert [d.text for d in documents] == ["a.txt"]
        assert skipped.counts == {"hidden": 3}
        assert skipped.reasons["hidden"].bytes == len(".cache/b.txtsub/.git/c.txtsub/.d.txt")
    assert texts("memory://corpus/.cache/*") == [".cache/b.txt"]
    assert texts("memory://corpus/sub/.d.txt") == ["sub/.d.txt"]


def test_what_is_neither_file_nor_folder(tmp_path: Path) -> None:
    write(tmp_path / "in", a_txt="text")
    os.mkfifo(tmp_path / "in" / "pipe.txt")
    (tmp_path / "in" / "gone.txt").symlink_to("nowhere")
    documents, skipped = read(tmp_path / "in")
    assert [d.text for d in documents] == ["text"]
    assert skipped.counts == {"a pipe, socket, device or broken link": 2}
    with pytest.raises(UsageError, match=r"pipe\.txt is a named pipe, .*write its text to a file"):
        read(tmp_path / "in" / "pipe.txt")
    with pytest.raises(UsageError, match=r"source /dev/null is a device"):
        read("/dev/null")


def test_links_that_lead_nowhere_stop_nothing(tmp_path: Path) -> None:
    """Emacs locks a file by a hidden link to a name that is no path; a link may lead to itself."""
    write(tmp_path / "in", a_txt="text", sub__b_txt="below")
    (tmp_path / "in" / ".#a.txt").symlink_to("user@host.123:456")
    (tmp_path / "in" / "ring.txt").symlink_to("ring.txt")
    (tmp_path / "in" / ".ring.txt").symlink_to(".ring.txt")
    for source in (tmp_path / "in", tmp_path / "in" / "**" / "*.txt"):
        documents, skipped = read(source)
        assert [d.text for d in documents] == ["text", "below"]
        assert skipped.counts == {"hidden": 2, "a pipe, socket, device or broken link": 1}
    assert texts(tmp_path / "*" / "*.txt") == ["text"]
    with pytest.raises(UsageError, match=r"is a link to ring\.txt, which is not there"):
        read(tmp_path / "in" / "ring.txt")


def test_folders_that_a_pattern_reaches_by_two_ways_are_not_links(tmp_path: Path) -> None:
    write(tmp_path, b__x__b__a_txt="text", b__b_txt="above")
    documents, skipped = read(tmp_path / "**" / "b" / "**" / "*.txt")
    assert sorted(d.text for d in documents) == ["above", "text"]
    assert skipped.counts == {}


def test_names_that_begin_with_a_tilde(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    write(tmp_path, home__a_txt="at home")
    Path("~draft.txt").write_text("draft")
    assert texts("~draft.txt") == ["draft"]
    assert texts("~/a.txt") == texts("~/*.txt") == ["at home"]
    with pytest.raises(UsageError, match=r"source ~nobody-of-that-name\.txt does not exist"):
        read("~nobody-of-that-name.txt")


def test_folders_that_a_pattern_names_but_does_not_enter(tmp_path: Path) -> None:
    write(tmp_path, a_txt="text", sub__b_txt="below")
    documents, skipped = read(tmp_path / "*")
    assert [d.text for d in documents] == ["text"]
    assert skipped.counts == {"not entered by the pattern (** would)": 1}
    assert read(tmp_path / "*" / "*.txt")[1].counts == {}


def test_a_folder_that_cannot_be_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(folder: Path) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(files.os, "scandir", refuse)
    with pytest.raises(DataError, match=r"cannot be listed: Permission denied"):
        find_local(tmp_path, Skipped())


def test_folders_far_below(tmp_path: Path) -> None:
    """Deeper than Python recurses."""
    (tmp_path / "in").mkdir()
    before = Path.cwd()
    try:
        os.chdir(tmp_path / "in")
        for _ in range(1500):
            os.mkdir("d")  # noqa: PTH102
            os.chdir("d")
        Path("a.txt").write_text("deep")
        os.chdir(before)
        assert texts(tmp_path / "in") == ["deep"]
    finally:  # what clears the temporary folder away recurses, and would fail
        os.chdir(before)
        subprocess.run(["rm", "-rf", tmp_path / "in"], check=True)


@pytest.mark.parametrize("name", [b"caf\xe9.txt", b"new\nline.txt", b"esc\x1b[31m.txt", b"\xff"])
def test_names_that_cannot_be_written_are_shown_escaped(
    tmp_path: Path, name: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for extra in (b"", b".md"):  # one is read where it is .txt, the other is not
        Path(os.fsdecode(os.fsencode(folder) + b"/" + name + extra)).write_text(
            "\n\n".join(made_up_text(5))
        )
    write(folder, ordinary_txt="an ordinary text")
    data = prepared(tmp_path / "out", folder, id_key=None, metadata_keys=[])
    written = (data.path / "statistics.json").read_text(encoding="utf-8")
    said = capsys.readouterr().err
    for text in (written, said):
        assert all(line.isprintable() for line in text.splitlines())
    escaped = {b"caf\xe9": r"caf\xe9", b"new\nline": r"new\nline", b"esc\x1b[31m": r"esc\x1b[31m"}
    expected = escaped.get(name.removesuffix(b".txt"), r"\xff")
    assert expected in said
    assert expected in json.loads(written)["skipped"]["file of another format"]["names"][0]
    if name.endswith(b".txt"):
        assert any(d.id.endswith(f"{expected}.txt:0") for d in read(folder)[0])


def test_a_folder_to_write_whose_name_is_not_utf8(tmp_path: Path) -> None:
    write(tmp_path, a_txt="some text")
    out = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    with pytest.raises(UsageError, match=r"caf\\xe9 has a name that is not UTF-8"):
        prepared(out, tmp_path / "a.txt")
    assert not out.exists()


LINES = [f"line {k} of a corpus" for k in range(300)]


def test_a_large_file_without_a_blank_line_is_read_by_lines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # long paths are shortened
    write(Path("in"), a_txt="\n".join(LINES), b_txt="one\n\ntwo\nlines")
    documents, skipped = read(Path("in"), max_document_bytes=1000)
    assert [d.text for d in documents] == [*LINES, "one", "two\nlines"]
    assert [d.id for d in documents[:300]] == [f"in/a.txt:{k}" for k in range(300)]
    assert skipped.by_lines == ["in/a.txt"]
    data = prepared(tmp_path / "out", Path("in"), max_document_bytes=1000)
    assert data.statistics["documents"] == 302
    assert data.statistics["read_by_lines"] == ["in/a.txt"]
    said = capsys.readouterr().err
    assert said == "read line by line, because they have no blank line (txt_documents): in/a.txt\n"


def test_lines_or_blank_lines_is_a_choice(tmp_path: Path) -> None:
    write(tmp_path, a_txt="one\ntwo\n\n\nthree\n")
    assert texts(tmp_path / "a.txt") == ["one\ntwo", "three"]
    assert texts(tmp_path / "a.txt", txt_documents="lines") == ["one", "two", "three"]
    write(tmp_path, b_txt="\n".join(LINES))
    documents, skipped = read(
        tmp_path / "b.txt", max_document_bytes=1000, txt_documents="blank_lines"
    )
    assert (documents, skipped.by_lines) == ([], [])
    size = len("\n".join(LINES))
    assert skipped.reasons["more than 1,000 bytes (max_document_bytes)"].bytes == size
    with pytest.raises(UsageError, match=r"txt_documents is 'line'.*did you mean 'lines'"):
        read(tmp_path / "b.txt", txt_documents="line")


@pytest.mark.parametrize("place", [0, 1, 150, 299])
def test_a_line_that_is_too_long_among_lines(tmp_path: Path, place: int) -> None:
    lines = [*LINES[:place], "endless " * 1000, *LINES[place:]]
    write(tmp_path, a_txt="\n".join(lines))
    documents, skipped = read(tmp_path / "a.txt", max_document_bytes=1000)
    assert [d.text for d in documents] == LINES
    assert skipped.to_dict()["more than 1,000 bytes (max_document_bytes)"] == {
        "count": 1, "bytes": 8000, "unit": "documents", "names": [f"{tmp_path}/a.txt:{place}"],
    }  # fmt: skip


@pytest.mark.parametrize("lines", ["x" * 1000, "x" * 499 + "\n" + "x" * 500])
def test_a_document_of_as_many_bytes_as_may_be_is_read(tmp_path: Path, lines: str) -> None:
    write(tmp_path, a_txt=f"{lines}\n\nshort\n", b_txt=f"{lines}\n\n{lines}")
    for choice in ("auto", "blank_lines"):
        values = {"max_document_bytes": 1000, "txt_documents": choice}
        assert texts(tmp_path / "a.txt", **values) == [lines, "short"]
        assert texts(tmp_path / "b.txt", **values) == [lines, lines]
    write(tmp_path, c_txt=f"{lines}x\n\nshort")
    documents, skipped = read(
        tmp_path / "c.txt", max_document_bytes=1000, txt_documents="blank_lines"
    )
    assert [d.text for d in documents] == ["short"]
    assert skipped.reasons["more than 1,000 bytes (max_document_bytes)"].bytes == 1001


def test_a_long_block_behind_a_blank_line_is_no_guess(tmp_path: Path) -> None:
    write(tmp_path, a_txt="first\n\n" + "\n".join(LINES))
    documents, skipped = read(tmp_path / "a.txt", max_document_bytes=1000)
    assert [d.text for d in documents] == ["first"]
    assert skipped.by_lines == []
    assert skipped.counts == {"more than 1,000 bytes (max_document_bytes)": 1}


def test_a_quotation_mark_is_text_in_tsv(tmp_path: Path) -> None:
    write(tmp_path, a_tsv='id\ttext\n1\t"Hello\n2\tfine\n3\tsay "hi"\n4\t"quoted"\n')
    assert texts(tmp_path / "a.tsv") == ['"Hello', "fine", 'say "hi"', '"quoted"']


OPEN = "a quotation mark that is never closed"


@pytest.mark.parametrize(
    ("lines", "kept", "reasons"),
    [
        (['1,"open', "2,b", "3,c"], ["b", "c"], {OPEN: 1}),
        (["1,a", '2,"open', '3,"b, too"', "4,c"], ["a", "b, too", "c"], {"not a record": 1}),
        (['1,"two', 'lines"', "2,b"], ["two\nlines", "b"], {}),
        (['1,"a"b', "2,c"], ["c"], {"not a record": 1}),
        (["1,a", '2,"'], ["a"], {OPEN: 1}),
        # Each line closes the mark of the one before and opens another, to the end.
        (['1","open'] * 5, [], {OPEN: 5}),
    ],
)
def test_an_open_quotation_mark_of_csv_costs_its_record(
    tmp_path: Path, lines: list[str], kept: list[str], reasons: dict[str, int]
) -> None:
    write(tmp_path, a_csv="\n".join(["id,text", *lines]))
    documents, skipped = read(tmp_path / "a.csv")
    assert [d.text for d in documents] == kept
    assert {reason.split(":")[0]: count for reason, count in skipped.counts.items()} == reasons


def test_no_line_of_csv_is_read_more_than_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lines that each leave a mark open, whichever of them one begins with: counted at two sizes."""
    handed: list[int] = []
    real = readers._Feed.__next__
    monkeypatch.setattr(readers._Feed, "__next__", lambda of: handed.append(1) or real(of))
    for size in (1000, 4000):
        handed.clear()
        (tmp_path / "a.csv").write_text("id,text\n" + 'x","y\n' * size)
        read(tmp_path / "a.csv")
        assert size < len(handed) < 4 * size + 10


ENDS = ["\n", "\r\n", "\r"]


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("format_", [".txt", ".jsonl", ".csv", ".tsv", ".conllu"])
def test_one_rule_for_the_lines_of_every_format(
    tmp_path: Path, format_: str, end: str, mark: str
) -> None:
    """U+2028, U+0085 and a form feed end no line; a byte order mark is no text."""
    words = ["one\u2028word", "zwei\x85Wörter", "3\x0cthree"]
    if format_ == ".conllu":
        rows = [f"1\t{word}\t_\tNOUN" + "\t_" * 6 + end for word in words]
        content = "".join(row + end for row in rows)
    elif format_ == ".txt":
        content = (2 * end).join(words)
    else:
        heads = {".jsonl": [], ".csv": ["id,text"], ".tsv": ["id\ttext"]}[format_]
        of = {".jsonl": lambda k, w: json.dumps({"id": k, "text": w}, ensure_ascii=False)}
        cut = "," if format_ == ".csv" else "\t"
        line = of.get(format_, lambda k, w: f"{k}{cut}{w}")
        # In JSON these must be escaped, or are text, as they are here but for U+000C.
        rows = [line(k, word) for k, word in enumerate(words)]
        content = end.join([*heads, *rows])
    file = tmp_path / f"a{format_}"
    file.write_bytes((mark + content).encode())
    documents, skipped = read(file)
    assert [d.text for d in documents] == words
    assert skipped.counts == {}


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32"])
@pytest.mark.parametrize("format_", [".txt", ".jsonl", ".csv", ".tsv", ".conllu"])
def test_other_encodings_are_told_by_their_mark(
    tmp_path: Path, format_: str, encoding: str
) -> None:
    (tmp_path / f"a{format_}").write_bytes("text\n".encode(encoding))
    with pytest.raises(DataError, match=rf"is {encoding.upper()}, by its byte order mark.*iconv"):
        read(tmp_path / f"a{format_}")


@pytest.mark.parametrize("format_", [".txt", ".jsonl", ".csv", ".tsv"])
def test_latin_1_is_left_out_and_never_replaced(tmp_path: Path, format_: str) -> None:
    heads = {".csv": "id,text\n", ".tsv": "id\ttext\n"}
    line = {".txt": "{}\n\n", ".jsonl": '{{"text": "{}"}}\n', ".csv": "1,{}\n", ".tsv": "1\t{}\n"}
    content = "".join(line[format_].format(word) for word in ("café", "plain"))
    (tmp_path / f"a{format_}").write_bytes((heads.get(format_, "") + content).encode("latin-1"))
    documents, skipped = read(tmp_path / f"a{format_}")
    assert [d.text for d in documents] == ["plain"]
    assert skipped.counts == {"invalid UTF-8": 1}


@pytest.mark.parametrize(
    ("name", "separator", "way_out"),
    [
        ("a.csv", ";", "commas"),
        ("a.csv", "\t", "as .tsv with tabs"),
        ("a.tsv", ",", "save it with tabs"),
    ],
)
def test_another_separator_is_named(
    tmp_path: Path, name: str, separator: str, way_out: str
) -> None:
    (tmp_path / name).write_text(f"id{separator}text\n1{separator}The words.\n")
    with pytest.raises(DataError, match=rf"single column, .*text.* stand apart by .*{way_out}"):
        read(tmp_path / name)
    (tmp_path / name).write_text("text\nOne; two, three | four.\n".replace(",", ""))
    assert len(read(tmp_path / name)[0]) == 1


def test_columns_that_are_not_utf8(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes("text,année\na,b".encode("latin-1"))
    with pytest.raises(DataError, match=r"a\.csv, line 1 is not UTF-8"):
        read(tmp_path / "a.csv")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[{"text": "a"}, {"text": "b"}]', r"is one JSON array.*jq -c '\.\[\]'"),
        ('[\n  {"text": "a"},\n  {"text": "b"}\n]', r"is one JSON array"),
        ('\ufeff \n [{"text": "a"}]', r"is one JSON array"),
        ("[" + '{"text": "a"},' * 1000 + "]", r"is one JSON array"),  # longer than a line may be
        ('{\n  "text": "a"\n}\n', r"is JSON printed over many lines.*jq -c \."),
        ('"text"\n{"text": "a"}', r"the first line is a string, not one object a line"),
        ('12\n{"text": "a"}', r"the first line is a number"),
        ('null\n{"text": "a"}', r"the first line is null"),
        ('true\n{"text": "a"}', r"the first line is true or false"),
    ],
)
def test_json_that_is_no_object_a_line(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "a.jsonl").write_text(content)
    with pytest.raises(DataError, match=message):
        read(tmp_path / "a.jsonl", max_document_bytes=1000)


def test_json_that_is_nested_or_full_of_groups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = '{"text": "a", "x": ' + "[" * 100_000 + "]" * 100_000 + "}"
    lines = [
        '{"text": "first"}',
        deep,
        '{"text": "b", "x": [[], [], [], [], [], []]}',
        '{"text": "last"}',
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    assert read(tmp_path / "a.jsonl")[1].counts == {"JSON that is nested too deeply": 1}
    monkeypatch.setattr(readers, "_MOST_GROUPS", 7)
    documents, skipped = read(tmp_path / "a.jsonl", metadata_keys=())
    assert [d.text for d in documents] == ["first", "last"]
    assert skipped.counts == {"JSON with more than 7 lists and objects": 2}
