"""ModernBERT: transformers' numbers forwards, float32's derivative backwards, modules as they were."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForMaskedLM, PreTrainedTokenizerBase
from transformers.models.modernbert.modeling_modernbert import apply_rotary_pos_emb

from chronomask.model import modernbert
from chronomask.model.modernbert import rotate
from chronomask.model.open import open_model
from tests.support.tiny_models import small


def rotated(qkv: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    return torch.stack([rotate(qkv[:, k], cos[:, None], sin[:, None]) for k in range(2)])


def rotated_back(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
) -> torch.Tensor:
    turned = rotated(torch.stack((query, key), 1), cos, -sin)
    return torch.stack((*turned, value), 1)


def gate_gradient(into: torch.Tensor, both: torch.Tensor) -> torch.Tensor:
    given = both.detach().float().requires_grad_()
    with torch.enable_grad():
        x, gate = given.chunk(2, -1)
        product = torch.nn.functional.gelu(x) * gate
    return torch.autograd.grad(product, given, into.float())[0].to(both.dtype)


FORMULAS: Any = SimpleNamespace(
    rotate_both=rotated, rotate_back=rotated_back, gated_gelu_gradient=gate_gradient
)
"""What the kernels compute, in torch."""
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Our kernels on a processor, where Triton's interpreter runs them."""
    if torch.cuda.is_available():
        pytest.skip(
            "a process has kernels compiled or interpreted, and here is a device for the former"
        )
    pytest.importorskip("triton", reason="Triton, which interprets kernels, is not installed")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    from chronomask.model import triton_kernels

    return triton_kernels


@pytest.fixture
def kernels(device: str, request: pytest.FixtureRequest) -> Any:
    """Our kernels for the device of the test."""
    if device == "cpu":
        return request.getfixturevalue("interpreted")
    from chronomask.model import triton_kernels

    return triton_kernels


