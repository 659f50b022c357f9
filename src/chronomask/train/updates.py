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
    "FusedAdamW",
    "LambOptimizer",
    "StableAdamWOptimizer",
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


class FusedAdamW(torch.optim.AdamW):
    """torch's fused AdamW for parameters of one device and type, to the same bits in less of the host's time.

    At every step torch asks each parameter, gradient and moment for its device, type and kind, and a small
    model's step takes no longer than its host. Here the first step alone is torch's, which makes the state.
    """

    grad_scale: torch.Tensor | None = None
    """0-d, on the device: gradients are divided by it; None: by 1"""
    found_inf: torch.Tensor | None = None
    """float32, 0-d, on the device: whether the next step changes nothing; None: it is made"""

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Update every parameter that has a gradient."""
        assert closure is None  # nothing here evaluates a loss again
        given = [[p for p in group["params"] if p.grad is not None] for group in self.param_groups]
        kept = [[self.state[p] for p in parameters] for parameters in given]
        if not all(map(all, kept)):
            super().step()
            return
        # A step that is left out is not counted.
        counted = 1 if self.found_inf is None else 1 - self.found_inf
        for group, parameters, states in zip(self.param_groups, given, kept, strict=True):
            if not parameters:
                continue
            first, second, steps = (
                [state[name] for state in states] for name in ("exp_avg", "exp_avg_sq", "step")
            )
            beta1, beta2 = group["betas"]
            _torch._foreach_add_(steps, counted)
            _torch._fused_adamw_(
                parameters,
                [p.grad for p in parameters],
                first,
                second,
                [],
                steps,
                lr=group["lr"],
                beta1=beta1,
                beta2=beta2,
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                amsgrad=False,
                maximize=False,
                grad_scale=self.grad_scale,
                found_inf=self.found_inf,
            )


class _WithMoments(torch.optim.Optimizer):
    """An optimiser with Adam's settings and state, which asks its device for nothing.

    Steps are counted on the device, so that one that is left out there is not counted.
    """

    leave_out: torch.Tensor | None = None
    """bool, 0-d, on the device: whether the next step changes nothing; None: it is made"""

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
        """Update every parameter that has a gradient; gradients of a step left out are set to 0."""
        assert closure is None  # nothing here evaluates a loss again
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            for start in range(0, len(parameters), _TOGETHER):
                some = parameters[start : start + _TOGETHER]
                left_out = self.leave_out
                if left_out is None:
                    left_out = torch.zeros((), dtype=torch.bool, device=some[0].device)
                self._update(some, group, left_out)

    def _update(
        self, parameters: list[torch.Tensor], group: dict[str, Any], left_out: torch.Tensor
    ) -> None:
        """One step of the class's formula for some tensors of a group, all of them at once."""
        raise NotImplementedError

    def _begin(self, parameters: list[torch.Tensor], left_out: torch.Tensor) -> tuple[Any, ...]:
        """Gradients and both moments of P tensors, and the number of this step for each, float64 [P].

        The step is counted, unless it is left out; then gradients are 0, for what is not finite remains so
        under any factor.
        """
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter].update(
                    step=torch.zeros((), device=parameter.device),
                    exp_avg=torch.zeros_like(parameter),
                    exp_avg_sq=torch.zeros_like(parameter),
                )
        gradients = [p.grad for p in parameters if p.grad is not None]
        for gradient in gradients:
            gradient.masked_fill_(left_out, 0.0)
        names = ("exp_avg", "exp_avg_sq", "step")
        first, second, steps = ([self.state[p][name] for p in parameters] for name in names)
        numbers = torch.stack(steps).double() + 1
        _torch._foreach_add_(steps, [(~left_out).to(steps[0].dtype)] * len(steps))
        return gradients, first, second, numbers


class LambOptimizer(_WithMoments):
    """You et al., "Large batch optimization for deep learning" (arXiv 1904.00962), algorithm 2.

    With m and v the moments, bias-corrected, and u = m / (sqrt(v) + ε) + λθ, a matrix changes by
    θ ← θ − lr · (‖θ‖ / ‖u‖) · u, the ratio being 1 where a norm is 0. Vectors, which do not decay, change by
    lr · u, as in the authors' code for BERT.
    """

    def _update(
        self, parameters: list[torch.Tensor], group: dict[str, Any], left_out: torch.Tensor
    ) -> None:
        """The formula of the class, tensor by tensor, in place."""
        beta1, beta2 = group["betas"]
        gradients, first, second, numbers = self._begin(parameters, left_out)
        dtype = parameters[0].dtype
        newest = torch.full((), 1 - beta1, dtype=dtype, device=left_out.device)
        kept = torch.full((), beta2, dtype=dtype, device=left_out.device)
        newest.masked_fill_(left_out, 0.0)
        kept.masked_fill_(left_out, 1.0)
        correction1, correction2 = 1 - beta1**numbers, 1 - beta2**numbers
        for k, parameter in enumerate(parameters):
            first[k].lerp_(gradients[k], newest)
            second[k].mul_(kept).addcmul_(gradients[k], gradients[k], value=1 - beta2)
            root = (second[k] / correction2[k]).sqrt_().add_(group["eps"])
            update = (first[k] / correction1[k]).div_(root)
            update.add_(parameter, alpha=group["weight_decay"])
            if parameter.ndim >= 2:
                length, own = parameter.norm(), update.norm()
                known = (length > 0) & (own > 0)
                update.mul_(torch.where(known, length / own.clamp(min=1e-30), 1.0))
            parameter.sub_(update.masked_fill_(left_out, 0.0), alpha=group["lr"])


