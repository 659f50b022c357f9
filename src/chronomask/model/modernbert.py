"""ModernBERT's rotary positions and gated feed-forward with gradients that are one pass each.

A rotation's inverse is the rotation by the opposite angle, and its transpose is its inverse. Differentiated
line by line, as autograd does it, the halves that transformers' models cut and join become slices that are
written into zeros: on an H200 the backward pass took seven times as long as the forward pass. Here both
directions read and write every number once; on a CUDA device by kernels of ours
(:mod:`chronomask.model.triton_kernels`), on the host by one for rotations
(:mod:`chronomask.model.host_rotary`).
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.activations import GELUActivation
from transformers.models.modernbert.modeling_modernbert import ModernBertAttention, ModernBertMLP

from chronomask.model import host_rotary
from chronomask.model.attention import documents_attention
from chronomask.model.documents import DOCUMENTS_ATTENTION

__all__ = ["context_of", "has_kernels", "rotate", "use_one_pass_gradients"]


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """``x`` [..., D] with its two halves rotated against each other (Su et al., arXiv 2104.09864, eq. 34).

    ``cos``, ``sin``: float32, broadcast to ``x``; the two halves of each are equal, and no gradient goes to
    them. Computed in float32, given back in the type of ``x``: bit for bit what transformers computes.
    """
    return _Rotation.apply(x, cos, sin)


class _Rotation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(cos, sin)
        return _turn(x, cos, sin)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        (grad,) = grad_outputs
        # A gradient of this gradient is a rotation too, of which a graph that is compiled has no need.
        turn = _turn if torch.compiler.is_compiling() else _Rotation.apply
        return turn(grad, cos, -sin), None, None


def _turn(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """(x₁·cos − x₂·sin, x₂·cos + x₁·sin), by exchanging the halves instead of cutting and joining them."""
    if host_rotary.takes(x, cos):
        return host_rotary.turn(x, cos, sin)
    first, second = sin.chunk(2, -1)
    signed = torch.cat((-first, second), -1)  # of the angles alone, which all heads share
    exchanged = x.float().unflatten(-1, (2, -1)).flip(-2).flatten(-2)
    return (x.float() * cos + exchanged * signed).to(x.dtype)


class _RotationOfBoth(torch.autograd.Function):
    """Queries and keys rotated, and values as they are, out of what one product gave: [N, 3, heads, D].

    By the kernels, whose gradient has the same form.
    """

    @staticmethod
    def forward(
        ctx: Any, qkv: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        from chronomask.model.triton_kernels import rotate_both

        ctx.save_for_backward(cos, sin)
        query, key = rotate_both(qkv, cos, sin).unbind(0)
        return query, key, qkv[:, 2]

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        from chronomask.model.triton_kernels import rotate_back

        return rotate_back(*grad_outputs, *ctx.saved_tensors), None, None


class _GatedGelu(torch.autograd.Function):
    """gelu(x) · gate of [..., 2 · I], x and gate side by side; its gradient by a kernel."""

    @staticmethod
    def forward(ctx: Any, both: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(both)
        x, gate = both.chunk(2, -1)
        return torch.nn.functional.gelu(x) * gate

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> torch.Tensor:
        from chronomask.model.triton_kernels import gated_gelu_gradient

        return gated_gelu_gradient(grad_outputs[0], *ctx.saved_tensors)


class _RotatedAttention(ModernBertAttention):
    """transformers' module, weights and names, with :func:`rotate` for its rotary positions."""

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None,
        attention_mask: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """As ``ModernBertAttention.forward``: [B, T, H] → [B, T, H], and no attention weights."""
        assert position_embeddings is not None
        context = context_of(self, hidden_states, position_embeddings, attention_mask, **kwargs)
        return self.out_drop(self.Wo(context)), None


def context_of(
    attention: ModernBertAttention,
    hidden_states: torch.Tensor,
    position_embeddings: tuple[torch.Tensor, torch.Tensor],
    attention_mask: torch.Tensor | None,
    **kwargs: Any,
) -> torch.Tensor:
    """What the heads of a ModernBERT's attention give, [B, T, H], before the output projection."""
    shape = hidden_states.shape[:-1]
    qkv = attention.Wqkv(hidden_states).view(*shape, 3, -1, attention.head_dim)
    half = attention.head_dim // 2
    if has_kernels(qkv) and half & (half - 1) == 0:  # as kernels have it: a power of two
        angles = (x.expand(*shape, -1).flatten(0, 1).float() for x in position_embeddings)
        query, key, value = (
            x.unflatten(0, shape).transpose(1, 2)
            for x in _RotationOfBoth.apply(qkv.flatten(0, 1), *angles)
        )
    else:
        query, key, value = (x.transpose(1, 2) for x in qkv.unbind(-3))
        cos, sin = (x.unsqueeze(1) for x in position_embeddings)
        query, key = rotate(query, cos, sin), rotate(key, cos, sin)
    output, _ = documents_attention(
        attention,
        query,
        key,
        value,
        attention_mask,
        dropout=attention.attention_dropout if attention.training else 0.0,
        scaling=attention.head_dim**-0.5,
        sliding_window=attention.sliding_window,
        **kwargs,
    )
    return output.flatten(2)


class _GatedMlp(ModernBertMLP):
    """transformers' module, weights and names, with a gradient in one pass on a CUDA device."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """As ``ModernBertMLP.forward``: [..., H] → [..., H]."""
        both = self.Wi(hidden_states)
        if has_kernels(both):
            return self.Wo(self.drop(_GatedGelu.apply(both)))
        x, gate = both.chunk(2, dim=-1)
        return self.Wo(self.drop(self.act(x) * gate))


def has_kernels(x: torch.Tensor) -> bool:
    """Whether there are kernels of ours for the device of ``x``."""
    return x.is_cuda and _HAS_TRITON


_HAS_TRITON = find_spec("triton") is not None


def use_one_pass_gradients(model: PreTrainedModel) -> None:
    """Let a ModernBERT rotate and gate by the functions of this module; other models stay as they are.

    Modules change their class in place, so weights, their names and hooks stay.
    """
    if model.config._attn_implementation != DOCUMENTS_ATTENTION:
        return
    for module in model.modules():
        if type(module) is ModernBertAttention:
            module.__class__ = _RotatedAttention
        if type(module) is ModernBertMLP and type(module.act) is GELUActivation:
            module.__class__ = _GatedMlp
