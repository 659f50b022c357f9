"""Work that what a caller has set in torch does not change, and that changes nothing of it.

The same config gives the same numbers, whether it is run from a command line or from a notebook in which the
default dtype, the default device or autocast was set, and gradients or random numbers are needed afterwards.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch

__all__ = ["isolation"]


@contextmanager
def isolation() -> Iterator[None]:
    """While open torch is set as a process begins with it; afterwards as it was, generators and the number
    of threads included.
    """
    generators = (torch.default_generator, *torch.cuda.default_generators)
    states = [generator.get_state() for generator in generators]
    threads = torch.get_num_threads()
    dtype, device = torch.get_default_dtype(), torch.get_default_device()
    with ExitStack() as modes:
        if torch.is_inference_mode_enabled():
            modes.enter_context(torch.inference_mode(False))
        modes.enter_context(torch.enable_grad())
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                modes.enter_context(torch.autocast(kind, enabled=False))
        torch.set_default_dtype(torch.float32)
        if device.type != "cpu":  # to set the default itself would make every call slower
            torch.set_default_device(None)
        try:
            yield
        finally:
            torch.set_default_dtype(dtype)
            if device.type != "cpu":
                torch.set_default_device(device)
            if torch.get_num_threads() != threads:
                torch.set_num_threads(threads)
            for generator, state in zip(generators, states, strict=True):
                generator.set_state(state)
