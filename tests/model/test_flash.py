"""Faster attention is used where it is installed and right; torch's own stays where it is not."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch.nn import attention
from transformers import PreTrainedTokenizerBase

from chronomask.model import flash
from chronomask.model.flash import AttentionCase, activate_fastest, case_of
from tests.support.tiny_models import small

CASE = AttentionCase(heads=2, key_heads=2, width=16, windows=(None, 9))
CPU = torch.device("cpu")


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """torch's registry with two that can be activated; what is in use stands under ``now``."""
    state: dict[str, Any] = {"now": None, "missing": set()}

    def activate(name: str) -> None:
        if name in state["missing"]:
            raise ModuleNotFoundError(f"No module named '{name}'")
        state["now"] = name

    def restore(_raise_warn: bool = True) -> None:
        state["now"] = None

    monkeypatch.setattr(attention, "list_flash_attention_impls", lambda: ["FA3", "FA4"])
    monkeypatch.setattr(attention, "activate_flash_attention_impl", activate)
    monkeypatch.setattr(attention, "restore_flash_attention_impl", restore)
    return state


def test_the_fastest_that_is_right_is_used(
    kernels: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    assert activate_fastest(CASE, CPU, lambda case, device: True) == kernels["now"] == "FA4"
    assert activate_fastest(CASE, CPU, lambda case, device: kernels["now"] == "FA3") == "FA3"
    assert "FA4 is installed and not used: its results differ" in caplog.text
    kernels["missing"] = {"FA4"}
    assert activate_fastest(CASE, CPU, lambda case, device: True) == "FA3"


def test_torchs_own_stays_where_none_is_right(kernels: dict[str, Any]) -> None:
    def fail(case: AttentionCase, device: torch.device) -> bool:
        raise RuntimeError("no backward pass for this width")

    for works in (fail, lambda case, device: False):
        assert activate_fastest(CASE, CPU, works) is None
        assert kernels["now"] is None


def test_every_installation_without_them_keeps_torchs_own() -> None:
    """torch's real registry on a machine that has neither package."""
    assert activate_fastest(CASE, CPU) is None
    assert attention.current_flash_attention_impl() is None


def test_the_check_tells_right_from_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    assert flash._agrees(CASE, CPU)
    from chronomask.model import attention as ours

    real = ours.documents_attention

    def wrong(module: Any, query: torch.Tensor, *rest: Any, **how: Any) -> Any:
        if query.dtype == torch.bfloat16:  # as a kernel that knows no windows
            how["sliding_window"] = None
        return real(module, query, *rest, **how)

    monkeypatch.setattr(ours, "documents_attention", wrong)
    assert not flash._agrees(CASE, CPU)
    assert flash._agrees(AttentionCase(2, 1, 16, (None,)), CPU)


def test_a_model_says_what_it_asks(tokenizer: PreTrainedTokenizerBase) -> None:
    assert case_of(small("bert", tokenizer, "row")) == AttentionCase(2, 2, 16, (None,))
    assert case_of(small("eurobert", tokenizer, "row")) == AttentionCase(2, 1, 16, (None,))
    assert case_of(small("modernbert", tokenizer, "row")) == AttentionCase(2, 2, 16, (5, None))


def test_queries_alone_are_tried_before_they_are_trusted(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A kernel that leaves the gradient of keys that no query sees as it found it is not used."""
    from chronomask.model import attention as ours

    asked = (2, 16, CPU, torch.bfloat16)
    check = flash.queries_agree.__wrapped__
    assert check(*asked)
    with torch.inference_mode(), torch.autocast("cpu"):
        assert check(*asked)  # as where a model is first evaluated

    real = ours.attention_at

    def unwritten(query: torch.Tensor, key: torch.Tensor, *rest: Any, **how: Any) -> torch.Tensor:
        output = real(query, key, *rest, **how)
        return output + 0 * (key * torch.inf).sum() if query.dtype == torch.bfloat16 else output

    monkeypatch.setattr(ours, "attention_at", unwritten)
    assert not check(*asked)

    def refuse(*_: Any, **__: Any) -> torch.Tensor:
        raise RuntimeError("no kernel for this width")

    monkeypatch.setattr(ours, "attention_at", refuse)
    caplog.set_level(logging.INFO)
    assert not check(*asked)
    assert (
        "all tokens ask in the last layer, since the kernel fails for some: RuntimeError: no kernel for"
        in (caplog.text)
    )
