"""FlashAttention-4 for packed documents: the package ``flash-attn-4`` as an operator that torch can compile.

torch has a switch for this package (``activate_flash_attention_impl("FA4")``). Up to torch 2.13 it unpacks
two results where the package's releases since give five, and in 2.11 it knows no windows. It also changes
every attention of a process, those with dropout included, which the package does not know. The operator here
is used for documents alone, once :mod:`chronomask.model.flash` has found it right.
"""

from __future__ import annotations

from typing import Any

import torch

__all__ = ["attend", "is_on", "switch"]

_on = False


def is_on() -> bool:
    """Whether packed documents are attended to by this package."""
    return _on


def switch(on: bool) -> None:
    """Use the package from now on, or torch's kernel; raises ImportError where it is not installed."""
    global _on
    if on:
        from flash_attn.cute import interface  # noqa: F401  # pyright: ignore[reportMissingImports]
    _on = on


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    query_bounds: torch.Tensor,
    key_bounds: torch.Tensor,
    longest: int,
    scale: float | None,
    window: tuple[int, int],
) -> torch.Tensor:
    """Attention within documents, [N, heads, width], as torch's ``varlen_attn`` has it.

    ``query`` [N, heads, width], key and value [M, heads or fewer, width], in half precision; ``query_bounds``
    and ``key_bounds`` int32 [D + 1]; ``longest``: tokens of the longest document at most; ``window``: how far
    a token sees to the left and right, −1: all.
    """
    more = (query_bounds, key_bounds, longest, scale, *window)
    return torch.ops.chronomask.flash4(query, key, value, *more)[0]


def _options(
    query_bounds: torch.Tensor,
    key_bounds: torch.Tensor,
    longest: int,
    scale: float | None,
    left: int,
    right: int,
) -> dict[str, Any]:
    causal = left < 0 and right == 0
    return {
        "cu_seqlens_q": query_bounds,
        "cu_seqlens_k": key_bounds,
        "max_seqlen_q": longest,
        "max_seqlen_k": longest,
        "softmax_scale": scale,
        "causal": causal,
        "window_size_left": None if left < 0 else left,
        "window_size_right": None if right < 0 or causal else right,
    }


@torch.library.custom_op("chronomask::flash4", mutates_args=())
def _forward(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    query_bounds: torch.Tensor,
    key_bounds: torch.Tensor,
    longest: int,
    scale: float | None,
    left: int,
    right: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Output [N, heads, width], and the logarithm of each softmax's sum, float32 [heads, N]."""
    from flash_attn.cute import interface  # pyright: ignore[reportMissingImports]

    how = _options(query_bounds, key_bounds, longest, scale, left, right)
    output, log_sum, *_ = interface._flash_attn_fwd(query, key, value, return_lse=True, **how)
    return output, log_sum


@_forward.register_fake
def _(query: torch.Tensor, *_others: Any) -> tuple[torch.Tensor, torch.Tensor]:
    number, heads, _ = query.shape
    return query.new_empty(query.shape), query.new_empty(heads, number, dtype=torch.float32)


@torch.library.custom_op("chronomask::flash4_backward", mutates_args=())
def _backward(
    into: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    output: torch.Tensor,
    log_sum: torch.Tensor,
    query_bounds: torch.Tensor,
    key_bounds: torch.Tensor,
    longest: int,
    scale: float | None,
    left: int,
    right: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of queries, keys and values out of ``into`` [N, heads, width], that of the output."""
    from flash_attn.cute import interface  # pyright: ignore[reportMissingImports]

    # Where all tokens ask, all is written. Elsewhere keys of a document in which none asks need not be, nor
    # queries behind all documents, also if there are as many queries as keys: their gradient is 0.
    new = torch.empty if query_bounds.data_ptr() == key_bounds.data_ptr() else torch.zeros
    query_made, key_made, value_made = (
        new(x.shape, dtype=x.dtype, device=x.device) for x in (query, key, value)
    )
    how = _options(query_bounds, key_bounds, longest, scale, left, right)
    how |= {"dq": query_made, "dk": key_made, "dv": value_made}
    how["deterministic"] = torch.are_deterministic_algorithms_enabled()
    interface._flash_attn_bwd(query, key, value, output, into.contiguous(), log_sum, **how)
    return query_made, key_made, value_made


@_backward.register_fake
def _(_into: torch.Tensor, *tensors: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    query, key, value = (x.new_empty(x.shape) for x in tensors[:3])
    return query, key, value


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, torch.Tensor]) -> None:
    query, key, value, query_bounds, key_bounds, *ctx.how = inputs
    ctx.save_for_backward(query, key, value, *output, query_bounds, key_bounds)


def _differentiate(ctx: Any, into: torch.Tensor, _: torch.Tensor) -> tuple[Any, ...]:
    found = torch.ops.chronomask.flash4_backward(into, *ctx.saved_tensors, *ctx.how)
    return (*found, *(None,) * 6)


_forward.register_autograd(_differentiate, setup_context=_keep)
