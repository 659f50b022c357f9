"""Text and machines as they are: nothing that goes wrong is silent, and nothing half-done counts."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from chronomask.errors import DataError, UsageError
from chronomask.locks import lock
from chronomask.prepare import pipeline
from chronomask.prepare.config import PrepareConfig
from chronomask.prepare.pipeline import prepare
from tests.support.corpus import made_up_text
from tests.support.forks import PREPARING, run_scripts
from tests.support.processes import python_path
from tests.support.reading import files, tiny_config


def command(made: PrepareConfig, out: Path, *more: str) -> list[str]:
    """The command line of a preparation, for a process of its own."""
    file = out.parent / f"{out.name}.yaml"
    file.write_text(made.to_yaml())
    of = ["--config", str(file), "--out", str(out), "--quiet"]
    return [sys.executable, "-m", "chronomask", "prepare", *of, *more]


ENVIRONMENT = os.environ | {"PYTHONPATH": python_path()}


@pytest.mark.parametrize("text", ["plain words", "naïve words, 한국어"])
def test_utf_16_without_a_byte_order_mark_is_told_from_latin_1(tmp_path: Path, text: str) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes(text.encode("utf-16-le"))
    with pytest.raises(DataError, match=r"1 × NUL character\); text in UTF-16 .*UTF-16LE"):
        prepare(tiny_config(file), tmp_path / "out", progress=False)
    file.write_bytes("naïve words".encode("latin-1"))
    with pytest.raises(DataError, match=r"1 × invalid UTF-8\); convert .*WINDOWS-1252"):
        prepare(tiny_config(file), tmp_path / "out", progress=False)


@pytest.mark.parametrize("format_", [".txt", ".jsonl", ".csv"])
def test_a_document_that_is_too_long_costs_itself(tmp_path: Path, format_: str) -> None:
    good = made_up_text(30)
    lines = "\n".join(["long words " * 50] * 3)  # together too long, alone not
    # In a table a field over many lines is left where it gets too long: tested below.
    texts = [*good[:15], "endless " * 1000, *good[15:], lines if format_ != ".csv" else "no " * 999]
    file = tmp_path / f"a{format_}"
    if format_ == ".txt":
        file.write_text("\n\n".join(texts))
    elif format_ == ".jsonl":
        file.write_text("\n".join(json.dumps({"text": text}) for text in texts))
    else:
        file.write_text("text,n\n" + "\n".join(f'"{text}",1' for text in texts))
    limit = max(1000, *(len(text) + 20 for text in good))
    assert limit < len(lines)
    data = prepare(tiny_config(file, max_document_bytes=limit), tmp_path / "out", progress=False)
    assert data.statistics["documents"] == 30
    ((reason, told),) = data.statistics["skipped"].items()
    assert reason == f"more than {limit:,} bytes (max_document_bytes)"
    assert told["bytes"] >= 8000 + min(len(lines), 999 * 3)
    assert (told["count"], told["names"]) == (2, [f"{file}:15", f"{file}:31"])


def test_a_field_over_many_lines_is_left_where_it_gets_too_long(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    field = "\n".join(["long words " * 40] * 5)
    file.write_text(f'text,n\nbefore it,1\n"{field}",2\nafter it,3\n')
    data = prepare(
        tiny_config(file, max_document_bytes=1000, held_out=0), tmp_path / "out", progress=False
    )
    skipped = data.statistics["skipped"]
    assert {reason: told["count"] for reason, told in skipped.items()} == {
        "more than 1,000 bytes (max_document_bytes)": 1,
        "another number of fields than the first line": 3,
    }
    # Its last line happens to be a record of two fields.
    assert data.statistics["documents"] == 3


MEASURE = """
import sys
from pathlib import Path
from chronomask.prepare import pipeline
from chronomask.prepare.config import PrepareConfig
from chronomask.prepare.read.left_out import Skipped
from chronomask.prepare.read.sources import find_sources
import torch
from chronomask.model.device import peak_memory
config = PrepareConfig.parse({"sources": [sys.argv[1]], "max_document_bytes": 1_000_000})
fields, skipped = config.fields(), Skipped()
before = peak_memory(torch.device("cpu"))
(source,) = find_sources(config.sources, fields, skipped)
kept = [document.text for document in source.documents(fields, skipped)]
assert kept == ["before", "after"], len(kept)
print(peak_memory(torch.device("cpu")) - before)
"""


@pytest.mark.slow
@pytest.mark.parametrize("format_", [".txt", ".jsonl"])
def test_a_line_of_100_mb_is_never_held(tmp_path: Path, format_: str) -> None:
    file = tmp_path / f"a{format_}"
    with file.open("wb") as handle:
        wrap = (b'{"text": "', b'"}\n') if format_ == ".jsonl" else (b"", b"\n\n")
        handle.write(wrap[0] + b"before" + wrap[1] + wrap[0])
        for _ in range(100):
            handle.write(b"no end " * 150_000)
        handle.write(wrap[1] + wrap[0] + b"after" + wrap[1])
    told = subprocess.run(
        [sys.executable, "-c", MEASURE, str(file)],
        env=ENVIRONMENT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert int(told.stdout) < 20 << 20  # bytes


def test_every_kind_of_bad_document_at_once(tmp_path: Path) -> None:
    good = [text.encode() for text in made_up_text(20)]
    bad = [b"broken \xff\xfe", b"nul \0 nul", b"x", b"endless " * 1000, "\u200b".encode() * 5]
    (tmp_path / "a.txt").write_bytes(b"\n\n".join([*good[:10], *bad, *good[10:]]))
    (tmp_path / "b.jsonl").write_bytes(b'{"text": "good one"}\n{"text": \n{"txt": "bad"}\n')
    limit = max(1000, *(len(text) for text in good))
    data = prepare(tiny_config(tmp_path, max_document_bytes=limit), tmp_path / "o", progress=False)
    skipped = data.statistics["skipped"]
    assert {reason.split(":")[0]: told["count"] for reason, told in skipped.items()} == {
        "invalid UTF-8": 1,
        "NUL character": 1,
        "fewer than 2 characters": 1,
        f"more than {limit:,} bytes (max_document_bytes)": 1,
        "no token": 1,
        "not JSON": 1,
        "no text in field 'text'": 1,
    }
    assert all(told["names"] for told in skipped.values())
    data.verify()


@pytest.mark.parametrize(
    ("name", "content", "way_out"),
    [
        ("a.txt.gz", b"not compressed", "copy it again, or name it without its last ending"),
        ("a.txt", b" \n", "give a file with text"),
        ("a.txt", b"x", "--set min_characters=NUMBER takes shorter ones"),
        ("a.txt", b"x" * 4000, "--set max_document_bytes=NUMBER takes longer ones"),
        ("a.jsonl", b'{"text": 1}', "--set text_key=NAME names the field that holds the text"),
        ("a.jsonl", b'{"text": "\\ud800"}', "give a file with text that can be used"),
    ],
)
def test_where_no_document_is_left_a_way_out_is_told(
    tmp_path: Path, name: str, content: bytes, way_out: str
) -> None:
    (tmp_path / name).write_bytes(content)
    config = tiny_config(tmp_path / name, "min_characters=2", "max_document_bytes=3000")
    with pytest.raises(DataError, match=f"no document in .*; {re.escape(way_out)}"):
        prepare(config, tmp_path / "out", progress=False)


@pytest.mark.parametrize("content", [b"", b"\n\n \n\n"])
def test_an_empty_corpus_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_bytes(content)
    with pytest.raises(DataError, match=r"no document in .*a\.txt"):
        prepare(tiny_config(tmp_path / "in"), tmp_path / "out", progress=False)


def small_files() -> None:
    """Runs in a child: writing stops with an error of the system after 8,000 bytes of a file."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (8_000, 8_000))


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_disk_that_takes_no_more(tmp_path: Path, workers: str) -> None:
    file = tmp_path / "a.txt"
    file.write_text("\n\n".join(made_up_text(200)))
    # Files of text and tokenizer are small enough; those of tokens are not.
    made = tiny_config(
        file, part_characters=15_000, tokenizer={"kind": "wordpiece", "vocab_size": 150}
    )
    whole = prepare(made, tmp_path / "whole", progress=False)
    out = tmp_path / "out"
    full = subprocess.run(
        command(made, out, "--workers", workers),
        env=ENVIRONMENT, capture_output=True, text=True, check=False, preexec_fn=small_files,
    )  # fmt: skip
    assert full.returncode == 1, full.stderr
    assert "File too large" in full.stderr
    assert "stage annotate failed for parts 0" in full.stderr
    assert "Traceback" not in full.stderr
    assert not (out / "manifest.json").exists()
    assert not list((out / ".work").glob("*.partial"))
    assert files(prepare(made, out, progress=False).path) == files(whole.path)


