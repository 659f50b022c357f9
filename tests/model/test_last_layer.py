"""Ending the last layer at predicted positions changes no loss and no gradient, only what is computed."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedTokenizerBase

from chronomask.model.documents import backbone_inputs, padded_rows, position_offset
from chronomask.model.flops import Flops, count_flops
from chronomask.model.head import logits_at
from chronomask.model.last_layer import ENDINGS, asks_alone, ending_of, entries_at_predictions
from chronomask.types import Rows
from tests.support.tiny_models import small

ROWS, LENGTH = 3, 24
POSITIONS = torch.tensor([0, 23, 24, 40, 50, 71])
"""Two in each row, documents' first and last tokens and padding among them."""


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


def without_windows(flops: Flops) -> Flops:
    """The plain kernel computes all pairs."""
    return replace(flops, attention=tuple(replace(p, window=None) for p in flops.attention))


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
    """Two predictions in each row, so that no row is filled up."""
    model = small(model_type, tokenizer, "row")
    ids, inputs = batches(model, len(tokenizer))[1]
    done = []
    for whole in (True, False):
        # The products of torch's plain kernel are counted, those of its fused ones are not.
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            logits_at(model, ids, POSITIONS, inputs, whole_layers=whole).sum().backward()
        done.append(counter.get_total_flops())
    flops, late = without_windows(count_flops(model)), entries_at_predictions(model)
    model.config._attn_implementation = "sdpa"  # runs whole
    plain = without_windows(count_flops(model))
    lengths, predicted = np.full(ROWS, LENGTH), POSITIONS.numel()
    attention = plain.of_attention(lengths) - flops.of_attention(lengths, predicted)
    assert done[0] - done[1] == 6 * late * (ids.numel() - predicted) + attention
    assert plain.of(lengths, predicted) - flops.of(lengths, predicted) == done[0] - done[1]
    assert flops.per_prediction - plain.per_prediction == plain.per_token - flops.per_token


def plain_varlen(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    query_bounds: torch.Tensor,
    key_bounds: torch.Tensor,
    most_queries: int,
    most_keys: int,
    *,
    scale: float | None,
    window_size: tuple[int, int],
) -> torch.Tensor:
    """What torch's kernel is said to compute; [N, heads, width].

    What no document claims, and queries of one beyond ``most_queries``, are given NaN, and so are their
    gradients: nothing is written to memory there, which may hold anything.
    """
    reach = window_size[0]
    output = torch.full_like(query, torch.nan)
    written = torch.zeros(query.shape[0], 1, 1, dtype=torch.bool)
    for (first, last), (begin, end) in zip(
        pairwise(query_bounds.tolist()), pairwise(key_bounds.tolist()), strict=True
    ):
        assert end - begin <= most_keys
        last = min(last, first + most_queries)
        written[first:last] = True
        q, k, v = (x.transpose(0, 1) for x in (query[first:last], key[begin:end], value[begin:end]))
        if first < last:
            near = None
            if reach >= 0:
                place = torch.arange(end - begin)
                near = (place[:, None] - place).abs() <= reach
            there = torch.nn.functional.scaled_dot_product_attention(q, k, v, near, scale=scale)
            output = output.index_copy(0, torch.arange(first, last), there.transpose(0, 1))
    if query.requires_grad:
        query.register_hook(lambda gradient: torch.where(written, gradient, torch.nan))
    return output


@pytest.mark.parametrize(
    "positions",
    [POSITIONS, torch.tensor([*range(0, 72, 2), 71])],
    ids=["few", "filled up by more than a row"],
)
@pytest.mark.parametrize("compiled", [None, "eager"])
@pytest.mark.parametrize("model_type", ["bert", "modernbert"])
def test_the_kernel_for_documents_is_told_who_asks(
    model_type: str,
    compiled: str | None,
    positions: torch.Tensor,
    tokenizer: PreTrainedTokenizerBase,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As on a CUDA device in half precision, with a kernel written out; one document of five asks nothing."""
    model = small(model_type, tokenizer, "documents")
    if model_type == "modernbert":
        base: Any = model.base_model
        monkeypatch.setattr(base.layers[-1].attn, "sliding_window", None)
    for ids, inputs in batches(model, len(tokenizer))[:2]:
        whole = logits_at(model, ids, positions, inputs, whole_layers=True)
        expected = gradients_of(model, whole)
        with monkeypatch.context() as patch:
            patch.setattr("torch.nn.attention.varlen.varlen_attn", plain_varlen)
            patch.setattr("chronomask.model.attention.varlen_fits", lambda *_: True)
            patch.setattr("chronomask.model.head.asks_alone", lambda *_, **__: True)
            patch.setattr("chronomask.model.head._compile", lambda function, _: function)
            asked = logits_at(model, ids, positions, inputs, compiled)
            found = gradients_of(model, asked)
        torch.testing.assert_close(asked, whole, rtol=1e-5, atol=1e-5)
        assert found.keys() == expected.keys()
        for name, gradient in found.items():
            largest = float(expected[name].abs().max())
            torch.testing.assert_close(gradient, expected[name], rtol=0, atol=1e-5 + 1e-4 * largest)


def test_a_device_asks_alone_where_its_kernel_can(
    tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = small("bert", tokenizer, "documents").eval()
    ending = ending_of(model)
    assert ending is not None
    (_, packed), (_, nothing), (_, padded) = batches(model, len(tokenizer))
    assert asks_alone(model, ending, packed, compiled=False)
    assert not asks_alone(model, ending, packed, compiled=True)  # rows are regrouped on the host
    causal = {"documents": replace(packed["documents"], causal=True)}
    assert not asks_alone(model, ending, causal, compiled=False)

    answers: list[Any] = []
    asking: dict[str, Any] = {}

    def agree(*case: Any) -> bool:
        *asked, documents = case
        answers.append(tuple(asked))
        assert documents is asking.get("documents")
        return True

    monkeypatch.setattr("chronomask.model.last_layer.queries_agree", agree)
    on_device: Any = nn.Parameter(torch.empty(0, device="meta"))
    monkeypatch.setattr(model, "parameters", lambda: iter([on_device]))
    monkeypatch.setattr(
        "chronomask.model.last_layer.varlen_fits", lambda query, dropout: not dropout
    )
    monkeypatch.setattr("chronomask.model.last_layer.autocast_dtype", lambda device: torch.bfloat16)
    for asking in (packed, nothing, padded):
        assert asks_alone(model, ending, asking, compiled=True)
    heads, width = model.config.num_attention_heads, model.config.hidden_size
    assert set(answers) == {(heads, width // heads, on_device.device, torch.bfloat16)}
    plain = {"attention_mask": padded["attention_mask"]}
    assert not asks_alone(model, ending, plain, compiled=True)
    model.train()
    if model.config.attention_probs_dropout_prob:
        assert not asks_alone(model, ending, packed, compiled=True)


def test_others_run_whole(tokenizer: PreTrainedTokenizerBase) -> None:
    for model_type in ("albert", "distilbert", "esm"):
        model = small(model_type, tokenizer, "row")
        assert ending_of(model) is None
        assert not entries_at_predictions(model)
