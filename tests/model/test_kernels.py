"""Which attention kernels see a mask; what they give is what float32 gives, forwards and backwards."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.attention.varlen as varlen
from functorch.compile import make_boxed_func, min_cut_rematerialization_partition, nop
from torch._dynamo.backends.common import aot_autograd
from torch.nn.attention import SDPBackend, _cur_sdpa_kernel_backends, sdpa_kernel
from transformers import PreTrainedTokenizerBase

from chronomask.data.folder import PreparedData
from chronomask.evaluate.evaluate import evaluate
from chronomask.evaluate.tasks import make_tasks
from chronomask.model import attention
from chronomask.model.attention import attention_at, documents_attention, without_cudnn
from chronomask.model.documents import (
    DOCUMENTS_ATTENTION,
    Documents,
    documents_between,
    padded_rows,
)
from chronomask.train.config import RunConfig
from chronomask.train.loop import pretrain
from tests.support.tiny_models import small

ON_CUDA = pytest.param("cuda", marks=pytest.mark.gpu)
KEYED_LENGTHS = sorted(
    {1, 2, 63, 64, 65, 127, 128, 192, 320, 512, *(37 * k % 512 + 1 for k in range(8))}
)


def documents_of(lengths: list[int], length: int, device: str) -> Documents:
    """One padded row for each of ``lengths``; the padding of a row is a document of its own."""
    starts = np.arange(len(lengths) + 1) * length
    bounds = np.union1d(starts, starts[:-1] + np.asarray(lengths))
    return documents_between(bounds, len(lengths), length, device)


def by_hand(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, seen: torch.Tensor
) -> torch.Tensor:
    """softmax(q·k/√d)·v in float32 where ``seen`` bool [B, T, T]; [B, T, heads, width]."""
    times = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(times, 1) for x in (key, value))
    scores = query.float() @ key.float().mT / query.shape[-1] ** 0.5
    weights = scores.masked_fill(~seen[:, None], -torch.inf).softmax(-1)
    return (weights @ value.float()).transpose(1, 2)


def compare(
    lengths: list[int],
    *,
    window: int | None,
    scale: float,
    device: str,
    scope: str,
    key_heads: int = 2,
) -> None:
    """Output and gradients of real tokens against float32, for rows padded to the longest of ``lengths``."""
    length, heads, width = max(lengths), 2, 16
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    generator = torch.Generator().manual_seed(length)
    query, key, value = (
        (torch.randn(len(lengths), n, length, width, generator=generator) * scale)
        .to(device, dtype)
        .requires_grad_()
        for n in (heads, key_heads, key_heads)
    )
    real = torch.arange(length, device=device) < torch.tensor(lengths, device=device)[:, None]
    near = torch.ones(length, length, dtype=torch.bool, device=device)
    if window is not None:
        place = torch.arange(length, device=device)
        near = (place[:, None] - place).abs() < window
    seen = real[:, None, :] & real[:, :, None] & near
    padding_sees = ~real[:, :, None] & torch.eye(length, dtype=torch.bool, device=device)
    expected = by_hand(query, key, value, seen | padding_sees)

    how: dict[str, Any] = {"documents": documents_of(lengths, length, device)}
    mask = None
    if scope == "mask":  # as transformers makes it: rows of padding far from a token see nothing
        how, mask = {}, (real[:, None, None, :] & near).expand(-1, 1, length, length)
    found, _ = documents_attention(
        torch.nn.Identity(), query, key, value, mask, sliding_window=window, **how
    )
    assert found.isfinite().all()
    # Gradients that come in at padding are zeros: nothing reads it.
    into = torch.randn(found.shape, generator=generator).to(device) * real[:, :, None, None]
    wanted = torch.autograd.grad(expected, (query, key, value), into)
    gradients = torch.autograd.grad(found, (query, key, value), into.to(found.dtype))
    near_enough = 3e-2 if device == "cuda" else 1e-4
    _agree(found.detach()[real], expected.detach()[real], near_enough)
    _agree(torch.cat(gradients, 1), torch.cat(wanted, 1), near_enough)


def _agree(ours: torch.Tensor, theirs: torch.Tensor, near_enough: float) -> None:
    assert ours.isfinite().all()
    error = float((ours.float() - theirs.float()).abs().max())
    assert error <= near_enough * float(theirs.abs().max())


@pytest.mark.parametrize("device", ["cpu", ON_CUDA])
@pytest.mark.parametrize("scope", ["documents", "mask"])
@pytest.mark.parametrize("window", [None, 17])
def test_lengths_agree_with_float32(window: int | None, scope: str, device: str) -> None:
    for length in KEYED_LENGTHS:
        compare([length, (length + 1) // 2], window=window, scale=1.0, device=device, scope=scope)


@pytest.mark.slow
@pytest.mark.parametrize("device", ["cpu", ON_CUDA])
def test_all_lengths_agree_with_float32(device: str) -> None:
    for length in range(1, 513):
        scope = "mask" if length % 2 else "documents"
        window = (None, 17)[length // 2 % 2]
        compare([length], window=window, scale=1.0, device=device, scope=scope)


@pytest.mark.parametrize("device", ["cpu", ON_CUDA])
@pytest.mark.parametrize("scope", ["documents", "mask"])
@pytest.mark.parametrize("key_heads", [2, 1])
@pytest.mark.parametrize("lengths", [[50, 48], [60, 8], [300, 20], [192, 64, 1, 128], [64, 64]])
def test_mixed_batches_and_large_logits_agree_with_float32(
    lengths: list[int], key_heads: int, scope: str, device: str
) -> None:
    """Logits of some 200: log-sum-exps of rows far below and above 0."""
    for window in (None, 33):
        compare(lengths, window=window, scale=4.0, device=device, scope=scope, key_heads=key_heads)


def test_a_row_that_sees_nothing_spreads_no_nan() -> None:
    for mask in (torch.zeros(1, 1, 4, 4, dtype=torch.bool), torch.full((1, 1, 4, 4), -torch.inf)):
        for dropout in (0.0, 0.5):
            query = torch.randn(1, 2, 4, 8, requires_grad=True)
            output, _ = documents_attention(
                torch.nn.Identity(), query, query, query, mask, dropout=dropout
            )
            (gradient,) = torch.autograd.grad(output.sum(), query)
            assert output.isfinite().all()
            assert gradient.isfinite().all()


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> list[tuple[bool, set[SDPBackend]]]:
    """(whether a mask was passed, kernels that were allowed) of every call of torch's attention."""
    calls: list[tuple[bool, set[SDPBackend]]] = []
    attend = torch.nn.functional.scaled_dot_product_attention

    def record(*args: Any, **kwargs: Any) -> torch.Tensor:
        masked = kwargs.get("attn_mask") is not None or (len(args) > 3 and args[3] is not None)
        calls.append((masked, set(_cur_sdpa_kernel_backends())))
        return attend(*args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", record)
    return calls


def test_cudnn_never_sees_a_mask(
    kernels: list[tuple[bool, set[SDPBackend]]], tokenizer: PreTrainedTokenizerBase
) -> None:
    ids = torch.full((2, 12), 7)
    real = np.arange(12) < np.array([[12], [5]])
    for model_type in ("bert", "roberta", "modernbert", "esm", "albert"):
        for scope in ("documents", "row"):
            model = small(model_type, tokenizer, scope)
            inputs = padded_rows(model, real, "cpu")
            model(input_ids=ids, **inputs)
            del inputs["documents"]
            model(input_ids=ids, **inputs)
            model(input_ids=ids)
    assert {masked for masked, _ in kernels} == {True, False}
    for masked, allowed in kernels:
        assert (SDPBackend.CUDNN_ATTENTION in allowed) == (not masked)
        assert SDPBackend.MATH in allowed
    assert SDPBackend.CUDNN_ATTENTION in _cur_sdpa_kernel_backends()


def test_cudnn_never_sees_the_mask_of_a_models_own_attention(
    kernels: list[tuple[bool, set[SDPBackend]]], tiny_data: PreparedData, tmp_path: Path
) -> None:
    """mBART takes no attention function from outside. It trains, is validated, and is evaluated."""
    sizes = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 48}
    sizes |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "decoder_ffn_dim": 48}
    config = RunConfig.parse(
        {
            "data": str(tiny_data.path),
            "model": {"kind": "config", "model_type": "mbart", "overrides": sizes},
            "attention": "row",
            "steps": 1,
            "rows_per_step": 2,
        }
    )
    pretrain(config, tmp_path / "run", progress=False)
    trained = len(kernels)
    tasks = make_tasks(["mlm"], ["mlm.attention=row"])
    evaluate(tmp_path / "run", tasks, tiny_data.path, progress=False)
    assert len(kernels) > trained > 0
    assert any(masked for masked, _ in kernels)
    for masked, allowed in kernels:
        assert not masked or SDPBackend.CUDNN_ATTENTION not in allowed


