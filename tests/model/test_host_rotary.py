"""Rotary positions on the host beside torch's formula: bit for bit, in any layout and with any threads."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch

from chronomask.model import dropout, host_rotary, modernbert
from chronomask.model.bfloat16 import of_bits, to_bits
from chronomask.model.host_rotary import takes, turn
from chronomask.model.modernbert import rotate

DTYPES = (torch.float32, torch.bfloat16)


@pytest.fixture
def formula(monkeypatch: pytest.MonkeyPatch) -> Callable[..., torch.Tensor]:
    """What torch makes of the same numbers."""

    def run(*given: torch.Tensor) -> torch.Tensor:
        with monkeypatch.context() as patch:
            patch.setattr(host_rotary, "takes", lambda *_: False)
            return modernbert._turn(*given)

    return run


def angles(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    half = 100 * torch.rand(*shape[:-1], shape[-1] // 2)
    both = torch.cat((half, half), -1)
    return both.cos(), both.sin()


def layouts(dtype: torch.dtype) -> Iterator[tuple[torch.Tensor, tuple[int, ...]]]:
    """States, and a shape of angles that broadcasts to them."""
    qkv = torch.randn(2, 7, 3, 4, 6).to(dtype)
    query, _, value = (x.transpose(1, 2) for x in qkv.unbind(2))
    yield query, (1, 1, 7, 6)
    yield value, (2, 1, 7, 6)
    yield torch.randn(2, 4, 7, 6).to(dtype), (1, 1, 7, 6)
    yield torch.randn(2, 4, 6, 7).to(dtype).transpose(2, 3), (1, 1, 7, 6)
    yield torch.randn(9, 4, 6).to(dtype), (9, 1, 6)
    yield torch.randn(9, 4, 6).to(dtype)[1::2], (4, 1, 6)
    yield torch.randn(5, 130).to(dtype), (130,)
    yield torch.randn(2).to(dtype), (2,)
    yield torch.randn(1, 4, 6).to(dtype).expand(3, 4, 6), (3, 1, 6)
    yield torch.randn(0, 4, 6).to(dtype), (0, 1, 6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("as_states", [False, True])
def test_every_layout_gives_what_torch_gives(
    dtype: torch.dtype, as_states: bool, formula: Callable[..., torch.Tensor]
) -> None:
    torch.manual_seed(0)
    for x, shape in layouts(dtype):
        cos, sin = (angle.to(dtype) if as_states else angle for angle in angles(*shape))
        assert takes(x, cos)
        found, expected = turn(x, cos, sin), formula(x, cos, sin)
        assert found.dtype == dtype
        assert torch.equal(found, expected)


def test_angles_may_differ_in_shape(formula: Callable[..., torch.Tensor]) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 5, 4)
    (cos, _), (_, sin) = angles(1, 1, 5, 4), angles(2, 1, 5, 4)
    assert torch.equal(turn(x, cos, sin), formula(x, cos, sin))
    assert torch.equal(turn(x, sin, cos), formula(x, sin, cos))


def test_what_it_does_not_know_is_left_to_torch() -> None:
    cos = torch.ones(6)
    assert takes(torch.ones(2, 2, 2, 6), cos)
    assert not takes(torch.ones(1, 2, 2, 2, 6), cos)
    assert not takes(torch.ones(2, 6, dtype=torch.float64), cos)
    assert not takes(torch.ones(2, 6, dtype=torch.float16), cos)
    assert not takes(torch.ones(2, 6, device="meta"), cos)
    assert not takes(torch.ones(2, 6), cos[:1])


def test_threads_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    before = torch.get_num_threads()
    x, (cos, sin) = torch.randn(3, 5, 11, 8), angles(1, 1, 11, 8)
    alone = turn(x, cos, sin)
    monkeypatch.setattr(dropout, "_PART", 32)
    try:
        torch.set_num_threads(3)
        assert torch.equal(turn(x, cos, sin), alone)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_no_number_stays_none(dtype: torch.dtype) -> None:
    x = torch.tensor([[torch.nan, 1.0], [torch.inf, 1.0], [1.0, -torch.inf]]).to(dtype)
    cos, sin = angles(2)
    found = turn(x, cos, sin)
    wanted = torch.stack((x[:, 0] * cos[0] - x[:, 1] * sin[0], x[:, 1] * cos[0] + x[:, 0] * sin[0]))
    assert torch.equal(found.isnan(), wanted.T.isnan())
    assert torch.equal(found.isinf(), wanted.T.isinf())


def test_a_gradient_has_a_gradient() -> None:
    torch.manual_seed(0)
    cos, sin = angles(1, 1, 3, 4)
    x = torch.randn(1, 2, 3, 4, requires_grad=True)
    weights = torch.randn(1, 2, 3, 4)
    (first,) = torch.autograd.grad((rotate(x, cos, sin) ** 2 * weights).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    ours = x.detach().double().requires_grad_()
    c, s = cos.double(), sin.double()
    (first,) = torch.autograd.grad(
        (rotate(ours, c, s) ** 2 * weights).sum(), ours, create_graph=True
    )
    (expected,) = torch.autograd.grad(first.sum(), ours)
    torch.testing.assert_close(second.double(), expected, rtol=1e-5, atol=1e-5)


def test_bits_of_every_number() -> None:
    """All of bfloat16, and what lies between two of them: up, down, and in the middle."""
    every = np.arange(2**16, dtype=np.uint16)
    as_torch = torch.from_numpy(every).view(torch.bfloat16)
    numbers = np.array([of_bits(bits) for bits in every], np.float32)
    assert np.array_equal(numbers, as_torch.float().numpy(), equal_nan=True)
    for below in (0x0000, 0x7FFF, 0x8000, 0x8001):
        between = (every.astype(np.uint32) << 16 | below).view(np.float32)
        rounded = np.array([to_bits(value) for value in between], np.uint16)
        expected = torch.from_numpy(between).bfloat16()
        got = torch.from_numpy(rounded).view(torch.bfloat16)
        same = torch.from_numpy(rounded) == expected.view(torch.uint16)
        assert bool((same | (got.isnan() & expected.isnan())).all())
