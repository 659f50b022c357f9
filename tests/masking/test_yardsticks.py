"""The yardsticks: what they hide, that nothing of a run decides it, and what result files say of them."""

from dataclasses import replace
from functools import partial
from zlib import crc32

import numpy as np
import pytest

from chronomask.masking.masker import Vocabulary, fixed_masker
from chronomask.masking.yardsticks import masker_of
from chronomask.yardsticks import (
    CONTENT,
    FEW_PREDICTIONS,
    FUNCTION,
    PUNCTUATION,
    ROWS_OF_TRAINING,
    YARDSTICKS,
    expected_predictions,
    few_in_words,
    losses_in_words,
    results_of,
    telling_predictions,
)
from tests.support.masked_text import FIRST_ORDINARY, VOCAB_SIZE, rows_like_text

VOCABULARY = Vocabulary(4, np.arange(FIRST_ORDINARY, VOCAB_SIZE), VOCAB_SIZE)
ROWS = rows_like_text(64, 128)
HIDDEN = {
    "words-5": 2033334488,
    "words-15": 4294405483,
    "words-30": 2368520087,
    "words-50": 4134694669,
    "single": 962239525,
    "tokens-15": 1362958613,
}
"""Checksums of the places hidden and of what is shown there, by yardstick, and of the loss at 15 %."""


@pytest.mark.parametrize("yardstick", YARDSTICKS, ids=lambda own: own.name)
def test_the_same_rows_are_hidden_alike_however_they_are_batched(yardstick) -> None:
    hide = masker_of(yardstick, VOCABULARY)
    whole = hide(ROWS)
    parts = [hide(rows) for rows in ROWS.micro_batches(5)]
    assert np.array_equal(whole.targets, np.concatenate([part.targets for part in parts]))
    assert np.array_equal(whole.input_ids, np.concatenate([part.input_ids for part in parts]))
    if yardstick.ratio is not None:
        assert whole.num_predicted / whole.num_maskable == pytest.approx(yardstick.ratio, rel=0.1)


@pytest.mark.parametrize("name", HIDDEN)
def test_every_version_hides_the_same(name: str) -> None:
    """Else a loss of today says nothing beside one of last year."""
    maskers = {yardstick.name: masker_of(yardstick, VOCABULARY) for yardstick in YARDSTICKS}
    maskers["tokens-15"] = partial(fixed_masker(VOCABULARY), progress=0.0)
    batch = maskers[name](ROWS)
    hidden = np.concatenate([batch.positions, batch.input_ids.ravel()[batch.positions]])
    assert crc32(hidden.astype("<i8").tobytes()) == HIDDEN[name]


def test_nothing_is_hidden_where_nothing_may_be() -> None:
    """And all of it where one token may."""
    word_id = np.full_like(ROWS.word_id, -1)
    hide = masker_of(YARDSTICKS[-1], VOCABULARY)
    batch = hide(replace(ROWS, word_id=word_id))
    assert (batch.num_predicted, batch.num_maskable, batch.masking_ratio) == (0, 0, 0.0)
    word_id[3, 5] = 0
    batch = hide(replace(ROWS, word_id=word_id))
    assert (batch.num_predicted, batch.num_maskable, batch.masking_ratio) == (1, 1, 1.0)
    assert batch.positions.tolist() == [3 * 128 + 5]


def test_whole_words_are_hidden_whole() -> None:
    batch = masker_of(YARDSTICKS[1], VOCABULARY)(ROWS)
    row, word = np.divmod(batch.positions, 128)[0], ROWS.word_id.ravel()[batch.positions]
    chosen = set(zip(row.tolist(), word.tolist(), strict=True))
    hidden = np.zeros(ROWS.word_id.size, bool)
    hidden[batch.positions] = True
    for (b, t), own in np.ndenumerate(ROWS.word_id):
        assert hidden[b * 128 + t] == ((b, int(own)) in chosen)


