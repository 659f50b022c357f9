"""Dropout and linear layers as the host computes them faster than torch does by default.

**Dropout.** torch draws its random numbers one after the other. numpy's SFC64 gives 16 bits an element in a
seventh of the time. Its seed comes from torch's generator, so seeding that seeds this. A probability is
rounded to a multiple of 2⁻¹⁶, and the scale of what is kept fits the rounded value.

**Linear layers.** torch hands float32 products to MKL, which does not use the widest registers of every
processor that has them. oneDNN, which torch brings along, does: on an AMD EPYC with AVX-512 its products take
four fifths of the time. Results agree to rounding. Weight gradients stay with MKL, which is as fast there.
"""

from __future__ import annotations

from functools import cache
from math import prod
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import register_flop_formula

__all__ = ["HostDropout", "HostLinear", "drop", "linear", "use_host_kernels"]


def drop(values: torch.Tensor, dropout: float) -> torch.Tensor:
    """``values`` on the host, each 0 with probability ``dropout``, else divided by 1 − ``dropout``.

    Only a byte an element is kept for the backward pass.
    """
    dropped = round(dropout * 2**16)
    generator = np.random.SFC64(int(torch.randint(2**62, ())))
    number = values.numel()
    raw = generator.random_raw(-(-number // 4)).view(np.uint16)[:number]
    kept = torch.from_numpy(raw >= dropped).view(values.shape)
    return _Kept.apply(values, kept, 2**16 / max(1, 2**16 - dropped))


class _Kept(torch.autograd.Function):
    """``values`` where ``kept``, times ``scale``; 0 elsewhere."""

    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, kept: torch.Tensor, scale: float) -> torch.Tensor:
        ctx.save_for_backward(kept)
        ctx.scale = scale
        return torch.ops.aten.native_dropout_backward(values, kept, scale)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (kept,) = ctx.saved_tensors
        return torch.ops.aten.native_dropout_backward(grad_outputs[0], kept, ctx.scale), None, None


class HostDropout(nn.Dropout):
    """``nn.Dropout`` that is :func:`drop` where values are on the host.

    A compiled model draws as torch does.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        plain = torch.compiler.is_compiling() or input.device.type != "cpu"
        if plain or not self.training or not self.p:
            return nn.functional.dropout(input, self.p, self.training, self.inplace)
        return drop(input, self.p)


class HostLinear(nn.Linear):
    """``nn.Linear`` that computes by :func:`linear`."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return linear(input, self.weight, self.bias)


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """``torch.nn.functional.linear``: ``x`` [..., K], ``weight`` [N, K] and ``bias`` [N] → [..., N].

    By oneDNN for float32 on a host with AVX-512, outside of autocast and compiled models.
    """
    if not torch.compiler.is_compiling() and _onednn_takes(x, weight):
        # What the function gives must not be a view, or none of its views could be changed in place.
        product = _Linear.apply(x.flatten(0, -2), weight, bias)
        return product if x.dim() == 2 else product.unflatten(0, x.shape[:-1])
    return nn.functional.linear(x, weight, bias)


def use_host_kernels(model: nn.Module) -> None:
    """Let every plain dropout and linear layer of a model compute by the ways of this module.

    Modules change their class in place, so weights, their names and hooks stay.
    """
    kernels: dict[type[nn.Module], type[nn.Module]] = {
        nn.Dropout: HostDropout,
        nn.Linear: HostLinear,
    }
    for module in model.modules():
        module.__class__ = kernels.get(type(module), type(module))


def _onednn_takes(x: torch.Tensor, weight: torch.Tensor) -> bool:
    return (
        x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and x.dim() > 1
        and x.numel() > 0
        and not torch.is_autocast_enabled("cpu")
        and _onednn_is_faster()
    )


@cache
def _onednn_is_faster() -> bool:
    """Whether this host is of a kind where oneDNN's products were seen to be faster, and torch has them."""
    return (
        torch.backends.mkldnn.is_available()
        and torch.backends.cpu.get_cpu_capability().startswith("AVX512")
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


def _product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """``x`` times the transposed ``weight`` plus ``bias``."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


if hasattr(torch.ops.mkldnn, "_linear_pointwise"):  # of which torch's counter knows nothing

    @register_flop_formula(torch.ops.mkldnn._linear_pointwise)
    def _flops(x: torch.Size, weight: torch.Size, *_: Any, **__: Any) -> int:
        return 2 * prod(x) * weight[0]


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        return _product(x.contiguous(), weight, bias)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        for_x, for_weight, for_bias = ctx.needs_input_grad
        grad = grad_outputs[0].contiguous()
        return (
            _product(grad, weight.t(), None) if for_x else None,
            grad.t() @ x if for_weight else None,
            grad.sum(0) if for_bias else None,
        )
