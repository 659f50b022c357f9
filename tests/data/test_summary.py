"""Counts of prepared rows agree with what preparing them counted, and with counting one by one."""

from __future__ import annotations

import numpy as np
import pytest

from chronomask.data import summary
from chronomask.data.folder import PreparedData
from chronomask.data.summary import MOST_PIECES, summarise


@pytest.mark.parametrize("block_tokens", [1 << 22, 100])
def test_counts_agree_with_the_rows(
    tiny_data: PreparedData, monkeypatch: pytest.MonkeyPatch, block_tokens: int
) -> None:
    monkeypatch.setattr(summary, "_BLOCK_TOKENS", block_tokens)
    split = tiny_data.split("train")
    found = summarise(split, len(tiny_data.class_names))
    rows = split.read(np.arange(split.num_rows))
    lengths = [
        np.count_nonzero(words == word) for words in rows.word_id for word in range(words.max() + 1)
    ]
    assert found.num_words == len(lengths)
    assert found.num_maskable == sum(lengths)
    expected = np.bincount(np.minimum(lengths, MOST_PIECES), minlength=MOST_PIECES + 1)[1:]
    np.testing.assert_array_equal(found.words_of_pieces, expected)
    counted = np.bincount(rows.token_class[rows.word_id >= 0], minlength=18)
    np.testing.assert_array_equal(found.class_tokens, counted)
    assert found.class_words.sum() == found.num_words
    assert found.tokens_per_word == pytest.approx(np.mean(lengths))
    assert found.num_rows == split.num_rows
    assert found.num_documents == split.num_documents


def test_counts_agree_with_the_preparation(tiny_data: PreparedData) -> None:
    for name in ("train", "held_out"):
        found = summarise(tiny_data.split(name), len(tiny_data.class_names))
        recorded = tiny_data.statistics["splits"][name]
        assert found.num_tokens == recorded["tokens"]
        assert found.row_utilisation == pytest.approx(recorded["row_utilisation"], abs=1e-6)
        share = found.class_tokens / found.class_tokens.sum()
        assert share == pytest.approx(list(recorded["token_share_per_class"].values()), abs=0.01)


def test_size_is_that_of_the_files(tiny_data: PreparedData) -> None:
    found = summarise(tiny_data.split("train"), 18)
    on_disk = sum(file.stat().st_size for file in (tiny_data.path / "train").iterdir())
    assert found.num_bytes == on_disk
    assert found.bytes_per_token == on_disk / found.num_tokens
