"""The published walk, vectorised, against the plain Python walk."""

import random

import numpy as np
import pytest
from scipy import stats

from chronomask import keyed
from chronomask.keyed import Stream
from chronomask.masking.select.published import walk
from tests.support.masked_text import rows_like_text, word_sizes
from tests.support.published_walk import mask_row

ROWS = rows_like_text(60, 96, seed=3)
SIZES = word_sizes(ROWS)
WEIGHTS = [0.5, *np.linspace(0.1, 0.9, 17).tolist()]
EPOCHS = 120


def vectorised(ratio: float) -> np.ndarray:
    """bool [epochs, B, T]."""
    masks = np.zeros((EPOCHS, *SIZES.shape), bool)
    for epoch in range(EPOCHS):
        chosen = walk(
            ROWS.word_id,
            ROWS.token_class,
            np.array(WEIGHTS),
            np.full(ROWS.num_rows, ratio),
            keyed.row_keys(1, Stream.SELECT, epoch, ROWS.row_id),
            keyed.row_keys(1, Stream.ACCEPT, epoch, ROWS.row_id),
        )
        masks[epoch].ravel()[chosen] = True
    return masks


def plain(ratio: float) -> np.ndarray:
    rng = random.Random(0)
    masks = np.zeros((EPOCHS, *SIZES.shape), bool)
    for epoch in range(EPOCHS):
        for row in range(ROWS.num_rows):
            _, labels = mask_row(
                ROWS.input_ids[row].tolist(),
                ROWS.word_id[row].tolist(),
                ROWS.token_class[row].tolist(),
                WEIGHTS,
                ratio,
                4,
                [5, 6],
                rng,
            )
            masks[epoch, row] = np.array(labels) >= 0
    return masks


@pytest.mark.parametrize("ratio", [0.03, 0.15, 0.5])
def test_selections_have_the_distribution_of_the_plain_walk(ratio: float) -> None:
    fast, slow = vectorised(ratio), plain(ratio)
    by_class = [
        [int(masks[:, ROWS.token_class == c].sum()) + 1 for c in range(1, 18)]
        for masks in (fast, slow)
    ]
    assert stats.chi2_contingency(np.array(by_class)).pvalue > 1e-3
    by_size = [
        [int(masks[:, n == SIZES].sum()) + 1 for n in (1, 2, 3, 4)] for masks in (fast, slow)
    ]
    assert stats.chi2_contingency(np.array(by_size)).pvalue > 1e-3
    per_row = [masks.sum(axis=2).ravel() for masks in (fast, slow)]
    assert stats.ks_2samp(per_row[0], per_row[1]).pvalue > 1e-3
    by_place = [masks.reshape(-1, 96).sum(axis=0)[1:90].astype(int) + 1 for masks in (fast, slow)]
    assert stats.chi2_contingency(np.array(by_place)).pvalue > 1e-3


@pytest.mark.parametrize("ratio", [0.0, 0.03, 0.15, 0.5, 1.0])
def test_rules_of_the_walk(ratio: float) -> None:
    masks = vectorised(ratio)
    budget = max(1, round(ratio * 96))
    assert masks.sum(axis=2).max() <= budget
    assert not masks[:, SIZES == 0].any()
    inside = ROWS.word_id[:, 1:] == ROWS.word_id[:, :-1]
    assert (masks[:, :, 1:] == masks[:, :, :-1])[:, inside & (SIZES[:, 1:] > 0)].all()


def test_asked_ratio_and_acceptance_mix() -> None:
    """Why it is not the default: low weights cap the ratio, whatever is asked."""
    low = np.full(18, 0.15)
    chosen = walk(
        ROWS.word_id,
        ROWS.token_class,
        low,
        np.full(ROWS.num_rows, 0.5),
        keyed.row_keys(1, Stream.SELECT, 0, ROWS.row_id),
        keyed.row_keys(1, Stream.ACCEPT, 0, ROWS.row_id),
    )
    assert chosen.size / (SIZES > 0).sum() == pytest.approx(0.15, abs=0.01)
