"""Scores of prepared rows: what they are, how they are kept, and that rows without any are as before."""

from __future__ import annotations

import errno
import json
import math
import shutil
import threading
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chronomask import locks
from chronomask.data import scores as scores_module
from chronomask.data.annotation import SPECIAL, WORD_START
from chronomask.data.folder import PreparedData
from chronomask.data.loader import RowLoader
from chronomask.data.manifest import Manifest
from chronomask.data.mixture import DataPart, open_data
from chronomask.data.ngrams import add_ngrams, find_ngrams
from chronomask.data.order import cut_rows
from chronomask.data.parquet import export_parquet, import_parquet
from chronomask.data.scores import (
    Counts,
    Informativeness,
    PairedInformation,
    WordsOfRows,
    add_scores,
    scores_named,
)
from chronomask.data.writer import write_manifest
from chronomask.errors import DataError, UsageError
from chronomask.prepare.pipeline import prepare
from chronomask.progress import Progress
from tests.support.corpus import made_up_text
from tests.support.prepared_rows import words_one_by_one


def prepared(out: Path, **changes: Any) -> PreparedData:
    source = out.parent / "text.txt"
    source.write_text("\n\n".join(made_up_text(80)), encoding="utf-8")
    common: dict[str, Any] = {
        "tokenizer": {"kind": "wordpiece", "vocab_size": 300}, "tagger": "none", "workers": 1,
        "row_length": 32, "held_out": 0.2, "progress": False,
    }  # fmt: skip
    return prepare([source], out, **common | changes)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> PreparedData:
    return prepared(tmp_path_factory.mktemp("plain") / "out")


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> PreparedData:
    return prepared(
        tmp_path_factory.mktemp("scored") / "out", scores={"kind": "pmi", "min_count": 2}
    )


def test_scores_are_those_of_the_formulas(scored: PreparedData) -> None:
    train = words_one_by_one(scored, "train")
    words = Counter(word for row in train for stretch in row for word in stretch)
    pairs = Counter(pair for row in train for stretch in row for pair in pairwise(stretch))
    for split in ("train", "held_out"):
        rows = scored.split(split).read(np.arange(scored.split(split).num_rows))
        assert rows.scores is not None
        assert rows.scores.dtype == np.float32
        telling = 0
        for row, stretches in enumerate(words_one_by_one(scored, split)):
            expected = []
            for stretch in stretches:
                for k, word in enumerate(stretch):
                    best = -math.log2(max(words[word], 1) / words.total())
                    for other, pair in (
                        *((before, (before, word)) for before in stretch[max(k - 1, 0) : k]),
                        *((after, (word, after)) for after in stretch[k + 1 : k + 2]),
                    ):
                        if pairs[pair] >= 2:
                            telling += 1
                            best = min(best, -math.log2(pairs[pair] / words[other]))
                    expected += [best] * len(word)
            maskable = rows.word_id[row] >= 0
            assert rows.scores[row][maskable] == pytest.approx(expected, abs=0.01)
            assert not rows.scores[row][~maskable].any()
        assert telling > 20


def test_rows_without_scores_are_written_as_before(
    plain: PreparedData, scored: PreparedData
) -> None:
    assert "scores" not in (plain.path / "manifest.json").read_text()
    assert plain.split("train").read(np.arange(2)).scores is None
    assert scored.manifest.scores == "pmi"
    for name in ("ids", "annotation", "bounds"):
        file = f"train/{name}-00000.npy"
        assert (plain.path / file).read_bytes() == (scored.path / file).read_bytes()
    assert plain.fingerprint != scored.fingerprint


def test_damaged_scores_are_found(tmp_path: Path) -> None:
    data = prepared(tmp_path / "out", scores={"kind": "informativeness"})
    (file,) = (tmp_path / "out" / "train").glob("scores-*.npy")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(DataError, match=f"damaged: train/{file.name}"):
        data.verify()


