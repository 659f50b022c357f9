"""ModernBERT: transformers' numbers forwards, float32's derivative backwards, modules as they were."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForMaskedLM, PreTrainedTokenizerBase
from transformers.models.modernbert.modeling_modernbert import apply_rotary_pos_emb

from chronomask.model import modernbert
from chronomask.model.modernbert import rotate
from chronomask.model.open import open_model
from tests.support.tiny_models import small


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


@pytest.mark.parametrize("in_one_pass", [False, True])
def test_a_model_keeps_its_modules_and_numbers(
    in_one_pass: bool,
    tmp_path: Path,
    tokenizer: PreTrainedTokenizerBase,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also in the way of a CUDA device, whose kernels are here replaced by what they compute."""
    monkeypatch.setattr(modernbert, "has_kernels", lambda _: in_one_pass)
    model = small("modernbert", tokenizer, "row")
    model.save_pretrained(tmp_path)
    theirs = AutoModelForMaskedLM.from_pretrained(tmp_path, attn_implementation="sdpa").eval()
    ours = open_model(tmp_path).eval()
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ids = torch.randint(5, len(tokenizer), (2, 40), generator=torch.Generator().manual_seed(0))
    gradients: list[list[torch.Tensor]] = []
    logits = []
    for each in (ours, theirs):
        output: Any = each(input_ids=ids)
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


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("tokens", "heads", "width"), [(1, 1, 2), (21, 3, 16), (1000, 12, 64)])
def test_kernels_rotate_and_turn_back(
    tokens: int, heads: int, width: int, dtype: torch.dtype
) -> None:
    from chronomask.model.triton_kernels import rotate_back, rotate_both

    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(tokens, 3, heads, width, generator=generator).to("cuda", dtype)
    cos, sin = (x[0].cuda() for x in angles(tokens, width))
    query, key = rotate_both(qkv, cos, sin)
    exact: dict[str, Any] = (
        {"rtol": 1e-5, "atol": 1e-5} if dtype is torch.float32 else {"rtol": 0.01, "atol": 0.03}
    )
    torch.testing.assert_close(query, rotate(qkv[:, 0], cos[:, None], sin[:, None]), **exact)
    torch.testing.assert_close(key, rotate(qkv[:, 1], cos[:, None], sin[:, None]), **exact)
    # Values as they come out of attention: part of something wider.
    torch.testing.assert_close(rotate_back(query, key, qkv[:, 2], cos, sin), qkv, **exact)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 2), (5, 7, 66), (100, 2304)])
def test_the_kernel_of_a_gate_gives_its_gradient(
    shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    from chronomask.model.triton_kernels import gated_gelu_gradient

    generator = torch.Generator().manual_seed(0)
    both = torch.randn(shape, generator=generator).to("cuda", dtype).requires_grad_()
    x, gate = both.float().chunk(2, -1)
    into = torch.randn(x.shape, generator=generator).to("cuda", dtype)
    product = torch.nn.functional.gelu(x) * gate
    (wanted,) = torch.autograd.grad(product, both, into.float())
    exact: dict[str, Any] = (
        {"rtol": 1e-4, "atol": 1e-5} if dtype is torch.float32 else {"rtol": 0.02, "atol": 0.02}
    )
    torch.testing.assert_close(gated_gelu_gradient(into, both.detach()), wanted, **exact)
