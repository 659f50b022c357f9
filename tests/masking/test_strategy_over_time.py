"""Strategies that follow progress: phases, moving shares, and masks that share nothing over epochs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from chronomask import keyed
from chronomask.data.order import _recount, cut_rows
from chronomask.errors import UsageError
from chronomask.masking.config import MaskingConfig
from chronomask.masking.masker import Masker, Vocabulary
from chronomask.masking.ratio import Constant
from chronomask.masking.rows import RowCollator
from chronomask.masking.strategy import PmiNgrams, Span
from chronomask.types import Rows
from tests.support.masked_text import FIRST_ORDINARY, VOCAB_SIZE, rows_like_text, word_sizes
from tests.support.tiny_tokenizer import wordpiece

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


def joined_by_hand(words: np.ndarray, longest: np.ndarray, drawn: np.ndarray) -> list[int]:
    """The unit of every token of a row, −1 for none; ``drawn``: a number for every token."""
    first = {int(w): c for c, w in reversed(list(enumerate(words.tolist()))) if w >= 0}
    grams = []
    for word, column in first.items():
        inside = [first.get(word + k) for k in range(longest[column])]
        if len(inside) < 2 or None in inside:
            continue
        tokens = words[column : inside[-1]]
        if (tokens >= 0).all():
            grams.append((drawn[column], set(range(word, word + len(inside)))))
    grams = [gram for gram in grams if not any(gram[1] < other[1] for other in grams)]
    unit_of = {word: word for word in first}
    taken: set[int] = set()
    for _, inside in sorted(grams, key=lambda gram: gram[0]):
        if not inside & taken:
            taken |= inside
            unit_of |= dict.fromkeys(inside, min(inside))
    return [unit_of[w] if w >= 0 else -1 for w in words.tolist()]


def test_collocations_are_units_of_which_one_is_drawn_where_they_overlap() -> None:
    holes = np.random.default_rng(5).random(ROWS.word_id.shape) < 0.02  # as rows that were cut have
    rows = replace(ROWS, word_id=np.where(holes, -1, ROWS.word_id)).slice(0, 50)
    rows = replace(rows, word_id=_recount(rows.word_id))
    keys = keyed.row_keys(3, keyed.Stream.NGRAM, rows.epoch, rows.row_id)
    drawn = keyed.bits(keys, rows.row_length)
    units = PmiNgrams().units(rows, seed=3)
    assert rows.ngrams is not None
    for row in range(rows.num_rows):
        own, expected = units[row], joined_by_hand(rows.word_id[row], rows.ngrams[row], drawn[row])
        alike = np.diff(own) == 0
        assert np.array_equal(alike, np.diff(expected) == 0)
        assert np.array_equal(own < 0, np.array(expected) < 0)
    assert (np.diff(units, axis=1)[units[:, 1:] >= 0] == 0).mean() > 0.3


def test_of_two_collocations_that_overlap_each_has_half_the_epochs() -> None:
    """Of "by the way out" it is "by the way" or "the way out" that is masked together."""
    words = np.tile(np.array([[-1, 0, 1, 2, 3, -1]], np.int32), (2000, 1))
    ngrams = np.tile(np.array([[0, 3, 3, 0, 0, 0]], np.uint8), (2000, 1))
    number = np.arange(2000)
    rows = Rows(words, words, words, number * 0, number, number, ngrams=ngrams)
    units = PmiNgrams().units(rows, seed=0)
    left, right = (units == [-1, 0, 0, 0, 1, -1]).all(1), (units == [-1, 0, 1, 1, 1, -1]).all(1)
    assert (left ^ right).all()
    assert left.mean() == pytest.approx(0.5, abs=0.05)
    with pytest.raises(UsageError, match="chronomask data ngrams FOLDER"):
        PmiNgrams().units(replace(rows, ngrams=None), seed=0)


def test_rows_of_ones_own_bring_their_collocations() -> None:
    tokenizer = wordpiece([*"abcdefgh"])
    ids = tokenizer.convert_tokens_to_ids([*"abc"])
    row = {"input_ids": ids, "word_ids": [0, 1, 2], "ngrams": [2, 0, 0], "row_id": 5}
    masker = Masker.for_tokenizer(tokenizer, strategy=PmiNgrams(), ratio=Constant(base=0.5))
    masked = [masker(RowCollator(tokenizer)([row | {"row_id": k}]), 0.5) for k in range(40)]
    hidden = {tuple((batch.labels[0] >= 0).tolist()) for batch in masked}
    assert hidden <= {(a, a, b) for a in (True, False) for b in (True, False)}
    assert {(True, True, False), (False, False, True)} <= hidden


@pytest.mark.parametrize("strategy", [TOKEN, WORD, SPAN, {"kind": "pmi"}])
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


@pytest.mark.parametrize("epochs", [3, 4, 6])
@pytest.mark.parametrize("pieces", [2, 4])
def test_the_pieces_of_a_row_have_their_turns_too(epochs: int, pieces: int) -> None:
    """Which piece it is stands above the visit in a row's epoch, and must not move its turn."""
    full = masker_of({"kind": "explored", "epochs": epochs}, 1 / epochs)
    cut = [cut_rows(at_epoch(ROWS, epoch), pieces) for epoch in range(2 * epochs)]
    for cycle in (cut[:epochs], cut[epochs:]):
        times = sum((labels(full, rows, 0.5) >= 0).astype(int) for rows in cycle)
        assert np.array_equal(times == 1, cycle[0].word_id >= 0)
    first, next_first = (labels(full, cut[epoch], 0.5) for epoch in (0, epochs))
    assert (first != next_first).any(1).mean() > 0.9  # dealt anew


