"""Frequency bands: equal shares of the text, the rarest last, the same for any number of workers."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chronomask.data.folder import PreparedData
from chronomask.errors import DataError, UsageError
from chronomask.prepare.config import FrequencyBands, PrepareConfig
from chronomask.prepare.pipeline import prepare
from chronomask.prepare.words.bands import (
    BANDS_FILE,
    BandWords,
    band_names,
    count_words,
    make_bands,
)
from tests.support.corpus import made_up_text

COUNTS = Counter({f"word{rank}": 20_000 // rank for rank in range(1, 20_000)})


@pytest.mark.parametrize("num_bands", [2, 10, 60])
def test_bands_hold_equal_shares_of_a_natural_distribution(num_bands: int) -> None:
    bands = make_bands(COUNTS, num_bands)
    most = COUNTS["word1"] / COUNTS.total()  # a word cannot be shared by two bands
    assert all(abs(share - 1 / num_bands) <= max(most, 0.1 / num_bands) for share in bands.shares)
    assert all(bands.words)
    lowest = [min(COUNTS[word] for word in band) for band in bands.words]
    highest = [max(COUNTS[word] for word in band) for band in bands.words]
    assert all(low > high for low, high in zip(lowest[:-1], highest[1:], strict=True))


@given(st.dictionaries(st.text("abc", min_size=1), st.integers(1, 50)), st.integers(1, 60))
def test_any_counts_make_bands(counts: dict[str, int], num_bands: int) -> None:
    bands = make_bands(counts, num_bands)
    assert len(bands.words) == num_bands
    assert sorted(word for band in bands.words for word in band) == sorted(counts)
    used = [k for k, words in enumerate(bands.words) if words]
    different = len(set(counts.values()))
    assert len(used) == min(num_bands, different)
    assert used == list(range(num_bands - len(used), num_bands))  # the first ones stay empty
    band_of = {word: k for k, words in enumerate(bands.words) for word in words}
    for one in counts:
        for other in counts:
            if counts[one] <= counts[other]:
                assert band_of[one] >= band_of[other]


def test_order_of_counting_does_not_matter() -> None:
    assert make_bands(dict(reversed(COUNTS.items())), 10) == make_bands(COUNTS, 10)


def test_words_are_counted_without_regard_to_case() -> None:
    assert count_words(["The the STRASSE", "Straße, don't"]) == {
        "the": 2, "strasse": 2, ",": 1, "don't": 1,
    }  # fmt: skip


def test_bands_come_back_from_a_folder(tmp_path: Path) -> None:
    bands = make_bands({"the": 9, "cat": 3, "sat": 1}, 3)
    bands.save(tmp_path)
    tagger = BandWords.open(tmp_path)
    (spans,) = tagger.tag(["The cat sat, unheard of."])
    assert spans.classes.tolist() == [1, 2, 3, 3, 3, 3, 3]
    assert FrequencyBands(num_bands=3).classes() == ("none", "band_01", "band_02", "band_03")
    assert json.loads((tmp_path / BANDS_FILE).read_text())["share_of_words"]["band_01"] == 0.692308
    (tmp_path / BANDS_FILE).write_text("{}")
    with pytest.raises(DataError, match=r"frequency_bands\.json is not readable"):
        BandWords.open(tmp_path)


def prepared(tmp_path: Path, name: str, *overrides: str) -> PreparedData:
    file = tmp_path / "corpus.txt"
    if not file.exists():
        file.write_text("\n\n".join(made_up_text(80, seed=1)))
    config = PrepareConfig.parse(
        {
            "sources": [str(file)],
            "tagger": {"kind": "frequency_bands", "num_bands": 5},
            "tokenizer": {"kind": "wordpiece", "vocab_size": 300},
            "row_length": 32,
            "held_out": 0.1,
            "workers": 1,
        }
    )
    return prepare(config.replace(overrides), tmp_path / name, progress=False)


def test_the_same_bytes_for_any_number_of_workers_and_parts(tmp_path: Path) -> None:
    one = prepared(tmp_path, "one", "part_characters=5000")
    two = prepared(tmp_path, "two", "part_characters=5000", "workers=2")
    for file in sorted(one.path.rglob("*")):
        if file.is_file():
            assert file.read_bytes() == (two.path / file.relative_to(one.path)).read_bytes()
    large = prepared(tmp_path, "large")
    assert large.fingerprint == one.fingerprint
    assert (large.path / BANDS_FILE).read_bytes() == (one.path / BANDS_FILE).read_bytes()


def test_prepared_data_has_a_class_for_every_word(tmp_path: Path) -> None:
    data = prepared(tmp_path, "out")
    assert data.class_names == ("none", *band_names(5))
    rows = data.split("train").read(np.arange(4))
    assert (rows.token_class[rows.word_id >= 0] > 0).all()
    shares = data.statistics["splits"]["train"]["word_share_per_class"]
    assert all(0.1 < shares[name] < 0.3 for name in band_names(5))
    tagger = FrequencyBands(num_bands=5)
    assert tagger.label() == data.manifest.tagger
    assert tagger.classes() == data.class_names
    assert tagger.open(data.path).tag(["the"])[0].classes.tolist() == [5]  # no made-up word
    with pytest.raises(UsageError, match="made by a preparation"):
        tagger.open()


def test_damaged_bands_are_found(tmp_path: Path) -> None:
    data = prepared(tmp_path, "out")
    file = data.path / BANDS_FILE
    file.write_text(file.read_text().replace("band_01", "band_91", 1))
    with pytest.raises(DataError, match=r"damaged: frequency_bands\.json"):
        data.verify()


@pytest.mark.parametrize("num_bands", [0, 61])
def test_impossible_numbers_of_bands_are_refused(tmp_path: Path, num_bands: int) -> None:
    with pytest.raises(UsageError, match="num_bands"):
        prepared(tmp_path, "out", f"tagger.num_bands={num_bands}")
