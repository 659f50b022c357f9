"""Dropout on the host, where torch draws its random numbers one after the other.

numpy's SFC64 gives 16 bits an element in a seventh of the time. Its seed comes from torch's generator, so
seeding that seeds this. A probability is rounded to a multiple of 2⁻¹⁶, and the scale of what is kept fits
the rounded value.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

__all__ = ["HostDropout", "draw_kept", "drop_on_host"]


def draw_kept(shape: torch.Size, dropout: float, dtype: torch.dtype) -> torch.Tensor:
    """What to multiply values on the host by: 0 with probability ``dropout``, else 1 / (1 − ``dropout``)."""
    dropped = round(dropout * 2**16)
    generator = np.random.SFC64(int(torch.randint(2**62, ())))
    number = shape.numel()
    raw = generator.random_raw(-(-number // 4)).view(np.uint16)[:number]
    kept = torch.from_numpy(raw >= dropped).view(shape).to(dtype)
    return kept.mul_(2**16 / max(1, 2**16 - dropped))


class HostDropout(nn.Dropout):
    """``nn.Dropout`` whose numbers come from :func:`draw_kept` where values are on the host."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if not self.training or not self.p or input.device.type != "cpu":
            return super().forward(input)
        return input * draw_kept(input.shape, self.p, input.dtype)


def drop_on_host(model: nn.Module) -> None:
    """Put :class:`HostDropout` in place of every plain dropout of a model."""
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.Dropout:
                setattr(parent, name, HostDropout(child.p).train(child.training))
