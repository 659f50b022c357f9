"""Dropout: as often as asked, the same for any threads, and a function of torch's seed."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from chronomask.model import dropout as module
from chronomask.model.compiled_dropout import drop_in_graph
from chronomask.model.dropout import KeyedDropout, drop, softmax_and_drop
from tests.support.processes import python_path


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def kept_by(key: int, size: int, dropout: float) -> NDArray[np.bool_]:
    """The hash with whole numbers of any size, cut to 32 bits after each operation."""
    kept = []
    for place in range(size):
        x = (place + key) % 2**32
        x ^= x >> 17
        x = (x * 0xED5AD4BB + (key >> 32)) % 2**32
        x ^= x >> 11
        x = x * 0xAC4C1B51 % 2**32
        x ^= x >> 15
        x = x * 0x31848BAB % 2**32
        kept.append(x ^ (x >> 14) >= dropout * 2**32)
    return np.array(kept)


def masks(keys: list[int], size: int, dropout: float) -> NDArray[np.float64]:
    """What keys drop, 1 where they do, centred and divided by its standard deviation: [keys, size]."""
    ones = torch.ones(size)
    dropped = [module.Kept(key, dropout).of(ones).numpy() == 0 for key in keys]
    return (np.array(dropped) - dropout) / np.sqrt(dropout * (1 - dropout))


@pytest.mark.parametrize("dropout", [0.0, 0.1, 0.5, 1.0])
def test_values_are_dropped_as_often_as_asked_and_keep_their_mean(dropout: float) -> None:
    torch.manual_seed(0)
    kept = drop(torch.ones(401, 500), dropout)
    scale = 1 / (1 - dropout) if dropout < 1 else 0.0
    values = sorted({scale, 0.0}) if dropout else [1.0]
    assert kept.unique().tolist() == pytest.approx(values)
    if 0 < dropout < 1:
        error = 5 * (dropout * (1 - dropout) / kept.numel()) ** 0.5
        assert float((kept == 0).double().mean()) == pytest.approx(dropout, abs=error)


@pytest.mark.parametrize("key", [0, 1, 2**32 - 3, 2**32, 2**62 - 1, 1234567890123456789])
def test_the_hash_is_that_of_plain_arithmetic(key: int) -> None:
    kept = module.Kept(key, 0.3).of(torch.ones(1000)) > 0
    assert kept.tolist() == kept_by(key, 1000, 0.3).tolist()


def test_masks_look_like_chance_within_a_key_and_between_keys() -> None:
    size = 100_000
    keys = np.random.default_rng(0).integers(2**62, size=300).tolist()
    found = masks(keys, size, 0.1)
    # Sums of what is chance have a standard deviation of 1; that of 300 of them is known to some 4 %.
    assert found.sum(1).std() / size**0.5 == pytest.approx(1, abs=0.2)
    for lag in (1, 2, 3, 8, 64, 768, 4096):
        products = (found[:, :-lag] * found[:, lag:]).sum(1) / (size - lag) ** 0.5
        assert products.std() == pytest.approx(1, abs=0.2)
        assert abs(products.mean()) < 5 / 300**0.5
    assert found.sum(0).std() / 300**0.5 == pytest.approx(1, abs=5 / (2 * size) ** 0.5)
    near = masks([keys[0], *(keys[0] ^ 1 << bit for bit in range(62))], size, 0.1)
    assert np.abs(near[1:] @ near[0] / size**0.5).max() < 5


def test_torchs_seed_decides_and_each_call_draws_anew() -> None:
    layer, ones = KeyedDropout(0.3), torch.ones(7, 11)
    torch.manual_seed(5)
    first, second = layer(ones), layer(ones)
    torch.manual_seed(5)
    assert torch.equal(layer(ones), first)
    assert not torch.equal(first, second)
    assert torch.equal(layer.eval()(ones), ones)


def test_gradients_are_dropped_as_the_values_were() -> None:
    values = torch.ones(50, 50, requires_grad=True)
    dropped = KeyedDropout(0.4)(values)
    dropped.sum().backward()
    assert values.grad is not None
    assert torch.equal(values.grad, dropped.detach())


def test_a_layer_of_dropout_draws_so_in_training_alone() -> None:
    values = torch.randn(50, 60)

    def seeded(what: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        torch.manual_seed(7)
        return what(values)

    layer = KeyedDropout(0.4)
    assert torch.equal(seeded(layer), seeded(lambda x: drop(x, 0.4)))
    graph = torch.compile(layer, backend="eager", fullgraph=True)
    assert torch.equal(seeded(graph), seeded(lambda x: drop_in_graph(x, 0.4)))
    assert torch.equal(layer.eval()(values), values)
    before = torch.get_rng_state()
    assert torch.equal(KeyedDropout(0.0)(values), values)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.usefixtures("threads")
def test_threads_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PART", 1000)
    found = []
    for number in (1, 2, 5):
        torch.set_num_threads(number)
        torch.manual_seed(1)
        scores = torch.linspace(-1, 1, 7 * 33 * 101).view(7, 33, 101).requires_grad_()
        given = softmax_and_drop(scores, 0.2)
        given.backward(drop(torch.ones_like(given), 0.5))
        assert scores.grad is not None
        found.append((given.detach(), scores.grad))
    for one, other in itertools.pairwise(found):
        assert all(map(torch.equal, one, other))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no processes are forked here")
def test_a_forked_process_has_threads_of_its_own() -> None:
    code = """