@pytest.mark.parametrize("name", ["tokenizer/tokenizer.json", "train/ids-00000.npy", "config.yaml"])
def test_damaged_data_get_no_scores_and_stay_damaged(tmp_path: Path, name: str) -> None:
    """A manifest with hashes made anew would pass the damage off as whole."""
    data = prepared(tmp_path / "data")
    content = bytearray((data.path / name).read_bytes())
    content[len(content) // 2] ^= 1
    (data.path / name).write_bytes(content)
    for _ in range(2):
        with pytest.raises(DataError, match=f"damaged: {name}; run `chronomask prepare` again"):
            add_scores(data.path, Informativeness())


def test_a_column_that_came_meanwhile_is_kept(tmp_path: Path) -> None:
    """Finding collocations takes long, and scores may be added before it ends."""
    out = tmp_path / "out"
    opened = prepared(out)
    add_scores(out, Informativeness())
    add_scores(out, PairedInformation())  # the file of the scores before is gone
    found = find_ngrams(opened.split("train"), min_count=2, progress=False)
    both = add_ngrams(opened, found)
    assert (both.manifest.scores, both.manifest.ngrams) == ("pmi", "pmi")
    rows = both.split("train").read(np.arange(1))
    assert rows.scores is not None
    assert rows.ngrams is not None
    assert both.verify()
    prepared(out, row_length=16, force=True)
    with pytest.raises(DataError, match="was prepared anew meanwhile"):
        add_ngrams(opened, found)


def test_a_column_that_comes_while_the_other_is_written_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hashing what the manifest names may take minutes, and the other command waits for its end."""
    out = tmp_path / "out"
    opened = prepared(out)
    found = find_ngrams(opened.split("train"), min_count=2, progress=False)
    waits = threading.Event()
    other = threading.Thread(target=add_ngrams, args=(opened, found))

    def write(*values: Any) -> Manifest:
        """Write the manifest of the scores once the other command has come as far as it can."""
        monkeypatch.undo()
        monkeypatch.setattr(locks.logger, "warning", lambda *_: waits.set())
        other.start()
        while other.is_alive() and not waits.wait(0.01):
            pass
        return write_manifest(*values)

    monkeypatch.setattr(scores_module, "write_manifest", write)
    add_scores(out, Informativeness())
    other.join()
    both = PreparedData.open(out, verify=True)
    assert (both.manifest.scores, both.manifest.ngrams) == ("informativeness", "pmi")
    named = {entry.file for entry in both.manifest.shard_files()}
    assert {str(file.relative_to(out)) for file in out.rglob("*.npy")} == named
    assert not (out / ".lock").exists()


def test_a_disk_without_locks_keeps_columns_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "out"
    prepared(out)

    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    assert add_scores(out, Informativeness()).manifest.scores == "informativeness"
    assert "start no second command" in caplog.text


def test_scores_reach_the_loader_and_short_rows(scored: PreparedData) -> None:
    split = scored.split("train")
    rows = RowLoader(split, seed=0, rows_per_step=4).rows_at(1)
    expected = split.read_column("scores", rows.row_id)
    assert expected is not None
    assert np.array_equal(np.asarray(rows.scores), expected)
    halves = cut_rows(rows, 2)
    assert np.array_equal(np.asarray(halves.scores).reshape(expected.shape), expected)
    assert np.array_equal(np.asarray(rows.slice(1, 3).scores), expected[1:3])


@pytest.mark.parametrize("kind", ["informativeness", "pmi"])
def test_scoring_shows_how_far_it_is(
    plain: PreparedData, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every row is counted as often as it is read: also in blocks that are not full."""
    shutil.copytree(plain.path, tmp_path / "data")
    made: list[Progress] = []

    def noted(*arguments: Any, **keywords: Any) -> Progress:
        made.append(Progress(*arguments, **keywords))
        return made[-1]

    monkeypatch.setattr(scores_module, "Progress", noted)
    monkeypatch.setattr(scores_module, "_BLOCK_TOKENS", 5 * plain.row_length)
    add_scores(tmp_path / "data", scores_named(kind))
    rows = {name: entry.num_rows for name, entry in plain.manifest.splits.items()}
    (shown,) = made
    assert shown._done == shown._total == 2 * rows["train"] + rows["held_out"]


def test_scores_of_one_s_own(plain: PreparedData, tmp_path: Path) -> None:
    (file,) = export_parquet(plain, tmp_path / "x.parquet")
    data = import_parquet(file, tmp_path / "own")
    shapes = {name: (data.split(name).num_rows, 32) for name in ("train", "held_out")}
    rng = np.random.default_rng(0)
    own = {name: rng.normal(size=shape).astype(np.float16) for name, shape in shapes.items()}
    (tmp_path / "scores").mkdir()
    for name, array in own.items():
        np.save(tmp_path / "scores" / f"{name}.npy", array)
    given = add_scores(data.path, scores_named(str(tmp_path / "scores")))
    assert given.manifest.scores == "given"
    for name, array in own.items():
        read = given.split(name).read(np.arange(shapes[name][0])[::-1]).scores
        assert np.array_equal(np.asarray(read), array[::-1].astype(np.float32))
    assert given.verify() > 0
    # other scores take their place, and the old files go
    other = add_scores(data.path, Informativeness())
    assert other.manifest.scores == "informativeness"
    assert len(list((data.path / "train").glob("scores-*.npy"))) == 1
    assert len({given.fingerprint, other.fingerprint, plain.fingerprint}) == 3


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 70_000.0])
def test_numbers_that_cannot_be_kept(plain: PreparedData, value: float, tmp_path: Path) -> None:
    arrays = {n: np.zeros((plain.split(n).num_rows, 32)) for n in ("train", "held_out")}
    arrays["train"][3, 5] = value
    before = (plain.path / "manifest.json").read_bytes()
    with pytest.raises(DataError, match=r"score of token 5 of train row 3 is .*65504"):
        add_scores(plain.path, arrays)
    assert (plain.path / "manifest.json").read_bytes() == before
    assert not list(plain.path.rglob("scores-*.npy"))


