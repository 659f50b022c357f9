"""The state of a run at a step boundary, as whole tensors: what a checkpoint is written from.

Taking one is all that training waits for when checkpoints are written in the background.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from chronomask.train.sharding import whole

__all__ = ["Snapshot", "take"]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """``state``: what ``state.json`` will hold; ``card``: the model card; the rest are whole tensors.

    ``weights`` by the names of the model's ``state_dict``, tied ones sharing memory; ``optimiser`` by
    ``slot/parameter name``; ``content`` by the masker's and the log's own names.
    """

    state: dict[str, Any]
    card: str
    weights: dict[str, torch.Tensor]
    optimiser: dict[str, torch.Tensor]
    content: dict[str, torch.Tensor]

    @property
    def step(self) -> int:
        """Number of optimiser steps done."""
        return self.state["step"]


def take(
    state: dict[str, Any],
    card: str,
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    content: dict[str, torch.Tensor],
    *,
    copied: bool,
    kept: bool,
) -> Snapshot | None:
    """A snapshot on the host, or None where it is not ``kept``; all processes must call this together.

    ``copied``: it keeps its values while training goes on; otherwise tensors of the host are shared
    with the model, and it holds until the next update.
    """

    def on_host(tensor: torch.Tensor) -> torch.Tensor | None:
        full = whole(tensor.detach())
        if not kept:
            return None
        host = full.cpu()
        return host.clone() if copied and host is full else host

    seen: dict[int, torch.Tensor | None] = {}
    weights: dict[str, torch.Tensor | None] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen[id(tensor)] = on_host(tensor)
        weights[name] = seen[id(tensor)]
    slots = {
        f"{slot}/{name}": on_host(value)
        for name, parameter in model.named_parameters()
        for slot, value in optimiser.state.get(parameter, {}).items()
    }
    if not kept:
        return None
    return Snapshot(
        state,
        card,
        {name: tensor for name, tensor in weights.items() if tensor is not None},
        {name: tensor.contiguous() for name, tensor in slots.items() if tensor is not None},
        {name: tensor.detach().cpu().clone() for name, tensor in content.items()},
    )
