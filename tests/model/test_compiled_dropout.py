"""Dropout in a compiled graph: what the host's hash drops, gradients too, and no mask kept between passes."""

from __future__ import annotations

import pytest
import torch
from functorch.compile import make_boxed_func, min_cut_rematerialization_partition
from torch import nn
from torch._dynamo.backends.common import aot_autograd
from transformers import BertConfig, BertModel

from chronomask.model import compiled_dropout
from chronomask.model.build import checkpoint_activations
from chronomask.model.compiled_dropout import Dropped
from chronomask.model.dropout import Kept, KeyedDropout
from chronomask.model.host import use_host_kernels

pytestmark = [  # torch's own, while it compiles
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
    pytest.mark.filterwarnings("ignore:.*script_method:DeprecationWarning"),
]

PARTITIONED = "aot_eager_decomp_partition"
"""The compiler's way from a model to two graphs and what the first keeps for the second, without kernels."""


def key_of(low: int, high: int) -> tuple[torch.Tensor, int]:
    """A key as the graph has it and as the host does."""
    return torch.tensor([low, high], dtype=torch.int32), low % 2**32 | high % 2**32 << 32


def compiled(what: object, backend: object = PARTITIONED) -> object:
    torch._dynamo.reset()
    return torch.compile(what, backend=backend, fullgraph=True, dynamic=False)  # type: ignore[call-overload]


