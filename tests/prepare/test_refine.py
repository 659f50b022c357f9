"""Filters and deduplication: what they leave out is counted, named, and nobody else sees it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chronomask.data.folder import PreparedData
from chronomask.errors import DataError, UsageError
from chronomask.prepare import clean, pipeline
from chronomask.prepare.config import PrepareConfig
from chronomask.prepare.pipeline import prepare
from chronomask.prepare.work import hash_position
from tests.support.corpus import made_up_text

GOOD = (
    "The committee of the village met on Monday to talk about the old bridge. It has stood there for "
    "more than a hundred years, and nobody wants to see it fall. A new one would cost a lot of money. "
    "The people who spoke agreed that the bridge should be repaired with stone from the same quarry, "
    "and that the work has to begin before the winter. They will meet again in March."
)
FEW_HASHES = {"kind": "minhash", "num_buckets": 4, "hashes_per_bucket": 5}
BAD = "- click here\n- buy now ###\n- 12345 67890 ..."


def config(source: Path, **values: Any) -> PrepareConfig:
    base = {
        "sources": [str(source)],
        "tagger": {"kind": "none"},
        "tokenizer": {"kind": "wordpiece", "vocab_size": 300},
        "row_length": 32,
        "held_out": 0,
        "part_characters": 2000,
        "workers": 1,
    }
    return PrepareConfig.parse(base | values)


def run(made: PrepareConfig, out: Path) -> PreparedData:
    return prepare(made, out, progress=False)


def corpus(tmp_path: Path, texts: list[str]) -> Path:
    file = tmp_path / "corpus.txt"
    file.write_text("\n\n".join(texts), encoding="utf-8")
    return file


@pytest.fixture(autouse=True)
def quiet_library() -> Iterator[None]:
    """The library warns of its own regular expressions when it is imported."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def test_filters_leave_documents_out(tmp_path: Path) -> None:
    file = corpus(tmp_path, [GOOD, BAD, GOOD.replace("bridge", "tower"), "too short"])
    data = run(config(file, filters=[{"kind": "gopher_quality"}]), tmp_path / "out")
    assert data.split("train").num_documents == data.statistics["documents"] == 2
    skipped = data.statistics["skipped"]
    named = [name for reason in skipped for name in skipped[reason]["names"]]
    assert sorted(named) == [f"{file}:1", f"{file}:3"]
    assert all(reason.startswith("filter gopher_quality: gopher_") for reason in skipped)


@pytest.mark.parametrize("lowest", ["good", "bad"])
def test_what_filters_leave_is_parted_again(tmp_path: Path, lowest: str) -> None:
    """Of few documents the bound is moved so that neither split is empty, also where it is filtered text
    that would have been the one to train on, or to validate on.
    """
    texts = [GOOD.replace("bridge", f"bridge {k}") for k in range(200)]
    good = sorted(texts, key=hash_position)[-4:]
    bad = [f"{BAD} {k}" for k in range(200)]
    held_out = 0.5
    bad = [text for text in bad if (hash_position(text) < held_out) == (lowest == "bad")][:3]
    if lowest == "good":
        good = sorted(texts, key=hash_position)[:4]
    file = corpus(tmp_path, [*good, *bad])
    made = config(file, filters=[{"kind": "gopher_quality"}], held_out=held_out)
    data = run(made, tmp_path / "out")
    counts = {name: data.split(name).num_documents for name in ("train", "held_out")}
    assert sum(counts.values()) == 4
    assert min(counts.values()) >= 1
    alone = run(config(corpus(tmp_path, good), held_out=held_out), tmp_path / "alone")
    assert data.fingerprint == alone.fingerprint


