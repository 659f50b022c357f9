"""Masked tokens that enter late: what is computed is what the layers of transformers compute by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerBase

from chronomask.errors import UsageError
from chronomask.model.config import AttentionScope
from chronomask.model.documents import backbone_inputs, position_offset
from chronomask.model.flops import count_flops, count_layers
from chronomask.model.head import HEADS, logits_at
from chronomask.model.last_layer import ENDINGS, ending_of
from chronomask.model.late_masks import check_late_masks, shorten
from tests.support.tiny_models import rows_of, sizes, small

LENGTH, LAYERS = 32, 4
BOUNDS = [0, 14, 15, LENGTH, LENGTH + 12, 2 * LENGTH, 3 * LENGTH]


@pytest.fixture
def late() -> np.ndarray:
    """Every other token of the first two rows, all of a document, all of the third row, and padding."""
    late = np.zeros((3, LENGTH), bool)
    late[:2, 1::2] = late[0, 14] = late[2] = late[1, 26:] = True
    return late


def deep(model_type: str, tokenizer: PreTrainedTokenizerBase, monkeypatch: Any) -> Any:
    """A small model of four layers; ModernBERT's see 2 tokens on both sides in every other."""
    size = sizes(model_type) | {"num_hidden_layers": LAYERS}
    if model_type == "modernbert":
        size["local_attention"] = 4
    monkeypatch.setattr("tests.support.tiny_models.sizes", lambda _: size)
    return small(model_type, tokenizer, "documents")


def window_mask(n: int, reach: int | None) -> torch.Tensor | None:
    """Additive [1, 1, n, n]: tokens that are further apart than ``reach`` do not see each other."""
    if reach is None:
        return None
    place = torch.arange(n)
    far = (place[:, None] - place[None, :]).abs() > reach
    return torch.zeros(1, 1, n, n).masked_fill(far, -1e30)


def oracle(model: Any, ids: np.ndarray, late: np.ndarray, layers: int) -> torch.Tensor:
    """Logits [n, V] of one document alone, by the modules of transformers and sdpa."""
    base, here = model.base_model, torch.from_numpy(ids)[None]
    positions = torch.arange(ids.size)[None]
    modern = model.config.model_type == "modernbert"
    if modern:
        hidden = base.embeddings(input_ids=here)
    else:
        hidden = base.embeddings(input_ids=here, position_ids=positions + position_offset(model))
        if hasattr(base, "embeddings_project"):
            hidden = base.embeddings_project(hidden)
    shown = torch.from_numpy(np.flatnonzero(~late))
    for number, layer in enumerate(base.layers if modern else base.encoder.layer):
        own = shown if number < layers else torch.arange(ids.size)
        if not own.numel():
            continue
        part = hidden[:, own]
        if modern:
            kind = layer.attention_type
            angles = base.rotary_emb(hidden, positions[:, own], kind)
            reach = 2 if kind == "sliding_attention" else None
            mask = window_mask(own.numel(), reach)
            part = layer(part, attention_mask=mask, position_embeddings=angles)
        else:
            part = layer(part, None)
        hidden = hidden.index_copy(1, own, part)
    if modern:
        hidden = base.final_norm(hidden)
    return HEADS[model.config.model_type](model, hidden[0])