def test_kernels_that_were_switched_off_stay_off() -> None:
    with sdpa_kernel(SDPBackend.MATH), without_cudnn():
        allowed = set(_cur_sdpa_kernel_backends())
    assert SDPBackend.MATH in allowed
    assert not allowed & {
        SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION,
    }  # fmt: skip


def test_the_choice_of_kernels_is_one_graph() -> None:
    torch.compiler.reset()
    compiled = torch.compile(documents_attention, backend="aot_eager", fullgraph=True)
    query = torch.randn(2, 2, 8, 4, requires_grad=True)
    mask = torch.ones(2, 1, 8, 8, dtype=torch.bool).tril()
    found, _ = compiled(torch.nn.Identity(), query, query, query, mask)
    expected, _ = documents_attention(torch.nn.Identity(), query, query, query, mask)
    torch.testing.assert_close(found, expected)
    found.sum().backward()
    torch.compiler.reset()


def test_no_mask_of_a_graph_is_kept() -> None:
    """The next graph of a model must make its own: CUDA graphs write to their memory again."""
    torch.compiler.reset()
    documents = documents_between(np.array([0, 3, 8]), 1, 8, "cpu")
    tensors = [torch.randn(1, 2, 8, 4, requires_grad=True) for _ in range(3)]

    def twice(*tensors: torch.Tensor) -> torch.Tensor:
        first, _ = documents_attention(torch.nn.Identity(), *tensors, None, documents=documents)
        second, _ = documents_attention(torch.nn.Identity(), *tensors, None, documents=documents)
        return first + second

    made: list[int] = []

    def look(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., Any]:
        # As inductor cuts a training step into passes, which makes one of what is computed twice.
        cut = min_cut_rematerialization_partition
        backend = aot_autograd(fw_compiler=count, bw_compiler=nop, partition_fn=cut)
        return backend(graph, inputs)

    def count(graph: torch.fx.GraphModule, _: Any) -> Any:
        made.append(sum("eq" in str(node.target) for node in graph.graph.nodes))
        return make_boxed_func(graph.forward)

    found = torch.compile(twice, backend=look, fullgraph=True)(*tensors)
    assert not documents._masks
    assert made == [1]  # layers that ask for the same mask share it
    torch.testing.assert_close(found, twice(*tensors))
    assert len(documents._masks) == 1
    torch.compiler.reset()


