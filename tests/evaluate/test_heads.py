"""Running a model for what its head reads changes no logit and no gradient, only what is computed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from chronomask.evaluate.batches import Encoded
from chronomask.evaluate.heads import FIRST_TOKEN_HEADS, run_headed
from chronomask.model.last_layer import ENDINGS
from chronomask.model.open import open_model
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


@pytest.mark.parametrize("batch", BATCHES)
def test_a_head_that_reads_all_tokens_is_given_them(
    batch: str, tiny_tokenizer: Path, tmp_path: Path
) -> None:
    model = open_headed(tmp_path, tiny_tokenizer, "modernbert", classifier_pooling="mean")
    inputs = ENCODED.batch(BATCHES[batch], model, torch.device("cpu"))
    with torch.no_grad():
        assert torch.equal(run_headed(model, inputs).logits, model(**inputs).logits)