import os, torch
from chronomask.model import dropout
torch.set_num_threads(2)
dropout._PART = 10
dropout.drop(torch.ones(1000), 0.5)
child = os.fork()
if not child:
    dropout.drop(torch.ones(1000), 0.5)
    os._exit(7)
raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    ended = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": python_path()}, timeout=120
    )
    assert ended.returncode == 7


@pytest.mark.parametrize("shape", [(3, 5), (2, 4, 7, 9), (1, 1), (2, 0), (0, 3), (2, 3, 70, 81)])
def test_softmax_and_dropout_in_one_are_those_one_after_the_other(shape: tuple[int, ...]) -> None:
    scores, given = torch.randn(shape, requires_grad=True), torch.randn(shape)
    torch.manual_seed(3)
    fused = softmax_and_drop(scores, 0.3)
    (gradient,) = torch.autograd.grad(fused, scores, given)
    torch.manual_seed(3)
    apart = drop(torch.softmax(scores, -1), 0.3)
    assert torch.equal(fused, apart)
    torch.testing.assert_close(gradient, torch.autograd.grad(apart, scores, given)[0])


def test_gradients_of_gradients_and_in_double_precision_are_right() -> None:
    def seeded(values: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(5)
        return softmax_and_drop(values, 0.25)  # whose scale is a float32 number to 24 bits

    # In float32 the same way as in float64, where finite differences can tell.
    values = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(seeded, values, atol=1e-6)
    assert torch.autograd.gradgradcheck(seeded, values, atol=1e-6)
    single = values.detach().float().requires_grad_()
    for each in (values, single):
        (each_gradient,) = torch.autograd.grad(
            seeded(each)[0].square().sum(), each, create_graph=True
        )
        each_gradient.square().sum().backward()
    assert values.grad is not None
    assert single.grad is not None
    torch.testing.assert_close(single.grad.double(), values.grad, rtol=1e-4, atol=1e-6)


def test_strided_values_and_other_types() -> None:
    values = torch.randn(6, 8)
    for given in (
        values.t(),
        values[:, ::2],
        values[:1].expand(5, 8),
        values.bfloat16(),
        values.double(),
    ):
        torch.manual_seed(2)
        found = drop(given, 0.5)
        torch.manual_seed(2)
        factors = drop(torch.ones(given.shape), 0.5)
        assert found.dtype == given.dtype
        assert torch.equal(found, given * factors.to(given.dtype))
        torch.manual_seed(2)
        weights = softmax_and_drop(given, 0.5)
        torch.testing.assert_close(weights, torch.softmax(given, -1) * factors.to(given.dtype))


@pytest.mark.parametrize("dropout", [0.1, 0.3, 1.0])
def test_every_number_of_bfloat16_is_scaled_in_float32_and_rounded_to_the_nearest(
    dropout: float,
) -> None:
    every = torch.from_numpy(np.arange(2**16, dtype=np.uint16)).view(torch.bfloat16)
    torch.manual_seed(5)
    factors = drop(torch.ones(every.shape), dropout)
    expected = torch.where(factors > 0, every.float() * factors, 0.0).bfloat16()
    torch.manual_seed(5)
    found = drop(every.requires_grad_(), dropout)
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)
    (gradient,) = torch.autograd.grad(found, every, torch.ones_like(found))
    assert torch.equal(gradient, factors.bfloat16())


def test_what_is_dropped_is_0_whatever_it_was() -> None:
    torch.manual_seed(0)
    found = drop(torch.full((1000,), torch.nan), 0.5)
    assert 300 < int((found == 0).sum()) < 700
    assert int(found.isnan().sum()) == 1000 - int((found == 0).sum())
