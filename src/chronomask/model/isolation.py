"""Work that what a caller has set in torch does not change, and that changes nothing of it.

The same config gives the same numbers, whether it is run from a command line or from a notebook in which the
default dtype, the default device or autocast was set, and gradients or random numbers are needed afterwards.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import torch

from chronomask.errors import UsageError

__all__ = ["isolation"]

_IN_USE = threading.RLock()
"""Settings and random numbers are those of a process, so one thread has them."""


@contextmanager
def isolation() -> Iterator[None]:
    """While open torch is set as a process begins with it; afterwards as it was, generators and the number
    of threads included. Raises UsageError where another thread has it open.
    """
    if not _IN_USE.acquire(blocking=False):
        raise UsageError(
            "another thread of this process trains or evaluates already, and both would draw from the same "
            "random numbers: start one of them in a process of its own, or after the other"
        )
    with ExitStack() as modes:
        modes.callback(_IN_USE.release)
        modes.enter_context(_as_it_begins())
        yield


@contextmanager
def _as_it_begins() -> Iterator[None]:
    """Torch's settings are those of a process that has changed none."""
    generators = (torch.default_generator, *torch.cuda.default_generators)
    states = [generator.get_state() for generator in generators]
    seed = torch.initial_seed()
    threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
    with ExitStack() as modes:
        modes.enter_context(_whole_products())
        if torch.is_inference_mode_enabled():
            modes.enter_context(torch.inference_mode(False))
        modes.enter_context(torch.enable_grad())
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                modes.enter_context(torch.autocast(kind, enabled=False))
        if torch.get_default_device().type != "cpu":  # it makes every call slower
            modes.enter_context(torch.device("cpu"))
        torch.set_default_dtype(torch.float32)
        try:
            yield
        finally:
            torch.set_default_dtype(dtype)
            if torch.get_num_threads() != threads:
                torch.set_num_threads(threads)
            for generator, state in zip(generators, states, strict=True):
                generator.set_state(state)
            for generator in torch.cuda.default_generators[len(generators) - 1 :]:
                generator.manual_seed(seed)  # they were not there yet, and would have had it


@contextmanager
def _whole_products() -> Iterator[None]:
    """Products of float32 matrices are of whole float32 numbers, whichever way a caller chose others.

    Torch has an old way, of all backends at once, and one for each backend. It raises where the old one is
    asked and the other was used, as transformers' ``Trainer`` does for ``tf32`` and ``torch_compile``
    (https://docs.pytorch.org/docs/stable/notes/numerical_accuracy.html).
    """
    known: Any = torch.backends  # its attributes are made when torch is imported
    backends = (known.cuda.matmul, known.mkldnn.matmul)
    before = [backend.fp32_precision for backend in backends]
    if all(precision in ("none", "ieee") for precision in before):
        yield
        return
    at_once = None
    with suppress(RuntimeError):
        at_once = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        if at_once is not None:
            torch.set_float32_matmul_precision(at_once)
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = "none"  # so that it follows what is set for all backends
            if backend.fp32_precision != precision:
                backend.fp32_precision = precision
