"""Optimisers, as configs that build a ``torch.optim.Optimizer`` over a model's parameters.

One more optimiser is one more class, here or anywhere (see :class:`~chronomask.config.Alternative`).
Whatever an optimiser keeps lies in ``state[parameter]`` as tensors that are scalars or have the parameter's
shape: that is all a checkpoint stores.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from chronomask.config import Alternative

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["AdamW", "Lamb", "Muon", "Optimiser", "StableAdamW"]

Beta = Annotated[float, Field(ge=0, lt=1)]
NotNegative = Annotated[float, Field(ge=0)]


class Optimiser(Alternative):
    """The family of optimisers, distinguished by ``kind``; ``build`` is what a new one must define."""

    takes_shards: ClassVar[bool] = False
    """whether it updates a part of a parameter as it would update the whole, as FSDP2 needs"""

    @abstractmethod
    def build(self, model: nn.Module) -> torch.optim.Optimizer:
        """The optimiser over all trainable parameters; :func:`~chronomask.train.updates.update` sets the
        rate.
        """

    def state_numbers(self, model: nn.Module) -> int:
        """How many numbers it keeps: here two moments of a parameter."""
        return 2 * sum(p.numel() for p in _trainable(model))


class _Adam(Optimiser):
    beta1: Beta = 0.9
    """decay of the first moment"""
    beta2: Beta = 0.98
    """decay of the second moment"""
    epsilon: Annotated[float, Field(gt=0)] = 1e-6
    """added to the root of the second moment, in units of the gradient"""
    weight_decay: NotNegative = 0.01
    """decay of weight matrices and embeddings; biases and normalisation weights have none"""

    def _adamw(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        from chronomask.train.updates import FusedAdamW, group_by_decay

        return FusedAdamW(
            group_by_decay(parameters, self.weight_decay),
            lr=0.0,
            betas=(self.beta1, self.beta2),
            eps=self.epsilon,
            fused=True,
        )


class AdamW(_Adam):
    """Adam with decoupled weight decay (Loshchilov and Hutter, ICLR 2019), fused."""

    kind: Literal["adamw"] = "adamw"
    takes_shards: ClassVar[bool] = True

    def build(self, model: nn.Module) -> torch.optim.Optimizer:
        """:class:`~chronomask.train.updates.FusedAdamW`."""
        return self._adamw(_trainable(model))


class StableAdamW(_Adam):
    """AdamW whose update of a tensor shrinks where its second moment is out of date.

    Wortsman et al. (arXiv 2304.13013), algorithm 2; ModernBERT's optimiser. It takes the place of
    clipping: set ``gradient_clip: null``.
    """

    kind: Literal["stable_adamw"] = "stable_adamw"

    def build(self, model: nn.Module) -> torch.optim.Optimizer:
        """:class:`~chronomask.train.updates.StableAdamWOptimizer`."""
        from chronomask.train.updates import StableAdamWOptimizer, group_by_decay

        return StableAdamWOptimizer(
            group_by_decay(_trainable(model), self.weight_decay),
            lr=0.0,
            betas=(self.beta1, self.beta2),
            eps=self.epsilon,
        )


class Lamb(_Adam):
    """AdamW whose update of a matrix has a length in proportion to the matrix, for very large steps.

    You et al. (ICLR 2020, arXiv 1904.00962), algorithm 2; BERT in 76 minutes.
    """

    kind: Literal["lamb"] = "lamb"

    def build(self, model: nn.Module) -> torch.optim.Optimizer:
        """:class:`~chronomask.train.updates.LambOptimizer`."""
        from chronomask.train.updates import LambOptimizer, group_by_decay

        return LambOptimizer(
            group_by_decay(_trainable(model), self.weight_decay),
            lr=0.0,
            betas=(self.beta1, self.beta2),
            eps=self.epsilon,
        )


class Muon(_Adam):
    """Momentum made orthogonal for the matrices of linear layers, AdamW for all else.

    That which gives logits counts among the embeddings; a dense layer of the head before it is a layer.
    Jordan et al. (2024). Updates are scaled to the root mean square of AdamW's (Liu et al., arXiv
    2502.16982), so that one learning rate and weight decay serve both.
    """

    kind: Literal["muon"] = "muon"
    momentum: Beta = 0.95
    """decay of the matrices' momentum, Nesterov's"""

    def build(self, model: nn.Module) -> torch.optim.Optimizer:
        """Torch's own two, as one."""
        import torch

        from chronomask.train.updates import Combined, hidden_matrices

        hidden = hidden_matrices(model)
        chosen = {id(p) for p in hidden}
        members: list[torch.optim.Optimizer] = []
        if hidden:
            members.append(
                torch.optim.Muon(
                    hidden,
                    lr=0.0,
                    weight_decay=self.weight_decay,
                    momentum=self.momentum,
                    adjust_lr_fn="match_rms_adamw",
                )
            )
        rest = [p for p in _trainable(model) if id(p) not in chosen]
        return Combined([*members, *([self._adamw(rest)] if rest else [])])

    def state_numbers(self, model: nn.Module) -> int:
        """Two moments of a parameter, or one momentum."""
        from chronomask.train.updates import hidden_matrices

        return super().state_numbers(model) - sum(p.numel() for p in hidden_matrices(model))


def _trainable(model: nn.Module) -> list[nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]
