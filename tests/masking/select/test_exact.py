"""Fixed-budget sampling: every unit has exactly its chance, every row its budget."""

import numpy as np
import pytest
import torch
from scipy import stats

from chronomask import keyed
from chronomask.errors import UsageError
from chronomask.keyed import Stream
from chronomask.masking.content import quantise
from chronomask.masking.select import dense, draws
from chronomask.masking.select.draws import solve
from chronomask.masking.select.exact import LEVEL_WEIGHTS, RowRandomness, levels, select
from chronomask.masking.select.published import walk
from chronomask.types import Rows
from tests.support.masked_text import CLASSES, rows_like_text, word_sizes


def chances(counts: np.ndarray, weights: np.ndarray, ratio: np.ndarray) -> np.ndarray:
    """float64 [B, C] of counts [B, C] and ratio [B]."""
    out = np.empty(counts.shape)
    for row in range(counts.shape[0]):
        solve(counts[row].astype(float), weights, ratio[row], out[row])
    return out


RATIOS = [0.02, 0.05, 0.15, 0.3, 0.5, 0.8]
ROWS = rows_like_text(500, 512)
SIZES = word_sizes(ROWS)
NUM_MASKABLE = int((SIZES > 0).sum())
TOKENS = np.where(SIZES > 0, np.arange(512, dtype=np.int32), np.int32(-1))
WEIGHTS = quantise(torch.linspace(0.05, 1, len(CLASSES), dtype=torch.float64)).numpy()


def masked_share(
    ratio: float,
    repeats: int,
    unit_id: np.ndarray = ROWS.word_id,
    weights: np.ndarray | None = None,
    rows: Rows = ROWS,
) -> np.ndarray:
    """float64 [B, T]: how often each token was masked over ``repeats`` epochs."""
    count = np.zeros(unit_id.size)
    classes = None if weights is None else rows.token_class
    asked = np.full(rows.num_rows, ratio)
    for epoch in range(repeats):
        order = rows.row_id + epoch * rows.num_rows
        random = RowRandomness.of(
            1, keyed.keys_by_stream(1, np.full(rows.num_rows, epoch), rows.row_id), order
        )
        count[select(unit_id, classes, weights, asked, random)] += 1
    return (count / repeats).reshape(unit_id.shape)


@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["uniform", "weighted"])
@pytest.mark.parametrize("unit_id", [ROWS.word_id, TOKENS], ids=["whole_word", "token"])
@pytest.mark.parametrize("ratio", RATIOS)
def test_achieved_ratio_over_a_million_tokens(
    ratio: float, unit_id: np.ndarray, weights: np.ndarray | None
) -> None:
    share = masked_share(ratio, 5, unit_id, weights)
    assert share.sum() * 5 / (NUM_MASKABLE * 5) == pytest.approx(ratio, rel=0.002)


@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["uniform", "weighted"])
@pytest.mark.parametrize("ratio", RATIOS)
def test_rows_meet_their_budget_to_the_token(ratio: float, weights: np.ndarray | None) -> None:
    share = masked_share(ratio, 1, weights=weights)
    missed = share.sum(axis=1) - ratio * (SIZES > 0).sum(axis=1)
    within_a_token = np.abs(missed) < 1
    assert within_a_token.mean() > (0.9 if ratio >= 0.05 else 0.3)
    assert np.abs(missed).max() < 7


