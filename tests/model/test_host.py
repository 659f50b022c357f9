"""Dropout and linear layers on the host: right, and functions of torch's seed."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from chronomask.model import host
from chronomask.model.host import HostDropout, HostLinear, drop, use_host_kernels


@pytest.mark.parametrize("dropout", [0.0, 0.1, 0.5, 1.0])
def test_values_are_dropped_as_often_as_asked_and_keep_their_mean(dropout: float) -> None:
    torch.manual_seed(0)
    kept = drop(torch.ones(401, 500), dropout)
    scale = 1 / (1 - dropout) if dropout < 1 else 0.0
    values = sorted({scale, 0.0}) if dropout else [1.0]
    assert kept.unique().tolist() == pytest.approx(values, rel=2**-15)
    if 0 < dropout < 1:
        # Rounding of the probability: 2⁻¹⁷; five standard errors of the share.
        error = 5 * (dropout * (1 - dropout) / kept.numel()) ** 0.5 + 2**-17
        assert float((kept == 0).double().mean()) == pytest.approx(dropout, abs=error)


def test_torchs_seed_decides_and_each_call_draws_anew() -> None:
    layer, ones = HostDropout(0.3), torch.ones(7, 11)
    torch.manual_seed(5)
    first, second = layer(ones), layer(ones)
    torch.manual_seed(5)
    assert torch.equal(layer(ones), first)
    assert not torch.equal(first, second)
    assert torch.equal(layer.eval()(ones), ones)


def test_gradients_are_dropped_as_the_values_were() -> None:
    values = torch.ones(50, 50, requires_grad=True)
    dropped = HostDropout(0.4)(values)
    dropped.sum().backward()
    assert values.grad is not None
    assert torch.equal(values.grad, dropped.detach())


def test_every_plain_layer_of_a_model_changes_and_no_other() -> None:
    class Narrow(nn.Linear):
        pass

    model = nn.Sequential(
        nn.Linear(2, 2), Narrow(2, 2), nn.Dropout(0.2), nn.ModuleList([nn.AlphaDropout(0.1)])
    ).eval()
    weights = {name: weight.data_ptr() for name, weight in model.named_parameters()}
    use_host_kernels(model)
    use_host_kernels(model)  # once more changes nothing
    kinds = [HostLinear, Narrow, HostDropout, nn.ModuleList, nn.AlphaDropout]
    assert [type(m) for m in model.modules()][1:] == kinds
    assert not any(m.training for m in model.modules())
    assert {name: weight.data_ptr() for name, weight in model.named_parameters()} == weights


SHAPES = [(2, 3), (1, 7), (5, 1, 4), (2, 0, 4), (9, 33), (130, 65)]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.skipif(not host._onednn_is_faster(), reason="torch's own products are used here")
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


@pytest.mark.skipif(not hasattr(torch.ops.mkldnn, "_linear_pointwise"), reason="no such product")
def test_what_a_matrix_gives_is_no_view(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "_onednn_is_faster", lambda: True)  # whatever this processor is
    layer = HostLinear(3, 4)
    assert not layer(torch.randn(5, 3))._is_view()
    torch.testing.assert_close(
        layer(torch.ones(2, 5, 3)), nn.Linear.forward(layer, torch.ones(2, 5, 3))
    )


def test_frozen_weights_and_inputs_take_no_gradients() -> None:
    layer = HostLinear(3, 4)
    layer.weight.requires_grad_(False)
    layer(torch.randn(5, 3)).sum().backward()
    assert layer.weight.grad is None
    assert layer.bias.grad is not None
    assert not layer.requires_grad_(False)(torch.randn(5, 3)).requires_grad


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


@pytest.mark.parametrize("shape", [(5, 3), (2, 5, 3)])
def test_what_a_layer_gives_may_be_changed_in_place(shape: tuple[int, ...]) -> None:
    """As DeBERTa does with a view of it."""
    layer = HostLinear(3, 4)
    given = layer(torch.randn(shape)).unflatten(-1, (2, 2)).transpose(-1, -2)
    given /= 2.0
    given.sum().backward()
    assert layer.weight.grad is not None