def angles(length: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    steps = torch.arange(length)[:, None] / 10 ** torch.linspace(0, 3, width // 2)
    both = torch.cat((steps, steps), -1)[None]
    return both.cos(), both.sin()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("length", "width"), [(1, 2), (7, 16), (33, 64)])
def test_rotation_is_transformers_and_its_gradient_autograds(
    length: int, width: int, dtype: torch.dtype
) -> None:
    cos, sin = angles(length, width)
    generator = torch.Generator().manual_seed(0)
    query, into = (
        torch.randn(2, 3, length, width, generator=generator).to(dtype) for _ in range(2)
    )
    theirs, ours = (query.clone().requires_grad_() for _ in range(2))
    expected, _ = apply_rotary_pos_emb(theirs, theirs, cos, sin)
    found = rotate(ours, cos[:, None], sin[:, None])
    assert torch.equal(found, expected)
    (wanted,) = torch.autograd.grad(expected, theirs, into)
    (gradient,) = torch.autograd.grad(found, ours, into)
    # In bfloat16 autograd rounds the two terms of its sum one after the other; ours rounds their sum.
    exactly = dtype == torch.float32
    torch.testing.assert_close(
        gradient, wanted, **({} if exactly else {"rtol": 0.02, "atol": 0.02})
    )
    back = rotate(found.detach(), cos[:, None], -sin[:, None])
    torch.testing.assert_close(back, query, rtol=0.02, atol=1e-5 if exactly else 0.03)


def test_gradients_are_numerical_ones() -> None:
    cos, sin = (x.double() for x in angles(3, 4))

    def turn(x: torch.Tensor) -> torch.Tensor:
        return rotate(x, cos.float(), sin.float())

    x = torch.randn(1, 3, 4, requires_grad=True)
    into = torch.randn(1, 3, 4)
    (gradient,) = torch.autograd.grad(turn(x), x, into)
    step = 1e-2
    for place in range(x.numel()):
        nudge = torch.zeros(x.numel())
        nudge[place] = step
        moved = ((turn(x + nudge.view_as(x)) - turn(x - nudge.view_as(x))) * into).sum() / (
            2 * step
        )
        assert moved.item() == pytest.approx(gradient.flatten()[place].item(), abs=1e-4)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch's own
@pytest.mark.parametrize("way", ["plain", "formulas", "kernels", "compiled kernels"])
def test_a_model_keeps_its_modules_and_numbers(
    way: str,
    tmp_path: Path,
    tokenizer: PreTrainedTokenizerBase,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    """Also in the way of a CUDA device: with what its kernels compute, and with the kernels themselves."""
    monkeypatch.setattr(modernbert, "has_kernels", lambda _: way != "plain")
    if way == "formulas":
        monkeypatch.setitem(sys.modules, "chronomask.model.triton_kernels", FORMULAS)
    elif way != "plain":
        request.getfixturevalue("interpreted")
    model = small("modernbert", tokenizer, "row")
    model.save_pretrained(tmp_path)
    theirs = AutoModelForMaskedLM.from_pretrained(tmp_path, attn_implementation="sdpa").eval()
    ours = open_model(tmp_path).eval()
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ids = torch.randint(5, len(tokenizer), (2, 40), generator=torch.Generator().manual_seed(0))
    gradients: list[list[torch.Tensor]] = []
    logits = []
    run: Any = ours
    if way.startswith("compiled"):
        torch.compiler.reset()
        run = torch.compile(ours, backend="aot_eager", fullgraph=True)
    for each, call in ((ours, run), (theirs, theirs)):
        output: Any = call(input_ids=ids)
        output.logits.square().mean().backward()
        logits.append(output.logits)
        gradients.append([p.grad for p in each.parameters() if p.grad is not None])
    torch.testing.assert_close(logits[0], logits[1], rtol=0, atol=1e-5)
    assert len(gradients[0]) == len(gradients[1])
    for found, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch's own
def test_both_directions_are_one_graph_without_joined_halves() -> None:
    """What a compiler is given: no joining and no writing into zeros of anything as large as the queries."""
    torch.compiler.reset()
    graphs: list[Any] = []

    def keep(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Any:
        graphs.append(graph)
        return make_boxed_func(graph.forward)

    from functorch.compile import make_boxed_func
    from torch._dynamo.backends.common import aot_autograd

    compiled = torch.compile(rotate, backend=aot_autograd(fw_compiler=keep), fullgraph=True)
    cos, sin = (x[:, None] for x in angles(8, 4))
    query = torch.randn(2, 3, 8, 4, requires_grad=True)
    compiled(query, cos, sin).sum().backward()
    torch.compiler.reset()
    assert len(graphs) == 2
    for graph in graphs:
        for node in graph.graph.nodes:
            if any(word in str(node.target) for word in ("cat", "slice_scatter", "slice_backward")):
                assert node.meta["val"].numel() == sin.numel()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("tokens", "heads", "width"), [(1, 1, 2), (21, 3, 16), (100, 12, 64)])
def test_kernels_rotate_and_turn_back(
    kernels: Any, tokens: int, heads: int, width: int, dtype: torch.dtype, device: str
) -> None:
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(tokens, 3, heads, width, generator=generator).to(device, dtype)
    cos, sin = (x[0].to(device) for x in angles(tokens, width))
    query, key = kernels.rotate_both(qkv, cos, sin)
    exact: dict[str, Any] = (
        {"rtol": 1e-5, "atol": 1e-5} if dtype is torch.float32 else {"rtol": 0.01, "atol": 0.03}
    )
    torch.testing.assert_close(query, rotate(qkv[:, 0], cos[:, None], sin[:, None]), **exact)
    torch.testing.assert_close(key, rotate(qkv[:, 1], cos[:, None], sin[:, None]), **exact)
    # Values as they come out of attention: part of something wider.
    back = kernels.rotate_back(query, key, qkv[:, 2], cos, sin)
    torch.testing.assert_close(back, qkv, **exact)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 2), (5, 7, 66), (100, 2304)])
def test_the_kernel_of_a_gate_gives_its_gradient(
    kernels: Any, shape: tuple[int, ...], dtype: torch.dtype, device: str
) -> None:
    generator = torch.Generator().manual_seed(0)
    both = torch.randn(shape, generator=generator).to(device, dtype)
    into = torch.randn((*shape[:-1], shape[-1] // 2), generator=generator).to(device, dtype)
    wanted = gate_gradient(into, both)
    exact: dict[str, Any] = (
        {"rtol": 1e-4, "atol": 1e-5} if dtype is torch.float32 else {"rtol": 0.02, "atol": 0.02}
    )
    found = kernels.gated_gelu_gradient(into, both)
    torch.testing.assert_close(found, wanted, **exact)


@pytest.mark.parametrize("device", DEVICES)
def test_operators_of_kernels_are_what_they_say_to_the_compiler(kernels: Any, device: str) -> None:
    qkv = torch.randn(5, 3, 3, 16, device=device)
    cos, sin = (x[0].to(device) for x in angles(5, 16))
    into, both = torch.randn(2, 7, 3, device=device), torch.randn(2, 7, 6, device=device)
    for operator, given in (
        (kernels.rotate_both, (qkv, cos, sin)),
        (kernels.rotate_back, (*qkv.unbind(1), cos, sin)),
        (kernels.rotate_back, (*qkv.transpose(0, 2).unbind(1), *(x[:3] for x in (cos, sin)))),
        (kernels.gated_gelu_gradient, (into, both)),
        (kernels.gated_gelu_gradient, (into.transpose(0, 1), both.transpose(0, 1))),
    ):
        torch.library.opcheck(operator, given)
