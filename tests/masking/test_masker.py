"""The masker: every schedule × content × strategy, the same bits however the batch is cut."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

from chronomask.errors import UsageError
from chronomask.masking.config import MaskingConfig
from chronomask.masking.masker import Masker, Vocabulary, fixed_masker
from chronomask.types import ClassTally, MaskedBatch
from tests.support.masked_text import (
    CLASSES,
    FIRST_ORDINARY,
    VOCAB_SIZE,
    rows_like_text,
    word_sizes,
)
from tests.support.masking_states import CONTENTS, fresh, masks, saved_states, taught

MASK = 4
VOCABULARY = Vocabulary(MASK, np.arange(FIRST_ORDINARY, VOCAB_SIZE), VOCAB_SIZE)
ROWS = rows_like_text(64, 128)
SCORES = np.random.default_rng(4).normal(size=(64, 128)).astype(np.float32)
ROWS = replace(ROWS, scores=SCORES)
SIZES = word_sizes(ROWS)

RATIO_SPECS = [
    {"kind": "constant", "base": 0.3},
    {"kind": "linear_decay"},
    {"kind": "cosine_decay"},
    {"kind": "ascending"},
    {"kind": "concave_decay"},
    {"kind": "convex_decay"},
    {"kind": "up_then_down"},
    {"kind": "down_then_up"},
    {"kind": "warmup_decay"},
    {"kind": "cosine_then_quadratic"},
    {"kind": "linear"},
    {"kind": "phases", "phases": [{"until": 0.5, "ratio": 0.3}, {"until": 1, "ratio": 0.05}]},
    {"kind": "sequence", "parts": [{"until": 1, "schedule": {"kind": "ascending"}}]},
    {"kind": "uniform_rows"},
    {"kind": "uniform_rows", "antithetic": False},
    {"kind": "beta_rows"},
    {"kind": "cosine_rows"},
    {"kind": "normal_rows", "high": 0.4},
    {
        "kind": "mixture_rows",
        "parts": [
            {"share": {"kind": "linear", "start": 0.9, "end": 0.1}, "law": {"kind": "normal_rows"}},
            {
                "share": {"kind": "linear", "start": 0.1, "end": 0.9},
                "law": {"kind": "normal_rows", "mean": 0.6, "std": 0.2},
            },
        ],
    },
    {"kind": "responsive"},
]
ABOVE_HALF = ("beta_rows", "mixture_rows")
"""Laws by which some rows have a ratio above a half."""
CONTENT_SPECS = [
    {"kind": "none"},
    {"kind": "ptw"},
    {"kind": "ptw", "weight_map": {"kind": "softmax"}},
    {"kind": "ptw", "weight_map": {"kind": "clipped"}},
    {"kind": "fixed", "weights": {"NOUN": 4, "DET": 0}},
    {"kind": "token_accuracy", "every": 1},
    {"kind": "ptw", "strength": {"kind": "linear", "start": 0, "end": 1}},
    {"kind": "ptw", "weight_map": {"kind": "nats"}, "strength": 0.25},
    {"kind": "learning_progress"},
    {"kind": "reducible_loss"},
    {"kind": "token_probability", "every": 1, "strength": 0.5},
    {"kind": "model_scores", "slope": 2.0},
    {"kind": "ptw_faithful"},
]
STRATEGY_SPECS = [
    {"kind": "token"},
    {"kind": "whole_word"},
    {"kind": "span"},
    {"kind": "pmi"},
    {
        "kind": "phased",
        "phases": [
            {"until": 0.3, "strategy": {"kind": "token"}},
            {
                "until": 1,
                "strategy": {
                    "kind": "mixed",
                    "parts": [
                        {"share": 0.5, "strategy": {"kind": "whole_word"}},
                        {"share": 0.5, "strategy": {"kind": "span"}},
                    ],
                },
            },
        ],
    },
    {"kind": "explored", "epochs": 2},
]
COMBINATIONS = [
    (ratio, content, strategy)
    for ratio in RATIO_SPECS
    for content in CONTENT_SPECS
    for strategy in STRATEGY_SPECS
    if content["kind"] != "ptw_faithful" or strategy["kind"] == "whole_word"
    if strategy["kind"] != "explored" or ratio["kind"] not in ABOVE_HALF
]


def config_of(ratio: dict, content: dict, strategy: dict, **more: object) -> MaskingConfig:
    return MaskingConfig.parse({"ratio": ratio, "content": content, "strategy": strategy, **more})


def masker_of(config: MaskingConfig, seed: int = 0) -> Masker:
    """A masker that has seen one step of losses, so that its weights are uneven."""
    masker = Masker(config, VOCABULARY, CLASSES, seed)
    size = masker.num_feedback_classes
    rng = np.random.default_rng(9)
    count = rng.integers(1, 50, size)
    masker.update(ClassTally(count * rng.random(size) * 5, count, rng.integers(0, 2, size) * count))
    return masker


def constant(ratio: float, **more: object) -> MaskingConfig:
    return config_of(
        {"kind": "constant", "base": ratio}, {"kind": "none"}, {"kind": "whole_word"}, **more
    )


def same(one: MaskedBatch, two: MaskedBatch) -> bool:
    names = ("input_ids", "labels", "positions", "targets", "target_class")
    return all(
        np.array_equal(np.asarray(getattr(one, n)), np.asarray(getattr(two, n))) for n in names
    )


def joined(parts: list[MaskedBatch]) -> tuple[np.ndarray, np.ndarray]:
    return np.concatenate([p.input_ids for p in parts]), np.concatenate([p.labels for p in parts])


@pytest.mark.parametrize(("ratio", "content", "strategy"), COMBINATIONS, ids=lambda s: s["kind"])
def test_promises_of_every_combination(ratio: dict, content: dict, strategy: dict) -> None:
    config = config_of(ratio, content, strategy)
    masker = masker_of(config)
    batch = masker(ROWS, 0.4)

    # consistent with itself
    assert (batch.labels.ravel()[batch.positions] == batch.targets).all()
    assert (batch.labels >= 0).sum() == batch.num_predicted
    assert (ROWS.input_ids.ravel()[batch.positions] == batch.targets).all()
    untouched = batch.labels < 0
    assert (batch.input_ids == ROWS.input_ids)[untouched].all()
    assert (ROWS.token_class.ravel()[batch.positions] == batch.target_class).all()
    # never a special or padding token
    assert not (batch.labels[SIZES == 0] >= 0).any()
    # whole words all or nothing
    if strategy["kind"] != "token":
        chosen = batch.labels >= 0
        inside = (ROWS.word_id[:, 1:] == ROWS.word_id[:, :-1]) & (SIZES[:, 1:] > 0)
        assert (chosen[:, 1:] == chosen[:, :-1])[inside].all()
    # the same bits however the batch is cut, in whatever order, as torch tensors, again
    for number in (2, 8):
        ids, labels = joined([masker(part, 0.4) for part in ROWS.micro_batches(number)])
        assert np.array_equal(ids, batch.input_ids)
        assert np.array_equal(labels, batch.labels)
    backwards = replace(ROWS, **{name: np.ascontiguousarray(getattr(ROWS, name)[::-1]) for name in (
        "input_ids", "word_id", "token_class", "row_id", "epoch", "order", "scores", "ngrams"
    )})  # fmt: skip
    assert np.array_equal(masker(backwards, 0.4).labels[::-1], batch.labels)
    assert same(masker(ROWS.to("cpu"), 0.4), batch)
    # other masks for another seed, epoch and row
    if 0.02 < batch.masking_ratio < 0.98:
        for other in (
            masker_of(config, seed=1)(ROWS, 0.4),
            masker(replace(ROWS, epoch=ROWS.epoch + 1), 0.4),
            masker(replace(ROWS, row_id=ROWS.row_id + 64), 0.4),
        ):
            differs = (other.labels != batch.labels).any(axis=1)
            assert differs.mean() > 0.9


@pytest.mark.parametrize("budget", ["row", "batch", "none"])
@pytest.mark.parametrize("content", CONTENT_SPECS[:-1], ids=lambda s: s["kind"])
@pytest.mark.parametrize("strategy", ["token", "whole_word"])
@pytest.mark.parametrize("ratio", [0.0, 0.01, 0.15, 0.5, 0.97, 1.0])
def test_dense_device_code_gives_the_same_bits(
    ratio: float, strategy: str, content: dict, budget: str
) -> None:
    config = config_of(
        {"kind": "constant", "base": ratio},
        content,
        {"kind": strategy},
        budget=budget,
        replace_unit="unit" if ratio > 0.3 else "token",
    )
    masker = masker_of(config)
    on_host = masker(ROWS, 0.0)
    on_device = masker.mask_dense(ROWS.to("cpu"), 0.0)
    assert same(on_host, on_device)
    assert int(on_device.num_maskable) == on_host.num_maskable


@pytest.mark.gpu
@pytest.mark.parametrize("content", CONTENT_SPECS[:-1], ids=lambda s: s["kind"])
def test_cuda_gives_the_same_bits(content: dict) -> None:
    config = config_of({"kind": "cosine_decay"}, content, {"kind": "whole_word"})
    masker, on_cuda = masker_of(config), masker_of(config)
    on_cuda.to("cuda")
    batch = on_cuda(ROWS.to("cuda"), 0.4)
    moved = replace(batch, **{n: getattr(batch, n).cpu() for n in (
        "input_ids", "labels", "positions", "targets", "target_class"
    )})  # fmt: skip
    assert same(masker(ROWS, 0.4), moved)


@pytest.mark.parametrize("spec", CONTENT_SPECS, ids=lambda s: s["kind"])
def test_state_restores_the_masks(spec: dict) -> None:
    config = config_of({"kind": "responsive"}, spec, {"kind": "whole_word"})
    one = masker_of(config)
    for loss in (3.0, 3.0, 3.0, 3.0, 3.0):
        one.observe_validation(loss)
    two = Masker(config, VOCABULARY, CLASSES, 0)
    two.load_state_dict(one.state_dict())
    assert same(one(ROWS, 0.7), two(ROWS, 0.7))
    assert two.ratio_at(0.7) == pytest.approx(0.24)


def test_responsive_ratio_falls_when_the_loss_stalls_and_not_below_its_end() -> None:
    spec = {"kind": "responsive", "watch": "training", "every": 2, "patience": 1, "factor": 0.5}
    masker = Masker(config_of(spec, {"kind": "none"}, {"kind": "token"}), VOCABULARY)
    levels = []
    for loss in (4.0, 4.0, 3.0, 3.0, 3.0, 3.0, 2.9, 2.9, 2.9, 2.9):
        masker.update(ClassTally(np.array([10 * loss]), np.array([10]), np.array([0])))
        levels.append(masker.ratio_at(0.5))
    assert levels == [0.3] * 5 + [0.15] * 5


@pytest.mark.parametrize("name", CONTENTS)
def test_checkpoints_of_before_open_and_mask_the_same(name: str) -> None:
    entry = saved_states()[name]
    learnt, restored = taught(CONTENTS[name]), fresh(CONTENTS[name])
    restored.load_state_dict(entry["state"])
    for masker in (learnt, restored):
        state = masker.state_dict()
        assert state.keys() == entry["state"].keys()
        for key, tensor in entry["state"].items():
            assert state[key].dtype == tensor.dtype
            assert torch.equal(state[key], tensor), key
        assert masks(masker) == {key: entry[key] for key in ("masking_ratio", "labels")}


def test_what_a_run_has_logged_is_held() -> None:
    ptw = {"kind": "ptw", "strength": 1}
    masker = masker_of(config_of({"kind": "responsive"}, ptw, {"kind": "whole_word"}))
    before = masker.state_dict()
    weights = [0.5, *np.linspace(0.1, 0.9, len(CLASSES) - 1)]
    masker.hold(ratio=0.2, class_weights=weights)
    fixed = config_of(
        {"kind": "constant", "base": 0.2},
        {"kind": "fixed", "weights": dict(zip(CLASSES, weights, strict=True))},
        {"kind": "whole_word"},
    )
    assert same(masker(ROWS, 0.4), Masker(fixed, VOCABULARY, CLASSES)(ROWS, 0.4))
    assert masker.class_weights() == pytest.approx(dict(zip(CLASSES, weights, strict=True)))
    assert masker.ratio_at(0.9) == 0.2
    assert all(
        torch.equal(before[key], value)
        for key, value in masker.state_dict().items()
        if "content" in key
    )


def test_rows_of_a_sequence_draw_as_its_parts_do() -> None:
    drawn = {"kind": "uniform_rows", "high": {"kind": "constant", "base": 0.6}}
    for spec in (drawn, drawn | {"antithetic": False}):
        sequence = {"kind": "sequence", "parts": [{"until": 1, "schedule": spec}]}
        alone, inside = (
            Masker(config_of(ratio, {"kind": "none"}, {"kind": "token"}), VOCABULARY)(ROWS, 0.5)
            for ratio in (spec, sequence)
        )
        assert same(alone, inside)


ONE_IN_SIX = rows_like_text(1500, 256, seed=8)


def test_80_10_10_and_random_tokens_are_uniform_over_the_ordinary_vocabulary() -> None:
    few = Vocabulary(MASK, np.arange(FIRST_ORDINARY, VOCAB_SIZE, 40), VOCAB_SIZE)
    masker = Masker(constant(0.5), few)
    batch = masker(ONE_IN_SIX, 0.0)
    shown = batch.input_ids.ravel()[batch.positions]
    number = shown.size
    masked, kept = (shown == MASK).sum(), (shown == batch.targets).sum()
    accident = 0.1 / few.ordinary_ids.size / 40
    assert abs(masked - 0.8 * number) < 3 * np.sqrt(number * 0.16)
    assert abs(kept - (0.1 + accident) * number) < 3 * np.sqrt(number * 0.09)
    random = shown[(shown != MASK) & (shown != batch.targets)]
    counts = np.bincount(np.searchsorted(few.ordinary_ids, random), minlength=few.ordinary_ids.size)
    assert np.isin(random, few.ordinary_ids).all()
    assert stats.chisquare(counts).pvalue > 1e-3


@pytest.mark.parametrize(("mask", "random"), [(1.0, 0.0), (0.0, 1.0), (0.0, 0.0)])
def test_replacement_is_exact_at_zero_and_one(mask: float, random: float) -> None:
    config = constant(0.5, mask_replace_prob=mask, random_replace_prob=random)
    batch = Masker(config, VOCABULARY)(ONE_IN_SIX, 0.0)
    shown = batch.input_ids.ravel()[batch.positions]
    assert ((shown == MASK) == (mask == 1)).all()
    if random == 1:
        assert (shown == batch.targets).mean() < 0.001
        assert shown.min() >= FIRST_ORDINARY
    if mask == random == 0:
        assert (shown == batch.targets).all()


def test_a_unit_can_be_replaced_as_one() -> None:
    for replace_unit, expected in (("unit", 1.0), ("token", 0.68)):
        batch = Masker(constant(0.5, replace_unit=replace_unit), VOCABULARY)(ONE_IN_SIX, 0.0)
        shown = (batch.input_ids == MASK) & (batch.labels >= 0)
        word = ONE_IN_SIX.word_id
        pair = (word[:, 1:] == word[:, :-1]) & (word[:, 1:] >= 0) & (batch.labels[:, 1:] >= 0)
        assert (shown[:, 1:] == shown[:, :-1])[pair].mean() == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize("content", CONTENT_SPECS[:-1], ids=lambda s: s["kind"])
@pytest.mark.parametrize("strategy", STRATEGY_SPECS[:-1], ids=lambda s: s["kind"])
def test_a_batch_budget_gives_a_static_number_of_targets(strategy: dict, content: dict) -> None:
    config = config_of({"kind": "constant", "base": 0.15}, content, strategy, budget="batch")
    masker = masker_of(config)
    others = (replace(rows_like_text(64, 128, seed), scores=SCORES) for seed in range(12))
    numbers = {masker(rows, 0.5).num_predicted for rows in others}
    assert numbers == {round(0.15 * 64 * 128)}
    per_row = (masker(ROWS, 0.5).labels >= 0).sum(1)
    assert per_row.std() > 1


def test_the_published_walk_does_not_count_padding() -> None:
    """Its budget is round(ratio · the row's own tokens), specials among them, as in the public code."""
    walk = {"kind": "ptw_faithful"}
    config = config_of({"kind": "constant", "base": 0.15}, walk, {"kind": "whole_word"})
    pad = replace(VOCABULARY, pad_token_id=0)
    rows = rows_like_text(200, 128, multi_only=False)
    begins = (rows.word_id >= 0).argmax(1)
    ends = rows.row_length - (rows.word_id[:, ::-1] >= 0).argmax(1)
    ids = rows.input_ids.copy()
    ids[np.arange(200), begins - 1], ids[np.arange(200), ends] = (
        2,
        3,
    )  # [CLS] and [SEP] are no padding
    rows = replace(rows, input_ids=ids)
    own = ends - begins + 2
    masker = Masker(config, pad, CLASSES, 0)
    chosen = (masker(rows, 0.5).labels >= 0).sum(1)
    assert (chosen <= np.rint(0.15 * own)).all()
    assert chosen.sum() == pytest.approx(np.rint(0.15 * own).sum(), rel=0.01)
    without = (Masker(config, VOCABULARY, CLASSES, 0)(rows, 0.5).labels >= 0).sum(1)
    padded = own < rows.row_length - 1
    assert without[padded].mean() > 1.1 * chosen[padded].mean()
    assert (without == chosen)[own == rows.row_length].all()


def test_bernoulli_numbers_vary_as_binomials_do() -> None:
    config = config_of(
        {"kind": "constant", "base": 0.15}, {"kind": "none"}, {"kind": "token"}, budget="none"
    )
    masker = Masker(config, VOCABULARY)
    per_row = (masker(ONE_IN_SIX, 0.0).labels >= 0).sum(1)
    maskable = (ONE_IN_SIX.word_id >= 0).sum(1)
    z = (per_row - 0.15 * maskable) / np.sqrt(0.15 * 0.85 * maskable)
    assert abs(z.mean()) < 4 / np.sqrt(z.size)
    assert z.std() == pytest.approx(1, abs=0.08)


def test_replacement_follows_a_schedule() -> None:
    config = constant(
        0.5,
        mask_replace_prob={"kind": "linear", "start": 1.0, "end": 0.0},
        random_replace_prob={"kind": "linear", "start": 0.0, "end": 1.0},
    )
    masker = Masker(config, VOCABULARY)
    for progress, expected in ((0.0, 1.0), (0.25, 0.75), (1.0, 0.0)):
        batch = masker(ONE_IN_SIX, progress)
        shown = batch.input_ids.ravel()[batch.positions]
        assert (shown == MASK).mean() == pytest.approx(expected, abs=0.01)
        assert (shown == batch.targets).mean() < 0.001


def test_spans_have_geometric_lengths() -> None:
    config = config_of(
        {"kind": "constant", "base": 0.15}, {"kind": "none"}, {"kind": "span", "max_words": 10}
    )
    masker = Masker(config, VOCABULARY)
    spans = config.strategy.units(ONE_IN_SIX, 0)
    lengths = []
    for row, words in zip(spans, ONE_IN_SIX.word_id, strict=True):
        whole = np.unique(np.stack([row, words])[:, words >= 0], axis=1)
        lengths.append(np.bincount(whole[0])[:-1])
    observed = np.bincount(np.concatenate(lengths), minlength=11)[1:11]
    expected = 0.2 * 0.8 ** np.arange(10)
    expected[-1] = 0.8**9
    total = observed.sum()
    assert np.abs(observed / total - expected).max() < 0.01
    achieved = [
        masker(replace(ONE_IN_SIX, epoch=ONE_IN_SIX.epoch + e), 0).num_predicted for e in range(10)
    ]
    maskable = (ONE_IN_SIX.word_id >= 0).sum()
    assert np.mean(achieved) / maskable == pytest.approx(0.15, rel=0.004)


def test_rows_draw_their_own_ratio_evenly_over_the_batch() -> None:
    spec = {"kind": "uniform_rows", "high": {"kind": "constant", "base": 0.6}}
    masker = Masker(config_of(spec, {"kind": "none"}, {"kind": "token"}), VOCABULARY)
    batch = masker(ONE_IN_SIX, 0.2)
    share = (batch.labels >= 0).sum(1) / (ONE_IN_SIX.word_id >= 0).sum(1)
    assert stats.kstest(share, stats.uniform(0, 0.6).cdf).statistic < 0.01
    first_32 = share[:32].mean()
    assert first_32 == pytest.approx(0.3, abs=0.02)


def test_validation_masks_depend_on_the_row_alone() -> None:
    batch = fixed_masker(VOCABULARY)(ROWS, 0.0)
    again = fixed_masker(VOCABULARY)(ROWS, 0.9)
    assert same(batch, again)
    assert batch.num_predicted / batch.num_maskable == pytest.approx(0.15, abs=0.002)


def test_refusals() -> None:
    with pytest.raises(UsageError, match="did you mean 'cosine_decay'"):
        MaskingConfig.parse({"ratio": {"kind": "cosine_dcay"}})
    with pytest.raises(UsageError, match=r"unknown key 'ratio.begin'"):
        MaskingConfig.parse({"ratio": {"kind": "linear", "begin": 0.3}})
    with pytest.raises(UsageError, match="must not exceed 1; at progress 0 their sum is"):
        MaskingConfig.parse({"mask_replace_prob": 0.9, "random_replace_prob": 0.2})
    with pytest.raises(UsageError, match="selects whole words"):
        MaskingConfig.parse({"content": {"kind": "ptw_faithful"}, "strategy": {"kind": "token"}})
    with pytest.raises(UsageError, match=r"at progress 0\.5"):
        MaskingConfig.parse(
            {
                "mask_replace_prob": {"kind": "linear", "start": 0.4, "end": 1.0},
                "random_replace_prob": 0.3,
            }
        )
    with pytest.raises(UsageError, match="selects row by row"):
        MaskingConfig.parse({"content": {"kind": "ptw_faithful"}, "budget": "batch"})
    for progress in (1.1, -0.001, float("nan")):
        with pytest.raises(UsageError, match=f"progress is {progress}; give a number between"):
            Masker(constant(0.1), VOCABULARY)(ROWS, progress)
