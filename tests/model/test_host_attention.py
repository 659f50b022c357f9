"""Attention in blocks on the host is attention under a mask: outputs, gradients, and what is dropped."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import BertConfig, BertForMaskedLM

from chronomask.model import dropout as dropout_module
from chronomask.model import host_attention as module
from chronomask.model.attention import documents_attention
from chronomask.model.documents import DOCUMENTS_ATTENTION, Documents, documents_between
from chronomask.model.dropout import draw_key, drop
from chronomask.model.host_attention import attend

ROWS, HEADS, LENGTH, WIDTH = 3, 4, 50, 8
BOUNDS = [0, 20, 45, 50, 100, 110, 113, 150]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """How many documents are worth a block depends on the number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def blocks_are_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small examples are computed as large ones are."""
    monkeypatch.setattr(module, "_OF_A_BLOCK", 0)
    monkeypatch.setattr(module, "_MANY", 0)


def make_states(number: int = 3, **how: Any) -> tuple[torch.Tensor, ...]:
    """Queries, keys, values and so on, [ROWS, HEADS, LENGTH, WIDTH], as a linear layer gives them."""
    torch.manual_seed(0)
    return tuple(
        torch.randn(ROWS, LENGTH, HEADS, WIDTH, **how).transpose(1, 2).requires_grad_()
        for _ in range(number)
    )


def make_documents(bounds: list[int], rows: int, length: int, causal: bool = False) -> Documents:
    return documents_between(np.array(bounds), rows, length, "cpu", causal=causal)


def seen_in(documents: Documents, window: int | None) -> torch.Tensor:
    """bool [B, 1, T, T]: the definition of what a token sees, pair by pair."""
    rows, length = documents.number.shape
    seen = torch.zeros(rows, 1, length, length, dtype=torch.bool)
    for row, i, j in itertools.product(range(rows), range(length), range(length)):
        alike = documents.number[row, i] == documents.number[row, j]
        near = abs(i - j) < (window or math.inf)
        seen[row, 0, i, j] = alike and near and (j <= i or not documents.causal)
    return seen


def defined(
    states: tuple[torch.Tensor, ...],
    seen: torch.Tensor,
    factors: torch.Tensor | float,
    scale: float,
) -> torch.Tensor:
    """Attention as it is defined, in double precision, with factors of the weights: [B, T, heads, width]."""
    query, key, value = (x.double() for x in states)
    scores = torch.einsum("bhqw,bhtw->bhqt", query, key) * scale
    weights = torch.softmax(scores.masked_fill(~seen, -torch.inf), -1) * factors
    return torch.einsum("bhqt,bhtw->bqhw", weights, value)


def gradients(out: torch.Tensor, states: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    given = torch.randn(out.shape, generator=generator, dtype=torch.float64).bfloat16()
    return torch.autograd.grad(out, states, given.to(out.dtype))


def assert_alike(
    found: torch.Tensor, expected: torch.Tensor, states: tuple[torch.Tensor, ...]
) -> None:
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=2e-6)
    for one, other in zip(gradients(found, states), gradients(expected, states), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=5e-6)


def test_rows_of_one_document_each_are_nothing_to_split_not_even_where_tensors_have_no_values() -> (
    None
):
    with FakeTensorMode():
        states = torch.zeros(2, 12, 384, 64)
        out, _ = documents_attention(torch.nn.Module(), states, states, states, None)
    assert out.shape == (2, 384, 12, 64)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("window", [None, 6, 40])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("scaling", [None, 0.5])
@pytest.mark.usefixtures("blocks_are_free")
def test_documents_are_attended_to_as_defined(
    dropout: float, window: int | None, causal: bool, scaling: float | None
) -> None:
    states = make_states()
    documents = make_documents(BOUNDS, ROWS, LENGTH, causal)
    torch.manual_seed(2)
    factors = drop(torch.ones(ROWS, HEADS, LENGTH, LENGTH), dropout) if dropout else 1.0
    scale = WIDTH**-0.5 if scaling is None else scaling
    expected = defined(states, seen_in(documents, window), factors, scale)
    torch.manual_seed(2)
    found, _ = documents_attention(
        torch.nn.Module(), *states, None, dropout, scaling, window, documents
    )
    assert found.is_contiguous()
    assert type(found.grad_fn).__name__ == "_InBlocksBackward"
    assert_alike(found, expected, states)


@pytest.mark.parametrize("blocks_are_many", [True, False])
@pytest.mark.parametrize("mask", [None, "bool", "additive", "one row", "per head"])
def test_rows_are_attended_to_as_defined_whatever_the_mask(
    monkeypatch: pytest.MonkeyPatch, blocks_are_many: bool, mask: str | None
) -> None:
    if blocks_are_many:
        monkeypatch.setattr(module, "_OF_A_BLOCK", 0)
        monkeypatch.setattr(module, "_MANY", 0)
    states = make_states()
    shape = (1 if mask == "one row" else ROWS, HEADS if mask == "per head" else 1, LENGTH, LENGTH)
    seen = (torch.rand(shape) < 0.7) | torch.eye(LENGTH, dtype=torch.bool)
    additive = torch.zeros(shape).masked_fill(~seen, -torch.inf)
    given = {None: None, "bool": seen}.get(mask, additive)
    torch.manual_seed(2)
    factors = drop(torch.ones(ROWS, HEADS, LENGTH, LENGTH), 0.2)
    all_seen = torch.ones(1, 1, LENGTH, LENGTH, dtype=torch.bool)
    expected = defined(states, all_seen if mask is None else seen, factors, WIDTH**-0.5)
    torch.manual_seed(2)
    found = attend(*states, given, 0.2, None)
    assert (type(found.grad_fn).__name__ == "_InBlocksBackward") == blocks_are_many
    assert_alike(found, expected, states)
    if given is not None:
        unchanged = torch.zeros(shape).masked_fill(~seen, -torch.inf)
        assert torch.equal(given, seen if mask == "bool" else unchanged)


@pytest.mark.usefixtures("blocks_are_free")
def test_states_in_any_order_of_memory_and_some_without_gradients() -> None:
    def of_value(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(2)
        out = attend(query, key, value, None, 0.1, None)
        return torch.autograd.grad(out.square().sum(), value)[0]

    states = make_states()
    other_order = [x.detach().contiguous() for x in states]
    other_order[2].requires_grad_()
    torch.testing.assert_close(of_value(*other_order), of_value(*states))


@pytest.mark.usefixtures("blocks_are_free")
def test_values_of_another_width_than_keys() -> None:
    query, key, _ = make_states()
    value = torch.randn(ROWS, HEADS, LENGTH, 3, requires_grad=True)
    documents = make_documents(BOUNDS, ROWS, LENGTH)
    expected = defined((query, key, value), seen_in(documents, None), 1.0, WIDTH**-0.5)
    found, _ = documents_attention(torch.nn.Module(), query, key, value, None, documents=documents)
    assert type(found.grad_fn).__name__ == "_InBlocksBackward"
    assert_alike(found, expected, (query, key, value))


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize(("dropout", "free"), [(0.0, True), (0.3, True), (0.3, False)])
@pytest.mark.parametrize("window", [None, 6])
def test_bfloat16_is_rounded_where_it_comes_in_and_goes_out_alone(
    autocast: bool,
    dropout: float,
    free: bool,
    window: int | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Scores are some 60 here: in bfloat16 they would be wrong by an eighth, and the weights by as much."""
    if free:
        monkeypatch.setattr(module, "_OF_A_BLOCK", 0)
        monkeypatch.setattr(module, "_MORE", dict.fromkeys(module._MORE, (0.0, 0.0)))
    query, key, value = (x.detach().bfloat16() for x in make_states())
    query = query * 60
    rounded = tuple(x.double().requires_grad_() for x in (query, key, value))
    states = tuple(
        (x.float() if autocast else x).detach().requires_grad_() for x in (query, key, value)
    )
    documents = make_documents(BOUNDS, ROWS, LENGTH)
    torch.manual_seed(2)
    factors = drop(torch.ones(ROWS, HEADS, LENGTH, LENGTH), dropout) if dropout else 1.0
    expected = defined(rounded, seen_in(documents, window), factors, 0.5)
    torch.manual_seed(2)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found, _ = documents_attention(
            torch.nn.Module(), *states, None, dropout, 0.5, window, documents
        )
    assert found.dtype == torch.bfloat16
    if free:
        assert type(found.grad_fn).__name__ == "_InBlocksBackward"
    pairs = [(found, expected)]
    pairs += zip(gradients(found, states), gradients(expected, rounded), strict=True)
    for one, other in pairs:
        # One rounding of what is given, of which a gradient is a sum.
        largest = other.abs().max().item()
        torch.testing.assert_close(one.double(), other, rtol=2**-8, atol=2**-7 * largest)


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.usefixtures("blocks_are_free")
def test_float16_and_float64_are_not_computed_in_blocks(dropout: float) -> None:
    documents = make_documents(BOUNDS, ROWS, LENGTH)
    states = make_states()

    def compute(states: tuple[torch.Tensor, ...]) -> torch.Tensor:
        torch.manual_seed(2)
        return documents_attention(torch.nn.Module(), *states, None, dropout, documents=documents)[
            0
        ]

    exact = compute(states)
    for dtype in (torch.float16, torch.float64):
        other = compute(tuple(x.to(dtype) for x in states))
        assert other.dtype == dtype
        assert type(other.grad_fn).__name__ != "_InBlocksBackward"
        torch.testing.assert_close(other.float(), exact, rtol=0.01, atol=0.005)
    with torch.autocast("cpu", torch.bfloat16):
        assert compute(tuple(x.double() for x in states)).dtype == torch.float64