def test_arrays_that_do_not_fit(plain: PreparedData, tmp_path: Path) -> None:
    rows = {name: plain.split(name).num_rows for name in ("train", "held_out")}
    with pytest.raises(UsageError, match=r"given for train; .* held_out, train"):
        add_scores(plain.path, {"train": np.zeros((rows["train"], 32))})
    arrays = {name: np.zeros((number, 32)) for name, number in rows.items()}
    with pytest.raises(UsageError, match=r"train have the shape \[1, 32\]; its rows have"):
        add_scores(plain.path, arrays | {"train": np.zeros((1, 32))})
    with pytest.raises(UsageError, match="must be numbers"):
        add_scores(plain.path, arrays | {"train": np.zeros((rows["train"], 32), "U1")})
    with pytest.raises(UsageError, match=r"neither a folder .* 'informativeness'"):
        scores_named("informativenes")
    for content in (b"no array", b""):
        (tmp_path / "train.npy").write_bytes(content)
        with pytest.raises(
            DataError, match=r"train\.npy is not an array of numbers .* numpy\.save"
        ):
            scores_named(str(tmp_path))


def test_mixtures_agree_on_scores(
    plain: PreparedData, scored: PreparedData, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=r"different scores \(None and pmi\)"):
        open_data([DataPart(path=str(plain.path)), DataPart(path=str(scored.path))])
    shutil.copytree(scored.path, tmp_path / "copy")
    mixed = open_data([DataPart(path=str(scored.path)), DataPart(path=str(tmp_path / "copy"))])
    rows = mixed.split("train").read(np.asarray([1, scored.split("train").num_rows + 1]))
    expected = scored.split("train").read_column("scores", np.asarray([1, 1]))
    assert np.array_equal(np.asarray(rows.scores), np.asarray(expected))


def test_exported_scores_come_back(scored: PreparedData, tmp_path: Path) -> None:
    files = export_parquet(scored, tmp_path / "files")
    back = import_parquet(files[0].parent, tmp_path / "back")
    assert back.fingerprint == scored.fingerprint
    numbers = np.arange(back.split("train").num_rows)
    read, kept = (data.split("train").read_column("scores", numbers) for data in (back, scored))
    assert np.array_equal(np.asarray(read), np.asarray(kept))


@given(st.lists(st.lists(st.integers(0, 9), max_size=8), max_size=6))
def test_counts_are_counts(parts: list[list[int]]) -> None:
    counts = Counts()
    for part in parts:
        counts.add(np.asarray(part, np.uint64))
    expected = Counter(number for part in parts for number in part)
    assert counts.of(np.arange(12, dtype=np.uint64)).tolist() == [expected[k] for k in range(12)]
    assert counts.total == expected.total()


def test_pairs_met_once_are_forgotten_first() -> None:
    counts = Counts(most=3)
    counts.add(np.asarray([1, 1, 2, 3], np.uint64))
    counts.add(np.asarray([4], np.uint64))
    assert counts.of(np.asarray([1, 2, 3, 4], np.uint64)).tolist() == [2, 0, 0, 0]


def test_words_of_rows_by_hand() -> None:
    start, inside = WORD_START, 0
    ids = np.asarray([[2, 7, 8, 7, 3, 7, 8, 9], [2, 9, 8, 7, 7, 8, 3, 0]])
    annotation = np.asarray(
        [
            [SPECIAL, start, inside, start, SPECIAL, start, inside, start],
            [SPECIAL, start, start, start, start, inside, SPECIAL, SPECIAL],
        ],
        np.uint8,
    )
    found = WordsOfRows.of(ids, annotation, np.asarray([0, 8, 12, 16]))
    assert found.of_token.tolist() == [-1, 0, 0, 1, -1, 2, 2, 3, -1, 4, 5, 6, 7, 7, -1, -1]
    # words: 7 8 | 7 . 7 8 | 9 / 9 | 8 | 7 . 7 8 (a document begins at 12)
    assert found.follows.tolist() == [False, True, False, True, False, True, True, False]
    first, seven, _, nine, *_, last = found.keys.tolist()
    assert first == found.keys[2] == last
    assert seven == found.keys[6]
    assert nine == found.keys[4]
    assert len(set(found.keys.tolist())) == 4
    assert found.pairs[3] != found.pairs[1]


def test_nothing_to_score() -> None:
    nothing = np.zeros((1, 4), np.int64), np.full((1, 4), SPECIAL, np.uint8), np.asarray([0, 4])
    found = WordsOfRows.of(*nothing)
    assert found.keys.size == 0
    assert found.of_token.tolist() == [-1] * 4
    assert scores_module.MOST_PAIRS > 1 << 20
    assert json.loads(PairedInformation().model_dump_json()) == {"kind": "pmi", "min_count": 5}
