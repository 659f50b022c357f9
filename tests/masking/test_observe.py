"""The masker in a loop of one's own: how it is made, what it observes, and when it learns."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from chronomask.errors import UsageError
from chronomask.masking.config import MaskingConfig
from chronomask.masking.masker import Masker, Vocabulary
from chronomask.masking.ratio import Constant, Linear
from chronomask.masking.strategy import Token
from chronomask.masking.tally import class_means, class_sums, score, weighted_sum
from chronomask.types import ClassTally, MaskedBatch
from tests.support.masked_text import CLASSES, FIRST_ORDINARY, VOCAB_SIZE, rows_like_text
from tests.support.tiny_tokenizer import wordpiece

VOCABULARY = Vocabulary(4, np.arange(FIRST_ORDINARY, VOCAB_SIZE), VOCAB_SIZE)
ROWS = rows_like_text(8, 64)
STALLS_AT_ONCE = {"kind": "responsive", "patience": 1, "factor": 0.5, "every": 1}


def masker_of(**fields: Any) -> Masker:
    return Masker(fields, VOCABULARY, CLASSES)


def losses_of(batch: MaskedBatch, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    losses = torch.from_numpy(rng.random(batch.num_predicted).astype(np.float32) * 5)
    return losses, losses < 1


def test_typed_values_and_dicts_make_the_same_masker() -> None:
    tokenizer = wordpiece(["a", "##b", "c"])
    typed = Masker.for_tokenizer(tokenizer, ratio=Linear(end=0.1), strategy=Token(), budget="batch")
    plain = Masker.for_tokenizer(
        tokenizer,
        ratio={"kind": "linear", "end": 0.1},
        strategy={"kind": "token"},
        budget="batch",
    )
    assert typed.config == plain.config
    assert typed.vocabulary.mask_token_id == tokenizer.mask_token_id
    assert typed.vocabulary.ordinary_ids.tolist() == [5, 6, 7]
    assert Masker.for_tokenizer(tokenizer).config == MaskingConfig()
    short = Masker.for_tokenizer(tokenizer, ratio=0.3, strategy="token")
    assert short.config == MaskingConfig(ratio=Constant(base=0.3), strategy=Token())
    for wrong in (True, 1.5, "0.3"):
        with pytest.raises(UsageError, match="ratio"):
            Masker.for_tokenizer(tokenizer, ratio=wrong)


@pytest.mark.parametrize("content", ["ptw", "ptw_faithful", "token_accuracy"])
def test_observing_micro_batches_is_updating_with_their_sums(content: str) -> None:
    one, two = masker_of(content={"kind": content}), masker_of(content={"kind": content})
    assert one.needs_feedback
    size = one.num_feedback_classes
    sums = np.zeros((3, size))
    for number, rows in enumerate(ROWS.micro_batches(3)):
        batch = one(rows, 0.2)
        losses, correct = losses_of(batch, number)
        one.observe(batch, losses, correct)
        classes = one.feedback_class(batch)
        for row, values in enumerate((losses, torch.ones_like(losses), correct)):
            sums[row] += np.bincount(classes, values.double().numpy(), size)
    before = one.state_dict()
    one.end_step()
    two.update(ClassTally(sums[0], sums[1].astype(int), sums[2].astype(int)))
    assert not all(torch.equal(before[name], value) for name, value in one.state_dict().items())
    for name, value in two.state_dict().items():
        torch.testing.assert_close(one.state_dict()[name], value)


def test_a_restored_masker_begins_a_step_that_observed_nothing() -> None:
    masker = masker_of(content={"kind": "ptw"})
    batch = masker(ROWS, 0.2)
    begun = masker.state_dict()
    for restore in (masker.load_state_dict, masker.continue_from):
        masker.observe(batch, *losses_of(batch))
        restore(begun)
        with pytest.raises(UsageError, match="no losses were observed"):
            masker.end_step()


def test_a_masker_that_learns_nothing_ignores_losses() -> None:
    masker = masker_of()
    assert not masker.needs_feedback
    batch = masker(ROWS, 0.5)
    masker.observe(batch, *losses_of(batch))
    masker.end_step()
    masker.observe_validation(1.0)
    assert masker.state_dict()["content.num_updates"] == 0


def test_a_ratio_follows_the_loss_it_watches_and_no_other() -> None:
    masker = masker_of(ratio=STALLS_AT_ONCE | {"watch": "training"})
    assert masker.needs_feedback
    assert not masker.watches_validation
    ratios = []
    for _ in range(3):
        batch = masker(ROWS, 0.0)
        ratios.append(batch.masking_ratio)
        masker.observe(batch, torch.full((batch.num_predicted,), 2.0), losses_of(batch)[1])
        masker.end_step()
        masker.observe_validation(2.0)
    assert ratios == [0.3, 0.3, 0.15]

    masker = masker_of(ratio=STALLS_AT_ONCE | {"watch": "validation"})
    assert not masker.needs_feedback
    assert masker.watches_validation
    for _ in range(2):
        masker.observe_validation(2.0)
    assert masker.ratio_at(0.0) == 0.15


def test_a_ratio_that_follows_the_training_loss_needs_no_names_of_classes() -> None:
    """Rows may have classes that content does not weigh; content that learns by class refuses them."""
    ratio = STALLS_AT_ONCE | {"watch": "training"}
    features = [{"input_ids": [2, 5, 6, 7, 3], "token_class": [0, 3, 1, 2, 0]}] * 8
    tokenizer = wordpiece(["a", "##b", "c"])
    ratios = []
    for names in (("none",), ("none", "A", "B", "C")):
        masker = Masker.for_tokenizer(tokenizer, ratio=ratio, class_names=names)
        for _ in range(3):
            batch = masker(features, 0.1)
            masker.observe(batch, torch.full((batch.num_predicted,), 2.0), losses_of(batch)[1])
            masker.end_step()
        ratios.append(masker.ratio_at(0.1))
    assert ratios == [0.15, 0.15]
    for content in ("ptw", "learning_progress"):
        few = Masker.for_tokenizer(tokenizer, content=content, class_names=("none", "A"))
        with pytest.raises(
            UsageError, match=r"token class 3, this masker knows 0 to 1 \(none, A\)"
        ):
            few(features, 0.1)
    held = Masker.for_tokenizer(tokenizer, class_names=("none", "A"))
    held.hold(class_weights=[1.0, 0.5])
    with pytest.raises(UsageError, match=r"token class 3, this masker knows 0 to 1 \(none, A\)"):
        held(features, 0.1)


def test_a_step_without_predictions_is_no_loss_of_zero() -> None:
    masker = masker_of(ratio=STALLS_AT_ONCE | {"watch": "training"})
    nothing = np.zeros(masker.num_feedback_classes)
    before = masker.state_dict()["response.values"]
    masker.update(ClassTally(nothing, nothing.astype(int), nothing.astype(int)))
    assert torch.equal(masker.state_dict()["response.values"], before)


@pytest.mark.parametrize("content", ["ptw", "learning_progress", "token_accuracy"])
def test_a_step_that_predicts_nothing_teaches_nothing(content: str) -> None:
    masker = masker_of(content={"kind": content}, ratio=0.0)
    batch = masker(ROWS, 0.2)
    assert batch.num_predicted == 0
    before = masker.state_dict()
    masker.observe(batch, *losses_of(batch))
    masker.end_step()
    assert all(before[name].equal(tensor) for name, tensor in masker.state_dict().items())


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
@pytest.mark.parametrize(
    "content", ["ptw", "token_accuracy", "reducible_loss", "learning_progress"]
)
def test_a_step_that_is_not_finite_teaches_nothing(
    content: str, wrong: float, caplog: pytest.LogCaptureFixture
) -> None:
    """As where a gradient scaler leaves it out: what was learnt before stays, and is said once."""
    ratio = STALLS_AT_ONCE | {"watch": "training"}
    masker, other = (masker_of(content={"kind": content}, ratio=ratio) for _ in range(2))
    for step in range(4):
        batch = masker(ROWS, 0.2)
        losses, correct = losses_of(batch, step)
        if step in (1, 2):
            losses[0] = wrong
        masker.observe(batch, losses, correct)
        masker.end_step()
        if step in (0, 3):
            other.observe(batch, losses, correct)
            other.end_step()
    for name, value in other.state_dict().items():
        assert torch.equal(masker.state_dict()[name], value), name
    (said,) = caplog.messages
    assert said == f"masking learns nothing from a loss that is not finite, here {wrong}"


def test_a_validation_that_is_not_finite_is_no_stall(caplog: pytest.LogCaptureFixture) -> None:
    masker = masker_of(ratio=STALLS_AT_ONCE | {"watch": "validation"})
    for loss in (2.0, math.nan, math.nan):
        masker.observe_validation(loss)
    assert masker.ratio_at(0.0) == 0.3
    assert len(caplog.messages) == 1
    masker.observe_validation(2.0)
    assert masker.ratio_at(0.0) == 0.15


def test_what_a_batch_gives_the_model() -> None:
    batch = masker_of()(ROWS, 0.5)
    assert set(batch.inputs()) == {"input_ids"}
    assert torch.equal(batch.inputs()["input_ids"], torch.from_numpy(batch.input_ids))
    attention = (ROWS.input_ids != 0).astype(np.int64)
    rows = ROWS.to("cpu")
    known = masker_of()(
        type(rows)(
            rows.input_ids,
            rows.word_id,
            rows.token_class,
            rows.row_id,
            rows.epoch,
            rows.cu_seqlens,
            rows.order,
            torch.from_numpy(attention),
        ),
        0.5,
    )
    assert torch.equal(known.inputs()["attention_mask"], torch.from_numpy(attention))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scores_of_a_batch_on_the_host(dtype: torch.dtype) -> None:
    """Of all logits, or of those of the predicted tokens alone: float32 losses, and what is right."""
    batch = masker_of()(ROWS, 0.5)
    logits = torch.randn(*batch.input_ids.shape, VOCAB_SIZE)
    positions = torch.from_numpy(batch.positions)
    targets = torch.from_numpy(batch.targets).long()
    right = torch.arange(batch.num_predicted) % 3 == 0
    logits.flatten(0, 1)[positions[right], targets[right]] = 20.0
    logits = logits.to(dtype)
    chosen = logits.flatten(0, 1)[positions]
    expected = (
        torch.logsumexp(chosen.double(), -1) - chosen.double().gather(1, targets[:, None])[:, 0]
    )
    for given in (logits, chosen):
        losses, correct = score(given, batch)
        torch.testing.assert_close(losses.double(), expected, rtol=1e-5, atol=1e-5)
        assert losses.dtype == torch.float32
        assert correct.tolist() == (chosen.argmax(-1) == targets).tolist()
        assert correct[right].all()
    assert not correct.all()


def test_a_sum_of_losses_has_the_weights_of_the_batch() -> None:
    batch = masker_of()(ROWS, 0.5)
    losses = losses_of(batch)[0].requires_grad_()
    assert batch.loss_weights is None
    assert weighted_sum(losses, batch).item() == pytest.approx(losses.sum().item())
    laws = {"kind": "uniform_rows", "high": {"kind": "constant", "base": 0.8}}
    batch = masker_of(ratio=laws, loss_weight={"kind": "inverse_ratio"})(ROWS, 0.5)
    losses = losses_of(batch)[0].requires_grad_()
    weights = np.asarray(batch.loss_weights)
    assert np.ptp(weights) > 1
    found = weighted_sum(losses, batch)
    assert found.item() == pytest.approx(float(losses.detach().numpy() @ weights), rel=1e-5)
    found.backward()
    assert losses.grad is not None
    assert losses.grad.tolist() == weights.tolist()


def test_sums_and_means_of_classes() -> None:
    losses = torch.tensor([1.0, 2.0, 4.0])
    sums = class_sums(np.array([2, 0, 2], np.uint8), losses, losses < 3, 3)
    assert sums.tolist() == [[2.0, 0.0, 5.0], [1.0, 0.0, 2.0], [1.0, 0.0, 1.0]]
    assert class_means(sums, ("none", "NOUN", "VERB")) == {
        "class_loss": {"none": 2.0, "VERB": 2.5},
        "class_accuracy": {"none": 1.0, "VERB": 0.5},
        "class_count": {"none": 1, "VERB": 2},
    }


def test_refusals() -> None:
    with pytest.raises(UsageError, match="config is of type str; give a MaskingConfig or a dict"):
        Masker("linear", VOCABULARY)  # pyright: ignore[reportArgumentType]
    with pytest.raises(UsageError, match=r"did you mean 'ratio'\?"):
        masker_of(ratios={"kind": "linear"})
    with pytest.raises(UsageError, match=r"Masker\.for_tokenizer"):
        Masker({}, wordpiece(["a"]))  # pyright: ignore[reportArgumentType]
    with pytest.raises(UsageError, match=r"AutoTokenizer\.from_pretrained"):
        Masker.for_tokenizer("bert-base-uncased")  # pyright: ignore[reportArgumentType]
    with pytest.raises(UsageError, match="names of the classes are 'NOUN'"):
        Masker({}, VOCABULARY, "NOUN")
    with pytest.raises(UsageError, match="seed is '0'"):
        Masker({}, VOCABULARY, seed="0")  # pyright: ignore[reportArgumentType]
    with pytest.raises(UsageError, match="token ids are whole numbers"):
        masker_of()(torch.zeros(2, 3), 0.5)
    masker = masker_of(content={"kind": "ptw"})
    with pytest.raises(UsageError, match="no losses were observed"):
        masker.end_step()
    batch = masker(ROWS, 0.5)
    with pytest.raises(UsageError, match=f"the batch has {batch.num_predicted} predicted tokens"):
        masker.observe(batch, torch.zeros(3), torch.zeros(3, dtype=torch.bool))
    with pytest.raises(UsageError, match="logits is of type str"):
        score("logits", batch)  # pyright: ignore[reportArgumentType]
