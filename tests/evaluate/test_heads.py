"""Running a model for what its head reads changes no logit and no gradient, only what is computed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from chronomask.evaluate.batches import Encoded
from chronomask.evaluate.heads import (
    FIRST_TOKEN_HEADS,
    SpanClassifier,
    run_headed,
    without_unread_mask,
)
from chronomask.evaluate.vectors import Pooling, unit_vectors
from chronomask.model.last_layer import ENDINGS
from chronomask.model.open import open_model
from chronomask.progress import Progress
from tests.support.tiny_models import save_tiny, sizes

ENCODED = Encoded(
    ids=np.random.default_rng(0).integers(5, 90, 60).astype(np.int32),
    types=None,
    bounds=np.array([0, 20, 40, 52, 55, 60]),
    pad_token_id=0,
)
BATCHES = {"whole": np.array([0, 1]), "padded": np.array([4, 0, 2, 3])}


def open_headed(folder: Path, tokenizer: Path, model_type: str, **changes: object) -> Any:
    """A model of this type with a new classification head, in float64 and with no dropout in effect."""
    save_tiny(folder, tokenizer, model_type, head=True, **sizes(model_type), **changes)
    torch.manual_seed(1)
    auto = "AutoModelForSequenceClassification"
    return open_model(folder, auto, new_head=True, num_labels=3).double().eval()


def gradients_of(model: Any, logits: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    logits.square().sum().backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("model_type", sorted(ENDINGS))
def test_logits_and_gradients_are_those_of_the_whole_model(
    model_type: str, tiny_tokenizer: Path, tmp_path: Path
) -> None:
    assert model_type in FIRST_TOKEN_HEADS
    model = open_headed(tmp_path, tiny_tokenizer, model_type)
    done = []
    for index in BATCHES.values():
        inputs = ENCODED.batch(index, model, torch.device("cpu"))
        logits, counted = {}, {}
        for name, run in (("whole", lambda m, i: m(**i)), ("short", run_headed)):
            with FlopCounterMode(display=False) as counter:
                logits[name] = run(model, inputs).logits
            counted[name] = counter.get_total_flops()
        expected, found = (gradients_of(model, logits[name]) for name in ("whole", "short"))
        torch.testing.assert_close(logits["short"], logits["whole"], rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
        done.append(counted["short"] / counted["whole"])
    assert max(done) < 0.75  # of two layers the last one is computed for one token in twelve


@pytest.mark.parametrize("model_type", sorted(ENDINGS))
def test_encoders_are_given_no_mask_beside_documents(
    model_type: str, tiny_tokenizer: Path, tmp_path: Path
) -> None:
    """Also where a head of theirs would read one, for they are without it."""
    pooled = {"classifier_pooling": "mean"} if model_type == "modernbert" else {}
    save_tiny(tmp_path, tiny_tokenizer, model_type, **sizes(model_type), **pooled)
    encoder: Any = open_model(tmp_path, "AutoModel", new_head=True).eval()
    inputs = ENCODED.batch(BATCHES["padded"], encoder, torch.device("cpu"))
    assert {"attention_mask", "documents"} <= inputs.keys()
    torch.manual_seed(1)
    head = SpanClassifier(encoder, 2).eval()
    spans = torch.tensor([[[0, 2], [1, 3]]]).expand(4, 2, 2)
    real = inputs["attention_mask"][..., None]
    with torch.no_grad():
        states = encoder(**inputs).last_hidden_state * real
        given: list[set[str]] = []
        encoder.register_forward_pre_hook(
            lambda _, args, kwargs: given.append(set(kwargs)), with_kwargs=True
        )
        encoder_alone = without_unread_mask(encoder, inputs)
        assert torch.equal(encoder(**encoder_alone).last_hidden_state * real, states)
        logits = head(spans, **inputs).logits
        with Progress("", 5, shown=False) as shown:
            vectors = unit_vectors(encoder, ENCODED, Pooling(device="cpu"), shown)
    assert all("documents" in each and "attention_mask" not in each for each in given)
    assert len(given) == 3
    means = (states.sum(1) / real.sum(1)).numpy()
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    np.testing.assert_allclose(vectors[BATCHES["padded"]], means, atol=1e-5)
    pairs = states[:, :2].mean(1), states[:, 1:3].mean(1)
    expected = head.classifier(torch.cat((states[:, 0], *pairs), 1))
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("batch", BATCHES)
def test_a_head_that_reads_all_tokens_is_given_them(
    batch: str, tiny_tokenizer: Path, tmp_path: Path
) -> None:
    model = open_headed(tmp_path, tiny_tokenizer, "modernbert", classifier_pooling="mean")
    inputs = ENCODED.batch(BATCHES[batch], model, torch.device("cpu"))
    with torch.no_grad():
        assert torch.equal(run_headed(model, inputs).logits, model(**inputs).logits)