class StableAdamWOptimizer(_WithMoments):
    """Wortsman et al., "Stable and low-precision training" (arXiv 2304.13013), algorithm 2.

    With g the gradient, m and v the moments (bias-corrected as they are averaged), and per tensor
    RMS = sqrt(mean(g² / max(v, ε²))), the rate of a tensor is η = lr / max(1, RMS), and
    θ ← θ − η (λθ + m / (sqrt(v) + ε)).
    """

    def _update(
        self, parameters: list[torch.Tensor], group: dict[str, Any], left_out: torch.Tensor
    ) -> None:
        """The formula of the class, for all tensors at once, in place."""
        gradients, first, second, numbers = self._begin(parameters, left_out)
        squares = _torch._foreach_mul(gradients, gradients)
        for beta, moments, of_step in zip(
            group["betas"], (first, second), (gradients, squares), strict=True
        ):
            # The newest gradient's share in a bias-corrected average: 1 at step 1, then down to 1 − β.
            newest = ((1 - beta) / (1 - beta**numbers)).masked_fill_(left_out, 0.0)
            _torch._foreach_mul_(moments, list((1 - newest).unbind()))
            _torch._foreach_add_(moments, _torch._foreach_mul(of_step, list(newest.unbind())))

        _torch._foreach_div_(squares, _torch._foreach_maximum(second, group["eps"] ** 2))
        means = torch.stack([ratio.mean() for ratio in squares])
        rates = (group["lr"] / means.sqrt().clamp(min=1.0)).masked_fill_(left_out, 0.0)

        roots = _torch._foreach_sqrt(second)
        _torch._foreach_add_(roots, group["eps"])
        updates = _torch._foreach_div(first, roots)
        if group["weight_decay"]:
            _torch._foreach_add_(updates, parameters, alpha=group["weight_decay"])
        _torch._foreach_mul_(updates, list(rates.unbind()))
        _torch._foreach_sub_(parameters, updates)


_TOGETHER = 64
"""Tensors updated in one go: few launches, and little memory for what lies between."""


def update(
    optimiser: torch.optim.Optimizer,
    rate: float,
    gradient_norm: torch.Tensor,
    clip: float | None,
    leave_out: torch.Tensor | None = None,
) -> None:
    """Update all parameters at this learning rate, gradients scaled down to a norm of ``clip``.

    ``gradient_norm`` is theirs, 0-d; ``leave_out`` bool, 0-d: on the device, whether nothing must change,
    weights and state alike. Gradients are used up. Nothing waits for the device, except in an optimiser from
    elsewhere that keeps state on the host.
    """
    for group in optimiser.param_groups:
        group["lr"] = rate
    if _takes_flags(optimiser):
        scale = None if clip is None else ((gradient_norm + _CLIP_EPSILON) / clip).clamp(min=1.0)
        fused: Any = optimiser
        fused.grad_scale = scale
    elif clip is not None:
        parameters = [p for group in optimiser.param_groups for p in group["params"]]
        torch.nn.utils.clip_grads_with_norm_(parameters, clip, gradient_norm)
    _step(optimiser, leave_out)


def _takes_flags(optimiser: torch.optim.Optimizer) -> bool:
    """Whether it takes what torch's fused optimisers do from a GradScaler: a divisor of gradients, and a
    flag on the device that leaves the step out.
    """
    return getattr(optimiser, "_step_supports_amp_scaling", False)


def _step(optimiser: torch.optim.Optimizer, leave_out: torch.Tensor | None) -> None:
    """One step, or on the device none at all."""
    if isinstance(optimiser, Combined):
        for member in optimiser.members:
            _step(member, leave_out)
    elif _takes_flags(optimiser):
        fused: Any = optimiser
        fused.found_inf = None if leave_out is None else leave_out.float()
        optimiser.step()
    elif isinstance(optimiser, _WithMoments):
        optimiser.leave_out = leave_out
        optimiser.step()
    elif leave_out is None:
        optimiser.step()
    else:
        _step_and_take_back(optimiser, leave_out)


@torch.no_grad()
def _step_and_take_back(optimiser: torch.optim.Optimizer, where: torch.Tensor) -> None:
    """One step of any optimiser, and then what was before it again, if the device says so.

    Costs a copy of weights and state. State that this step begins with is 0 if it is taken back.
    """
    parameters = [
        p for group in optimiser.param_groups for p in group["params"] if p.grad is not None
    ]
    weights = [parameter.clone() for parameter in parameters]
    states = [dict(optimiser.state.get(parameter, {})) for parameter in parameters]
    states = [{name: value.clone() for name, value in state.items()} for state in states]
    optimiser.step()
    for parameter, weight, state in zip(parameters, weights, states, strict=True):
        parameter.copy_(torch.where(where, weight, parameter))
        for name, value in optimiser.state[parameter].items():
            before = state.get(name, torch.zeros_like(value))
            value.copy_(torch.where(where.to(value.device), before.to(value.device), value))


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
