"""Laws of row ratios that move with progress, and the weights of losses that go with them."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from chronomask.errors import UsageError
from chronomask.masking.config import MaskingConfig
from chronomask.masking.masker import Masker, Vocabulary
from chronomask.masking.objective import Hybrid, LateMasks
from chronomask.masking.ratio import Schedule
from chronomask.masking.tally import weighted_sum
from chronomask.types import Rows
from tests.support.masked_text import FIRST_ORDINARY, VOCAB_SIZE, rows_like_text

VOCABULARY = Vocabulary(4, np.arange(FIRST_ORDINARY, VOCAB_SIZE), VOCAB_SIZE)
GRID = (np.arange(200_000) + 0.5) / 200_000
BIMODAL: dict[str, Any] = {
    "kind": "mixture_rows",
    "parts": [
        {"share": 0.6, "law": {"kind": "normal_rows", "mean": 0.12, "std": 0.02}},
        {
            "share": 0.4,
            "law": {
                "kind": "normal_rows",
                "mean": {"kind": "linear", "start": 0.4, "end": 0.85},
                "std": 0.08,
            },
        },
    ],
}
MOVING = {
    "kind": "mixture_rows",
    "parts": [
        {"share": {"kind": "linear", "start": 1, "end": 0}, "law": {"kind": "cosine_rows"}},
        {"share": {"kind": "linear", "start": 0, "end": 1}, "law": {"kind": "constant"}},
    ],
}
LAWS = [
    {"kind": "uniform_rows"},
    {"kind": "beta_rows"},
    {"kind": "cosine_rows", "high": {"kind": "linear", "start": 1.0, "end": 0.5}},
    {"kind": "normal_rows", "mean": 0.15, "std": 0.05},
    {"kind": "normal_rows", "mean": 0.95, "std": 0.3, "low": 0.2},
    BIMODAL,
    MOVING,
]


@pytest.mark.parametrize("law", LAWS, ids=str)
@pytest.mark.parametrize("progress", [0.0, 0.3, 1.0])
def test_the_ratio_asked_is_the_mean_of_the_law_and_lies_within_it(
    law: dict, progress: float
) -> None:
    schedule = Schedule.parse(law)
    rows = schedule.of_rows(progress, GRID)
    assert rows.mean() == pytest.approx(schedule.at(progress), abs=2e-6)
    assert 0 <= rows.min() <= rows.max() <= 1


def test_a_law_is_the_one_of_its_formula() -> None:
    cosine = Schedule.parse({"kind": "cosine_rows", "high": {"kind": "constant", "base": 0.5}})
    assert cosine.of_rows(0, np.array([1 / 3])) == pytest.approx(0.5 * math.cos(math.pi / 6))
    assert cosine.at(0.0) == pytest.approx(1 / math.pi)
    normal = Schedule.parse({"kind": "normal_rows", "mean": 0.5, "std": 0.1})
    within = normal.of_rows(0.0, GRID)
    assert within.std() == pytest.approx(0.1, rel=1e-3)
    assert np.quantile(within, 0.8413447) == pytest.approx(0.6, abs=1e-4)
    cut = Schedule.parse({"kind": "normal_rows", "mean": 0.5, "std": 0.1, "low": 0.5})
    assert cut.at(0.0) == pytest.approx(0.5 + 0.1 * math.sqrt(2 / math.pi))  # half a normal
    both = Schedule.parse(BIMODAL).of_rows(1.0, GRID)
    assert (both < 0.3).mean() == pytest.approx(0.6, abs=1e-4)
    assert both[both > 0.3].mean() == pytest.approx(0.85 - 0.0065, abs=2e-3)  # cut off at 1


@pytest.mark.parametrize("std", [1e-9, 1e-200, 5e-324])
@pytest.mark.parametrize("mean", [0.0, 0.15, 1.0])
def test_a_normal_law_of_almost_no_width_is_its_mean(std: float, mean: float) -> None:
    law = Schedule.parse({"kind": "normal_rows", "mean": mean, "std": std})
    assert law.at(0.5) == pytest.approx(mean, abs=1e-8)
    assert law.of_rows(0.5, GRID[::999]) == pytest.approx(mean, abs=1e-7)


@pytest.mark.parametrize("law", LAWS, ids=str)
def test_the_slope_is_the_derivative_of_the_quantile_function(law: dict) -> None:
    schedule = Schedule.parse(law)
    uniform = np.array([0.05, 0.2, 0.5, 0.63, 0.9])  # no jump of a mixture among them
    step = 1e-5
    rise = schedule.of_rows(0.3, uniform + step) - schedule.of_rows(0.3, uniform - step)
    assert schedule.slope(0.3, uniform) == pytest.approx(rise / (2 * step), rel=1e-4, abs=1e-9)


@pytest.mark.parametrize("law", LAWS, ids=str)
def test_rows_are_masked_as_their_law_says(law: dict) -> None:
    rows = rows_like_text(400, 128)
    masker = Masker(MaskingConfig.parse({"ratio": law}), VOCABULARY)
    batch = masker(rows, 0.5)
    asked = masker.ratio_at(0.5)
    assert batch.masking_ratio == pytest.approx(asked, rel=0.01)
    assert batch.num_predicted / batch.num_maskable == pytest.approx(asked, rel=0.01)
    parts = [masker(part, 0.5).labels for part in rows.micro_batches(7)]
    assert np.array_equal(np.concatenate(parts), batch.labels)
    scaled = Schedule.parse(law).times(0.5)
    assert scaled.at(0.5) == pytest.approx(asked / 2)
    assert scaled.of_rows(0.5, GRID[::999]).mean() == pytest.approx(asked / 2, rel=0.01)


def weigh(loss_weight: dict, per: str, ratio: dict, rows: Rows) -> tuple[Any, Masker]:
    values = {"ratio": ratio, "loss_weight": loss_weight, "loss_per": per}
    masker = Masker(MaskingConfig.parse(values), VOCABULARY)
    return masker(rows, 0.5), masker


CONSTANT = {"kind": "constant", "base": 0.25}


def test_weights_by_hand() -> None:
    """Rows of 8 maskable tokens, of which a quarter, two, are predicted."""
    rows = rows_like_text(6, 64)
    word_id = np.full((6, 64), -1, np.int32)
    word_id[:4, 1:9] = np.arange(8)  # two rows may not be masked at all
    rows = replace(rows, word_id=word_id, scores=None)
    losses = torch.arange(8.0)
    expected = {
        ("none", "label"): losses.sum() / 8,
        ("none", "token"): losses.sum() / 32,
        ("none", "row"): (0.5 + 2.5 + 4.5 + 6.5) / 4,
        ("inverse_ratio", "label"): losses.sum() * 4 / 8,
        ("inverse_ratio", "token"): losses.sum() * 4 / 32,
        ("inverse_ratio", "row"): (0.5 + 2.5 + 4.5 + 6.5) * 4 / 4,
    }
    for (kind, per), value in expected.items():
        batch, _ = weigh({"kind": kind}, per, CONSTANT, rows)
        assert batch.num_predicted == 8
        got = weighted_sum(losses, batch) / batch.loss_divisor
        assert float(got) == pytest.approx(float(value)), (kind, per)
    batch, _ = weigh({"kind": "none"}, "label", CONSTANT, rows)
    assert batch.loss_weights is None


def test_the_derivative_weight_is_the_law_of_masked_diffusion() -> None:
    rows = rows_like_text(32, 64)
    linear = {"kind": "uniform_rows", "low": {"kind": "constant", "base": 0.001}}
    linear["high"] = {"kind": "constant", "base": 1.0}
    for ratio, exponent in ((linear, 1.0), (linear, 0.1), ({"kind": "cosine_rows"}, 0.1)):
        spec = {"kind": "derivative", "exponent": exponent}
        batch, masker = weigh(spec, "token", ratio, rows)
        p = masker.ratio.ratios(0.5, rows, 0)
        # p = 0.3 cos(πu/2), so |p′| = π/2 · √(0.3² − p²)
        cosine = math.pi / 2 * np.sqrt(np.maximum(0.3**2 - p**2, 0))
        slope = np.full(32, 0.999) if ratio is linear else cosine
        row = batch.positions // 64
        assert np.asarray(batch.loss_weights).dtype == np.float32
        expected = (slope**exponent / np.maximum(p, 0.001))[row]
        assert np.asarray(batch.loss_weights) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("per", ["label", "token", "row"])
def test_weights_are_the_same_however_a_batch_is_cut_and_on_a_device(per: str) -> None:
    rows = rows_like_text(30, 64)
    ratio = {"kind": "uniform_rows", "high": {"kind": "constant", "base": 0.8}}
    batch, masker = weigh({"kind": "inverse_ratio"}, per, ratio, rows)
    parts = [masker(part, 0.5) for part in rows.micro_batches(4)]
    assert np.array_equal(
        np.concatenate([np.asarray(p.loss_weights) for p in parts]),
        np.asarray(batch.loss_weights),
    )
    assert sum(part.loss_divisor for part in parts) == batch.loss_divisor
    dense = masker.mask_dense(rows.to("cpu"), 0.5)
    assert np.array_equal(np.asarray(dense.loss_weights), np.asarray(batch.loss_weights))
    assert int(dense.loss_divisor) == batch.loss_divisor
    assert str(getattr(batch.to("cpu").loss_weights, "dtype", "")) == "torch.float32"


def test_inverse_ratio_makes_every_ratio_count_the_same_per_token() -> None:
    """Σ 1/p over labels is, in expectation, the number of maskable tokens, whatever the law."""
    rows, total, maskable = rows_like_text(200, 128), 0.0, 0
    masker = weigh({"kind": "inverse_ratio"}, "token", BIMODAL, rows)[1]
    for epoch in range(10):
        order = rows.row_id + 200 * epoch
        batch = masker(replace(rows, epoch=rows.epoch + epoch, order=order), 0.5)
        total += float(np.asarray(batch.loss_weights).sum())
        maskable += int(batch.loss_divisor)
    assert total / maskable == pytest.approx(1.0, rel=0.005)


NORMAL = {"kind": "normal_rows"}
LAW = {"kind": "uniform_rows"}
"""A law of row ratios, where one number for all rows is wanted."""


@pytest.mark.parametrize(
    ("masking", "words"),
    [
        ({"ratio": NORMAL | {"mean": 1.2}}, "mean is 1.2"),
        ({"ratio": NORMAL | {"low": 0.2}}, "mean is 0.15 at progress 0, outside low to high"),
        ({"ratio": NORMAL | {"low": 0.5, "high": 0.5}}, "must be below high"),
        ({"ratio": NORMAL | {"std": 0}}, "std"),
        (
            {"ratio": {"kind": "mixture_rows", "parts": [{"share": 0.6, "law": NORMAL}]}},
            "the shares must add up to 1; at progress 0 they are 0.6",
        ),
        ({"loss_weight": {"kind": "derivative"}}, "ratio 'linear' is none"),
        ({"loss_weight": {"kind": "derivative"}, "ratio": MOVING}, "ratio 'mixture_rows' is none"),
        ({"loss_weight": {"kind": "inverse_ratio", "least_ratio": 0}}, "loss_weight.least_ratio"),
        ({"loss_per": "rows"}, "loss_per"),
        ({"ratio": LAW, "budget": "batch"}, "'uniform_rows' draws one for each: set budget 'row'"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_by_its_key(masking: dict, words: str) -> None:
    with pytest.raises(UsageError) as refused:
        MaskingConfig.parse(masking)
    assert words in str(refused.value).replace(".inverse_ratio.", ".")


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({"mask_replace_prob": LAW}, "mask_replace_prob"),
        ({"random_replace_prob": LAW, "mask_replace_prob": 0}, "random_replace_prob"),
        ({"ratio": {"kind": "uniform_rows", "low": LAW}}, "low"),
        ({"ratio": {"kind": "cosine_rows", "high": LAW}}, "high"),
        ({"ratio": {"kind": "beta_rows", "mean": LAW}}, "mean"),
        ({"ratio": {"kind": "normal_rows", "mean": LAW}}, "mean"),
        ({"ratio": {"kind": "mixture_rows", "parts": [{"share": LAW, "law": 0.1}]}}, "share"),
        (
            {
                "strategy": {
                    "kind": "mixed",
                    "parts": [{"share": LAW, "strategy": {"kind": "token"}}],
                }
            },
            "share",
        ),
        ({"content": {"kind": "ptw", "strength": LAW}}, "strength"),
    ],
    ids=str,
)
def test_one_number_for_all_rows_is_no_law(values: dict, name: str) -> None:
    with pytest.raises(
        UsageError, match=f"{name} is one number for all rows of a step, and 'uniform"
    ):
        MaskingConfig.parse(values)


def test_shares_of_causal_rows_and_layers_are_no_laws() -> None:
    for objective, name in ((Hybrid, "causal"), (LateMasks, "layer")):
        with pytest.raises(UsageError, match=f"{name} is one number for all rows of a step"):
            objective.parse({name: LAW})
