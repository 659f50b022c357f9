"""Updates of parameters: optimisers that torch does not have, and what every step does with one.

The learning rate is set at each step, the same for every group.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

__all__ = [
    "Combined",
    "LambOptimizer",
    "StableAdamWOptimizer",
    "can_leave_out",
    "group_by_decay",
    "hidden_matrices",
    "update",
]

_torch: Any = torch
"""The ``_foreach`` functions are not among the names that torch exports to type checkers."""


class Combined(torch.optim.Optimizer):
    """Optimisers of disjoint parameters as one: their groups in a row, one state."""

    def __init__(self, members: Iterable[torch.optim.Optimizer]) -> None:
        self.members = list(members)
        super().__init__([group for member in self.members for group in member.param_groups], {})
        self._share_state()

    def _share_state(self) -> None:
        """Let the members keep their state, and read their groups, where this one does."""
        first = 0
        for member in self.members:
            last = first + len(member.param_groups)
            member.state, member.param_groups = self.state, self.param_groups[first:last]
            first = last

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As in torch."""
        super().load_state_dict(state_dict)
        self._share_state()

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One step of every member."""
        assert closure is None  # nothing here evaluates a loss again
        for member in self.members:
            member.step()


class _WithMoments(torch.optim.Optimizer):
    """An optimiser with Adam's settings."""

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


class LambOptimizer(_WithMoments):
    """You et al., "Large batch optimization for deep learning" (arXiv 1904.00962), algorithm 2.

    With m and v the moments, bias-corrected, and u = m / (sqrt(v) + ε) + λθ, a matrix changes by
    θ ← θ − lr · (‖θ‖ / ‖u‖) · u, the ratio being 1 where a norm is 0. Vectors, which do not decay, change by
    lr · u, as in the authors' code for BERT.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Update every parameter that has a gradient."""
        assert closure is None  # nothing here evaluates a loss again
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["step"] = torch.zeros(())
                    state["exp_avg"] = torch.zeros_like(parameter)
                    state["exp_avg_sq"] = torch.zeros_like(parameter)
                # Read on the host: a checkpoint may have put it on the device.
                state["step"] = state["step"].cpu() + 1
                first, second, step = state["exp_avg"], state["exp_avg_sq"], int(state["step"])
                first.lerp_(parameter.grad, 1 - beta1)
                second.mul_(beta2).addcmul_(parameter.grad, parameter.grad, value=1 - beta2)
                root = (second / (1 - beta2**step)).sqrt_().add_(group["eps"])
                update = (first / (1 - beta1**step)).div_(root)
                update.add_(parameter, alpha=group["weight_decay"])
                if parameter.ndim >= 2:
                    length, own = parameter.norm(), update.norm()
                    known = (length > 0) & (own > 0)
                    update.mul_(torch.where(known, length / own.clamp(min=1e-30), 1.0))
                parameter.sub_(update, alpha=group["lr"])


class StableAdamWOptimizer(_WithMoments):
    """Wortsman et al., "Stable and low-precision training" (arXiv 2304.13013), algorithm 2.

    With g the gradient, m and v the moments (bias-corrected as they are averaged), and per tensor
    RMS = sqrt(mean(g² / max(v, ε²))), the rate of a tensor is η = lr / max(1, RMS), and
    θ ← θ − η (λθ + m / (sqrt(v) + ε)). Nothing waits for the device.
    """

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


def can_leave_out(optimiser: torch.optim.Optimizer) -> bool:
    """Whether :func:`update` takes ``leave_out`` for it: whether it asks the device by itself."""
    return isinstance(optimiser, torch.optim.AdamW)


def update(
    optimiser: torch.optim.Optimizer,
    rate: float,
    gradient_norm: torch.Tensor,
    clip: float | None,
    leave_out: torch.Tensor | None = None,
) -> None:
    """Update all parameters at this learning rate, gradients scaled down to a norm of ``clip``.

    ``gradient_norm`` is theirs, 0-d; ``leave_out`` bool, 0-d: on the device, whether nothing must
    change. Nothing waits for the device.
    """
    for group in optimiser.param_groups:
        group["lr"] = rate
    if isinstance(optimiser, torch.optim.AdamW):
        # What torch's fused optimisers take from a GradScaler: a divisor of gradients, and a flag.
        fused: Any = optimiser
        scale = None if clip is None else ((gradient_norm + _CLIP_EPSILON) / clip).clamp(min=1.0)
        fused.grad_scale = scale
        fused.found_inf = None if leave_out is None else leave_out.float()
        optimiser.step()
        return
    assert leave_out is None
    if clip is not None:
        parameters = [p for group in optimiser.param_groups for p in group["params"]]
        torch.nn.utils.clip_grads_with_norm_(parameters, clip, gradient_norm)
    optimiser.step()


_CLIP_EPSILON = 1e-6
"""Added to the norm by ``torch.nn.utils.clip_grad_norm_``."""


def group_by_decay(parameters: list[nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    """Groups of matrices, which decay, and of vectors, which do not; empty ones left out."""
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def hidden_matrices(model: nn.Module) -> list[nn.Parameter]:
    """Weights of linear layers, except one that gives logits or is shared with an embedding."""
    outputs = getattr(model, "get_output_embeddings", lambda: None)()
    others = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    others |= {id(p) for p in (outputs.parameters() if outputs is not None else ())}
    weights: Any = (m.weight for m in model.modules() if isinstance(m, nn.Linear))
    own: dict[int, nn.Parameter] = {
        id(w): w for w in weights if w.requires_grad and id(w) not in others
    }
    return list(own.values())