def gradients_of(model: Any, logits: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    logits.square().mean().backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("layers", [1, LAYERS - 1])
@pytest.mark.parametrize("model_type", sorted(ENDINGS))
def test_logits_and_gradients_are_those_of_layers_run_by_hand(
    model_type: str,
    layers: int,
    late: np.ndarray,
    tokenizer: PreTrainedTokenizerBase,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pad: Any = tokenizer.pad_token_id
    ids = np.random.default_rng(1).integers(5, len(tokenizer), (3, LENGTH))
    ids[1, 26:] = pad
    rows = rows_of(ids, BOUNDS)
    model = deep(model_type, tokenizer, monkeypatch)
    inputs = backbone_inputs(rows, "documents", pad, position_offset(model), "cpu")
    inputs["early"], _ = shorten(rows, late, layers, "documents", "cpu")
    real = torch.from_numpy(np.flatnonzero(ids.ravel() != pad))
    found = logits_at(model, torch.from_numpy(ids), real, inputs)
    gradients = gradients_of(model, found)

    plain = deep(model_type, tokenizer, monkeypatch)
    plain.set_attn_implementation("sdpa")
    flat, hidden = ids.ravel(), late.ravel()
    spans = ((0, 14), (14, 15), (15, 32), (32, 44), (44, 58), (64, 96))
    expected = torch.cat([oracle(plain, flat[a:b], hidden[a:b], layers) for a, b in spans])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    wanted = gradients_of(plain, expected)
    assert gradients.keys() == wanted.keys()
    for name, gradient in gradients.items():
        most = float(wanted[name].abs().max())
        torch.testing.assert_close(gradient, wanted[name], rtol=0, atol=1e-5 + 1e-3 * most)
    inputs.pop("early")
    at_once = logits_at(model, torch.from_numpy(ids), real, inputs)
    assert not torch.allclose(at_once, found, atol=1e-3)


def test_a_compiled_trunk_is_one_graph(
    late: np.ndarray, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Backend ``eager``: a graph is made, and no code."""
    model = deep("modernbert", tokenizer, monkeypatch)
    rows = rows_of(np.random.default_rng(1).integers(5, len(tokenizer), (3, LENGTH)), BOUNDS)
    inputs = backbone_inputs(rows, "documents", 0, 0, "cpu", room=8)
    inputs["early"], _ = shorten(rows, late, 2, "documents", "cpu", room=8)
    ids, places = torch.from_numpy(rows.input_ids), torch.arange(0, 3 * LENGTH, 3)
    with torch.no_grad():
        expected = logits_at(model, ids, places, inputs)
        found = logits_at(model, ids, places, inputs, "eager")
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("scope", ["documents", "row"])
def test_rows_are_shorter_by_sixteenths_and_their_documents_stay_apart(
    scope: AttentionScope, late: np.ndarray
) -> None:
    rows = rows_of(np.full((3, LENGTH), 7), BOUNDS)
    early, lengths = shorten(rows, late, 2, scope, "cpu")
    by_document = [7, 0, 8, 6, 7, 0]
    by_row = [15, 13, 0]
    assert lengths.tolist() == (by_document if scope == "documents" else by_row)
    width = early.documents.max_length
    assert width == 16  # 15, rounded up to a multiple of 32 / 16
    ids = torch.arange(3 * LENGTH).view(3, LENGTH)
    taken = early.take(ids)
    for row in range(3):
        own = np.flatnonzero(~late[row]) + row * LENGTH
        assert taken[row, : own.size].tolist() == own.tolist()
    number = early.documents.number
    seen_together = {
        tuple(taken[number == n].tolist()) for n in number.unique().tolist()
    }  # documents, and one more a row of what fills it up
    first = tuple(k for k in range(0, 14, 2))
    assert (first in seen_together) == (scope == "documents")
    joined = early.join(taken[..., None].float(), -torch.ones(3, LENGTH, 1))[..., 0]
    assert torch.equal(joined >= 0, torch.from_numpy(~late))
    assert joined[joined >= 0].tolist() == np.flatnonzero(~late.ravel()).tolist()


def test_a_moving_ratio_makes_few_lengths() -> None:
    rows = rows_of(np.full((4, 128), 7), [128 * k for k in range(5)])
    generator, widths = np.random.default_rng(0), set()
    for ratio in np.linspace(0.6, 0.02, 60):
        early, _ = shorten(rows, generator.random((4, 128)) < ratio, 1, "documents", "cpu")
        widths.add(early.documents.max_length)
    assert widths <= set(range(8, 129, 8))


def test_layers_are_counted_one_by_one(
    tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = deep("modernbert", tokenizer, monkeypatch)
    whole, layers = count_flops(model), count_layers(model)
    assert len(layers) == LAYERS - 1
    lengths = np.array([9, 4])
    last: Any = model.base_model.layers[-1]
    of_all = 6 * last.attn.Wqkv.weight.numel() * 2 // 3  # keys and values; queries where predicted
    assert sum(x.per_token for x in layers) + of_all == whole.per_token
    windows = [pairs.window for x in layers for pairs in x.attention]
    assert windows == [None, 2, None]  # the last layer sees 2 as well
    attention = sum(x.of_attention(lengths) for x in layers)
    assert attention + layers[1].of_attention(lengths) == whole.of_attention(lengths)


def test_layers_that_cannot_be_reached_are_refused(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    model = small("albert", tokenizer, "documents")
    assert ending_of(model) is None
    with pytest.raises(UsageError, match="layers of model type 'albert' cannot be run one by one"):
        check_late_masks(model, 0, 1)
    with pytest.raises(UsageError, match=r"layer is 4; the model has 4 layers.*give at most 3"):
        check_late_masks(model, 4, 4)
    check_late_masks(model, 4, 3)