@pytest.mark.parametrize("dropout", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("backend", ["eager", PARTITIONED])
def test_a_key_drops_what_it_drops_on_the_host(
    dropout: float, dtype: torch.dtype, backend: str
) -> None:
    values = torch.randn(5, 33, 7).to(dtype).requires_grad_()
    given = torch.randn(values.shape).to(dtype)
    graph = compiled(lambda x, key: Dropped.apply(x, key, dropout), backend)
    for low, high in ((0, 0), (-5, 2**31 - 1), (2**31 - 3, -(2**31)), (1234567, -7654321)):
        key, of_host = key_of(low, high)
        found = graph(values, key)  # type: ignore[operator]
        (gradient,) = torch.autograd.grad(found, values, given)
        assert torch.equal(found, Kept(of_host, dropout).of(values))
        assert torch.equal(gradient, Kept(of_host, dropout).of(given))


@pytest.mark.parametrize("shape", [(), (6,), (0, 4), (2, 3, 1, 5)])
def test_places_are_counted_in_the_order_of_memory(shape: tuple[int, ...]) -> None:
    places = compiled_dropout._places(torch.empty(shape), 7)
    number = places.numel()
    assert places.dtype == torch.int32
    assert torch.equal(places, torch.arange(7, 7 + number, dtype=torch.int32).view(shape))


def test_places_have_the_loops_of_the_values_in_both_graphs() -> None:
    """A gradient that is made by a loop for each dimension can be dropped from by the same kernel then."""
    graphs: list[torch.fx.GraphModule] = []

    def keep(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> object:
        graphs.append(graph)
        return make_boxed_func(graph.forward)

    values = torch.randn(5, 33, 7).requires_grad_()
    backend = aot_autograd(
        fw_compiler=keep, bw_compiler=keep, partition_fn=min_cut_rematerialization_partition
    )
    compiled(KeyedDropout(0.4), backend)(values).sum().backward()  # type: ignore[operator]
    assert len(graphs) == 2
    for graph in graphs:
        counts = [node.meta["val"].numel() for node in graph.graph.nodes if "arange" in node.name]
        assert sorted(counts) == [5, 7, 33], graph.code


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_graph_on_a_cuda_device_drops_what_the_host_does(dtype: torch.dtype) -> None:
    values = torch.randn(64, 96, 33).to(dtype)
    given = torch.randn(values.shape).to(dtype)
    there = values.cuda().requires_grad_()
    key, of_host = key_of(-1234567, 7654321)
    graph = compiled(lambda x, key: Dropped.apply(x, key, 0.1), "inductor")
    found = graph(there, key.cuda())  # type: ignore[operator]
    (gradient,) = torch.autograd.grad(found, there, given.cuda())
    assert torch.equal(found.cpu(), Kept(of_host, 0.1).of(values))
    assert torch.equal(gradient.cpu(), Kept(of_host, 0.1).of(given))


def test_torchs_seed_decides_and_layers_and_calls_draw_apart() -> None:
    layers = nn.ModuleList([KeyedDropout(0.3), KeyedDropout(0.3)])
    graph = compiled(lambda x: [layer(x) for layer in layers])
    ones = torch.ones(64, 500)

    def drawn(seed: int | None) -> list[torch.Tensor]:
        if seed is not None:
            torch.manual_seed(seed)
        return graph(ones)  # type: ignore[operator]

    first, second, again = drawn(5), drawn(None), drawn(5)
    assert all(map(torch.equal, first, again))
    masks = [*first, *second]
    for mask in masks:
        assert mask.unique().tolist() == pytest.approx([0, 1 / 0.7])
        error = 5 * (0.3 * 0.7 / mask.numel()) ** 0.5
        assert float((mask == 0).double().mean()) == pytest.approx(0.3, abs=error)
    centred = torch.stack([(mask == 0).double().flatten() - 0.3 for mask in masks])
    beside = (centred @ centred.T / (0.3 * 0.7 * ones.numel() ** 0.5)).fill_diagonal_(0)
    assert float(beside.abs().max()) < 5  # as chance has it


def test_nothing_is_drawn_in_evaluation_or_for_a_probability_of_0() -> None:
    values = torch.randn(3, 4)
    before = torch.get_rng_state()
    for layer in (KeyedDropout(0.4).eval(), KeyedDropout(0.0)):
        assert torch.equal(compiled(layer)(values), values)  # type: ignore[operator]
    assert torch.equal(torch.get_rng_state(), before)


def test_more_elements_than_places_can_count_are_left_to_torch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert compiled_dropout.fits(torch.empty(2**31 - 2, device="meta"))
    assert not compiled_dropout.fits(torch.empty(2**31 - 1, device="meta"))
    monkeypatch.setattr("chronomask.model.dropout.fits", lambda values: False)
    values = torch.randn(30, 40)
    graph = compiled(KeyedDropout(0.4), "eager")
    torch.manual_seed(7)
    found = graph(values)  # type: ignore[operator]
    torch.manual_seed(7)
    assert torch.equal(found, nn.functional.dropout(values, 0.4))


@pytest.mark.parametrize("recomputed", [False, True])
def test_a_bert_keeps_no_mask_for_the_way_back_and_learns_from_what_it_saw(
    recomputed: bool,
) -> None:
    config = BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=3, num_attention_heads=2,
        intermediate_size=32, hidden_dropout_prob=0.3, attention_probs_dropout_prob=0.0,
        use_cache=False,
    )  # fmt: skip
    torch.manual_seed(0)
    model = BertModel(config, add_pooling_layer=False).train()
    use_host_kernels(model)
    if recomputed:
        checkpoint_activations(model)
    graph = compiled(model)
    ids = torch.randint(50, (4, 24))
    kept: list[torch.Tensor] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)
        return tensor

    def loss() -> torch.Tensor:
        torch.manual_seed(3)
        hidden = graph(inputs_embeds=embedded).last_hidden_state  # type: ignore[operator]
        return (hidden * weights).sum()

    weights = torch.randn(4, 24, 16)
    embedded = model.embeddings.word_embeddings(ids).detach().requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        found = loss()
    assert not [each for each in kept if each.dtype == torch.bool and each.numel() > 100]
    (gradient,) = torch.autograd.grad(found, embedded)
    # The same masks for the loss and its gradient: it is the slope of that loss.
    direction = torch.randn(embedded.shape)
    slope = float((gradient * direction).sum())
    with torch.no_grad():
        ends = []
        for side in (1e-3, -1e-3):
            moved = embedded + side * direction
            torch.manual_seed(3)
            hidden = graph(inputs_embeds=moved).last_hidden_state  # type: ignore[operator]
            ends.append(float((hidden * weights).sum()))
    assert (ends[0] - ends[1]) / 2e-3 == pytest.approx(slope, rel=2e-2)
