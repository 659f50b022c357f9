"""Linear layers on the host, by oneDNN where this torch has it: right, whatever this processor is."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForMaskedLM

from chronomask.model import host
from chronomask.model.dropout import KeyedDropout
from chronomask.model.head import logits_at
from chronomask.model.host import HostLinear, filled_up, use_host_kernels


@pytest.fixture
def by_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        pytest.skip("this torch has no such product")
    monkeypatch.setattr(host, "_onednn_is_faster", lambda: True)


def test_every_plain_layer_of_a_model_changes_and_no_other() -> None:
    class Narrow(nn.Linear):
        pass

    model = nn.Sequential(
        nn.Linear(2, 2), Narrow(2, 2), nn.Dropout(0.2), nn.ModuleList([nn.AlphaDropout(0.1)])
    ).eval()
    weights = {name: weight.data_ptr() for name, weight in model.named_parameters()}
    use_host_kernels(model)
    use_host_kernels(model)  # once more changes nothing
    kinds = [HostLinear, Narrow, KeyedDropout, nn.ModuleList, nn.AlphaDropout]
    assert [type(m) for m in model.modules()][1:] == kinds
    assert not any(m.training for m in model.modules())
    assert {name: weight.data_ptr() for name, weight in model.named_parameters()} == weights


SHAPES = [(2, 3), (1, 7), (5, 1, 4), (2, 0, 4), (9, 33), (130, 65)]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.usefixtures("by_onednn")
def test_linear_layers_and_their_gradients_are_those_of_double_precision(
    shape: tuple[int, ...], bias: bool
) -> None:
    torch.manual_seed(1)
    layer = HostLinear(shape[-1], 10, bias=bias)
    exact = nn.Linear(shape[-1], 10, bias=bias).double()
    exact.load_state_dict(layer.state_dict())
    x = torch.randn(shape)
    strided = torch.randn(*shape[:-1], 2 * shape[-1])[..., ::2]
    for value in (x, strided, x[..., :1].expand(shape)):
        ours, theirs = value.detach().requires_grad_(), value.double().requires_grad_()
        layer(ours).square().sum().backward()
        exact(theirs).square().sum().backward()
        assert layer(value).shape == (*shape[:-1], 10)
        for mine, its in zip(
            (ours, *layer.parameters()), (theirs, *exact.parameters()), strict=True
        ):
            assert mine.grad is not None
            assert its.grad is not None
            torch.testing.assert_close(mine.grad.double(), its.grad, rtol=1e-5, atol=1e-5)
        layer.zero_grad()
        exact.zero_grad()


@pytest.mark.usefixtures("by_onednn")
def test_what_a_matrix_gives_is_no_view() -> None:
    layer = HostLinear(3, 4)
    assert not layer(torch.randn(5, 3))._is_view()
    torch.testing.assert_close(
        layer(torch.ones(2, 5, 3)), nn.Linear.forward(layer, torch.ones(2, 5, 3))
    )


@pytest.mark.usefixtures("by_onednn")
def test_frozen_weights_and_inputs_take_no_gradients() -> None:
    layer = HostLinear(3, 4)
    layer.weight.requires_grad_(False)
    layer(torch.randn(5, 3)).sum().backward()
    assert layer.weight.grad is None
    assert layer.bias.grad is not None
    assert not layer.requires_grad_(False)(torch.randn(5, 3)).requires_grad


@pytest.mark.usefixtures("by_onednn")
def test_other_types_one_row_and_autocast_are_computed_as_ever() -> None:
    layer = HostLinear(3, 4)
    plain = nn.Linear(3, 4)
    plain.load_state_dict(layer.state_dict())
    x = torch.randn(5, 3)
    assert torch.equal(layer(x[0]), plain(x[0]))
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
        assert torch.equal(layer(x), plain(x))
    assert torch.equal(layer.double()(x.double()), plain.double()(x.double()))


@pytest.mark.usefixtures("by_onednn")
@pytest.mark.parametrize("shape", [(5, 3), (2, 5, 3)])
def test_what_a_layer_gives_may_be_changed_in_place(shape: tuple[int, ...]) -> None:
    """As DeBERTa does with a view of it."""
    layer = HostLinear(3, 4)
    given = layer(torch.randn(shape)).unflatten(-1, (2, 2)).transpose(-1, -2)
    given /= 2.0
    given.sum().backward()
    assert layer.weight.grad is not None


@pytest.mark.parametrize("autocast", [True, False])
@pytest.mark.parametrize("shape", [(1, 3), (31, 3), (32, 3), (33, 3), (2, 50, 3), (5, 700, 3)])
@pytest.mark.parametrize("bias", [True, False])
def test_rows_in_bfloat16_are_filled_up_and_none_sees_it(
    autocast: bool, shape: tuple[int, ...], bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    layer = HostLinear(3, 4, bias=bias)
    x = torch.randn(shape, requires_grad=True)
    if not autocast:
        layer.bfloat16()
        x = x.detach().bfloat16().requires_grad_()
    given, seen = torch.randn(*shape[:-1], 4).bfloat16(), []
    plain = nn.functional.linear
    found: list[tuple[torch.Tensor, ...]] = []
    for way in (layer, lambda x: plain(x, layer.weight, layer.bias)):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            monkeypatch.setattr(
                nn.functional, "linear", lambda x, *more: (seen.append(x), plain(x, *more))[1]
            )
            out = way(x)
            monkeypatch.undo()
        assert out.shape == (*shape[:-1], 4)
        assert out.dtype == torch.bfloat16
        found.append((out, *torch.autograd.grad(out, [x, *layer.parameters()], given)))
    for one, other in zip(*found, strict=True):
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other)
    (computed,) = seen
    assert computed.shape[:-1].numel() == filled_up(x.shape[:-1].numel())


def test_what_a_matrix_gives_in_bfloat16_is_no_view() -> None:
    layer = HostLinear(3, 4)
    with torch.autocast("cpu", torch.bfloat16):
        for rows in (32, 33):
            assert not layer(torch.randn(rows, 3))._is_view()
        given = layer(torch.randn(2, 5, 3)).unflatten(-1, (2, 2)).transpose(-1, -2)
    given /= 2.0  # as DeBERTa does
    given.sum().backward()
    assert layer.weight.grad is not None


@pytest.mark.usefixtures("by_onednn")
def test_gradients_of_gradients_are_those_of_double_precision() -> None:
    torch.manual_seed(0)
    layer, x = HostLinear(3, 4), torch.randn(5, 3)
    exact = nn.Linear(3, 4).double()
    exact.load_state_dict(layer.state_dict())
    found = []
    for module, value in ((layer, x), (exact, x.double())):
        value = value.requires_grad_()
        (gradient,) = torch.autograd.grad(module(value).tanh().sum(), value, create_graph=True)
        found.append(torch.autograd.grad(gradient.square().sum(), [value, *module.parameters()]))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-4, atol=1e-5)


def test_gradients_of_gradients_in_bfloat16() -> None:
    torch.manual_seed(0)
    layer, x = HostLinear(3, 4), torch.randn(5, 3, requires_grad=True)
    found = []
    for autocast in (True, False):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            out = layer(x).float().tanh().sum()
        (gradient,) = torch.autograd.grad(out, x, create_graph=True)
        found.append(torch.autograd.grad(gradient.square().sum(), layer.weight)[0])
    torch.testing.assert_close(*found, rtol=0.1, atol=0.02)


def test_rows_are_filled_up_to_few_numbers_that_are_not_far() -> None:
    sizes = [filled_up(rows) for rows in range(1, 20_000)]
    for rows, size in enumerate(sizes, 1):
        assert rows <= size < rows + max(32, rows / 16 + 1)
        assert filled_up(size) == size
    assert sizes == sorted(sizes)
    assert len(set(sizes)) <= 32 + 16 * 5
    assert {4096, 8192, 16_384} <= set(sizes)


def test_a_model_computes_few_shapes_however_many_tokens_are_predicted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: set[tuple[int, ...]] = set()
    plain = nn.functional.linear
    monkeypatch.setattr(
        nn.functional, "linear", lambda x, *more: (seen.add(tuple(x.shape)), plain(x, *more))[1]
    )
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = BertForMaskedLM(BertConfig(vocab_size=40, intermediate_size=32, **sizes))
    use_host_kernels(model)
    ids = torch.randint(5, 40, (8, 64))
    for number in range(65, 97):
        with torch.autocast("cpu", torch.bfloat16):
            logits = logits_at(model, ids, torch.arange(0, 5 * number, 5), {})
        assert logits.shape == (number, 40)
    assert {shape[0] for shape in seen if len(shape) == 2} == {96}


@pytest.mark.parametrize(("processor", "faster"), [("znver4", True), ("sapphirerapids", False)])
def test_only_processors_where_it_was_seen_to_be_faster_use_it(
    processor: str, faster: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host, "get_host_cpu_name", lambda: processor)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    there = hasattr(torch.ops.mkldnn, "_linear_pointwise")
    assert host._onednn_is_faster.__wrapped__() == (faster and there)
