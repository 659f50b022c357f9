# pyright: reportMissingImports=false, reportIndexIssue=false
"""Kernels of our own for CUDA devices, where what torch's compiler makes of a formula moves too many bytes.

On an H200 a step of ModernBERT-base spent 32 of 349 ms on rotary positions and 22 on the gradient of its
gated feed-forward, three times what it takes to read and write their numbers once. Both have halves that are
cut and joined, and the compiler computes each place of what is joined from both. Here everything is one pass.

They are written in Triton, which comes with torch for CUDA devices; import this module only where a tensor
lies on one. :mod:`chronomask.model.modernbert` has the same formulas for other devices.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

__all__ = ["gated_gelu_gradient", "rotate_back", "rotate_both"]

_TOKENS, _NUMBERS = 8, 1024
"""What one program of a kernel computes: tokens, and numbers of one half."""


@triton.jit
def _turn(
    source, source_stride, target, target_stride, cos, sin, sign, num_tokens,
    HEADS: tl.constexpr, ROOM: tl.constexpr, HALF: tl.constexpr, TOKENS: tl.constexpr,
):  # fmt: skip
    """Rotate [num_tokens, HEADS, 2 · HALF] by angles [num_tokens, 2 · HALF], whose halves are equal.

    ``ROOM``: HEADS, up to a power of two; strides count from token to token; ``sign``: −1 turns back.
    """
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)[:, None, None]
    head = tl.arange(0, ROOM)[None, :, None]
    place = tl.arange(0, HALF)[None, None, :]
    inside = (token < num_tokens) & (head < HEADS)
    at = token.to(tl.int64)
    c = tl.load(cos + at * (2 * HALF) + place, mask=token < num_tokens)
    s = sign * tl.load(sin + at * (2 * HALF) + place, mask=token < num_tokens)
    read = source + at * source_stride + head * (2 * HALF) + place
    first = tl.load(read, mask=inside).to(tl.float32)
    second = tl.load(read + HALF, mask=inside).to(tl.float32)
    write = target + at * target_stride + head * (2 * HALF) + place
    tl.store(write, (first * c - second * s).to(target.dtype.element_ty), mask=inside)
    tl.store(write + HALF, (second * c + first * s).to(target.dtype.element_ty), mask=inside)


@triton.jit
def _turn_both(
    query, key, query_stride, key_stride, to_query, to_key, to_query_stride, to_key_stride,
    cos, sin, sign, num_tokens,
    HEADS: tl.constexpr, ROOM: tl.constexpr, HALF: tl.constexpr, TOKENS: tl.constexpr,
):  # fmt: skip
    if tl.program_id(1) == 0:
        _turn(
            query, query_stride, to_query, to_query_stride, cos, sin, sign, num_tokens,
            HEADS, ROOM, HALF, TOKENS,
        )  # fmt: skip
    else:
        _turn(
            key, key_stride, to_key, to_key_stride, cos, sin, sign, num_tokens,
            HEADS, ROOM, HALF, TOKENS,
        )  # fmt: skip


def _launch(
    query: torch.Tensor,
    key: torch.Tensor,
    to_query: torch.Tensor,
    to_key: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    sign: float,
) -> None:
    """All [N, heads, D], dense within a token; angles float32 [N, D]."""
    num_tokens, heads, width = query.shape
    _turn_both[(triton.cdiv(num_tokens, _TOKENS), 2)](
        query, key, query.stride(0), key.stride(0), to_query, to_key, to_query.stride(0),
        to_key.stride(0), cos, sin, sign, num_tokens,
        HEADS=heads, ROOM=triton.next_power_of_2(heads), HALF=width // 2, TOKENS=_TOKENS,
    )  # fmt: skip


@torch.library.custom_op("chronomask::rotate_both", mutates_args=())
def rotate_both(qkv: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Queries and keys of ``qkv`` [N, 3, heads, D], rotated: [2, N, heads, D].

    ``cos``, ``sin``: float32 [N, D], with equal halves (Su et al., arXiv 2104.09864, equation 34).
    """
    qkv, cos, sin = qkv.contiguous(), cos.contiguous(), sin.contiguous()
    num_tokens, _, heads, width = qkv.shape
    made = qkv.new_empty(2, num_tokens, heads, width)
    _launch(qkv[:, 0], qkv[:, 1], made[0], made[1], cos, sin, 1.0)
    return made


@rotate_both.register_fake
def _(qkv: torch.Tensor, *_angles: torch.Tensor) -> torch.Tensor:
    num_tokens, _, heads, width = qkv.shape
    return qkv.new_empty(2, num_tokens, heads, width)


@torch.library.custom_op("chronomask::rotate_back", mutates_args=())
def rotate_back(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
) -> torch.Tensor:
    """[N, 3, heads, D]: ``query`` and ``key`` turned by the opposite angles, and ``value`` as it is.

    The three are [N, heads, D]: gradients, as they come out of attention.
    """
    query, key, cos, sin = (x.contiguous() for x in (query, key, cos, sin))
    num_tokens, heads, width = query.shape
    made = query.new_empty(num_tokens, 3, heads, width)
    _launch(query, key, made[:, 0], made[:, 1], cos, sin, -1.0)
    made[:, 2].copy_(value)
    return made


@rotate_back.register_fake
def _(query: torch.Tensor, *_others: torch.Tensor) -> torch.Tensor:
    num_tokens, heads, width = query.shape
    return query.new_empty(num_tokens, 3, heads, width)


@triton.jit
def _gated_gelu_gradient(into, both, made, width, total, NUMBERS: tl.constexpr):
    number = tl.program_id(0).to(tl.int64) * NUMBERS + tl.arange(0, NUMBERS)
    inside = number < total
    first = number // width * width + number  # of a row of [2 · width], its left half
    x = tl.load(both + first, mask=inside).to(tl.float32)
    gate = tl.load(both + first + width, mask=inside).to(tl.float32)
    gradient = tl.load(into + number, mask=inside).to(tl.float32)
    below = 0.5 * (1.0 + tl.math.erf(x * 0.7071067811865476))  # Φ(x), of the normal distribution
    density = 0.3989422804014327 * tl.exp(-0.5 * x * x)
    kind = made.dtype.element_ty
    tl.store(made + first, (gradient * gate * (below + x * density)).to(kind), mask=inside)
    tl.store(made + first + width, (gradient * x * below).to(kind), mask=inside)


@torch.library.custom_op("chronomask::gated_gelu_gradient", mutates_args=())
def gated_gelu_gradient(into: torch.Tensor, both: torch.Tensor) -> torch.Tensor:
    """The gradient [..., 2 · I] of gelu(x) · gate, where ``both`` [..., 2 · I] are x and gate side by side.

    ``into`` [..., I]: the gradient of the product. GELU is the exact one (Hendrycks and Gimpel, arXiv
    1606.08415); computed in float32.
    """
    into, both = into.contiguous(), both.contiguous()
    made = torch.empty_like(both)
    total, width = into.numel(), into.shape[-1]
    _gated_gelu_gradient[(triton.cdiv(total, _NUMBERS),)](
        into, both, made, width, total, NUMBERS=_NUMBERS
    )
    return made


@gated_gelu_gradient.register_fake
def _(_into: torch.Tensor, both: torch.Tensor) -> torch.Tensor:
    return both.new_empty(both.shape)
