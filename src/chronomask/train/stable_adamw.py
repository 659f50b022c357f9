"""StableAdamW: AdamW whose update of each tensor is clipped by how far its second moment lags behind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

__all__ = ["StableAdamWOptimizer"]

_torch: Any = torch
"""The ``_foreach`` functions are not among the names that torch exports to type checkers."""


class StableAdamWOptimizer(torch.optim.Optimizer):
    """Wortsman et al., "Stable and low-precision training" (arXiv 2304.13013), algorithm 2.

    With g the gradient, m and v the moments (bias-corrected as they are averaged), and per tensor
    RMS = sqrt(mean(g² / max(v, ε²))), the rate of a tensor is η = lr / max(1, RMS), and
    θ ← θ − η (λθ + m / (sqrt(v) + ε)). Nothing waits for the device.
    """

    def __init__(
        self,
        params: list[dict[str, Any]],
        *,
        lr: float,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(
            params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Update every parameter that has a gradient."""
        assert closure is None  # nothing here evaluates a loss again
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            for start in range(0, len(parameters), _TOGETHER):
                self._update(parameters[start : start + _TOGETHER], group)

    def _update(self, parameters: list[torch.Tensor], group: dict[str, Any]) -> None:
        """One step of the class's formula for some tensors of a group, all of them at once."""
        for parameter in parameters:
            state = self.state[parameter]
            if not state:
                state["step"] = torch.zeros(())
                state["exp_avg"] = torch.zeros_like(parameter)
                state["exp_avg_sq"] = torch.zeros_like(parameter)
            # The number of a step is read on the host: a checkpoint may have put it on the device.
            state["step"] = state["step"].cpu() + 1
        states = [self.state[p] for p in parameters]
        steps = [int(s["step"]) for s in states]
        gradients = [p.grad for p in parameters if p.grad is not None]
        first, second = [s["exp_avg"] for s in states], [s["exp_avg_sq"] for s in states]
        beta1, beta2 = group["betas"]

        new1, new2 = (
            [_newest_share(beta1, t) for t in steps],
            [_newest_share(beta2, t) for t in steps],
        )
        _torch._foreach_mul_(first, [1 - share for share in new1])
        _torch._foreach_add_(first, _torch._foreach_mul(gradients, new1))
        squares = _torch._foreach_mul(gradients, gradients)
        _torch._foreach_mul_(second, [1 - share for share in new2])
        _torch._foreach_add_(second, _torch._foreach_mul(squares, new2))

        _torch._foreach_div_(squares, _torch._foreach_maximum(second, group["eps"] ** 2))
        means = torch.stack([ratio.mean() for ratio in squares])
        rates = list((group["lr"] / means.sqrt().clamp(min=1.0)).unbind())

        roots = _torch._foreach_sqrt(second)
        _torch._foreach_add_(roots, group["eps"])
        updates = _torch._foreach_div(first, roots)
        if group["weight_decay"]:
            _torch._foreach_add_(updates, parameters, alpha=group["weight_decay"])
        for update, rate in zip(updates, rates, strict=True):
            update.mul_(rate)
        _torch._foreach_sub_(parameters, updates)


_TOGETHER = 64
"""Tensors updated in one go: few launches, and little memory for what lies between."""


def _newest_share(beta: float, step: int) -> float:
    """Share of the newest gradient in a bias-corrected average; 1 at step 1, then down to 1 − beta."""
    return (1 - beta) / (1 - beta**step)
