"""``chronomask data``: what it prints, and that no damaged bit escapes it."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer
from typer.testing import CliRunner

from chronomask.cli import app, main
from chronomask.data.folder import PreparedData
from chronomask.errors import DataError, UsageError
from chronomask.prepare.config import PrepareConfig
from chronomask.prepare.pipeline import prepare
from chronomask.show.prepared import look_into
from chronomask.show.request import Request
from chronomask.show.show import inspect_masking
from chronomask.show.subject import of_rows, of_text
from chronomask.show.terminal import rows_as_text


def run(*arguments: object) -> str:
    result = CliRunner().invoke(app, ["data", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0
    return result.output


def test_info_prints_the_counts(tiny_data: PreparedData) -> None:
    printed = run("info", tiny_data.path)
    train = tiny_data.split("train")
    for value in (train.num_documents, train.num_rows, train.num_tokens):
        assert f"{value:,}" in printed
    assert tiny_data.fingerprint in printed
    assert "fixed 1" in printed
    shares = [float(x) for x in re.findall(r"^  [A-Z]+ +([\d.]+) %", printed, re.MULTILINE)]
    assert len(shares) == len(tiny_data.class_names) - 1
    assert sum(shares) == pytest.approx(100, abs=0.2)
    assert shares == sorted(shares, reverse=True)


def test_info_draws_a_page(tiny_data: PreparedData, tmp_path: Path) -> None:
    assert f"page: {tmp_path / 'data.html'}" in run("info", tiny_data.path, "--out", tmp_path)
    page = (tmp_path / "data.html").read_text(encoding="utf-8")
    assert all(f">{name}</th>" in page for name in tiny_data.class_names[1:])
    assert "<script" not in page


def test_show_prints_every_word_with_its_class(tiny_data: PreparedData) -> None:
    printed = run("show", tiny_data.path, "--row", 3, "--rows", 2)
    rows = tiny_data.split("train").read(np.array([3, 4]))
    blocks = printed.split("\n\n")[1:]
    for block, words, classes in zip(blocks, rows.word_id, rows.token_class, strict=True):
        head, *lines = block.splitlines()
        assert f"{words.max() + 1} words" in head
        shown = re.findall(r"/([A-Z]+)", " ".join(lines))
        first = [int(np.argmax(words == word)) for word in range(words.max() + 1)]
        assert shown == [tiny_data.class_names[int(classes[k])] for k in first]
        assert sum(line.count("·") for line in lines) == sum(
            np.count_nonzero(words == word) - 1 for word in range(words.max() + 1)
        )


def test_show_marks_documents_and_padding(tiny_data: PreparedData) -> None:
    last = tiny_data.split("train").num_rows - 1
    printed = run("show", tiny_data.path, "--row", last)
    rows = tiny_data.split("train").read(np.array([last]))
    assert printed.split("\n\n")[1].count("¶") == rows.cu_seqlens.size - 2
    padding = int((rows.input_ids == 0).sum())
    assert f"{32 - padding} tokens, {padding} of padding" in printed


def test_colours_only_on_request(tiny_data: PreparedData) -> None:
    assert "\x1b[" in rows_as_text(tiny_data, "train", 0, 1, colour=True)
    assert "\x1b[" not in rows_as_text(tiny_data, "train", 0, 1)


def test_rows_that_do_not_exist_are_refused(tiny_data: PreparedData) -> None:
    with pytest.raises(UsageError, match=r"has no row 1,000,000 in train; rows are 0 to"):
        rows_as_text(tiny_data, "train", 10**6, 1)
    with pytest.raises(UsageError, match="did you mean 'held_out'"):
        rows_as_text(tiny_data, "heldout", 0, 1)


def test_fewer_rows_than_asked_for_are_counted(
    tiny_data: PreparedData, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    last = tiny_data.split("train").num_rows - 1
    assert exit_code(monkeypatch, "show", tiny_data.path, "--row", last, "--rows", 5) == 0
    assert (
        f"1 row is shown of the 5 asked for: train ends with row {last:,}"
        in capsys.readouterr().out
    )
    assert exit_code(monkeypatch, "show", tiny_data.path, "--row", last) == 0
    assert "asked for" not in capsys.readouterr().out


def exit_code(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["chronomask", "data", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        main()
    return int(stopped.value.code or 0)


def test_whole_data_verifies(
    tiny_data: PreparedData, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(monkeypatch, "verify", tiny_data.path) == 0
    assert "whole" in capsys.readouterr().out


def test_a_flipped_bit_anywhere_is_found_and_its_file_named(
    tiny_data: PreparedData,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    copy = Path(shutil.copytree(tiny_data.path, tmp_path / "copy"))
    random = np.random.default_rng(0)
    files = [file for file in sorted(copy.rglob("*")) if file.is_file()]
    assert len(files) >= 10
    for file in files:
        whole = file.read_bytes()
        for _ in range(12 if file.name == "manifest.json" else 2):
            damaged = bytearray(whole)
            damaged[random.integers(len(whole))] ^= 1 << int(random.integers(8))
            file.write_bytes(damaged)
            assert exit_code(monkeypatch, "verify", copy) == 1
            assert str(file.relative_to(copy)) in capsys.readouterr().err
        file.write_bytes(whole)
    assert exit_code(monkeypatch, "verify", copy) == 0


def test_cut_and_missing_files_are_named(
    tiny_data: PreparedData,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    copy = Path(shutil.copytree(tiny_data.path, tmp_path / "copy"))
    (copy / "statistics.json").unlink()
    assert exit_code(monkeypatch, "verify", copy) == 1
    assert "damaged: statistics.json (missing)" in capsys.readouterr().err
    (copy / "train" / "ids-00000.npy").write_bytes(b"")
    assert exit_code(monkeypatch, "verify", copy) == 1
    assert "ids-00000.npy has 0 bytes" in capsys.readouterr().err
    assert exit_code(monkeypatch, "verify", tmp_path / "nowhere") == 2


@pytest.mark.parametrize("cut", [True, False])
def test_damage_of_the_tokenizer_is_found_on_opening(
    tiny_data: PreparedData, tmp_path: Path, cut: bool
) -> None:
    copy = Path(shutil.copytree(tiny_data.path, tmp_path / "copy"))
    file = copy / "tokenizer" / "tokenizer.json"
    if cut:
        file.write_bytes(file.read_bytes()[:-100])
    else:
        file.unlink()
    why = "it is truncated or was changed" if cut else "is missing"
    with pytest.raises(
        DataError, match=rf"tokenizer\.json .*{why}; run `chronomask prepare` again"
    ):
        PreparedData.open(copy)


def test_damaged_counts_are_told(tiny_data: PreparedData, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tiny_data.path, tmp_path / "copy"))
    (copy / "statistics.json").write_text("{")
    with pytest.raises(DataError, match=r"statistics\.json cannot be read .* again with --force"):
        look_into(PreparedData.open(copy))
    (copy / "config.yaml").unlink()
    with pytest.raises(DataError, match=r"config\.yaml is missing; run `chronomask prepare` again"):
        inspect_masking(Request(text="a b", data=copy))


@pytest.fixture(scope="module")
def unigram(tmp_path_factory: pytest.TempPathFactory) -> PreparedData:
    """Rows of a Unigram tokenizer, in whose model special tokens are pieces like others."""
    folder = tmp_path_factory.mktemp("unigram")
    lines = "\n\n".join(f"One river and {number} hills." for number in range(60))
    (folder / "text.txt").write_text(lines, encoding="utf-8")
    values = {
        "sources": [str(folder / "text.txt")],
        "tokenizer": {"kind": "unigram", "vocab_size": 100},
        "tagger": {"kind": "none"},
        "row_length": 16,
    }
    return prepare(PrepareConfig.model_validate(values), folder / "data", progress=False)


def test_special_tokens_of_a_unigram_have_their_names(unigram: PreparedData) -> None:
    printed = run("show", unigram.path, "--row", 0)
    assert "[CLS]" in printed
    shown = of_rows(unigram, 1)
    assert shown.spell(4) == "[MASK]"
    assert of_text("One river", unigram.tokenizer_path, None).spell(4) == "[MASK]"


def test_a_text_that_spells_a_special_token_is_text(unigram: PreparedData) -> None:
    """Whether a tokenizer is given as a folder or as an object."""
    opened = AutoTokenizer.from_pretrained(str(unigram.tokenizer_path))
    for tokenizer in (unigram.tokenizer_path, opened):
        subject = of_text("One [MASK] river [CLS]", tokenizer, None)
        assert not np.isin(subject.rows.input_ids, [0, 2, 3, 4]).any()


def test_one_of_a_thing_is_not_many(tmp_path: Path) -> None:
    """One row of one word, prepared and shown."""
    text = tmp_path / "text.jsonl"
    text.write_text('{"text": "river"}\n{"text": "hills"}\n', encoding="utf-8")
    out = tmp_path / "data"
    words = ["prepare", text, "--out", out, "--tagger", "none", "--quiet", "--row-length", "8"]
    sized = ["--tokenizer", "byte_level_bpe", "--vocab-size", "300"]
    result = CliRunner().invoke(app, [*map(str, words), *sized], catch_exceptions=False)
    assert f"{out}: 1 row of 8 tokens to train on" in result.output
    assert "1 word\n" in run("show", out)
