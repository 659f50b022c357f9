"""Compiled training: one graph, few shapes, and the numbers of eager training."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerBase

from chronomask.model.documents import backbone_inputs, position_offset
from chronomask.model.head import PADDED_SIZES, compile_backbone, logits_at, padded_size
from chronomask.model.last_layer import ending_of
from chronomask.types import Rows
from tests.support.tiny_models import small

BACKEND = "aot_eager"  # traces and differentiates as inductor does, and generates no code
ROWS, LENGTH = 4, 64

pytestmark = [
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
]


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def packed(seed: int, vocab_size: int) -> Rows:
    """Rows with another number of documents for every seed."""
    generator = np.random.default_rng(seed)
    bounds = generator.choice(np.arange(1, ROWS * LENGTH), 6 + seed, replace=False)
    bounds = np.union1d(bounds, np.arange(0, ROWS * LENGTH + 1, LENGTH)).astype(np.int32)
    ids = generator.integers(5, vocab_size, (ROWS, LENGTH))
    none = np.zeros((ROWS, LENGTH), np.int32)
    return Rows(ids, none, none.astype(np.uint8), np.arange(ROWS), np.zeros(ROWS, int), bounds)


@pytest.mark.parametrize("model_type", ["bert", "modernbert", "roberta"])
def test_documents_and_ratios_that_change_compile_nothing_again(
    model_type: str, tokenizer: PreTrainedTokenizerBase
) -> None:
    model = small(model_type, tokenizer, "documents").eval()
    rows = [packed(seed, len(tokenizer)) for seed in range(4)]
    inputs = [backbone_inputs(r, "documents", 0, position_offset(model), "cpu") for r in rows]
    shares = (0.30, 0.28, 0.26, 0.26)  # all of them in one room
    positions = [torch.arange(int(share * ROWS * LENGTH)) for share in shares]
    ids = [torch.from_numpy(r.input_ids) for r in rows]
    eager = [logits_at(model, *batch) for batch in zip(ids, positions, inputs, strict=True)]

    compile_backbone(model, BACKEND)
    logits_at(model, ids[0], positions[0], inputs[0], BACKEND).sum().backward()
    with torch._dynamo.config.patch(error_on_recompile=True):
        for batch, expected in zip(zip(ids, positions, inputs, strict=True), eager, strict=True):
            logits = logits_at(model, *batch, BACKEND)
            torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)
            logits.sum().backward()
    with (
        torch._dynamo.config.patch(error_on_recompile=True),
        pytest.raises(torch._dynamo.exc.RecompileError),
    ):
        logits_at(model, ids[0], positions[0][:8], inputs[0], BACKEND)


def test_padded_places_have_no_gradient(tokenizer: PreTrainedTokenizerBase) -> None:
    model = small("bert", tokenizer, "row").eval()
    ids = torch.randint(5, len(tokenizer), (ROWS, LENGTH))
    positions = torch.tensor([3, 70, 200])
    gradients = []
    for compiled in (None, BACKEND):
        model.zero_grad()
        logits_at(model, ids, positions, {}, compiled).square().sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    for plain, padded in zip(*gradients, strict=True):
        torch.testing.assert_close(padded, plain, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("model_type", ["bert", "modernbert", "roberta"])
def test_queries_at_some_positions_are_one_graph(
    model_type: str, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a CUDA device: the kernel for documents is called once, and nothing breaks the graph before it.

    It has no code for the host, so what was traced is looked at and not run.
    """
    model = small(model_type, tokenizer, "documents").eval()
    if model_type == "modernbert":
        base: Any = model.base_model
        monkeypatch.setattr(base.layers[-1].attn, "sliding_window", None)
    ending, rows = ending_of(model), packed(0, len(tokenizer))
    assert ending is not None
    inputs = backbone_inputs(rows, "documents", 0, position_offset(model), "cpu", room=8)
    read = torch.compile(ending.read, backend=BACKEND, fullgraph=True, dynamic=False)(
        model, torch.from_numpy(rows.input_ids), inputs
    )
    positions = torch.tensor([1, 5, 90, ROWS * LENGTH - 1, ROWS * LENGTH - 1])
    calls: list[str] = []

    def look(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Any:
        calls.extend(str(n.target) for n in graph.graph.nodes if "varlen" in str(n.target))
        raise LookupError("seen")

    monkeypatch.setattr("chronomask.model.attention.varlen_fits", lambda *_: True)
    ask = torch.compile(ending.ask, backend=look, fullgraph=True, dynamic=False)
    with pytest.raises(torch._dynamo.exc.BackendCompilerFailed, match="seen"):
        ask(model, read.states_at(positions), read, positions, inputs["documents"])
    assert len(calls) == 1


@pytest.mark.parametrize("num_tokens", [1, 7, 512, 131_072])
def test_rooms_hold_every_number_of_targets(num_tokens: int) -> None:
    rooms = {padded_size(n, num_tokens) for n in range(min(num_tokens, 600) + 1)}
    assert all(
        padded_size(n, num_tokens) >= n for n in range(0, num_tokens + 1, 1 + num_tokens // 99)
    )
    assert padded_size(num_tokens, num_tokens) == num_tokens
    assert len(rooms) <= len(PADDED_SIZES)
