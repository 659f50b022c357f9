"""Optimisers: each a config that builds a ``torch.optim.Optimizer`` over a model's parameters."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import nn

from chronomask.config import Config

__all__ = ["Optimiser", "build_optimiser", "set_learning_rate"]

Beta = Annotated[float, Field(ge=0, lt=1)]


class AdamW(Config):
    """Adam with decoupled weight decay (Loshchilov and Hutter, ICLR 2019), fused."""

    kind: Literal["adamw"] = "adamw"
    beta1: Beta = 0.9
    """decay of the first moment"""
    beta2: Beta = 0.98
    """decay of the second moment"""
    epsilon: Annotated[float, Field(gt=0)] = 1e-6
    """added to the root of the second moment"""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """decay of weight matrices and embeddings; biases and normalisation weights have none"""


Optimiser = AdamW
"""The union of optimiser configs, told apart by ``kind``."""


def build_optimiser(config: Optimiser, model: nn.Module) -> torch.optim.Optimizer:
    """The optimiser over all trainable parameters of ``model``; the rate is set before each step."""
    matrices = [p for p in model.parameters() if p.requires_grad and p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.requires_grad and p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=0.0,
        betas=(config.beta1, config.beta2),
        eps=config.epsilon,
        fused=True,
    )


def set_learning_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    """Set the rate of every parameter group."""
    for group in optimiser.param_groups:
        group["lr"] = rate