@pytest.mark.usefixtures("blocks_are_free")
def test_gradients_of_gradients() -> None:
    def penalty(
        states: tuple[torch.Tensor, ...], blocks: list[module.Block]
    ) -> tuple[torch.Tensor, ...]:
        torch.manual_seed(4)
        out = attend(*states, None, 0.3, None, blocks)
        found = torch.autograd.grad(out.square().sum(), states, create_graph=True)
        return torch.autograd.grad(sum(x.square().sum() for x in found), states)

    states = make_states()
    doubled = tuple(x.detach().double().requires_grad_() for x in states)
    bounds = [(0, 20), (20, 50), (50, 100), (100, 130), (130, 150)]
    blocks = [module.Block(a // 50, a % 50, a % 50 + b - a) for a, b in bounds]
    for one, other in zip(penalty(states, blocks), penalty(doubled, blocks), strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-3, atol=1e-4)


def test_threads_share_the_work_and_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dropout_module, "_PART", 1000)
    states = make_states()
    blocks = [module.Block(row, 0, LENGTH) for row in range(ROWS)]
    found = []
    for number in (1, 3):
        torch.set_num_threads(number)
        torch.manual_seed(1)
        out = attend(*states, None, 0.5, None, blocks)
        found.append((out, *gradients(out, states)))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    ("rows", "length", "document", "heads", "dtype", "with_gradients", "apart"),
    [
        (8, 512, 100, 12, torch.float32, True, True),
        (8, 512, 100, 12, torch.bfloat16, True, True),
        (8, 512, 100, 12, torch.bfloat16, False, True),
        (8, 512, 200, 12, torch.float32, False, True),
        (8, 512, 200, 12, torch.bfloat16, True, True),
        (8, 512, 200, 12, torch.bfloat16, False, False),
        (4, 1024, 1000, 12, torch.float32, True, False),
        (32, 25, 10, 4, torch.float32, True, False),
        (32, 128, 1, 4, torch.float32, True, False),
    ],
)
def test_documents_are_blocks_where_that_saves_time(
    rows: int,
    length: int,
    document: int,
    heads: int,
    dtype: torch.dtype,
    with_gradients: bool,
    apart: bool,
) -> None:
    starts = [s for row in range(rows) for s in range(row * length, (row + 1) * length, document)]
    documents = make_documents([*starts, rows * length], rows, length)
    with torch.set_grad_enabled(with_gradients):
        blocks = module.split(documents, torch.zeros(rows, heads, length, 1, dtype=dtype), 0.0)
    assert (blocks is not None) == apart
    if blocks is not None:
        covered = [row * length + t for row, start, end in blocks for t in range(start, end)]
        assert covered == list(range(rows * length))