def test_the_pieces_of_a_row_are_dealt_apart() -> None:
    """In rows whose two halves are alike, or one random number could pass for two."""
    rows = rows_like_text(4, 64)
    bounds = np.arange(0, 4 * 64 + 1, 64, dtype=rows.cu_seqlens.dtype)
    words = np.tile(np.arange(32, dtype=np.int32), (4, 2))
    rows = cut_rows(replace(rows, word_id=words, cu_seqlens=bounds), 2)
    masked = labels(masker_of({"kind": "explored", "epochs": 2}, 0.5), rows, 0.0) >= 0
    first, second = masked.reshape(4, 2, 32).transpose(1, 0, 2)
    assert (first != second).any(1).all()


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
            {"strategy": {"kind": "explored", "epochs": 2}, "ratio": 0.6},
            "and ratio reaches 0.6: lower the ratio to 0.5 or less",
        ),
        (
            {"strategy": {"kind": "explored", "epochs": 6}, "ratio": 0.3},
            "lower the ratio to 0.166 or less, or epochs to 3",
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


def test_spans_end_where_documents_do_without_a_special_token_between() -> None:
    length, num = 64, 50
    words = np.tile(np.arange(length, dtype=np.int32), (num, 1))
    words[:, -1] = -1
    bounds = np.union1d(np.arange(0, num * length + 1, length), np.arange(7, num * length, 9))
    number = np.arange(num)
    rows = Rows(words, words, words, number, number * 0, bounds.astype(np.int32))
    for strategy in (Span(stop_prob=0.01), Span(stop_prob=0.01, max_words=3)):
        units = strategy.units(rows, seed=0)
        begins = bounds[bounds % length > 0]
        flat = units.ravel()
        assert (flat[begins] != flat[begins - 1]).all()
        assert ((units >= 0) == (words >= 0)).all()
        inside = units[:, :-1]
        assert np.isin(np.diff(inside), (0, 1)).all()  # counted on from left to right
        sizes = np.unique(inside + 1000 * number[:, None], return_counts=True)[1]
        assert sizes.max() == min(9, strategy.max_words)
        parts = [strategy.units(part, seed=0) for part in rows.micro_batches(7)]
        assert np.array_equal(np.concatenate(parts), units)


def test_laws_that_no_row_draws_from_do_not_count_for_explored_masks() -> None:
    parts = [{"share": 1, "law": 0.25}, {"share": 0, "law": 0.9}]
    strategy, ratio = {"kind": "explored", "epochs": 4}, {"kind": "mixture_rows", "parts": parts}
    assert MaskingConfig.parse({"strategy": strategy, "ratio": ratio}).strategy.turns == 4
