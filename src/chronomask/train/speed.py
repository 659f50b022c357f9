"""How fast training runs beside what the device can do: peak rate, memory, time left."""

from __future__ import annotations

import resource
import sys
import time
from pathlib import Path

import torch

__all__ = ["peak_flops", "peak_memory"]


def peak_flops(device: torch.device, precision: str, seconds: float = 0.2) -> float:
    """FLOP/s of dense square matrix products of ``precision`` on ``device``: the fastest of a few.

    Measured here and now, so a host that is busy with other work gives less than it could.
    """
    cuda = device.type == "cuda"
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    size = 8192 if cuda else 1024 if precision == "fp32" else 256
    with torch.no_grad():
        a, b = (torch.rand(size, size, device=device).to(dtype) for _ in range(2))
        best = float("inf")
        deadline = time.perf_counter() + seconds
        repeats = 4 if cuda else 1
        while best == float("inf") or time.perf_counter() < deadline:
            _settle(device)
            began = time.perf_counter()
            for _ in range(repeats):
                torch.matmul(a, b)
            _settle(device)
            best = min(best, (time.perf_counter() - began) / repeats)
    return 2 * size**3 / best


def peak_memory(device: torch.device) -> int:
    """Most bytes in use so far: allocated on a CUDA device, else resident in this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if (
        sys.platform == "linux"
    ):  # where ru_maxrss is at least that of the process that started this one
        status = Path("/proc/self/status").read_text()
        return next(int(line.split()[1]) for line in status.splitlines() if "VmHWM" in line) * 1024
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used * 1024


def _settle(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
