"""Where a model computes, in what precision, and what the device can do."""

from __future__ import annotations

import resource
import sys
import time
from pathlib import Path
from typing import Literal

import torch

from chronomask.errors import UsageError
from chronomask.types import Device, Precision

__all__ = ["autocast", "choose_device", "peak_flops", "peak_memory", "precision_on"]


def choose_device(choice: Device) -> torch.device:
    """The device meant; ``auto`` takes a CUDA device if there is one.

    Raises UsageError where CUDA is asked for and torch finds no such device.
    """
    there = torch.cuda.is_available()
    if choice == "cuda" and not there:
        raise UsageError("device is 'cuda', but torch finds no CUDA device; set device=cpu or auto")
    return torch.device("cuda" if there and choice != "cpu" else "cpu")


def precision_on(device: torch.device, precision: Precision) -> Literal["fp32", "bf16"]:
    """The precision in force: ``auto`` is bf16 on CUDA devices that compute it themselves, else fp32."""
    if precision != "auto":
        return precision
    able = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16" if able else "fp32"


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """A context in which matrix products are computed in this precision; weights stay float32."""
    bf16 = precision_on(device, precision) == "bf16"
    return torch.autocast(device.type, torch.bfloat16, enabled=bf16)


def peak_flops(device: torch.device, precision: Precision, seconds: float = 0.2) -> float:
    """FLOP/s of dense square matrix products of ``precision`` on ``device``: the fastest of a few.

    Measured here and now, so a host that is busy with other work gives less than it could.
    """
    cuda = device.type == "cuda"
    bf16 = precision_on(device, precision) == "bf16"
    dtype = torch.bfloat16 if bf16 else torch.float32
    size = 8192 if cuda else 256 if bf16 else 1024
    with torch.no_grad():
        a, b = (torch.rand(size, size, device=device).to(dtype) for _ in range(2))
        best = float("inf")
        deadline = time.perf_counter() + seconds
        repeats = 4 if cuda else 1
        while best == float("inf") or time.perf_counter() < deadline:
            _wait_for(device)
            began = time.perf_counter()
            for _ in range(repeats):
                torch.matmul(a, b)
            _wait_for(device)
            best = min(best, (time.perf_counter() - began) / repeats)
    return 2 * size**3 / best


def peak_memory(device: torch.device) -> int:
    """Most bytes in use so far: allocated on a CUDA device, else resident in this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if (
        sys.platform == "linux"
    ):  # ru_maxrss there is at least that of the process that started this one
        status = Path("/proc/self/status").read_text()
        return next(int(line.split()[1]) for line in status.splitlines() if "VmHWM" in line) * 1024
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used * 1024


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
