"""GLUE's files and the hub's rows: what is read, and what is refused."""

from __future__ import annotations

import sys
from pathlib import Path

import datasets
import numpy as np
import pytest

from chronomask.errors import DataError, UsageError
from chronomask.evaluate.glue_files import FORMATS, diagnostic, read_split, source_sha256
from tests.support.official_files import (
    HEADERS,
    LABELS,
    MNLI_DEV,
    PLACES,
    sentence,
    table,
    write_glue,
)


@pytest.mark.parametrize("task", sorted(set(FORMATS) - {"mnli"}))
def test_reads_texts_and_labels_from_their_columns(glue: Path, task: str) -> None:
    folder = FORMATS[task].folder
    examples = read_split(task, glue, "dev")
    assert examples.texts == [sentence(k, k % 2 > 0) for k in range(5)]
    two = PLACES[folder][0] != PLACES[folder][1]
    assert examples.pairs == ([sentence(k + 1, k % 2 > 0) for k in range(5)] if two else None)
    expected = [float(LABELS[folder][k % 2]) if task == "stsb" else k % 2 for k in range(5)]
    assert examples.labels.tolist() == expected
    assert len(read_split(task, glue, "train")) == 12


def test_mnli_labels_mean_what_the_hub_says_and_dev_sets_differ(glue: Path) -> None:
    assert FORMATS["mnli"].class_names == ("entailment", "neutral", "contradiction")
    train = read_split("mnli", glue, "train")
    assert train.labels.tolist() == [k % 3 for k in range(12)]
    assert (train.texts[1], train.pairs and train.pairs[1]) == ("train premise 1", "claim 1")
    matched, mismatched = (read_split("mnli", glue, split) for split in FORMATS["mnli"].dev)
    assert matched.labels.tolist() == [1, 2, 0, 1, 2, 0]
    assert mismatched.labels.tolist() == [2, 0, 1, 2, 0]
    assert matched.texts[0] == "dev_matched premise 0"
    assert mismatched.texts[0] == "dev_mismatched premise 0"


def test_quotes_and_odd_line_ends_are_text(tmp_path: Path) -> None:
    rows = [['say "hi', "1"], ["a\u2028b", "0"], ['"', "1"]]
    table(tmp_path / "SST-2" / "dev.tsv", HEADERS["SST-2"], rows)
    path = tmp_path / "SST-2" / "dev.tsv"
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert read_split("sst2", tmp_path, "dev").texts == [row[0] for row in rows]


def test_qqp_rows_that_are_cut_off_are_left_out_and_counted(glue: Path) -> None:
    path = glue / "glue" / "QQP" / "train.tsv"
    path.write_text(path.read_text() + "77\t1\t2\tonly one question\n")
    examples = read_split("qqp", glue, "train")
    assert (len(examples), examples.skipped) == (12, 1)
    path = glue / "glue" / "RTE" / "train.tsv"
    path.write_text(path.read_text() + "77\tonly one\n")
    with pytest.raises(DataError, match=r"RTE/train.tsv, line 14: 2 columns instead of 4"):
        read_split("rte", glue, "train")


def test_diagnostic_pairs_with_and_without_labels(glue: Path) -> None:
    bare, path = diagnostic(glue)
    assert path == glue / "glue" / "AX" / "diagnostic.tsv"
    assert (len(bare), set(bare.labels.tolist())) == (4, {-1})
    header = [
        "Lexical Semantics", "Predicate-Argument Structure", "Logic", "Knowledge", "Domain",
        "Premise", "Hypothesis", "Label",
    ]  # fmt: skip
    rows = [["", "", "", "", "", "p", "h", name] for name in ("neutral", "contradiction")]
    table(glue / "glue" / "AX" / "diagnostic-full.tsv", header, rows)
    full, path = diagnostic(glue)
    assert (full.labels.tolist(), full.pairs) == ([1, 2], ["h", "h"])
    (glue / "glue" / "AX" / "diagnostic-full.tsv").unlink()
    (glue / "glue" / "AX" / "diagnostic.tsv").unlink()
    assert diagnostic(glue)[1] is None


def break_label(path: Path) -> None:
    path.write_text(path.read_text().replace("not_entailment", "maybe", 1))