@pytest.mark.parametrize("ratio", RATIOS)
def test_long_words_keep_their_share_at_every_ratio(ratio: float) -> None:
    share = masked_share(ratio, 2000 // 25 if ratio > 0.1 else 160)
    multi = SIZES > 1
    words = 1.0 / np.maximum(SIZES, 1)  # every token stands for its part of a word
    in_text = (words * multi).sum() / (words * (SIZES > 0)).sum()
    among_masked = (words * multi * share).sum() / (words * share * (SIZES > 0)).sum()
    assert among_masked == pytest.approx(in_text, rel=0.01)


def test_the_published_walk_drives_long_words_out() -> None:
    """What the exact sampler mends: the share of multi-piece words falls with the ratio."""
    words = 1.0 / np.maximum(SIZES, 1)
    in_text = (words * (SIZES > 1)).sum() / (words * (SIZES > 0)).sum()
    shares = []
    for ratio in (0.008, 0.05, 0.3):
        masked = np.zeros(SIZES.size)
        for epoch in range(20):
            keys = keyed.row_keys(1, Stream.SELECT, epoch, ROWS.row_id)
            accept = keyed.row_keys(1, Stream.ACCEPT, epoch, ROWS.row_id)
            half = np.full(len(CLASSES), 0.5)
            asked = np.full(ROWS.num_rows, ratio)
            masked[walk(ROWS.word_id, ROWS.token_class, half, asked, keys, accept)] += 1
        masked = masked.reshape(SIZES.shape)
        multi = (words * (SIZES > 1) * masked).sum() / (words * masked).sum()
        shares.append(multi / in_text)
    assert shares[0] < 0.75
    assert shares[0] < shares[1] < shares[2] < 1.0


@pytest.mark.parametrize("ratio", [0.02, 0.15, 0.6])
def test_each_unit_has_its_chance(ratio: float) -> None:
    """Inclusion by length and class equals π, not just on average over all of them."""
    epochs = 240
    share = masked_share(ratio, epochs, weights=WEIGHTS)
    counts = np.stack([((ROWS.token_class == c) & (SIZES > 0)).sum(1) for c in range(len(CLASSES))])
    chance = chances(counts.T, WEIGHTS, np.full(ROWS.num_rows, ratio))
    expected = np.take_along_axis(chance, ROWS.token_class.astype(int), axis=1)
    for name, where in [(f"{n} pieces", n == SIZES) for n in (1, 2, 3, 4)] + [
        (CLASSES[c], (ROWS.token_class == c) & (SIZES > 0)) for c in (1, 8, 16)
    ]:
        independent = np.sqrt((expected * (1 - expected))[where].mean() * 2 / where.sum() / epochs)
        tolerance = 4 * independent + 2e-4 * expected[where].mean()
        assert share[where].mean() == pytest.approx(expected[where].mean(), abs=tolerance), name


def test_class_frequencies_follow_the_weights_at_small_budgets() -> None:
    weights = quantise(torch.tensor([1.0] + [1.0, 2.0, 4.0] * 5 + [8.0, 8.0])).numpy()
    number = np.zeros(len(CLASSES))
    epochs = 60
    for epoch in range(epochs):
        random = RowRandomness.of(
            3, keyed.keys_by_stream(3, np.full(ROWS.num_rows, epoch), ROWS.row_id), ROWS.row_id
        )
        chosen = select(TOKENS, ROWS.token_class, weights, np.full(500, 0.004), random)
        number += np.bincount(ROWS.token_class.ravel()[chosen], minlength=len(CLASSES))
    in_text = np.bincount(ROWS.token_class[SIZES > 0], minlength=len(CLASSES))
    expected = in_text * weights / (in_text * weights).sum() * number.sum()
    seen = expected > 0
    assert stats.chisquare(number[seen], expected[seen]).pvalue > 1e-3


@pytest.mark.parametrize("ratio", [0.05, 0.3])
def test_equal_weights_are_like_none(ratio: float) -> None:
    plain = masked_share(ratio, 60)
    equal = masked_share(ratio, 60, weights=np.ones(len(CLASSES)))
    for a, b in ((plain, equal), (plain[SIZES > 1], equal[SIZES > 1])):
        assert a.mean() == pytest.approx(b.mean(), rel=0.01)
    by_class = [
        [int(share[ROWS.token_class == c].sum() * 60) for c in range(1, 18)]
        for share in (plain, equal)
    ]
    assert stats.chi2_contingency(np.array(by_class)).pvalue > 1e-3
    together = [(s[:, 10:-10] * s[:, 11:-9]).mean() for s in (plain, equal)]
    assert together[0] == pytest.approx(together[1], rel=0.05)


@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["uniform", "weighted"])
def test_rows_without_one_token_units_keep_their_ratio(weights: np.ndarray | None) -> None:
    rows = rows_like_text(500, 256, multi_only=True)
    share = masked_share(0.15, 40, rows.word_id, weights, rows)
    assert share.sum() / (rows.word_id >= 0).sum() == pytest.approx(0.15, rel=0.004)


@pytest.mark.parametrize("ratio", [0.0, 1.0])
@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["uniform", "weighted"])
def test_ratio_zero_masks_nothing_and_one_masks_all(
    ratio: float, weights: np.ndarray | None
) -> None:
    assert np.array_equal(masked_share(ratio, 1, weights=weights) > 0, (SIZES > 0) & (ratio == 1))


def test_a_class_of_weight_zero_is_used_only_when_nothing_else_is_left() -> None:
    spec = torch.ones(len(CLASSES), dtype=torch.float64)
    spec[8] = 0
    weights = quantise(spec).numpy()
    nouns = (ROWS.token_class == 8) & (SIZES > 0)
    assert masked_share(0.3, 3, weights=weights)[nouns].mean() < 1e-3
    full = masked_share(0.95, 3, weights=weights)
    assert full[~nouns & (SIZES > 0)].mean() > 0.99
    assert full.sum() / NUM_MASKABLE == pytest.approx(0.95, rel=0.002)


