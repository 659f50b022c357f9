"""Faster attention is used where it is installed and right; torch's own stays where it is not."""

from __future__ import annotations

import logging
import sys
import types
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import attention
from transformers import PreTrainedTokenizerBase

from chronomask.data.folder import PreparedData
from chronomask.errors import RunError
from chronomask.model import flash, flash4
from chronomask.model.documents import documents_between
from chronomask.model.flash import AttentionCase, activate_fastest, case_of, own_kernels_after
from chronomask.train import loop
from chronomask.train import open as opening
from chronomask.train.config import RunConfig
from chronomask.train.determinism import determinism
from chronomask.train.loop import pretrain
from tests.support.tiny_models import small
from tests.support.tiny_training import run_values

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
    monkeypatch.setattr(attention, "current_flash_attention_impl", lambda: state["now"])
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


def test_what_ran_before_is_put_back(kernels: dict[str, Any]) -> None:
    """A run's kernels were tried on its model alone; what a user switched on before stays on."""

    def fail() -> None:
        with own_kernels_after():
            assert activate_fastest(CASE, CPU, lambda case, device: True) == "FA4"
            raise RunError("the loss is not finite")

    for before in (None, "FA3"):
        kernels["now"] = before
        with pytest.raises(RunError):
            fail()
        assert kernels["now"] == before


