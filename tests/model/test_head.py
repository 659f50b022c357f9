"""Logits at the predicted positions equal the model's own logits there."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from chronomask.model.head import HEADS, logits_at, losses_at, token_losses
from tests.support.tiny_models import small


@pytest.mark.parametrize("model_type", [*sorted(HEADS), "roformer"])
def test_gathered_logits_equal_full_logits(
    model_type: str, tokenizer: PreTrainedTokenizerBase
) -> None:
    model = small(model_type, tokenizer, "row")
    generator = torch.Generator().manual_seed(0)
    input_ids = torch.randint(5, len(tokenizer), (3, 64), generator=generator)
    positions = torch.tensor([0, 5, 63, 64, 100, 191])
    with torch.no_grad():
        full = model(input_ids=input_ids).logits.flatten(0, 1)[positions]
        gathered = logits_at(model, input_ids, positions, {})
    # FSDP2 warns of a view, because its gathering of parameters would miss what is done to one.
    assert not logits_at(model, input_ids, positions, {}, whole_layers=True)._is_view()
    assert gathered.shape == (6, len(tokenizer))
    assert full.std() > 1e-3
    torch.testing.assert_close(gathered, full, rtol=0, atol=1e-5)


def test_an_architecture_without_a_head_here_uses_its_own_forward() -> None:
    assert "roformer" not in HEADS


def test_no_position_gives_no_logits(tokenizer: PreTrainedTokenizerBase) -> None:
    model = small("bert", tokenizer, "row")
    logits = logits_at(model, torch.full((2, 8), 7), torch.empty(0, dtype=torch.int64), {})
    assert logits.shape == (0, len(tokenizer))
    logits.sum().backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert gradients
    assert all(bool((gradient == 0).all()) for gradient in gradients)


def test_token_losses_are_cross_entropy_with_its_gradient() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 11, generator=generator) * 20
    logits[1] += 1000
    targets = torch.tensor([3, 0, 10, 3, 7])
    ours, theirs = (logits.clone().requires_grad_() for _ in range(2))
    loss, correct, _ = token_losses(ours, targets)
    expected = torch.nn.functional.cross_entropy(theirs, targets, reduction="none")
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-4)
    weights = torch.tensor([1.0, 0.5, 2.0, 0.0, 3.0])
    (loss * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)
    assert correct.tolist() == (logits.argmax(1) == targets).tolist()


def test_token_losses_of_nothing_are_nothing() -> None:
    found = token_losses(torch.empty(0, 7), torch.empty(0, dtype=torch.int64))
    assert [tensor.shape for tensor in found] == [(0,)] * 3


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_log_z_has_its_value_and_gradient(share: float) -> None:
    """Beside float64: alone, and together with the loss, which shares its softmax."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 11, generator=generator) * torch.logspace(-1, 2, 6)[:, None]
    targets = torch.tensor([3, 0, 10, 3, 7, 1])
    ours, theirs = logits.clone().requires_grad_(), logits.double().requires_grad_()
    loss, _, log_z = token_losses(ours, targets)
    expected = theirs.logsumexp(1)
    torch.testing.assert_close(log_z.double(), expected, rtol=1e-6, atol=1e-6)
    of_loss = torch.nn.functional.cross_entropy(theirs, targets, reduction="none")
    (share * of_loss + 0.3 * expected.square()).sum().backward()
    total = 0.3 * log_z.square()
    (total + loss if share else total).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad.float(), rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # torch's own, compiling
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*script_method:DeprecationWarning")
@pytest.mark.parametrize("model_type", ["bert", "roberta", "roformer"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiled_losses_are_those_of_logits(
    model_type: str, dtype: torch.dtype, tokenizer: PreTrainedTokenizerBase
) -> None:
    """With their gradients, also that of log Z; positions that fill up leave no trace."""
    model = small(model_type, tokenizer, "row").eval()
    torch.nn.Module.to(model, dtype)
    generator = torch.Generator().manual_seed(0)
    input_ids, targets = (
        torch.randint(5, len(tokenizer), shape, generator=generator) for shape in ((3, 16), (5,))
    )
    positions = torch.tensor([0, 5, 15, 16, 47])
    weights = torch.tensor([1.0, 0.5, 2.0, 0.0, 3.0])
    found = []
    for compiled in (False, True):
        if compiled:
            loss, correct, log_z = losses_at(model, input_ids, positions, targets, {}, "aot_eager")
        else:
            logits = logits_at(model, input_ids, positions, {}).float()
            loss, correct, log_z = token_losses(logits, targets)
        model.zero_grad()
        (loss @ weights + log_z.square().sum()).backward()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        found.append([each.detach().float() for each in (loss, correct, log_z, *gradients)])
    assert found[0][0].shape == (5,)
    close: dict[str, Any] = (
        {"rtol": 1e-4, "atol": 1e-5} if dtype is torch.float32 else {"rtol": 0.05, "atol": 0.05}
    )
    torch.testing.assert_close(*found, **close)
