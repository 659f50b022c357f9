"""Content schedules: running averages and weights, against plain arithmetic."""

import math
import random

import numpy as np
import pytest
import torch

from chronomask.errors import DataError, UsageError
from chronomask.masking.content import ContentSchedule, ContentState
from chronomask.masking.content.maps import Nats
from chronomask.types import UPOS_CLASSES, ClassTally
from tests.support.published_walk import NUM_TAGS, PublishedAverages

NUM_CLASSES = len(UPOS_CLASSES)


def state_of(**spec: object) -> ContentState:
    return ContentSchedule.parse(spec).begin(UPOS_CLASSES, 100)


def tally_of(losses: list[float], classes: list[int], size: int = NUM_CLASSES) -> ClassTally:
    index = np.array(classes, int)
    return ClassTally(
        np.bincount(index, np.array(losses, float), size),
        np.bincount(index, minlength=size),
        np.bincount(index, np.array(losses) < 1, size).astype(int),
    )


def steps(number: int, seed: int = 0) -> list[tuple[list[float], list[int]]]:
    """Losses and tags (0 … 16) of masked tokens; the tags differ in difficulty and frequency."""
    rng = random.Random(seed)
    difficulty = [0.5 + 0.2 * tag for tag in range(NUM_TAGS)]
    out = []
    for _ in range(number):
        tags = [min(int(rng.expovariate(0.25)), NUM_TAGS - 1) for _ in range(rng.randint(0, 60))]
        out.append(([difficulty[tag] * rng.random() * 2 for tag in tags], tags))
    return out


def test_faithful_equals_the_plain_python_averages_over_300_steps() -> None:
    state, plain = state_of(kind="ptw_faithful"), PublishedAverages()
    for losses, tags in steps(300):
        state.update(tally_of(losses, [tag + 1 for tag in tags]))
        plain.update(losses, tags)
        weights = state.weights()
        assert weights is not None
        assert weights[1:].tolist() == pytest.approx(plain.weights(), rel=1e-12)
        assert weights[0] == 0.5


def test_all_weights_are_half_while_nothing_is_known() -> None:
    for kind in ("ptw", "ptw_faithful"):
        weights = state_of(kind=kind).weights()
        assert weights is not None
        assert weights.tolist() == [0.5] * NUM_CLASSES


def test_corrected_average_is_right_from_the_first_step() -> None:
    state = state_of(kind="ptw", ema_decay=0.999)
    state.update(tally_of([1.0, 3.0, 5.0], [1, 1, 2]))
    loss = state.state_dict()["loss_average"] / state.state_dict()["count_average"]
    assert loss[1:3].tolist() == pytest.approx([2.0, 5.0])
    weights = state.weights()
    assert weights is not None
    low, high = 1 / (1 + np.exp(2 / np.sqrt(2))), 1 / (1 + np.exp(-2 / np.sqrt(2)))
    assert weights[1:3].tolist() == pytest.approx([low, high])
    assert weights[3:].tolist() == [0.5] * (NUM_CLASSES - 3)


def test_corrected_average_weighs_tokens_not_steps() -> None:
    state = state_of(kind="ptw", ema_decay=0.5)
    state.update(tally_of([1.0] * 9, [4] * 9))
    state.update(tally_of([2.0], [4]))
    loss = state.state_dict()["loss_average"] / state.state_dict()["count_average"]
    expected = (0.5 * 9 * 1.0 + 1 * 2.0) / (0.5 * 9 + 1)
    assert loss[4] == pytest.approx(expected)


def test_a_rare_class_does_not_look_easy() -> None:
    corrected, faithful = state_of(kind="ptw"), state_of(kind="ptw_faithful")
    for step in range(400):
        losses, classes = [1.0] * 20 + [2.0] * 20, [1] * 20 + [2] * 20
        if step % 50 == 0:
            losses.append(4.0)
            classes.append(3)
        for state in (corrected, faithful):
            state.update(tally_of(losses, classes))
    weights, published = corrected.weights(), faithful.weights()
    assert weights is not None
    assert published is not None
    assert weights[3] > weights[2] > weights[1]
    assert published[3] < published[1]


@pytest.mark.parametrize(
    ("weight_map", "check"),
    [
        ({"kind": "sigmoid", "slope": 2}, lambda w: w.max() < 1),
        ({"kind": "softmax", "temperature": 0.5}, lambda w: w.max() == 1),
        ({"kind": "clipped", "low": 0.3, "high": 0.7}, lambda w: (w.min(), w.max()) == (0.3, 0.7)),
    ],
)
def test_weight_maps_rise_with_loss(weight_map: dict, check: object) -> None:
    state = state_of(kind="ptw", weight_map=weight_map)
    state.update(tally_of([0.2 * c for c in range(1, 18)], list(range(1, 18))))
    weights = state.weights()
    assert weights is not None
    assert (weights[2:].diff() >= 0).all()
    assert callable(check)
    assert check(weights[1:].numpy())