def test_every_installation_without_them_keeps_torchs_own(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """torch's real registry on a machine that has neither package."""
    caplog.set_level(logging.INFO)
    assert activate_fastest(CASE, CPU) is None
    assert not flash4.is_on()
    assert attention.current_flash_attention_impl() is None
    assert "installed" not in caplog.text


class _Interface:
    """What the package offers, by torch on the host: its names and results as of 4.0.0b36.

    Gradients of queries of no document and of keys that none asks for are left as they were.
    """

    def __init__(self) -> None:
        self.tried: set[tuple[int, int]] = set()
        """the longest document and the number of documents of each call"""
        self.deterministic: bool | None = None

    def attend(self, query: Any, key: Any, value: Any, how: Any) -> tuple[torch.Tensor, ...]:
        """Queries, keys and values float32 [heads, N, width], and each softmax [heads, N, M]."""
        self.tried.add((how["max_seqlen_q"], how["cu_seqlens_q"].shape[0] - 1))
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
        self.deterministic = how["deterministic"]
        query, key, value, softmax = self.attend(*tensors[:3], how)
        asks, asked = softmax.amax((0, 2)) > 0, softmax.amax((0, 1)) > 0
        into = tensors[4].float().transpose(0, 1)
        of_scores = into @ value.transpose(1, 2)
        of_scores = softmax * (of_scores - (of_scores * softmax).sum(-1, keepdim=True))
        dq[asks] = (of_scores @ key).transpose(0, 1)[asks].to(dq.dtype)
        for made, found in (
            (dk, of_scores.transpose(1, 2) @ query),
            (dv, softmax.transpose(1, 2) @ into),
        ):
            shared = found.unflatten(0, (made.shape[1], -1)).sum(1)
            made[asked] = shared.transpose(0, 1)[asked].to(made.dtype)


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> Iterator[_Interface]:
    """FlashAttention-4 as if it were installed, and right for bfloat16."""
    from chronomask.model import attention as ours

    cute, interface = types.ModuleType("flash_attn.cute"), _Interface()
    monkeypatch.setitem(sys.modules, "flash_attn", types.ModuleType("flash_attn"))
    monkeypatch.setitem(sys.modules, "flash_attn.cute", cute)
    monkeypatch.setattr(cute, "interface", interface, raising=False)
    monkeypatch.setattr(ours, "varlen_fits", lambda query, _: query.dtype == torch.bfloat16)
    with own_kernels_after():
        yield interface


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # torch's own, compiling
@pytest.mark.filterwarnings("ignore:.*script_method:DeprecationWarning")
@pytest.mark.parametrize("compiled", [False, True])
def test_flash_attention_4_is_called_as_its_releases_are(
    compiled: bool, package: _Interface, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows, causal documents, shared keys, documents in which no token asks; also in a compiled graph."""
    from chronomask.model import attention as ours

    cases = [CASE, AttentionCase(4, 2, 16, (None,)), AttentionCase(2, 2, 16, (None,), causal=True)]
    if compiled:
        attend = torch.compile(ours.documents_attention, backend="aot_eager", fullgraph=True)
        monkeypatch.setattr(ours, "documents_attention", attend)
        cases = cases[:1]
    for case in cases:
        assert activate_fastest(case, CPU) == "FA4"
        assert flash4.is_on()
    assert flash.queries_agree(2, 16, CPU, torch.bfloat16)
    assert package.deterministic is False
    monkeypatch.setattr(_Interface, "_flash_attn_bwd", lambda *_, **__: None)
    assert activate_fastest(CASE, CPU) is None
    assert not flash4.is_on()


def test_kernels_are_tried_on_batches_like_those_of_the_run(
    package: _Interface, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The package compiles others for rows of one tile, and for more than 256 documents."""
    batches = ((16, 0), (128, 0), (256, 300), (4096, 0))
    case = replace(CASE, windows=(None,), batches=batches)
    assert activate_fastest(case, CPU) == "FA4"
    assert package.tried == {(16, 7), (128, 63), (256, 511), (1024, 511)}
    package.tried.clear()
    documents = documents_between(np.arange(0, 65, 8), 2, 32, CPU, room=300)
    assert flash.queries_agree(2, 16, CPU, torch.bfloat16, documents)
    assert package.tried == {(32, 511)}

    real = _Interface.attend

    def wrong_for_many(self: _Interface, *tensors: Any) -> tuple[torch.Tensor, ...]:
        *found, softmax = real(self, *tensors)
        return *found, softmax * (tensors[-1]["cu_seqlens_q"].shape[0] < 500)

    monkeypatch.setattr(_Interface, "attend", wrong_for_many)
    assert activate_fastest(case, CPU) is None
    assert activate_fastest(replace(case, batches=batches[:2]), CPU) == "FA4"


def test_keys_that_no_token_asks_for_have_no_gradient(package: _Interface) -> None:
    """As many queries as keys, filled up as a compiled model's are. What is not written is NaN here."""
    from chronomask.model.attention import attention_at

    documents = documents_between(np.array([0, 5, 8, 12]), 1, 12, CPU)
    positions = torch.tensor([0, 2, 3, 8, 9, 11, *6 * [12]])  # none of the second document
    tensors = [
        torch.randn(shape, dtype=torch.bfloat16) for shape in ((12, 2, 16), *2 * [(1, 2, 12, 16)])
    ]
    results = []
    flash4.switch(on=True)
    with determinism(True):
        for dtype in (torch.bfloat16, torch.float32):
            given = [tensor.to(dtype).requires_grad_() for tensor in tensors]
            number = 12 if dtype == torch.bfloat16 else 6
            output = attention_at(
                given[0][:number], given[1], given[2], positions[:number], None, dropout=0.0,
                scaling=None, sliding_window=None, documents=documents,
            )  # fmt: skip
            gradients = torch.autograd.grad(output[:6].float().square().sum(), given)
            results.append([output[:6].detach(), *gradients])
    assert package.deterministic is True
    for found, wanted in zip(*results, strict=True):
        torch.testing.assert_close(found.float(), wanted, rtol=0.03, atol=0.03)
    assert not any(found[:, :, 5:8].any() for found in results[0][2:])


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_a_run_tries_them_on_its_rows(
    dropout: float, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where attention has no dropout, which none of them knows."""
    cases: list[AttentionCase] = []
    monkeypatch.setattr(opening, "activate_fastest", lambda case, _: cases.append(case))
    model = small("bert", tokenizer, "row")
    model.config.attention_probs_dropout_prob = dropout
    changes: dict[str, Any] = {
        "length_warmup": {"start_length": 16, "steps": 2},
        "late_masks": {"layer": 1},
        "precision": "bf16",
    }
    config = RunConfig.parse({"data": "data", "steps": 4, "rows_per_step": 2, **changes})
    for device in ("cpu", "cuda"):
        opening._use_fastest_attention(model, torch.device(device), config, 64, 300)
    if dropout:
        assert not cases
    else:
        (case,) = cases
        lengths = {*range(1, 17), *range(2, 33, 2), *range(4, 65, 4)}
        assert set(case.batches) == {(length, n) for length in lengths for n in (0, 300)}


def test_after_a_run_torchs_own_are_back(
    tiny_data: PreparedData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used, finish = [], loop.finish

    def use(*_: Any) -> None:
        flash4._on = True

    def finish_and_look(*arguments: Any) -> Any:
        used.append(flash4.is_on())
        return finish(*arguments)

    monkeypatch.setattr(opening, "_use_fastest_attention", use)
    monkeypatch.setattr(loop, "finish", finish_and_look)
    pretrain(run_values(tiny_data) | {"steps": 1}, tmp_path / "run", progress=False)
    assert used == [True]
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

    asked = (2, 16, CPU, torch.bfloat16, (256, 0))
    check = flash._queries_agree.__wrapped__
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
