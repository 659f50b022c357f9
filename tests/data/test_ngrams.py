"""Collocations of prepared rows against a loop over every n-gram, how they are kept, and what is refused."""

from __future__ import annotations

import math
import random
from collections import Counter
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chronomask.data import scores
from chronomask.data.annotation import SPECIAL, WORD_START
from chronomask.data.folder import PreparedData
from chronomask.data.loader import RowLoader
from chronomask.data.mixture import DataPart, open_data
from chronomask.data.ngrams import Ngrams, add_ngrams, find_ngrams
from chronomask.data.order import cut_rows
from chronomask.data.parquet import export_parquet, import_parquet
from chronomask.data.scores import mix
from chronomask.data.writer import RowWriter, write_manifest
from chronomask.errors import UsageError
from tests.support.prepared_rows import FACTS, words_one_by_one

PHRASES = [[11, 12], [13, 14, 15], [16, 17, 18, 19], [20, 21, 22, 23, 24], [12, 25], [14, 15, 26]]
MIN_COUNT = 4


def rows_with_phrases(num_rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids and annotations: words of one token, every third of two; phrases among common words."""
    rng = random.Random(seed)
    ids, marks = np.zeros((num_rows, 32), np.int64), np.full((num_rows, 32), SPECIAL, np.uint8)
    for row in range(num_rows):
        words: list[int] = []
        while len(words) < 31:
            words += rng.choice(PHRASES) if rng.random() < 0.3 else [rng.randrange(5, 11)]
        ids[row, 0], column = 2, 1
        for word in words:
            size = 1 + (word % 3 == 0)
            if column + size > 31:
                break
            ids[row, column : column + size] = word
            marks[row, column : column + size] = 1
            marks[row, column] |= WORD_START
            column += size
    return ids, marks


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> PreparedData:
    folder = tmp_path_factory.mktemp("ngrams")
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer" / "tokenizer.json").write_text("{}")
    entries = {}
    for seed, (split, num_rows) in enumerate({"train": 60, "held_out": 9}.items()):
        writer = RowWriter(folder, split, 32, 1000, shard_tokens=25 * 32)
        ids, marks = rows_with_phrases(num_rows, seed)
        bounds = np.flatnonzero(marks.ravel() & WORD_START)[20::23]
        writer.write(ids, marks, bounds, num_rows * 32)
        entries[split] = writer.finish(3)
    facts = FACTS | {"row_length": 32}
    write_manifest(folder, facts, entries, ["tokenizer/tokenizer.json"])
    return PreparedData.open(folder)


@pytest.fixture(scope="module")
def found(data: PreparedData) -> Ngrams:
    train = data.split("train")
    return find_ngrams(train, min_count=MIN_COUNT, coverage=0.4, min_pmi=0, progress=False)


def ways_to_cut(gram: tuple[Any, ...]) -> list[list[tuple[Any, ...]]]:
    """All lists of parts that make up an n-gram, itself among them."""
    rest = [[gram[:k], *more] for k in range(1, len(gram)) for more in ways_to_cut(gram[k:])]
    return [[gram], *rest]


def key_of(gram: tuple[Any, ...]) -> int:
    """What decides between n-grams of equal PMI."""
    keys = [
        mix(np.asarray(word, np.uint64), np.arange(len(word), dtype=np.uint64)).sum(keepdims=True)
        for word in gram
    ]
    return int(reduce(mix, keys)[0])


def by_hand(data: PreparedData, coverage: float) -> tuple[dict[int, set[Any]], float]:
    """The collocations of each length by the words of the paper, and the share of tokens in them."""
    stretches = [s for row in words_one_by_one(data, "train") for s in row]
    counts = {n: Counter() for n in range(1, 6)}
    for stretch in stretches:
        for n in counts:
            counts[n].update(tuple(stretch[i : i + n]) for i in range(len(stretch) - n + 1))

    def log_p(gram: tuple[Any, ...]) -> float:
        return math.log(counts[len(gram)][gram] / counts[len(gram)].total())

    ranked: dict[int, list[Any]] = {}
    for n in range(2, 6):
        often = [gram for gram, number in counts[n].items() if number >= MIN_COUNT]
        pmi = {
            gram: min(log_p(gram) - sum(map(log_p, cut)) for cut in ways_to_cut(gram)[1:])
            for gram in often
        }
        ranked[n] = sorted(
            (g for g in often if pmi[g] > 0), key=lambda g: (-round(pmi[g], 9), key_of(g))
        )
    before = None
    for level in range(1, 1000):
        kept = {n: set(ranked[n][: level * per]) for n, per in ((2, 4), (3, 2), (4, 1), (5, 1))}
        inside = total = 0
        for stretch in stretches:
            covered = set()
            for n, grams in kept.items():
                for i in range(len(stretch) - n + 1):
                    if tuple(stretch[i : i + n]) in grams:
                        covered |= set(range(i, i + n))
            inside += sum(len(stretch[i]) for i in covered)
            total += sum(map(len, stretch))
        if before is not None and inside / total > coverage:
            return before
        before = kept, inside / total
        if all(len(kept[n]) == len(ranked[n]) for n in kept):
            return before
    raise AssertionError


def test_collocations_are_those_of_the_paper(data: PreparedData, found: Ngrams) -> None:
    kept, coverage = by_hand(data, 0.4)
    assert found.numbers == {n: len(grams) for n, grams in kept.items()}
    assert min(found.numbers.values()) > 0
    assert found.coverage == pytest.approx(coverage)
    phrase = tuple((word,) * (1 + (word % 3 == 0)) for word in PHRASES[3])
    assert phrase in kept[5]
    for split in ("train", "held_out"):
        columns = np.concatenate(list(found.columns_of(data.split(split))))
        rows = data.split(split).read(np.arange(data.split(split).num_rows))
        for row, stretches in enumerate(words_one_by_one(data, split)):
            expected = []
            for stretch in stretches:
                for i, word in enumerate(stretch):
                    here = [n for n in kept if tuple(stretch[i : i + n]) in kept[n]]
                    expected += [max(here, default=0), *[0] * (len(word) - 1)]
            assert columns[row][rows.word_id[row] >= 0].tolist() == expected
            assert not columns[row][rows.word_id[row] < 0].any()


@pytest.mark.parametrize("asked", [0.25, 0.3, 0.5, 0.9, 1.0])
def test_they_cover_at_most_what_is_asked(data: PreparedData, asked: float) -> None:
    train = data.split("train")
    some = find_ngrams(train, min_count=MIN_COUNT, coverage=asked, min_pmi=0, progress=False)
    kept, share = by_hand(data, asked)
    assert some.numbers == {n: len(grams) for n, grams in kept.items()}
    assert some.coverage == pytest.approx(share)
    assert some.coverage <= asked
    # A share that a number of levels has exactly is taken as it is.
    exact = find_ngrams(
        train, min_count=MIN_COUNT, coverage=some.coverage, min_pmi=0, progress=False
    )
    assert exact.numbers == some.numbers


def test_the_first_of_each_length_are_kept_whatever_they_cover(data: PreparedData) -> None:
    train = data.split("train")
    few = find_ngrams(train, min_count=MIN_COUNT, coverage=1e-6, min_pmi=0, progress=False)
    assert few.numbers == {2: 4, 3: 2, 4: 1, 5: 1}
    assert few.coverage > 1e-6


def test_weak_ones_are_left_out(data: PreparedData, found: Ngrams) -> None:
    strong = find_ngrams(
        data.split("train"), min_count=MIN_COUNT, coverage=1.0, min_pmi=1.5, progress=False
    )
    assert strong.numbers == {n: int((table.pmi >= 1.5).sum()) for n, table in found.tables.items()}
    assert 0 < sum(strong.numbers.values()) < sum(t.keys.size for t in found.tables.values())


def test_they_are_kept_beside_the_rows(
    data: PreparedData, found: Ngrams, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (file,) = export_parquet(data, tmp_path / "plain.parquet")
    plain = import_parquet(file, tmp_path / "own")
    assert plain.split("train").read(np.arange(2)).ngrams is None
    monkeypatch.setattr(scores, "_BLOCK_TOKENS", 7 * 32)  # a few rows at a time are as good as all
    again = find_ngrams(
        plain.split("train"), min_count=MIN_COUNT, coverage=0.4, min_pmi=0, progress=False
    )
    kept = add_ngrams(plain, again)
    assert kept.manifest.ngrams == "pmi"
    assert kept.verify() > 0
    assert kept.fingerprint != data.fingerprint
    expected = np.concatenate(list(found.columns_of(data.split("train"))))
    rows = RowLoader(kept.split("train"), seed=0, rows_per_step=8).rows_at(1)
    assert np.array_equal(np.asarray(rows.ngrams), expected[rows.row_id])
    assert np.array_equal(
        np.asarray(cut_rows(rows, 2).ngrams).ravel(), expected[rows.row_id].ravel()
    )
    assert np.array_equal(np.asarray(rows.slice(1, 3).ngrams), expected[rows.row_id][1:3])
    odd = np.arange(8) % 2 == 1
    assert np.array_equal(np.asarray(rows.select(odd).ngrams), expected[rows.row_id][1::2])
    assert np.array_equal(np.asarray(rows.to("cpu").ngrams), expected[rows.row_id])
    (file,) = export_parquet(kept, tmp_path / "kept.parquet")
    assert import_parquet(file, tmp_path / "back").fingerprint == kept.fingerprint
    both = [DataPart(path=str(kept.path)), DataPart(path=str(tmp_path / "back"))]
    mixed = open_data(both).split("train").read(np.asarray([1, 61]))
    assert np.array_equal(np.asarray(mixed.ngrams), expected[[1, 1]])
    with pytest.raises(UsageError, match=r"different n-grams \(pmi and None\)"):
        open_data([both[0], DataPart(path=str(data.path))])


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"min_count": 1}, "min_count is 1"),
        ({"coverage": 0.0}, "coverage is 0"),
        ({"coverage": 1.5}, "at most 1"),
        ({"min_pmi": float("nan")}, "min_pmi is nan"),
        ({"min_count": 4, "min_pmi": 99.0}, "lower min_count or min_pmi"),
        ({"min_count": 1000}, "follow each other 1000 times"),
    ],
)
def test_what_cannot_be_is_refused(data: PreparedData, values: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        find_ngrams(data.split("train"), progress=False, **values)
