"""Strategies that follow progress: phases, moving shares, and masks that share nothing over epochs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from chronomask.errors import UsageError
from chronomask.masking.config import MaskingConfig
from chronomask.masking.masker import Masker, Vocabulary
from chronomask.types import Rows
from tests.support.masked_text import FIRST_ORDINARY, VOCAB_SIZE, rows_like_text, word_sizes

VOCABULARY = Vocabulary(4, np.arange(FIRST_ORDINARY, VOCAB_SIZE), VOCAB_SIZE)
ROWS = rows_like_text(200, 128)
TOKEN, WORD, SPAN = {"kind": "token"}, {"kind": "whole_word"}, {"kind": "span"}
PHASED = {
    "kind": "phased",
    "phases": [
        {"until": 0.25, "strategy": TOKEN},
        {"until": 0.75, "strategy": WORD},
        {"until": 1, "strategy": SPAN},
    ],
}
MIXED = {
    "kind": "mixed",
    "parts": [
        {"share": {"kind": "linear", "start": 1, "end": 0.25}, "strategy": TOKEN},
        {"share": {"kind": "linear", "start": 0, "end": 0.75}, "strategy": SPAN},
    ],
}


def masker_of(strategy: dict, ratio: float = 0.15, **more: Any) -> Masker:
    values = {"ratio": {"kind": "constant", "base": ratio}, "strategy": strategy, **more}
    return Masker(MaskingConfig.parse(values), VOCABULARY)


def labels(masker: Masker, rows: Rows, progress: float) -> np.ndarray:
    return np.asarray(masker(rows, progress).labels)


def at_epoch(rows: Rows, epoch: int) -> Rows:
    return replace(rows, epoch=rows.epoch + epoch, order=rows.row_id + epoch * rows.num_rows)


def test_phases_are_their_strategies_each_in_its_stretch() -> None:
    phased = masker_of(PHASED)
    for progress, strategy in (
        (0.0, TOKEN),
        (0.249, TOKEN),
        (0.25, WORD),
        (0.75, SPAN),
        (1.0, SPAN),
    ):
        alone = labels(masker_of(strategy), ROWS, 0.5)
        assert np.array_equal(labels(phased, ROWS, progress), alone)


@pytest.mark.parametrize("progress", [0.0, 0.5, 1.0])
def test_every_row_follows_one_strategy_by_shares_that_move(progress: float) -> None:
    mixed = labels(masker_of(MIXED), ROWS, progress)
    by_token, by_span = (labels(masker_of(kind), ROWS, 0.5) for kind in (TOKEN, SPAN))
    as_token, as_span = ((mixed == other).all(1) for other in (by_token, by_span))
    assert (as_token ^ as_span).all()
    assert as_token.mean() == pytest.approx(1 - 0.75 * progress, abs=0.08)
    # Rows change over one after another: who follows the first strategy later did so before.
    before = (labels(masker_of(MIXED), ROWS, progress / 2) == by_token).all(1)
    assert (before | ~as_token).all()


@pytest.mark.parametrize("strategy", [TOKEN, WORD, SPAN])
@pytest.mark.parametrize("epochs", [2, 5])
def test_epochs_share_nothing_until_all_had_their_turn(strategy: dict, epochs: int) -> None:
    full = masker_of({"kind": "explored", "epochs": epochs, "strategy": strategy}, 1 / epochs)
    times = sum((labels(full, at_epoch(ROWS, e), 0.5) >= 0).astype(int) for e in range(epochs))
    assert np.array_equal(times == 1, ROWS.word_id >= 0)  # every token exactly once
    again = sum(
        (labels(full, at_epoch(ROWS, e), 0.5) >= 0).astype(int) for e in range(epochs, 2 * epochs)
    )
    assert np.array_equal(again == 1, ROWS.word_id >= 0)
    first, next_first = (labels(full, at_epoch(ROWS, e), 0.5) for e in (0, epochs))
    assert (first != next_first).any(1).mean() > 0.9  # dealt anew


def test_explored_masks_are_disjoint_at_lower_ratios_and_meet_them() -> None:
    masker = masker_of({"kind": "explored", "epochs": 4}, 0.15)
    masked, repeats = np.zeros(ROWS.input_ids.shape), 40
    for cycle in range(repeats):
        times = np.zeros(ROWS.input_ids.shape, int)
        for epoch in range(4 * cycle, 4 * cycle + 4):
            times += labels(masker, at_epoch(ROWS, epoch), 0.5) >= 0
        assert times.max() == 1
        masked += times
    sizes = word_sizes(ROWS)
    share = masked / (4 * repeats)
    assert share.sum() / (sizes > 0).sum() == pytest.approx(0.15, rel=0.003)
    for size in (1, 2, 3):  # long words have their chance too
        assert share[sizes == size].mean() == pytest.approx(0.15, rel=0.03)


def test_a_whole_word_stays_whole_and_the_same_however_rows_are_cut() -> None:
    for strategy in (PHASED, MIXED, {"kind": "explored", "epochs": 3}):
        masker = masker_of(strategy, 0.2)
        whole = labels(masker, ROWS, 0.6)
        parts = [labels(masker, part, 0.6) for part in ROWS.micro_batches(7)]
        assert np.array_equal(np.concatenate(parts), whole)
        assert not (whole[ROWS.word_id < 0] >= 0).any()


@pytest.mark.parametrize(
    ("masking", "words"),
    [
        (
            {"strategy": {"kind": "phased", "phases": [{"until": 0, "strategy": TOKEN}]}},
            "phases[0].until",
        ),
        (
            {
                "strategy": {
                    "kind": "phased",
                    "phases": [
                        {"until": 0.5, "strategy": TOKEN},
                        {"until": 0.5, "strategy": WORD},
                        {"until": 1, "strategy": SPAN},
                    ],
                }
            },
            "must increase",
        ),
        (
            {"strategy": {"kind": "phased", "phases": [{"until": 0.9, "strategy": TOKEN}]}},
            "the last 'until' must be 1",
        ),
        (
            {"strategy": {"kind": "mixed", "parts": [{"share": 0.9, "strategy": TOKEN}]}},
            "the shares must add up to 1",
        ),
        (
            {"strategy": {"kind": "explored", "epochs": 4}},
            "and ratio reaches 0.3: lower the ratio",
        ),
        (
            {
                "strategy": {"kind": "explored"},
                "ratio": {"kind": "constant"},
                "budget": "batch",
            },
            "budget must be 'row' or 'none'",
        ),
        (
            {
                "strategy": {
                    "kind": "mixed",
                    "parts": [{"share": 1, "strategy": {"kind": "explored"}}],
                }
            },
            "put 'mixed' inside it",
        ),
        ({"strategy": PHASED, "content": {"kind": "ptw_faithful"}}, "must be 'whole_word'"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_by_its_key(masking: dict, words: str) -> None:
    with pytest.raises(UsageError) as refused:
        MaskingConfig.parse(masking)
    assert words in str(refused.value).replace("phases.0.until", "phases[0].until")