def test_long_rows_are_blocks_and_short_or_single_ones_are_not() -> None:
    def name(rows: int, length: int) -> str:
        states = torch.zeros(rows, 12, length, 2, requires_grad=True)
        return type(attend(states, states, states, None, 0.1, None).grad_fn).__name__

    assert name(8, 384) == "_InBlocksBackward"
    assert name(600, 32) != "_InBlocksBackward"
    assert name(1, 384) != "_InBlocksBackward"


def test_a_model_of_packed_documents_needs_no_mask_and_says_of_each_what_it_says_alone() -> None:
    torch.manual_seed(0)
    architecture = BertConfig(
        vocab_size=50,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
    )
    architecture._attn_implementation = DOCUMENTS_ATTENTION
    model = BertForMaskedLM(architecture).eval()
    ids = torch.randint(50, (2, 512))
    bounds = [0, 100, 130, 400, 512, 700, 1024]
    documents = make_documents(bounds, 2, 512)
    positions = torch.cat([torch.arange(b - a) for a, b in itertools.pairwise(bounds)]).view(2, 512)
    found = model(ids, position_ids=positions, documents=documents).logits.flatten(0, 1)
    assert not documents._masks
    for start, end in itertools.pairwise(bounds):
        alone = model(ids.flatten()[None, start:end]).logits[0]
        torch.testing.assert_close(found[start:end], alone, rtol=1e-4, atol=1e-5)


def test_a_mask_that_is_learned_is_given_its_gradient() -> None:
    states = make_states()
    bias = torch.zeros(1, HEADS, LENGTH, LENGTH, requires_grad=True)
    found, _ = documents_attention(torch.nn.Module(), *states, bias, 0.1)
    found.square().sum().backward()
    assert bias.grad is not None
    assert float(bias.grad.abs().sum()) > 0


def test_keys_follow_torchs_seed() -> None:
    torch.manual_seed(3)
    keys = [draw_key() for _ in range(3)]
    torch.manual_seed(3)
    assert [draw_key() for _ in range(3)] == keys
    assert len(set(keys)) == 3