def break_column(path: Path) -> None:
    path.write_text(path.read_text().replace("sentence2", "hypothesis", 1))


def break_empty(path: Path) -> None:
    path.write_text("")


def break_header_only(path: Path) -> None:
    path.write_text(path.read_text().split("\n")[0] + "\n")


def break_encoding(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\xff\xfe\n")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (break_label, r"dev.tsv, line 3: label 'maybe'; valid: entailment, not_entailment"),
        (break_column, r"no column 'sentence2'; its columns are: index, sentence1, hypothesis"),
        (break_empty, "dev.tsv is empty"),
        (break_header_only, "dev.tsv holds no examples"),
        (break_encoding, "dev.tsv cannot be read"),
    ],
)
def test_bad_files_are_refused_by_place(glue: Path, damage, message: str) -> None:
    damage(glue / "glue" / "RTE" / "dev.tsv")
    with pytest.raises(DataError, match=message):
        read_split("rte", glue, "dev")


@pytest.mark.parametrize("score", ["5.5", "-1", "nan", "high"])
def test_scores_out_of_range_are_refused(glue: Path, score: str) -> None:
    path = glue / "glue" / "STS-B" / "train.tsv"
    path.write_text(path.read_text().replace("5.000", score, 1))
    with pytest.raises(DataError, match=f"line 3: score '{score}'"):
        read_split("stsb", glue, "train")


def test_mnli_rows_without_a_gold_label_are_refused(glue: Path) -> None:
    cells = [f"x{k}" for k in range(15)]
    table(glue / "glue" / "MNLI" / "dev_matched.tsv", MNLI_DEV, [[*cells, "-"]])
    with pytest.raises(DataError, match="label '-'; valid: entailment, neutral, contradiction"):
        read_split("mnli", glue, "dev_matched")


def test_missing_files_are_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"CoLA/train.tsv does not exist"):
        read_split("cola", tmp_path, "train")


def test_the_hash_is_of_what_is_read(glue: Path, tmp_path: Path) -> None:
    before = source_sha256("mnli", glue, with_diagnostic=True)
    write_glue(tmp_path / "elsewhere")
    assert source_sha256("mnli", tmp_path / "elsewhere", with_diagnostic=True) == before
    (glue / "glue" / "MNLI" / "notes.txt").write_text("not read")
    assert source_sha256("mnli", glue, with_diagnostic=True) == before
    path = glue / "glue" / "MNLI" / "dev_mismatched.tsv"
    path.write_text(path.read_text().replace("claim 4", "claim 5"))
    assert source_sha256("mnli", glue, with_diagnostic=True) != before


HUB = Path("hub")


def hub_rows(names: list[str]) -> datasets.Dataset:
    features = datasets.Features(
        {
            "premise": datasets.Value("string"),
            "hypothesis": datasets.Value("string"),
            "label": datasets.ClassLabel(names=names),
            "idx": datasets.Value("int32"),
        }
    )
    columns = {"premise": ["p0", "p1"], "hypothesis": ["h0", "h1"], "label": [2, 0], "idx": [0, 1]}
    return datasets.Dataset.from_dict(columns, features=features)


def test_hub_rows_are_read_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load_dataset(*names: str, split: str) -> datasets.Dataset:
        asked.append((*names, split))
        return hub_rows(["entailment", "neutral", "contradiction"])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    examples = read_split("mnli", HUB, "dev_mismatched")
    assert asked == [("nyu-mll/glue", "mnli", "validation_mismatched")]
    assert (examples.texts, examples.pairs) == (["p0", "p1"], ["h0", "h1"])
    np.testing.assert_array_equal(examples.labels, [2, 0])


def test_hub_rows_with_another_label_order_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = hub_rows(["contradiction", "entailment", "neutral"])
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: rows)
    with pytest.raises(DataError, match="its class numbers mean something else"):
        read_split("mnli", HUB, "train")


def test_the_hub_out_of_reach_is_a_usage_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(*_: str, **__: str) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(UsageError, match=r"cannot be had from the hub: ConnectionError: no route"):
        read_split("cola", HUB, "train")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UsageError, match=r"pip install 'chronomask\[hub\]'"):
        read_split("cola", HUB, "train")