@pytest.mark.parametrize("ratio", [1e-6, 0.02, 0.15, 0.5, 0.9, 0.999])
def test_chances_meet_the_ratio_for_extreme_weights(ratio: float) -> None:
    rng = np.random.default_rng(0)
    counts = rng.integers(0, 200, (300, 18))
    weights = np.maximum(np.rint(10 ** rng.uniform(-4, 0, 18) * 2**16), 1) / 2**16
    chance = chances(counts, weights, np.full(300, ratio))
    assert ((chance > 0) & (chance < 1)).all()
    assert (counts * chance).sum(1) == pytest.approx(ratio * counts.sum(1), rel=2e-7, abs=1e-6)
    odds = chance / (1 - chance)
    assert odds / odds[:, :1] == pytest.approx(np.tile(weights / weights[0], (300, 1)), rel=1e-6)


def test_levels_keep_units_whole_and_weights_close() -> None:
    rng = np.random.default_rng(1)
    per_token = np.maximum(rng.random(ROWS.word_id.shape), 2**-10)
    per_token = np.rint(per_token * 2**16) / 2**16
    level = levels(ROWS.word_id, per_token, False)
    inside = ROWS.word_id[:, 1:] == ROWS.word_id[:, :-1]
    assert (level[:, 1:] == level[:, :-1])[inside].all()
    alone = SIZES == 1
    assert np.abs(LEVEL_WEIGHTS[level[alone]] / per_token[alone] - 1).max() < 0.095


def test_the_order_within_a_row_is_random() -> None:
    """Neighbours are masked together as often as independent choice from a budget allows."""
    ratio = 0.15
    random = [
        RowRandomness.of(
            5, keyed.keys_by_stream(5, np.full(ROWS.num_rows, e), ROWS.row_id), ROWS.row_id
        )
        for e in range(60)
    ]
    for lag in (1, 2, 7):
        both = total = 0
        for one in random:
            mask = np.zeros(TOKENS.size, bool)
            mask[select(TOKENS, ROWS.token_class, WEIGHTS * 0 + 1, np.full(500, ratio), one)] = True
            mask = mask.reshape(TOKENS.shape)
            inside = (SIZES[:, :-lag] > 0) & (SIZES[:, lag:] > 0)
            both += (mask[:, :-lag] & mask[:, lag:])[inside].sum()
            total += inside.sum()
        assert both / total == pytest.approx(ratio**2, rel=0.02)


def test_a_batch_budget_over_too_many_tokens_is_refused_with_a_way_out() -> None:
    units = np.zeros((1025, 1024), np.int32)
    keys = keyed.keys_by_stream(0, np.zeros(1025, np.int64), np.arange(1025))
    random = RowRandomness.of(0, keys, np.arange(1025))
    with pytest.raises(UsageError, match="1,049,600: raise micro_batches, or use budget 'row'"):
        select(units, None, None, np.full(1025, 0.1), random, budget="batch")


@pytest.mark.parametrize("num_units", [0, 1, draws.FEW, draws.FEW + 1, 130])
def test_few_units_of_several_tokens_are_drawn_as_many_are(num_units: int) -> None:
    """Few are compared in pairs, many are ordered; devices order any number."""
    random = np.random.default_rng(num_units)
    sizes = [*random.integers(2, 70 if num_units < 100 else 4, num_units), *[1] * 60]
    sizes = random.permutation(sizes)
    unit_id = np.tile(np.repeat(np.arange(sizes.size, dtype=np.int32), sizes), (5, 1))
    classes = random.integers(0, len(CLASSES), unit_id.shape).astype(np.uint8)
    keys = keyed.keys_by_stream(2, np.zeros(5, np.int64), np.arange(5))
    drawn = RowRandomness.of(2, keys, np.arange(5))
    for weights in (None, WEIGHTS):
        ratio = np.array([0.05, 0.15, 0.3, 0.6, 0.95])
        own = None if weights is None else classes
        found = select(unit_id, own, weights, ratio, drawn)
        own, there = (None if x is None else torch.from_numpy(x) for x in (own, weights))
        expected = dense.select(torch.from_numpy(unit_id), own, there, ratio, drawn)
        assert found.tolist() == expected.flatten().nonzero()[:, 0].tolist()
