"""Ending the last layer at predicted positions changes no loss and no gradient, only what is computed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedTokenizerBase

from chronomask.model.attention import backbone_inputs, padded_rows, position_offset
from chronomask.model.flops import count_flops
from chronomask.model.head import logits_at
from chronomask.model.last_layer import ENDINGS, ending_of, matrices_after_attention
from chronomask.types import Rows
from tests.support.tiny_models import small

ROWS, LENGTH = 3, 24
POSITIONS = torch.tensor([0, 5, 23, 24, 40, 71])


def batches(model: Any, vocab_size: int) -> list[tuple[torch.Tensor, dict[str, Any]]]:
    """Packed rows with padding, whole rows, and a padded batch."""
    ids = np.random.default_rng(0).integers(5, vocab_size, (ROWS, LENGTH))
    none = np.zeros(ids.shape, np.int32)
    ids[2, 20:] = 0
    bounds = np.array([0, 7, LENGTH, 2 * LENGTH, 2 * LENGTH + 3, 3 * LENGTH], np.int32)
    rows = Rows(ids, none, none.astype(np.uint8), np.arange(ROWS), np.zeros(ROWS, int), bounds)
    packed = backbone_inputs(rows, "documents", 0, position_offset(model), "cpu")
    there = torch.from_numpy(ids)
    return [(there, packed), (there, {}), (there, padded_rows(model, ids != 0, "cpu"))]


def gradients_of(model: Any, logits: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    logits.square().sum().backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("model_type", sorted(ENDINGS))
def test_logits_and_gradients_are_those_of_whole_layers(
    model_type: str, tokenizer: PreTrainedTokenizerBase
) -> None:
    model = small(model_type, tokenizer, "documents")
    assert ending_of(model) is not None
    for ids, inputs in batches(model, len(tokenizer)):
        whole = logits_at(model, ids, POSITIONS, inputs, whole_layers=True)
        expected = gradients_of(model, whole)
        ended = logits_at(model, ids, POSITIONS, inputs)
        found = gradients_of(model, ended)
        torch.testing.assert_close(ended, whole, rtol=1e-5, atol=1e-5)
        assert found.keys() == expected.keys()
        for name, gradient in found.items():
            largest = float(expected[name].abs().max())
            torch.testing.assert_close(gradient, expected[name], rtol=0, atol=1e-5 + 1e-4 * largest)


@pytest.mark.parametrize("model_type", sorted(ENDINGS))
def test_the_backbones_own_output_is_whole(
    model_type: str, tokenizer: PreTrainedTokenizerBase
) -> None:
    """All positions by the model as transformers calls it, and by ours."""
    model = small(model_type, tokenizer, "row")
    ids, _ = batches(model, len(tokenizer))[1]
    with torch.no_grad():
        expected = model(input_ids=ids).logits.flatten(0, 1)
        found = logits_at(model, ids, torch.arange(ids.numel()), {})
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("model_type", sorted(ENDINGS))
def test_what_is_left_out_is_what_the_formula_leaves_out(
    model_type: str, tokenizer: PreTrainedTokenizerBase
) -> None:
    model = small(model_type, tokenizer, "row")
    ids, inputs = batches(model, len(tokenizer))[1]
    done = []
    for whole in (True, False):
        with FlopCounterMode(display=False) as counter:
            logits_at(model, ids, POSITIONS, inputs, whole_layers=whole).sum().backward()
        done.append(counter.get_total_flops())
    late: Any = matrices_after_attention(model)
    saved = 6 * sum(m.weight.numel() for m in late) * (ids.numel() - POSITIONS.numel())
    assert done[0] - done[1] == saved
    model.config._attn_implementation = "sdpa"  # runs whole
    plain = count_flops(model)
    model.config._attn_implementation = "chronomask_documents"
    flops = count_flops(model)
    assert plain.per_token - flops.per_token == saved / (ids.numel() - POSITIONS.numel())
    assert flops.per_prediction - plain.per_prediction == plain.per_token - flops.per_token


def test_others_run_whole(tokenizer: PreTrainedTokenizerBase) -> None:
    for model_type in ("albert", "distilbert", "esm"):
        model = small(model_type, tokenizer, "row")
        assert ending_of(model) is None
        assert not matrices_after_attention(model)
