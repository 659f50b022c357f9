"""Weights in bfloat16 for the forward and backward pass, beside float32 master weights.

Under autocast the weights, the residual stream and what norms give are float32 and are cast again for every
product; that traffic is a good part of a step on a GPU. Here a copy of the model in bfloat16 computes losses
and gradients. The optimiser, the checkpoints and the exported model know the float32 weights alone, as in
mixed precision training (Micikevicius et al., ICLR 2018, arXiv 1710.03740, section 3.1); gradients of
micro-batches are summed in float32.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from transformers import PreTrainedModel

__all__ = ["WorkingCopy"]

_torch: Any = torch
"""The ``_foreach`` functions are not among the names that torch exports to type checkers."""


class WorkingCopy:
    """The bfloat16 copy of a float32 ``master``, whose parameters the optimiser updates.

    Buffers keep their dtype: angles of rotary positions need float32.
    """

    def __init__(self, master: PreTrainedModel) -> None:
        self.model: PreTrainedModel = copy.deepcopy(master)
        for parameter in self.model.parameters():
            parameter.data = parameter.data.bfloat16()
        self._masters = [p for p in master.parameters() if p.requires_grad]
        self._copies = [p for p in self.model.parameters() if p.requires_grad]

    @torch.no_grad()
    def collect(self) -> None:
        """Add the copy's gradients, float32, to those of the master, and forget them."""
        both = [
            (master, own.grad)
            for master, own in zip(self._masters, self._copies, strict=True)
            if own.grad is not None
        ]
        first = [(master, new) for master, new in both if master.grad is None]
        later = [(master.grad, new) for master, new in both if master.grad is not None]
        for master, new in first:
            master.grad = torch.empty_like(new, dtype=torch.float32)
        # All at once: a call for each costs the host more than the device.
        if first:
            _torch._foreach_copy_([master.grad for master, _ in first], [new for _, new in first])
        if later:
            _torch._foreach_add_(*map(list, zip(*later, strict=True)))
        for own in self._copies:
            own.grad = None

    @torch.no_grad()
    def refresh(self) -> None:
        """Round the master's weights into the copy, after every update of them."""
        _torch._foreach_copy_(self._copies, self._masters)