def test_fixed_weights_are_scaled_to_the_largest() -> None:
    weights = state_of(kind="fixed", weights={"NOUN": 4, "DET": 0}, other=2).weights()
    assert weights is not None
    assert weights[UPOS_CLASSES.index("NOUN")] == 1
    assert weights[UPOS_CLASSES.index("DET")] == 0
    assert weights[UPOS_CLASSES.index("VERB")] == 0.5


def test_token_accuracy_follows_its_formula_and_its_clock() -> None:
    state = state_of(kind="token_accuracy", every=3, keep=0.2)
    for _ in range(3):
        before = state.weights()
        assert before is not None
        assert before.tolist() == [1.0] * 100
        state.update(tally_of([0.5, 2.0, 0.5], [7, 7, 9], 100))
    weights = state.weights()
    assert weights is not None
    assert weights[7] == pytest.approx(0.2 * 1 + 0.8 * 0.5)
    assert weights[9] == pytest.approx(0.2 * 1 + 0.8 * 0.0)
    assert weights[8] == 1.0


@pytest.mark.parametrize("kind", ["ptw", "ptw_faithful", "learning_progress", "reducible_loss"])
def test_what_has_no_class_moves_no_weight(kind: str) -> None:
    found = []
    for number in (0, 3):
        state = state_of(kind=kind)
        for losses in ([4.0, 2.0, 1.0], [1.0, 2.0, 3.0]):
            state.update(tally_of([*losses, *[9.0] * number], [1, 2, 3, *[0] * number]))
        weights = state.weights()
        assert weights is not None
        found.append(weights[1:].tolist())
    assert found[0] == found[1]


@pytest.mark.parametrize("kind", ["token_accuracy", "token_probability"])
def test_weights_by_token_go_by_what_was_counted_since_their_last_update(kind: str) -> None:
    state = state_of(kind=kind, every=1, keep=0.0)
    each = np.ones(100, int)
    state.update(ClassTally(0.1 * each, each, each))
    state.update(ClassTally(3.0 * each, each, 0 * each))
    weights = state.weights()
    assert weights is not None
    easy = 0.0 if kind == "token_accuracy" else math.exp(-3.0)
    assert weights.numpy() == pytest.approx(1 - easy)


@pytest.mark.parametrize("kind", ["none", "ptw", "ptw_faithful", "token_accuracy"])
def test_state_restores(kind: str) -> None:
    size = 100 if kind == "token_accuracy" else NUM_CLASSES
    spec: dict[str, object] = {"kind": kind}
    if kind == "token_accuracy":
        spec["every"] = 3
    one, two = state_of(**spec), state_of(**spec)
    history = steps(11)
    for losses, tags in history[:7]:
        one.update(tally_of(losses, [t + 1 for t in tags], size))
    two.load_state_dict(one.state_dict())
    for losses, tags in history[7:]:
        for state in (one, two):
            state.update(tally_of(losses, [t + 1 for t in tags], size))
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, two.state_dict()[name])


def test_refusals() -> None:
    with pytest.raises(UsageError, match="did you mean 'NOUN'"):
        state_of(kind="fixed", weights={"NUON": 1})
    with pytest.raises(UsageError, match="give at least one class a weight above 0"):
        state_of(kind="fixed", weights={}, other=0).weights()
    config = ContentSchedule.parse({"kind": "ptw"})
    with pytest.raises(UsageError, match="prepare the text with a tagger"):
        config.begin(("none",), 100)
    with pytest.raises(DataError, match="schedule 'ptw' needs"):
        state_of(kind="ptw").load_state_dict(state_of(kind="none").state_dict())
    fewer = config.begin(UPOS_CLASSES[:5], 100)
    with pytest.raises(DataError, match=r"shape \(5,\)"):
        state_of(kind="ptw").load_state_dict(fewer.state_dict())


def test_weights_in_nats_far_below_their_reference_keep_their_ratios() -> None:
    """All of them were 0 otherwise, and nothing would be masked."""
    loss, seen = (
        torch.tensor([0.0, 3.0, 3.4], dtype=torch.float64),
        torch.tensor([False, True, True]),
    )
    for reference in (1000.0, 40.0):
        weights = Nats(slope=2.5, reference=reference).of_losses(loss, seen)
        assert weights[2] / weights[1] == pytest.approx(math.exp(2.5 * 0.4))
        assert weights[2] > 1e-14
    near = Nats(slope=2.5, reference=3.0).of_losses(loss, seen)
    assert torch.equal(near[1:], (2.5 * (loss[1:] - 3.0)).sigmoid())