def test_options_of_filters_are_their_own(tmp_path: Path) -> None:
    file = corpus(tmp_path, [GOOD, BAD])
    lenient = {"min_doc_words": 10_000}
    with pytest.raises(DataError, match=r"left no document \(2 × filter gopher_quality: "):
        run(
            config(file, filters=[{"kind": "gopher_quality", "options": lenient}]),
            tmp_path / "out",
        )
    with pytest.raises(UsageError, match=r"no option 'min_words'; did you mean 'min_\w*words'"):
        run(
            config(file, filters=[{"kind": "gopher_quality", "options": {"min_words": 1}}]),
            tmp_path / "other",
        )
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        (
            {"filters": [{"kind": "gopher_quality", "options": {"min_doc_words": "many"}}]},
            DataError,
            "gopher_quality refuses its options {'min_doc_words': 'many'}: ",
        ),
        (
            {"filters": [{"kind": "gopher_repetition", "options": {"top_n_grams": 3}}]},
            DataError,
            "gopher_repetition refuses its options {'top_n_grams': 3}: ",
        ),
        (
            {"filters": [{"kind": "c4_quality", "options": {"language": "xyz"}}]},
            DataError,
            "c4_quality refuses its options .*'xyz'",
        ),
        (
            {"deduplication": {"kind": "minhash", "language": "xyz"}},
            UsageError,
            "deduplication.language=xyz: its words cannot be split: ",
        ),
    ],
)
def test_values_that_cannot_be_are_refused_before_any_text_is_read(
    tmp_path: Path, values: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        run(config(corpus(tmp_path, [GOOD]), **values), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_filter_may_change_a_text(tmp_path: Path) -> None:
    lines = "\n".join(f"{sentence.strip()}." for sentence in GOOD.split(".")[:-1])
    file = corpus(tmp_path, [lines + "\nno full stop at the end of this line"] * 2)
    made = config(file, filters=[{"kind": "c4_quality"}], id_key="id")
    data = run(made, tmp_path / "out")
    import pyarrow.parquet as pq

    table = pq.read_table(data.path / "documents.parquet").to_pydict()
    assert table["num_characters"] == [len(lines)] * 2


def test_filters_and_columns_do_not_go_together(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="filters may change a text"):
        config(tmp_path, filters=[{"kind": "c4_quality"}], tagger={"kind": "column"})


@pytest.mark.parametrize(
    "values", [{"filters": [{"kind": "c4_quality"}]}, {"deduplication": {"kind": "minhash"}}]
)
def test_without_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, values: dict[str, Any]
) -> None:
    for name in ("datatrove.pipeline", "datatrove.pipeline.dedup", "datatrove.pipeline.filters"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UsageError, match=r"needs the package 'datatrove', .*chronomask\[filters\]"):
        run(config(corpus(tmp_path, [GOOD]), **values), tmp_path / "out")


def test_equal_texts_are_kept_once(tmp_path: Path) -> None:
    texts = made_up_text(40)
    unique = run(config(corpus(tmp_path, texts)), tmp_path / "unique")
    file = corpus(tmp_path, [*texts, *texts[:7]])
    data = run(config(file, deduplication={"kind": "exact"}), tmp_path / "out")
    assert data.fingerprint == unique.fingerprint
    assert data.statistics["skipped"] == {
        "duplicate": {
            "count": 7,
            "bytes": sum(len(text.encode()) for text in texts[:7]),
            "unit": "documents",
            "names": [f"{file}:{k}" for k in range(40, 47)],
        }
    }


def test_of_equal_texts_the_first_is_kept_in_whichever_part_it_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside a set of texts that were met. Few hashes are compared at a time, and some parts have none."""
    monkeypatch.setattr(clean, "_AT_ONCE", 5)
    rng = np.random.default_rng(0)
    met: set[str] = set()
    expected: dict[int, list[int]] = {}
    for number, size in enumerate((9, 0, 40, 1, 60, 0)):
        texts = [f"text {k}" for k in rng.integers(0, 50, size)]
        clean.ExactDuplicates().sign(texts, tmp_path, number)
        expected[number] = []
        for place, text in enumerate(texts):
            if text in met:
                expected[number].append(place)
            met.add(text)
    assert clean.ExactDuplicates().duplicates(tmp_path, 6) == expected
    assert sum(map(len, expected.values())) > 40


def test_texts_that_differ_in_numbers_are_no_duplicates(tmp_path: Path) -> None:
    texts = [" ".join(f"{97 * k + 13 * j} mm" for j in range(40)) for k in range(1, 9)]
    made = config(corpus(tmp_path, texts), deduplication=FEW_HASHES)
    assert run(made, tmp_path / "out").statistics["documents"] == 8


@pytest.mark.slow
def test_nearly_equal_texts_are_kept_once(tmp_path: Path) -> None:
    again = GOOD.replace("Monday", "Tuesday")
    short = ["short one", "another", "short one"]  # too short to be compared by word n-grams
    texts = [GOOD, short[0], *made_up_text(20), again, *short[1:]]
    made = config(corpus(tmp_path, texts), deduplication=FEW_HASHES, part_characters=6000)
    data = run(made, tmp_path / "out")
    skipped = data.statistics["skipped"]["near duplicate (minhash)"]
    assert skipped["count"] == 2
    places = sorted(int(name.split(":")[-1]) for name in skipped["names"])
    assert places[0] in (0, 22)
    assert places[1] == 24
    two = run(made.replace(["workers=2"]), tmp_path / "two")
    assert two.fingerprint == data.fingerprint


def test_an_interruption_between_the_stages_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = made_up_text(40)
    made = config(corpus(tmp_path, [*texts, *texts]), deduplication={"kind": "exact"})
    whole = run(made, tmp_path / "whole")

    def stops(*of: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "drop_duplicates", stops)
    with pytest.raises(KeyboardInterrupt):
        run(made, tmp_path / "out")
    monkeypatch.undo()
    assert run(made, tmp_path / "out").fingerprint == whole.fingerprint
