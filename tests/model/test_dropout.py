"""Dropout on the host: the right share, the right scale, a function of torch's seed."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from chronomask.model.dropout import HostDropout, draw_kept, drop_on_host


@pytest.mark.parametrize("dropout", [0.0, 0.1, 0.5, 1.0])
def test_values_are_dropped_as_often_as_asked_and_keep_their_mean(dropout: float) -> None:
    torch.manual_seed(0)
    kept = draw_kept(torch.Size((401, 500)), dropout, torch.float32)
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


def test_every_plain_dropout_of_a_model_is_replaced_and_no_other() -> None:
    model = nn.Sequential(
        nn.Linear(2, 2), nn.Dropout(0.2), nn.ModuleList([nn.Dropout(0.0), nn.AlphaDropout(0.1)])
    ).eval()
    names = [name for name, _ in model.named_parameters()]
    drop_on_host(model)
    drop_on_host(model)  # once more changes nothing
    found = [m for m in model.modules() if isinstance(m, HostDropout)]
    assert [m.p for m in found] == [0.2, 0.0]
    assert not any(m.training for m in found)
    assert not any(type(m) is nn.Dropout for m in model.modules())
    assert [name for name, _ in model.named_parameters()] == names
