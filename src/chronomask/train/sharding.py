"""FSDP2: parameters, gradients and optimiser state shared out over the processes of a run.

torch's ``fully_shard`` cuts every parameter along its first dimension, gathers a layer's parameters
when it runs and sums its gradients back onto their owners. What is computed is what whole copies
compute, to rounding: gradients are summed, not averaged, because the loss is divided by the step's
global count already. Checkpoints hold whole tensors, so a run may be resumed by any number of
processes, sharded or not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedModel

from chronomask.model.head import logits_at
from chronomask.train.distributed import World

__all__ = ["Sharded", "gradient_norm", "layers_of", "like", "whole"]

_torch: Any = torch
"""The ``_foreach`` functions are not among the names that torch exports to type checkers."""


class Sharded:
    """A model shared out over all processes; called as :func:`~chronomask.model.head.logits_at` is.

    Every process must call it equally often: a call gathers parameters from the others.
    """

    def __init__(self, model: PreTrainedModel, world: World, compiled: bool = False) -> None:
        if compiled:  # each layer alone: gathering happens between them
            for layer in layers_of(model):
                layer.compile(dynamic=False)
        mesh = init_device_mesh(world.device.type, (world.size,))
        # The root is a module around the model, so that gathering surrounds backbone and head alike
        # and the model keeps its class. It owns what is outside of the layers, tied weights included.
        self._root = _BackboneAndHead(model)
        groups = [fully_shard(module, mesh=mesh) for module in (*layers_of(model), self._root)]
        self._root_group = groups[-1]
        for group in groups:
            group.set_gradient_divide_factor(1.0)
            group.set_force_sum_reduction_for_comms(True)

    def __call__(
        self,
        model: PreTrainedModel,
        input_ids: torch.Tensor,
        positions: torch.Tensor,
        inputs: Mapping[str, Any],
        compiled: str | None = None,
    ) -> torch.Tensor:
        """Logits [N, V] at flat ``positions``; ``model`` is the one that was shared out."""
        assert model is self._root.model
        assert compiled is None  # the head runs where its parameters are gathered, as it is
        return self._root(input_ids, positions, inputs)

    def sum_gradients_next(self, now: bool) -> None:
        """Whether the next backward pass sums gradients over processes, or keeps them for a later one."""
        self._root_group.set_requires_gradient_sync(now)


class _BackboneAndHead(nn.Module):
    """Backbone and gathered head as one forward pass."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, input_ids: torch.Tensor, positions: torch.Tensor, inputs: Mapping[str, Any]
    ) -> torch.Tensor:
        return logits_at(self.model, input_ids, positions, inputs, whole_layers=True)


def layers_of(model: PreTrainedModel) -> Sequence[nn.Module]:
    """The backbone's layers: the longest list of modules in it; none where there is no such list."""
    lists = [module for module in model.base_model.modules() if isinstance(module, nn.ModuleList)]
    return list(max(lists, key=len)) if lists else []


def gradient_norm(gradients: Sequence[torch.Tensor]) -> torch.Tensor:
    """The norm of all gradients together, 0-d, whole also where every process holds a part."""
    if not gradients or isinstance(gradients[0], DTensor):
        return whole(torch.nn.utils.get_total_norm(gradients))
    # What that does for tensors of one device and type, without asking each of them where it is.
    return torch.linalg.vector_norm(torch.stack(_torch._foreach_norm(gradients)))


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor itself, or all of it gathered where processes hold parts (then all must call)."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def like(tensor: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """A whole ``tensor`` on the device of ``parameter``, cut as that is if it has its shape."""
    tensor = tensor.to(parameter.device)
    if not isinstance(parameter, DTensor) or tensor.shape != parameter.shape:
        return tensor
    return distribute_tensor(
        tensor, parameter.device_mesh, parameter.placements, src_data_rank=None
    )
