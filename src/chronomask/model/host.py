"""Linear layers as the host computes them faster than torch does by default, and a model that uses them.

torch hands float32 products to MKL, which uses the widest registers of Intel's processors alone. oneDNN,
which torch brings along, uses those of others too: on an AMD EPYC with AVX-512 its products take four fifths
of the time. On an Intel Xeon they take as long or up to twice as long, so there torch's own are kept. Results
agree to rounding. Weight gradients stay with MKL, which is as fast there.

Products in bfloat16 are oneDNN's everywhere. It makes a program for every shape that it meets, which takes as
long as some products do, and keeps a thousand of them. How many tokens are predicted changes from step to
step, so rows are filled up to one of few numbers.
"""

from __future__ import annotations

from functools import cache
from math import prod
from typing import Any

import torch
from llvmlite.binding import get_host_cpu_name
from torch import nn
from torch.utils.flop_counter import register_flop_formula

from chronomask.model.device import product_dtype
from chronomask.model.dropout import KeyedDropout

__all__ = ["HostLinear", "filled_up", "linear", "use_host_kernels"]


class HostLinear(nn.Linear):
    """``nn.Linear`` that computes by :func:`linear`."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return linear(input, self.weight, self.bias)


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """``torch.nn.functional.linear``: ``x`` [..., K], ``weight`` [N, K] and ``bias`` [N] → [..., N].

    Outside of compiled models, by oneDNN for float32 on AMD's processors with AVX-512, and for one of few
    numbers of rows in bfloat16.
    """
    if torch.compiler.is_compiling() or x.device.type != "cpu" or x.dim() < 2:
        return nn.functional.linear(x, weight, bias)
    if product_dtype(x) == torch.bfloat16:
        return _of_few_sizes(x, weight, bias)
    if _onednn_takes(x, weight):
        # What the function gives must not be a view, or none of its views could be changed in place.
        product = _Linear.apply(x.flatten(0, -2), weight, bias)
        return product if x.dim() == 2 else product.unflatten(0, x.shape[:-1])
    return nn.functional.linear(x, weight, bias)


def use_host_kernels(model: nn.Module) -> None:
    """Let every plain dropout and linear layer of a model compute by the ways of this module.

    Modules change their class in place, so weights, their names and hooks stay.
    """
    kernels: dict[type[nn.Module], type[nn.Module]] = {
        nn.Dropout: KeyedDropout,
        nn.Linear: HostLinear,
    }
    for module in model.modules():
        module.__class__ = kernels.get(type(module), type(module))


def _of_few_sizes(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """A linear layer in bfloat16 of ``x`` [..., K], filled up with rows of zeros."""
    rows = x.shape[:-1].numel()
    more = filled_up(rows) - rows
    if not more:
        return nn.functional.linear(x, weight, bias)
    low = nn.functional.pad(x.to(torch.bfloat16).flatten(0, -2), (0, 0, 0, more))
    product = nn.functional.linear(low, weight, bias)[:rows]
    # No view of a matrix goes out, because FSDP2 cannot tell what is done to a view.
    return product.clone().unflatten(0, x.shape[:-1]) if x.dim() > 2 else product.clone()


def filled_up(rows: int) -> int:
    """The smallest of few numbers that is at least ``rows``: multiples of 32, of 64 above 1,024, of 128 above
    2,048 and so on, so that at most a sixteenth is added to more than 512.
    """
    step = 32 << max(0, (rows - 1).bit_length() - 10)
    return -(-rows // step) * step


def _onednn_takes(x: torch.Tensor, weight: torch.Tensor) -> bool:
    return (
        x.dtype == weight.dtype == torch.float32
        and x.numel() > 0
        and not torch.is_autocast_enabled("cpu")
        and _onednn_is_faster()
    )


@cache
def _onednn_is_faster() -> bool:
    """Whether this host is of a kind where oneDNN's products were seen to be faster, and torch has them.

    That is AMD's Zen, from its fourth generation on. A decision by timing would differ between two processes.
    """
    return (
        get_host_cpu_name().startswith("znver")
        and torch.backends.mkldnn.is_available()
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
            _Linear.apply(grad, weight.t(), None) if for_x else None,  # it has gradients itself
            grad.t() @ x if for_weight else None,
            grad.sum(0) if for_bias else None,
        )
