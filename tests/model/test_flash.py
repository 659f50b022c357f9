"""Faster attention is used where it is installed and right; torch's own stays where it is not."""

from __future__ import annotations

import logging
import sys
import types
from typing import Any

import pytest
import torch
from torch.nn import attention
from transformers import PreTrainedTokenizerBase

from chronomask.model import flash, flash4
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

    def switch(*, on: bool) -> None:
        if on:
            activate("FA4")

    monkeypatch.setattr(flash4, "switch", switch)
    monkeypatch.setattr(attention, "list_flash_attention_impls", lambda: ["FA3"])
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
    assert not flash4.is_on()
    assert attention.current_flash_attention_impl() is None


class _Interface:
    """What the package offers, by torch on the host: its names and results as of 4.0.0b36."""

    @staticmethod
    def attend(query: Any, key: Any, value: Any, how: Any) -> tuple[torch.Tensor, ...]:
        """Queries, keys and values float32 [heads, N, width], and each softmax [heads, N, M]."""
        of_query, of_key = (
            torch.searchsorted(
                how[f"cu_seqlens_{side}"],
                torch.arange(x.shape[0], dtype=torch.int32),
                right=True,
            )
            for side, x in (("q", query), ("k", key))
        )
        seen = of_query[:, None] == of_key
        if how["window_size_left"] is not None:
            place = torch.arange(key.shape[0])
            seen &= (place[:, None] - place).abs() <= how["window_size_left"]
        if how["causal"]:
            seen &= torch.ones_like(seen).tril()
        q, k, v = (x.float().transpose(0, 1) for x in (query, key, value))
        k, v = (x.repeat_interleave(q.shape[0] // k.shape[0], 0) for x in (k, v))
        scale = q.shape[-1] ** -0.5 if how["softmax_scale"] is None else how["softmax_scale"]
        scores = (q @ k.transpose(1, 2) * scale).masked_fill(~seen, -torch.inf)
        return q * scale, k * scale, v, scores.softmax(-1).nan_to_num()

    def _flash_attn_fwd(self, *tensors: torch.Tensor, return_lse: bool, **how: Any) -> Any:
        query, _, value, softmax = self.attend(*tensors, how)
        output = (softmax @ value).transpose(0, 1).to(tensors[0].dtype).contiguous()
        return output, query.new_zeros(query.shape[:2]), *3 * (None,)

    def _flash_attn_bwd(
        self, *tensors: torch.Tensor, dq: Any, dk: Any, dv: Any, **how: Any
    ) -> None:
        query, key, value, softmax = self.attend(*tensors[:3], how)
        into = tensors[4].float().transpose(0, 1)
        of_scores = into @ value.transpose(1, 2)
        of_scores = softmax * (of_scores - (of_scores * softmax).sum(-1, keepdim=True))
        dq.copy_((of_scores @ key).transpose(0, 1))
        for made, found in (
            (dk, of_scores.transpose(1, 2) @ query),
            (dv, softmax.transpose(1, 2) @ into),
        ):
            shared = found.unflatten(0, (made.shape[1], -1)).sum(1)
            made.copy_(shared.transpose(0, 1))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # torch's own, compiling
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*script_method:DeprecationWarning")
@pytest.mark.parametrize("compiled", [False, True])
def test_flash_attention_4_is_called_as_its_releases_are(
    compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows, causal documents, shared keys, documents in which no token asks; also in a compiled graph."""
    from chronomask.model import attention as ours

    package = types.ModuleType("flash_attn.cute")
    monkeypatch.setitem(sys.modules, "flash_attn", types.ModuleType("flash_attn"))
    monkeypatch.setitem(sys.modules, "flash_attn.cute", package)
    monkeypatch.setattr(package, "interface", _Interface(), raising=False)
    monkeypatch.setattr(ours, "varlen_fits", lambda query, _: query.dtype == torch.bfloat16)
    cases = [CASE, AttentionCase(4, 2, 16, (None,)), AttentionCase(2, 2, 16, (None,), causal=True)]
    if compiled:
        attend = torch.compile(ours.documents_attention, backend="aot_eager", fullgraph=True)
        monkeypatch.setattr(ours, "documents_attention", attend)
        cases = cases[:1]
    for case in cases:
        assert activate_fastest(case, CPU) == "FA4"
        assert flash4.is_on()
    assert flash.queries_agree.__wrapped__(2, 16, CPU, torch.bfloat16)
    monkeypatch.setattr(_Interface, "_flash_attn_bwd", lambda *_, **__: None)
    assert activate_fastest(CASE, CPU) is None
    assert not flash4.is_on()


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
