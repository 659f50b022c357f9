"""Strength of content over time, learning progress, reducible loss and scores, against plain arithmetic."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from chronomask.errors import UsageError
from chronomask.masking.config import MaskingConfig
from chronomask.masking.content import ContentSchedule, Nats, quantise
from chronomask.masking.masker import Masker, Vocabulary
from chronomask.masking.select.draws import solve
from chronomask.types import ClassTally, Rows
from tests.support.masked_text import (
    CLASSES,
    FIRST_ORDINARY,
    VOCAB_SIZE,
    rows_like_text,
    word_sizes,
)

VOCABULARY = Vocabulary(4, np.arange(FIRST_ORDINARY, VOCAB_SIZE), VOCAB_SIZE)
NAMES = ("none", "A", "B", "C")
FADE_IN = {"kind": "linear", "start": 0.0, "end": 1.0}


def masker_of(content: dict[str, Any], **more: Any) -> Masker:
    values = {"ratio": {"kind": "constant", "base": 0.15}, "content": content, **more}
    return Masker(MaskingConfig.parse(values), VOCABULARY, CLASSES)


def teach(masker: Masker) -> Masker:
    count = np.arange(1, masker.num_feedback_classes + 1)
    masker.update(ClassTally(count * (np.arange(count.size) % 7) / 2.0, count, count // 2))
    return masker


def labels(masker: Masker, rows: Rows, progress: float) -> np.ndarray:
    return np.asarray(masker(rows, progress).labels)


def step(losses: list[float], count: list[int]) -> ClassTally:
    """One step: the mean loss of each class, and how many of its tokens were predicted."""
    number = np.array([0, *count])
    return ClassTally(np.array([0.0, *losses]) * number, number, number)


EVERY_CONTENT = [
    {"kind": "ptw", "strength": 1},
    {"kind": "ptw", "strength": 1, "weight_map": {"kind": "nats"}},
    {"kind": "learning_progress", "fast_decay": 0.5},
    {"kind": "reducible_loss"},
    {"kind": "token_accuracy", "every": 1},
    {"kind": "token_probability", "every": 1},
    {"kind": "fixed", "weights": {"NOUN": 4, "DET": 0.5}},
]


@pytest.mark.parametrize("content", EVERY_CONTENT, ids=lambda s: s["kind"])
@pytest.mark.parametrize("strategy", ["token", "whole_word", "span"])
def test_strength_one_is_the_schedule_and_zero_is_uniform(content: dict, strategy: str) -> None:
    rows = rows_like_text(16, 64)
    more = {"strategy": {"kind": strategy}}
    plain = labels(teach(masker_of(content, **more)), rows, 0.5)
    one = teach(masker_of({**content, "strength": 1}, **more))
    fading = teach(masker_of({**content, "strength": FADE_IN}, **more))
    none = teach(masker_of({**content, "strength": 0}, **more))
    assert np.array_equal(labels(one, rows, 0.5), plain)
    assert np.array_equal(labels(fading, rows, 1.0), plain)
    assert np.array_equal(labels(fading, rows, 0.0), labels(none, rows, 0.7))
    alike = teach(masker_of({"kind": "fixed", "weights": {}}, **more))  # equal weights
    assert np.array_equal(labels(none, rows, 0.0), labels(alike, rows, 0.0))


@pytest.mark.parametrize("strength", [0.25, 0.5, 2.0])
def test_units_have_the_chance_of_their_weight_to_the_strength(strength: float) -> None:
    rows, ratio = rows_like_text(40, 256, seed=3), 0.2
    weights = {"NOUN": 1.0, "VERB": 0.5, "DET": 0.1}
    content = {"kind": "fixed", "weights": weights, "other": 0.3, "strength": strength}
    masker = masker_of(content, ratio={"kind": "constant", "base": ratio})
    maskable, count, epochs = word_sizes(rows) > 0, np.zeros(rows.input_ids.shape), 150
    for epoch in range(epochs):
        again = replace(rows, epoch=rows.epoch + epoch, order=rows.row_id + epoch * rows.num_rows)
        count += labels(masker, again, 0.5) >= 0
    powers = [weights.get(name, 0.3) ** strength for name in CLASSES]
    grid = quantise(torch.tensor(powers, dtype=torch.float64)).numpy()
    expected, chance = np.zeros(count.shape), np.empty(len(CLASSES))
    for row in range(rows.num_rows):
        tokens = np.bincount(rows.token_class[row][maskable[row]], minlength=len(CLASSES))
        solve(tokens.astype(float), grid, ratio, chance)
        expected[row] = chance[rows.token_class[row]] * maskable[row]
    assert count.sum() / epochs == pytest.approx(ratio * maskable.sum(), rel=0.002)
    for name in weights:
        of_class = maskable & (rows.token_class == CLASSES.index(name))
        mean = expected[of_class].sum()
        assert count[of_class].sum() / epochs == pytest.approx(mean, rel=0.03)
    odds = [expected[maskable & (rows.token_class == CLASSES.index(c))][0] for c in ("NOUN", "DET")]
    odds = [p / (1 - p) for p in odds]
    assert math.log(odds[0] / odds[1]) == pytest.approx(strength * math.log(10), rel=0.01)


def test_weights_by_token_have_the_strength_once() -> None:
    """To the power ½ a token of weight ¼ is one of weight ½, to the last bit."""
    rows, found = rows_like_text(16, 64), []
    for right, strength in ((3, 0.5), (2, 1.0)):
        content = {"kind": "token_accuracy", "every": 1, "keep": 0, "strength": strength}
        masker = masker_of(content, strategy={"kind": "token"})
        count = np.full(masker.num_feedback_classes, 4)
        masker.update(ClassTally(count, count, np.where(np.arange(count.size) % 2, right, 0)))
        found.append(labels(masker, rows, 0.5))
    assert np.array_equal(*found)


def test_learning_progress_is_the_slow_average_less_the_fast_one() -> None:
    content = {"kind": "learning_progress", "ema_decay": 0.75, "fast_decay": 0.5}
    content["weight_map"] = {"kind": "nats", "slope": 1.0, "reference": 0.0}
    state = ContentSchedule.parse(content).begin(NAMES, 10)
    state.update(step([4.0, 4.0, 0.0], [10, 2, 0]))
    weights = state.weights()
    assert weights is not None
    assert weights.tolist() == [0.5] * 4  # nothing has fallen yet, and C was never seen
    state.update(step([2.0, 5.0, 0.0], [10, 8, 0]))
    # A: counts 10 and 10; slow (.75·.25·40 + .25·20)/(.75·.25·10 + .25·10), fast the same with ½ and ½.
    slow = (0.1875 * 40 + 0.25 * 20) / (0.1875 * 10 + 0.25 * 10)
    fast = (0.25 * 40 + 0.5 * 20) / (0.25 * 10 + 0.5 * 10)
    risen = (0.1875 * 8 + 0.25 * 40) / (0.1875 * 2 + 0.25 * 8)
    risen -= (0.25 * 8 + 0.5 * 40) / (0.25 * 2 + 0.5 * 8)
    weights = state.weights()
    assert weights is not None
    assert weights[1] == pytest.approx(1 / (1 + math.exp(fast - slow)))
    assert weights[2] == pytest.approx(1 / (1 + math.exp(-risen)))
    # A class that is not seen for long keeps no fall.
    for _ in range(5000):
        state.update(step([2.0, 0.0, 0.0], [1, 0, 0]))
    weights = state.weights()
    assert weights is not None
    assert weights.tolist() == pytest.approx([0.5] * 4, abs=1e-9)


def test_rounding_is_no_learning_progress() -> None:
    """After one step both averages are the same losses, but for their last bits."""
    state = ContentSchedule.parse({"kind": "learning_progress"}).begin(CLASSES, 10)
    state.update(step([k / 10 for k in range(1, len(CLASSES))], [*range(1, len(CLASSES))]))
    weights = state.weights()
    assert weights is not None
    assert weights.tolist() == [0.5] * len(CLASSES)


def test_reducible_loss_lies_above_what_is_given_or_above_the_own_floor() -> None:
    given = {"kind": "reducible_loss", "reference": {"A": 1.0, "B": 3.0, "C": 0.0}}
    state = ContentSchedule.parse(given).begin(NAMES, 10)
    state.update(step([2.5, 3.0, 1.0], [4, 4, 0]))
    weights = state.weights()
    assert weights is not None
    above = [1.5, 0.0]
    expected = [1 / (1 + math.exp(-x)) for x in above]
    assert weights[1:3].tolist() == pytest.approx(expected)
    # What was never seen counts as a mean class.
    assert weights[3] == pytest.approx(1 / (1 + math.exp(-sum(above) / 2)))

    own = {"kind": "reducible_loss", "ema_decay": 0.5, "fast_decay": 0.0}
    state = ContentSchedule.parse(own).begin(NAMES, 10)
    for loss in (5.0, 2.0, 4.0):
        state.update(step([loss, 1.0, 0.0], [4, 1, 0]))
    running = (5.0 / 8 + 2.0 / 4 + 4.0 / 2) / (1 / 8 + 1 / 4 + 1 / 2)
    weights = state.weights()
    assert weights is not None
    assert weights[1] == pytest.approx(1 / (1 + math.exp(2.0 - running)))
    assert weights[2] == pytest.approx(0.5)
    # The fast average of a class that is not seen for long fades to nothing, and its floor stays.
    fading = ContentSchedule.parse(own | {"ema_decay": 0.9, "fast_decay": 0.5}).begin(NAMES, 10)
    fading.update(step([2.0, 5.0, 0.0], [4, 1, 0]))
    for _ in range(1200):
        fading.update(step([2.0, 0.0, 0.0], [4, 0, 0]))
    assert fading.state_dict()["floor"][1:].tolist() == [2.0, 5.0, math.inf]


def test_a_reference_is_read_from_a_file_and_written_out(tmp_path: Path) -> None:
    file = tmp_path / "bigram.json"
    file.write_text('{"A": 1.5, "B": 2.0, "C": 0}')
    config = ContentSchedule.parse({"kind": "reducible_loss", "reference": str(file)})
    file.unlink()  # what was read stays
    again = ContentSchedule.parse(config.to_dict())
    assert again == config
    assert config.to_dict()["reference"] == {"A": 1.5, "B": 2.0, "C": 0.0}


def test_ptw_is_milder_than_published_unless_it_is_told() -> None:
    rows = rows_like_text(16, 64)
    found = labels(teach(masker_of({"kind": "ptw"})), rows, 0.5)
    quarter = labels(teach(masker_of({"kind": "ptw", "strength": 0.25})), rows, 0.5)
    published = labels(teach(masker_of({"kind": "ptw", "strength": 1})), rows, 0.5)
    assert np.array_equal(found, quarter)
    assert not np.array_equal(found, published)


def test_weights_and_losses_are_read_from_a_finished_run(tmp_path: Path) -> None:
    """Masks under the weights that another run ended with are that run's, bit for bit."""
    taught, rows = teach(masker_of({"kind": "ptw", "strength": 1})), rows_like_text(16, 64)
    weights, losses = taught.class_weights(), {"none": 1.0, "NOUN": 2.5}
    run, line = tmp_path / "ptw", {"class_weight": weights, "content_strength": 1.0}
    run.mkdir()
    (run / "metrics.jsonl").write_text('{"step": 1}\n' + json.dumps(line) + "\n")
    (run / "validation.jsonl").write_text(json.dumps({"class_loss": losses}) + "\n")
    frozen = {"kind": "fixed", "weights": str(run)}
    with pytest.raises(UsageError, match="not the folder of a finished run"):
        ContentSchedule.parse(frozen)
    (run / "summary.json").write_text('{"complete": true}')
    config = ContentSchedule.parse(frozen)
    reference = ContentSchedule.parse({"kind": "reducible_loss", "reference": str(run)})
    (run / "metrics.jsonl").write_text('{"step": 1}\n')
    with pytest.raises(UsageError, match="ends in no line with class_weight"):
        ContentSchedule.parse(frozen)
    assert config.to_dict()["weights"] == weights
    assert reference.to_dict()["reference"] == {"NOUN": 2.5}
    again = teach(masker_of(config.to_dict()))
    assert np.array_equal(labels(again, rows, 0.5), labels(taught, rows, 0.5))
    line["content_strength"] = 0.25
    (run / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    milder = labels(masker_of(frozen), rows, 0.5)
    assert np.array_equal(
        milder, labels(masker_of(config.to_dict() | {"strength": 0.25}), rows, 0.5)
    )


def test_nats_keep_the_scale_of_losses() -> None:
    keeps = Nats(slope=0.5, reference="mean")
    seen = torch.tensor([False, True, True, True])
    far = torch.tensor([0.0, 1.0, 3.0, 5.0], dtype=torch.float64)
    weights = keeps.of_losses(far, seen)
    assert weights.tolist() == pytest.approx([0.5, 1 / (1 + math.e), 0.5, 1 / (1 + 1 / math.e)])
    near = keeps.of_losses(far / 100, seen)
    assert near.max() - near.min() < 0.011  # z-scores would be those of before


def test_token_probability_follows_its_formula() -> None:
    state = ContentSchedule.parse({"kind": "token_probability", "every": 2}).begin(NAMES, 5)
    for loss in (1.0, 3.0):
        sums = np.array([0, 2 * loss, 0, 0, 0])
        state.update(ClassTally(sums, np.array([0, 2, 0, 0, 0]), np.zeros(5)))
    weights = state.weights()
    assert weights is not None
    assert weights.tolist() == pytest.approx([1, 0.2 + 0.8 * (1 - math.exp(-2.0)), 1, 1, 1])


def test_scores_weigh_units_by_their_mean() -> None:
    rows = rows_like_text(60, 128, seed=5)
    hard = (rows.word_id % 2 == 1) & (rows.word_id >= 0)
    scores = np.where(hard, np.float32(np.log(3.0)), np.float32(0.0))  # weights ¾ and ½
    scored = replace(rows, scores=scores)
    for strength, odds in ((1.0, 1.5), (0.5, math.sqrt(1.5)), (0.0, 1.0)):
        content = {"kind": "scores", "slope": 1, "reference": 0, "strength": strength}
        masker = masker_of(content, ratio={"kind": "constant", "base": 0.2})
        count, epochs = np.zeros(rows.input_ids.shape), 100
        for epoch in range(epochs):
            again = replace(scored, epoch=rows.epoch + epoch, order=rows.row_id + 60 * epoch)
            count += labels(masker, again, 0.5) >= 0
        easy = (rows.word_id >= 0) & ~hard
        share = [count[which].sum() / (epochs * which.sum()) for which in (hard, easy)]
        measured = np.divide(*[p / (1 - p) for p in share])
        assert measured == pytest.approx(odds, rel=0.1)  # levels lie within 9 % of the mean weight
        assert count.sum() / (epochs * (rows.word_id >= 0).sum()) == pytest.approx(0.2, rel=0.002)
    on_tensors = masker_of({"kind": "scores"})
    host, device = on_tensors(scored, 0.5), on_tensors.mask_dense(scored.to("cpu"), 0.5)
    assert np.array_equal(host.labels, device.labels.numpy())
    cut = [on_tensors(part, 0.5).labels for part in scored.micro_batches(7)]
    assert np.array_equal(np.concatenate(cut), host.labels)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"kind": "ptw", "strength": -0.1}, "content.ptw.strength"),
        ({"kind": "ptw", "strength": 9}, "content.ptw.strength"),
        ({"kind": "ptw", "strength": 3}, "can be at most 2.77 here"),
        (
            {"kind": "ptw", "strength": 1, "weight_map": {"kind": "nats", "slope": 4}},
            "at most 0.693 here",
        ),
        (
            {"kind": "fixed", "weights": {"NOUN": 1, "DET": 0.001}, "strength": 2},
            "hardly ever again",
        ),
        ({"kind": "ptw", "strength": {"kind": "uniform_rows"}}, "one number for all rows"),
        ({"kind": "none", "strength": 0.5}, "has no strength"),
        ({"kind": "learning_progress", "fast_decay": 0.999}, "must be below ema_decay"),
        ({"kind": "reducible_loss", "reference": "no/such.yaml"}, "no/such.yaml"),
        ({"kind": "reducible_loss", "reference": {"NOUN": "much"}}, "reference"),
        ({"kind": "fixed", "weights": "no/such.yaml"}, "no/such.yaml"),
        ({"kind": "fixed", "weights": "."}, ". is not the folder of a finished run"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_by_its_key(content: dict, words: str) -> None:
    with pytest.raises(UsageError) as refused:
        MaskingConfig.parse({"content": content})
    assert words in str(refused.value).replace("content.strength", "content.ptw.strength")


def test_references_must_be_those_of_the_data_and_scores_must_be_there() -> None:
    with pytest.raises(UsageError, match="has no loss for ADJ, ADP"):
        masker_of({"kind": "reducible_loss", "reference": {"NOUN": 2.0}})
    with pytest.raises(UsageError, match="did you mean 'NOUN'"):
        masker_of({"kind": "reducible_loss", "reference": {"NUON": 2.0}})
    with pytest.raises(UsageError, match="these rows have none: chronomask pretrain and"):
        masker_of({"kind": "model_scores"})(rows_like_text(2, 32), 0.5)
    with pytest.raises(UsageError, match="these rows have none: give them"):
        masker_of({"kind": "scores"})(rows_like_text(2, 32), 0.5)
