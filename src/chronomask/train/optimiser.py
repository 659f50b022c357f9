"""Optimisers: what builds a ``torch.optim.Optimizer`` over a model's parameters, and updates them.

Whatever an optimiser keeps lies in ``state[parameter]`` as tensors that are scalars or have the
parameter's shape: that is all a checkpoint stores. The learning rate is set at each step, the same for
every group.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from chronomask.train.config import AdamW, Muon, StableAdamW
from chronomask.train.stable_adamw import StableAdamWOptimizer

__all__ = ["build_optimiser", "can_leave_out", "state_numbers", "update"]


class _Combined(torch.optim.Optimizer):
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


def build_optimiser(config: AdamW | StableAdamW | Muon, model: nn.Module) -> torch.optim.Optimizer:
    """The optimiser over all trainable parameters of ``model``; :func:`update` sets the rate."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    if isinstance(config, StableAdamW):
        betas = (config.beta1, config.beta2)
        groups = _group_by_decay(trainable, config.weight_decay)
        return StableAdamWOptimizer(groups, lr=0.0, betas=betas, eps=config.epsilon)
    if isinstance(config, Muon):
        hidden = _hidden_matrices(model)
        chosen = {id(p) for p in hidden}
        members: list[torch.optim.Optimizer] = []
        if hidden:
            members.append(
                torch.optim.Muon(
                    hidden,
                    lr=0.0,
                    weight_decay=config.weight_decay,
                    momentum=config.momentum,
                    adjust_lr_fn="match_rms_adamw",
                )
            )
        rest = [p for p in trainable if id(p) not in chosen]
        return _Combined([*members, *([_adamw(config, rest)] if rest else [])])
    return _adamw(config, trainable)


def state_numbers(config: AdamW | StableAdamW | Muon, model: nn.Module) -> int:
    """How many numbers the optimiser keeps: two moments of a parameter, or one momentum."""
    numbers = 2 * sum(p.numel() for p in model.parameters() if p.requires_grad)
    if isinstance(config, Muon):
        numbers -= sum(p.numel() for p in _hidden_matrices(model))
    return numbers


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


def _adamw(config: AdamW | Muon, parameters: list[nn.Parameter]) -> torch.optim.AdamW:
    return torch.optim.AdamW(
        _group_by_decay(parameters, config.weight_decay),
        lr=0.0,
        betas=(config.beta1, config.beta2),
        eps=config.epsilon,
        fused=True,
    )


def _group_by_decay(parameters: list[nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    """Groups of matrices, which decay, and of vectors, which do not; empty ones left out."""
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def _hidden_matrices(model: nn.Module) -> list[nn.Parameter]:
    """Weights of linear layers, except one that gives logits or is shared with an embedding."""
    outputs = getattr(model, "get_output_embeddings", lambda: None)()
    others = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    others |= {id(p) for p in (outputs.parameters() if outputs is not None else ())}
    weights: Any = (m.weight for m in model.modules() if isinstance(m, nn.Linear))
    own: dict[int, nn.Parameter] = {
        id(w): w for w in weights if w.requires_grad and id(w) not in others
    }
    return list(own.values())
