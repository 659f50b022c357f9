"""The same configuration on the same machine gives the same bits: deterministic kernels, keyed dropout."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from chronomask.keyed import Stream, row_keys

__all__ = ["determinism", "seed_dropout"]

_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"


@contextmanager
def determinism(wanted: bool) -> Iterator[None]:
    """While open and ``wanted``, torch uses deterministic kernels alone; what was set is put back.

    An operation without such a kernel raises RuntimeError. cuBLAS reads its workspace setting when it
    is first used in a process, so this must be opened before any work on CUDA.
    """
    if not wanted:
        yield
        return
    before = torch.are_deterministic_algorithms_enabled()
    warned_only = torch.is_deterministic_algorithms_warn_only_enabled()
    benchmark = torch.backends.cudnn.benchmark
    workspace = os.environ.get(_WORKSPACE)
    os.environ.setdefault(_WORKSPACE, ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warned_only)
        torch.backends.cudnn.benchmark = benchmark
        if workspace is None:
            os.environ.pop(_WORKSPACE, None)


def seed_dropout(seed: int, step: int, rank: int, micro_batch: int) -> None:
    """Make the model's dropout a function of where it is drawn: of which 0-based step and part.

    Steps are counted over the runs from which one branched, so that a branch is like a longer run.
    It is keyed like everything else that is random, so that there is no random state to save.
    """
    key = int(row_keys(seed, Stream.DROPOUT, step, rank * 2**20 + micro_batch)) >> 1
    # What torch.manual_seed does, but for kinds of devices that no run is on: those not in use keep a trace
    # of the call for later, which takes as long as a small model's layers.
    for generator in (torch.default_generator, *torch.cuda.default_generators):
        generator.manual_seed(key)
