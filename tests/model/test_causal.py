"""Causal rows see what is before them in their own document alone, as a dense mask would have it."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AttentionInterface, PreTrainedModel, PreTrainedTokenizerBase

from chronomask.errors import UsageError
from chronomask.masking.objective import next_tokens
from chronomask.model import trial
from chronomask.model.attention import _varlen
from chronomask.model.build import build_model, skeleton
from chronomask.model.config import AttentionScope, FromConfig
from chronomask.model.documents import backbone_inputs, position_offset
from chronomask.model.flops import Pairs
from chronomask.model.head import logits_at, token_losses
from chronomask.model.trial import settle
from chronomask.types import Rows
from tests.support.tiny_models import SEPARATING, rows_of, sizes, small

LENGTH = 24
BOUNDS = [0, 7, 8, LENGTH, LENGTH + 10, 2 * LENGTH]


def packed(vocab_size: int, pad: int) -> Rows:
    ids = np.random.default_rng(3).integers(5, vocab_size, (2, LENGTH))
    ids[1, 20:] = pad
    rows = rows_of(ids, BOUNDS)
    rows.word_id[1, 20:] = -1
    return rows


def losses_and_gradients(
    model: PreTrainedModel, rows: Rows, pad: int, inputs: dict[str, Any] | None = None
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Losses of all next tokens [N], and the gradients of their sum."""
    batch = next_tokens(rows)
    if inputs is None:
        first = position_offset(model)
        inputs = backbone_inputs(rows, "documents", pad, first, "cpu", causal=True)
    ids, positions = torch.from_numpy(rows.input_ids), torch.from_numpy(batch.positions)
    losses, _, _ = token_losses(
        logits_at(model, ids, positions, inputs), torch.from_numpy(batch.targets)
    )
    model.zero_grad()
    losses.sum().backward()
    return losses.detach(), {
        name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None
    }


def dense_attention(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, _: Any, **more: Any
) -> tuple[torch.Tensor, None]:
    """softmax(QKᵀ/√d) V in float32, by whom a token sees, written out."""
    number = more["oracle"]
    t = torch.arange(number.shape[1])
    seen = (number[:, :, None] == number[:, None, :]) & (t[None, :] <= t[:, None])
    if more.get("sliding_window") is not None:
        seen &= t[None, :] > t[:, None] - more["sliding_window"]
    scores = query @ key.transpose(2, 3) * query.shape[-1] ** -0.5
    weights = scores.masked_fill(~seen[:, None], -1e30).softmax(-1)
    return (weights @ value).transpose(1, 2), None


