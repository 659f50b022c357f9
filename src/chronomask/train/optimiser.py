"""Optimisers: each a config that builds a ``torch.optim.Optimizer`` over a model's parameters.

Whatever an optimiser keeps lies in ``state[parameter]`` as tensors that are scalars or have the
parameter's shape: that is all a checkpoint stores. The learning rate is set before each step, the same
for every group.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import nn

from chronomask.config import Config
from chronomask.train.stable_adamw import StableAdamWOptimizer

__all__ = ["AdamW", "Muon", "Optimiser", "StableAdamW", "build_optimiser", "set_learning_rate"]

Beta = Annotated[float, Field(ge=0, lt=1)]
NotNegative = Annotated[float, Field(ge=0)]


class _Adam(Config):
    beta1: Beta = 0.9
    """decay of the first moment"""
    beta2: Beta = 0.98
    """decay of the second moment"""
    epsilon: Annotated[float, Field(gt=0)] = 1e-6
    """added to the root of the second moment"""
    weight_decay: NotNegative = 0.01
    """decay of weight matrices and embeddings; biases and normalisation weights have none"""


class AdamW(_Adam):
    """Adam with decoupled weight decay (Loshchilov and Hutter, ICLR 2019), fused."""

    kind: Literal["adamw"] = "adamw"


class StableAdamW(_Adam):
    """AdamW whose update of a tensor shrinks where its second moment is out of date.

    Wortsman et al. (arXiv 2304.13013), algorithm 2; ModernBERT's optimiser. It takes the place of
    clipping: set ``gradient_clip: null``.
    """

    kind: Literal["stable_adamw"] = "stable_adamw"


class Muon(_Adam):
    """Momentum made orthogonal for the weight matrices of hidden layers, AdamW for all else.

    Jordan et al. (2024). Updates are scaled to the root mean square of AdamW's (Liu et al., arXiv
    2502.16982), so that one learning rate and weight decay serve both.
    """

    kind: Literal["muon"] = "muon"
    momentum: Beta = 0.95
    """decay of the matrices' momentum, Nesterov's"""


Optimiser = Annotated[AdamW | StableAdamW | Muon, Field(discriminator="kind")]
"""The union of optimiser configs, told apart by ``kind``."""


class _Several(torch.optim.Optimizer):
    """Optimisers of disjoint parameters as one: their groups in a row, one state."""

    def __init__(self, members: Iterable[torch.optim.Optimizer]) -> None:
        self.members = list(members)
        super().__init__([group for member in self.members for group in member.param_groups], {})
        self._share()

    def _share(self) -> None:
        """Let the members keep their state, and read their groups, where this one does."""
        first = 0
        for member in self.members:
            last = first + len(member.param_groups)
            member.state, member.param_groups = self.state, self.param_groups[first:last]
            first = last

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As in torch."""
        super().load_state_dict(state_dict)
        self._share()

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One step of every member."""
        assert closure is None  # nothing here evaluates a loss again
        for member in self.members:
            member.step()


def build_optimiser(config: AdamW | StableAdamW | Muon, model: nn.Module) -> torch.optim.Optimizer:
    """The optimiser over all trainable parameters of ``model``; the rate is set before each step."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    if isinstance(config, StableAdamW):
        betas = (config.beta1, config.beta2)
        groups = _by_decay(trainable, config.weight_decay)
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
        return _Several([*members, *([_adamw(config, rest)] if rest else [])])
    return _adamw(config, trainable)


def set_learning_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    """Set the rate of every parameter group."""
    for group in optimiser.param_groups:
        group["lr"] = rate


def _adamw(config: AdamW | Muon, parameters: list[nn.Parameter]) -> torch.optim.AdamW:
    return torch.optim.AdamW(
        _by_decay(parameters, config.weight_decay),
        lr=0.0,
        betas=(config.beta1, config.beta2),
        eps=config.epsilon,
        fused=True,
    )


def _by_decay(parameters: list[nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
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
    weights = (m.weight for m in model.modules() if isinstance(m, nn.Linear))
    own = {id(w): w for w in weights if w.requires_grad and id(w) not in others}
    return list(own.values())