@pytest.mark.slow
def test_a_killed_preparation_goes_on(tmp_path: Path) -> None:
    """Killed where the tokenizer, a part, another one two parts on, and the manifest would appear."""
    file = tmp_path / "a.txt"
    file.write_text("\n\n".join(made_up_text(400)))
    made = tiny_config(file, part_characters=3000)
    out = tmp_path / "out"
    of_chronomask = command(made, out)[3:]
    killed = [
        [{"module": "tests.support.killed_command", "arguments": [name, number, *of_chronomask]}]
        for name, number in (
            ("tokenizer", "1"), ("annotate-", "4"), ("annotate-", "2"), ("manifest.json", "1"),
        )
    ]  # fmt: skip
    answers = run_scripts(PREPARING, *killed)
    assert [answer["code"] for answer in answers] == [-signal.SIGKILL] * 4, answers
    assert not (out / "manifest.json").exists()
    whole = prepare(made, tmp_path / "whole", progress=False)
    assert files(prepare(made, out, progress=False).path) == files(whole.path)


def test_what_was_killed_behind_its_manifest_is_tidied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, out = tmp_path / "a.txt", tmp_path / "out"
    file.write_text("\n\n".join(made_up_text(20)))
    remove = pipeline.remove_all

    def remove_or_die(path: Path, **options: Any) -> None:
        if path.name == ".work":
            sys.exit("killed")
        remove(path, **options)

    with monkeypatch.context() as killed:
        killed.setattr(pipeline, "remove_all", remove_or_die)
        with pytest.raises(SystemExit, match="killed"):
            prepare(tiny_config(file), out, progress=False)
    assert (out / "manifest.json").is_file()
    assert (out / ".work").is_dir()
    with lock(out / ".lock"):  # another one is at it
        prepare(tiny_config(file), out, progress=False)
    assert (out / ".work").is_dir()
    prepare(tiny_config(file), out, progress=False)
    assert not [path.name for path in out.iterdir() if path.name.startswith(".")]


def test_two_preparations_of_one_folder_do_not_meet(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("\n\n".join(made_up_text(20)))
    out = tmp_path / "out"
    out.mkdir()
    with (
        lock(out / ".lock"),
        pytest.raises(UsageError, match="another process is preparing"),
    ):
        prepare(tiny_config(file), out, progress=False)
    data = prepare(tiny_config(file), out, progress=False)
    assert not (out / ".lock").exists()
    with lock(out / ".lock"):  # reading what is finished takes no turn
        assert prepare(tiny_config(file), out, progress=False).fingerprint == data.fingerprint
        with pytest.raises(UsageError, match="another process is preparing"):
            prepare(tiny_config(file), out, progress=False, force=True)
    data.verify()


def test_a_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one two three")
    with pytest.raises(UsageError, match=r"a\.txt is a file, and nothing can be made in one"):
        prepare(tiny_config(tmp_path / "a.txt"), tmp_path / "a.txt" / "out", progress=False)