@pytest.mark.parametrize("model_type", ["bert", "modernbert", "roberta"])
def test_losses_and_gradients_are_those_of_a_dense_mask(
    model_type: str, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers' own modules from embeddings to head, with attention written out above."""
    pad = tokenizer.pad_token_id
    rows = packed(len(tokenizer), pad)
    model = small(model_type, tokenizer, "documents")
    found = losses_and_gradients(model, rows, pad)

    AttentionInterface.register("oracle", dense_attention)
    oracle = small(model_type, tokenizer, "documents")
    monkeypatch.setattr("chronomask.model.modernbert.documents_attention", dense_attention)
    oracle.set_attn_implementation("oracle")
    inputs = backbone_inputs(rows, "documents", pad, position_offset(oracle), "cpu")
    inputs = {"position_ids": inputs["position_ids"], "oracle": inputs["documents"].number}
    expected = losses_and_gradients(oracle, rows, pad, inputs)
    torch.testing.assert_close(found[0], expected[0], rtol=1e-5, atol=1e-5)
    assert found[1].keys() == expected[1].keys()
    for name, gradient in found[1].items():
        most = float(expected[1][name].abs().max())
        torch.testing.assert_close(gradient, expected[1][name], rtol=0, atol=1e-5 + 1e-4 * most)


@pytest.mark.parametrize("model_type", SEPARATING)
def test_packed_documents_lose_what_separate_ones_do(
    model_type: str, tokenizer: PreTrainedTokenizerBase
) -> None:
    pad = tokenizer.pad_token_id
    rows = packed(len(tokenizer), pad)
    model = small(model_type, tokenizer, "documents")
    together, _ = losses_and_gradients(model, rows, pad)
    flat = rows.input_ids.ravel()
    apart = [
        losses_and_gradients(model, rows_of(flat[None, begin:end], [0, end - begin]), pad)[0]
        for begin, end in ((0, 7), (8, 24), (24, 34), (34, 44))
    ]
    torch.testing.assert_close(together, torch.cat(apart), rtol=1e-4, atol=2e-5)
    assert together.numel() == 6 + 0 + 15 + 9 + 9  # all but the first of each document


@pytest.mark.gpu
@pytest.mark.parametrize("model_type", ["bert", "modernbert"])
def test_on_cuda_the_kernel_loses_what_float32_does(
    model_type: str, tokenizer: PreTrainedTokenizerBase
) -> None:
    pad: Any = tokenizer.pad_token_id
    rows = packed(len(tokenizer), pad)
    model = small(model_type, tokenizer, "documents")
    expected, _ = losses_and_gradients(model, rows, pad)
    model.to("cuda", torch.bfloat16)  # pyright: ignore
    batch, first = next_tokens(rows), position_offset(model)
    inputs = backbone_inputs(rows, "documents", pad, first, "cuda", causal=True)
    ids, places = (torch.from_numpy(x).cuda() for x in (rows.input_ids, batch.positions))
    with torch.no_grad():
        logits = logits_at(model, ids, places, inputs).float()
        found = token_losses(logits, torch.from_numpy(batch.targets).cuda())[0].cpu()
    torch.testing.assert_close(found, expected, rtol=0.03, atol=0.03 * float(expected.max()))


@pytest.mark.parametrize("scope", ["documents", "row"])
@pytest.mark.parametrize("model_type", SEPARATING)
def test_no_token_knows_what_follows(
    model_type: str, scope: AttentionScope, tokenizer: PreTrainedTokenizerBase
) -> None:
    model = small(model_type, tokenizer, scope)
    ids = np.random.default_rng(0).integers(5, len(tokenizer), (1, LENGTH))
    other = ids.copy()
    other[0, 15] = 5 + ids[0, 15] % 7
    states = []
    for tokens in (ids, other):
        rows, first = rows_of(tokens, [0, LENGTH]), position_offset(model)
        inputs = backbone_inputs(rows, scope, 0, first, "cpu", causal=True)
        with torch.no_grad():
            places = torch.arange(LENGTH)
            states.append(logits_at(model, torch.from_numpy(tokens), places, inputs))
    assert torch.equal(states[0][:15], states[1][:15])
    assert not torch.equal(states[0][15], states[1][15])


def test_windows_look_back_as_far_as_they_say() -> None:
    inputs = backbone_inputs(
        rows_of(np.full((1, 5), 7), [0, 4, 5]), "documents", 0, 0, "cpu", causal=True
    )
    expected = [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [0, 1, 1, 0, 0],
        [0, 0, 1, 1, 0],
        [0, 0, 0, 0, 1],
    ]
    mask = inputs["documents"].mask(1, torch.float32)[0, 0]
    assert torch.equal(mask == 0, torch.tensor(expected).bool())
    last = inputs["documents"].mask(None, torch.float32)[0, 0, 3]
    assert torch.equal(last == 0, torch.tensor([1, 1, 1, 1, 0]).bool())


@pytest.mark.parametrize(("window", "reach"), [(None, (-1, 0)), (5, (4, 0))])
def test_the_varlen_kernel_is_told_to_look_back_alone(
    window: int | None, reach: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own words for it are (−1, 0), and (w, 0) within a window; no kernel runs here."""
    told: list[Any] = []

    def note(query: torch.Tensor, *_: Any, window_size: tuple[int, int], **__: Any) -> torch.Tensor:
        told.append(window_size)
        return query

    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", note)
    rows = rows_of(np.full((1, 6), 7), [0, 4, 6])
    for causal in (True, False):
        inputs = backbone_inputs(rows, "documents", 0, 0, "cpu", causal=causal)
        documents, x = inputs["documents"], torch.zeros(1, 2, 6, 8)
        _varlen(x[0].transpose(0, 1), documents.cu_seqlens, x, x, None, window, documents)
    assert told == [reach, (reach[0], reach[0])]


def test_pairs_of_causal_rows_count_once() -> None:
    for window in (None, 2):
        pairs = Pairs(1, 1, window).within(np.array([5, 1]))
        t = np.arange(5)
        apart = t[:, None] - t[None, :]
        near = np.abs(apart) <= (5 if window is None else window)
        assert (pairs + 6) // 2 == np.count_nonzero(near & (apart >= 0)) + 1


@pytest.mark.parametrize("model_type", ["mobilebert", "mpnet"])
def test_models_that_could_see_the_next_token_are_refused(
    model_type: str, tokenizer: PreTrainedTokenizerBase
) -> None:
    config = FromConfig(model_type=model_type, overrides=sizes(model_type))
    with pytest.raises(UsageError, match=r"set objective.kind=mlm, or choose another model"):
        skeleton(config, tokenizer, row_length=32, attention="row", causal=True)


@pytest.mark.parametrize("leaks", [False, True])
def test_models_that_no_test_knows_are_tried(
    leaks: bool, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A BERT that is not among the known ones; where it leaks, it is given no causal mask."""
    monkeypatch.setattr(trial, "HEADS", {})
    if leaks:
        monkeypatch.setattr(trial, "backbone_inputs", lambda *_, **__: {})
    config = FromConfig(overrides=sizes("bert"))
    expected = (
        pytest.raises(UsageError, match="lets tokens see the next one") if leaks else nullcontext()
    )
    model = build_model(config, tokenizer, row_length=32, seed=0, attention="row", causal=True)
    with expected:
        settle(model, tokenizer, (16, 32), attention="row", padded=True, causal=True)