def test_a_plain_row_has_no_mask_under_compile(tokenizer: PreTrainedTokenizerBase) -> None:
    """transformers makes a dense one for its own attention, although there is nothing to hide."""
    torch.compiler.reset()
    masks: list[object] = []

    def look(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., Any]:
        calls = (n for n in graph.graph.nodes if "scaled_dot_product" in str(n.target))
        masks.extend(node.kwargs.get("attn_mask") for node in calls)
        return graph.forward

    for model_type in ("bert", "modernbert"):
        model = small(model_type, tokenizer, "row")
        assert model.config._attn_implementation == DOCUMENTS_ATTENTION
        if model_type == "modernbert":  # on the host a window is a mask
            model.base_model.layers[1].attn.sliding_window = None
        torch.compile(model.base_model, backend=look, fullgraph=True)(torch.full((2, 64), 7))
    assert masks == [None] * 4
    torch.compiler.reset()


OLDEST_VARLEN = ("query", "key", "value", "cu_seq_q", "cu_seq_k", "max_q", "max_k",
                 "return_aux", "scale", "window_size")  # fmt: skip
"""Parameters of ``varlen_attn`` in torch 2.11, the oldest version that is supported."""


@pytest.mark.parametrize("oldest", [True, False])
@pytest.mark.parametrize("key_heads", [4, 2])
@pytest.mark.parametrize("window", [None, 9])
def test_varlen_is_called_with_words_that_the_oldest_torch_knows(
    window: int | None, key_heads: int, oldest: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch's own function is called, on ``meta``: a keyword it does not know is a TypeError there."""
    calls: list[tuple[tuple[int, ...], dict[str, Any]]] = []
    real = varlen.varlen_attn

    def call(query: torch.Tensor, key: torch.Tensor, *rest: Any, **kwargs: Any) -> Any:
        calls.append((tuple(key.shape), kwargs))
        return real(query, key, *rest, **kwargs)

    known = inspect.signature(real)
    if oldest:
        kept = [p for name, p in known.parameters.items() if name in OLDEST_VARLEN]
        known = known.replace(parameters=kept)
    call.__signature__ = known  # pyright: ignore[reportFunctionMemberAccess]
    monkeypatch.setattr(varlen, "varlen_attn", call)
    monkeypatch.setattr(attention, "varlen_fits", lambda *_: True)
    attention._varlen_knows_groups.cache_clear()
    query = torch.empty(2, 4, 16, 8, device="meta")
    key = torch.empty(2, key_heads, 16, 8, device="meta")
    documents = documents_of([16, 5], 16, "meta")
    output, _ = documents_attention(
        torch.nn.Identity(), query, key, key, None, sliding_window=window, documents=documents
    )
    attention._varlen_knows_groups.cache_clear()
    assert output.shape == (2, 16, 4, 8)
    ((shape, kwargs),) = calls
    knows = "enable_gqa" in known.parameters
    assert shape == (32, key_heads if knows else 4, 8)
    assert ("enable_gqa" in kwargs) == (knows and key_heads != 4)
    assert set(kwargs) - {"enable_gqa"} <= set(OLDEST_VARLEN)
    assert kwargs["window_size"] == ((-1, -1) if window is None else (8, 8))


def test_varlen_takes_fewer_queries_than_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's own function, on ``meta``, given the number of tokens that ask in each document."""
    bounds: list[Any] = []
    real = varlen.varlen_attn

    def call(
        query: Any, key: Any, value: Any, asked: Any, seen: Any, *rest: Any, **how: Any
    ) -> Any:
        bounds.append((asked, seen))
        given = (x.to("meta") for x in (query, key, value))
        return torch.zeros_like(real(*given, asked, seen, *rest, **how), device=query.device)

    monkeypatch.setattr(varlen, "varlen_attn", call)
    monkeypatch.setattr(attention, "varlen_fits", lambda *_: True)
    how: dict[str, Any] = {"dropout": 0.0, "scaling": None, "sliding_window": None}
    positions = torch.tensor([0, 15, 21, 31])  # of documents 0 to 15, 16 to 20 and 21 to 31
    for device in ("meta", "cpu"):
        documents = documents_of([16, 5], 16, device)
        query, key = (torch.empty(n, device=device) for n in ((4, 4, 8), (2, 4, 16, 8)))
        output = attention_at(
            query, key, key, positions.to(device), None, documents=documents, **how
        )
        assert output.shape == (4, 4, 8)
    asked, seen = bounds[1]
    assert seen.tolist()[:4] == [0, 16, 21, 32]
    assert asked.tolist()[:4] == [0, 2, 2, 4]
    assert asked.dtype == seen.dtype == torch.int32


@pytest.mark.parametrize("head", ["MaskedLM", "SequenceClassification", "QuestionAnswering"])
@pytest.mark.parametrize("model_type", ["bert", "modernbert", "roberta"])
def test_padded_batches_reach_the_kernel_that_needs_no_mask(
    model_type: str,
    head: str,
    tokenizer: PreTrainedTokenizerBase,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What CUDA would be asked in bfloat16: varlen alone, for every layer, with the lengths of the batch."""
    import transformers

    config = small(model_type, tokenizer, "row").config
    auto = getattr(transformers, f"AutoModelFor{head}")
    model = auto.from_config(config, attn_implementation=DOCUMENTS_ATTENTION).eval()
    asked: list[list[int]] = []

    def call(query: torch.Tensor, bounds: torch.Tensor, *rest: Any) -> torch.Tensor:
        assert torch.equal(bounds, rest[-1].cu_seqlens)
        asked.append(bounds.tolist())
        return query

    monkeypatch.setattr(attention, "varlen_fits", lambda *_: True)
    monkeypatch.setattr(attention, "_varlen", call)
    real = np.arange(12) < np.array([[12], [5]])
    model(input_ids=torch.full((2, 12), 7), **padded_rows(model, real, "cpu"))
    assert asked == [[0, 12, 17, 24]] * 2 or asked == [[0, 12, 17, 24, 24]] * 2
