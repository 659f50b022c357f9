"""Where a model computes and in what precision, as the tasks' settings name it."""

from __future__ import annotations

from typing import Literal

import torch
from transformers import PreTrainedModel

from chronomask.errors import UsageError

__all__ = ["Device", "Precision", "autocast", "device_of", "placed"]

Device = Literal["auto", "cpu", "cuda"]
"""auto: a CUDA device if there is one"""
Precision = Literal["float32", "bfloat16"]
"""bfloat16: matrix products in half precision, weights and sums in float32"""


def device_of(choice: Device) -> torch.device:
    """The device meant; raises UsageError for a CUDA device that is not there."""
    there = torch.cuda.is_available()
    if choice == "cuda" and not there:
        raise UsageError("device is 'cuda', but torch finds no CUDA device here: use auto or cpu")
    return torch.device("cuda" if there and choice != "cpu" else "cpu")


def placed(model: PreTrainedModel, device: torch.device) -> PreTrainedModel:
    """The model itself, moved to the device."""
    model.to(device)  # pyright: ignore[reportArgumentType]
    return model


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """Inside, matrix products are had in that precision."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")