def test_the_single_mask_hides_one_maskable_token_of_each_document() -> None:
    batch = masker_of(YARDSTICKS[-1], VOCABULARY)(ROWS)
    ids, before = batch.input_ids.ravel(), ROWS.input_ids.ravel()
    assert (ids[batch.positions] == 4).all()
    assert (batch.labels.ravel() != -100).sum() == batch.num_predicted
    untouched = np.delete(np.arange(ids.size), batch.positions)
    assert np.array_equal(ids[untouched], before[untouched])
    assert np.array_equal(batch.targets, before[batch.positions])
    maskable = ROWS.word_id.ravel() >= 0
    assert maskable[batch.positions].all()
    bounds = list(zip(ROWS.cu_seqlens[:-1], ROWS.cu_seqlens[1:], strict=True))
    counts = [((batch.positions >= a) & (batch.positions < b)).sum() for a, b in bounds]
    assert counts == [int(maskable[a:b].any()) for a, b in bounds]
    assert batch.num_maskable == maskable.sum()
    assert batch.masking_ratio == batch.num_predicted / maskable.sum()
    # Anywhere in a document is as likely as anywhere else.
    others = (replace(ROWS, epoch=ROWS.epoch + k) for k in range(20))
    places = [masker_of(YARDSTICKS[-1], VOCABULARY)(rows).positions for rows in others]
    assert (ROWS.word_id.ravel()[np.concatenate(places)] == 0).any()
    share = (batch.positions % 128) / 128
    assert 0.35 < share.mean() < 0.65


def test_numbers_by_group_are_those_of_their_classes() -> None:
    names = ("none", "NOUN", "VERB", "DET", "PUNCT", "SYM")
    sums = np.zeros((len(YARDSTICKS), 3, len(names)))
    sums[:, 0] = [1.0, 12.0, 4.0, 6.0, 2.0, 0.0]
    sums[:, 1] = [1.0, 2.0, 2.0, 3.0, 2.0, 0.0]
    sums[:, 2] = [0.0, 1.0, 0.0, 3.0, 2.0, 0.0]
    sums[0, 0] *= 3
    found = results_of(sums, names)
    loss = found["yardstick_loss"]
    assert loss["words-15"] == 2.5
    assert loss["words-15/NOUN"] == 6.0
    assert loss[f"words-15/{CONTENT}"] == 4.0
    assert loss[f"words-15/{FUNCTION}"] == 2.0
    assert found["yardstick_accuracy"][f"single/{PUNCTUATION}"] == 1.0
    assert found["yardstick_count"]["words-50"] == 10
    assert "words-15/SYM" not in loss
    assert found["mean_loss"] == pytest.approx((7.5 + 4 * 2.5) / 5)
    headings, *rows = losses_in_words(loss, found["yardstick_count"])
    assert headings == [
        "nats (predictions)", "mean of the five", "whole words, 5 %", "whole words, 15 %",
        "whole words, 30 %", "whole words, 50 %", "single mask",
    ]  # fmt: skip
    cells = {row[0]: row[1:] for row in rows}
    classes = ["DET", "none", "NOUN", "PUNCT", "VERB"]
    assert [*cells] == ["all words", CONTENT, FUNCTION, PUNCTUATION, *classes]
    assert cells["all words"] == ["3.500 (50)", "7.500 (10)", *["2.500 (10)"] * 4]
    assert cells[CONTENT] == ["5.600 (20)", "12.000 (4)", *["4.000 (4)"] * 4]
    assert cells["NOUN"][2] == "6.000 (2)"


def test_a_yardstick_without_predictions_leaves_the_mean_out() -> None:
    sums = np.ones((len(YARDSTICKS), 3, 2))
    sums[2] = 0
    found = results_of(sums, ("none", "band 1"))
    assert "mean_loss" not in found
    assert "words-30" not in found["yardstick_loss"]
    assert all("words" not in name.partition("/")[2] for name in found["yardstick_loss"])
    one, two = "1.000 (1)", "1.000 (2)"
    assert losses_in_words(found["yardstick_loss"], found["yardstick_count"])[1:] == [
        ["all words", "–", two, two, "–", two, two],
        ["band 1", "–", one, one, "–", one, one],
        ["none", "–", one, one, "–", one, one],
    ]
    assert losses_in_words({}, {}) == []


def test_the_four_ratios_have_as_many_predictions_each() -> None:
    assert expected_predictions(30_000, 200) == (4500, [1500, 1500, 1500, 1500, 200])
    assert [own.num_rows(10) for own in YARDSTICKS] == [10, 4, 2, 1, 10]
    assert pytest.approx(1.2) == ROWS_OF_TRAINING


def test_few_predictions_are_told_where_a_loss_is_chance() -> None:
    few = [1500, 1500, 1500, 1500, 200]
    assert telling_predictions(4500, few) == pytest.approx(25 / (4 / 1500 + 1 / 200))
    assert telling_predictions(300, few) == 300
    assert telling_predictions(300, [0] * 5) == 5
    assert few_in_words(FEW_PREDICTIONS, [FEW_PREDICTIONS] * 5) is None
    said = few_in_words(FEW_PREDICTIONS - 1, [900, 800, 900, 900, 900])
    assert said is not None
    assert "on 1,999 predictions at a fixed 15 %, and on 800 where" in said
    assert said.endswith(" (whole words, 15 %)")
