"""What reaches a run from the other processes that share it: sums over all of them.

Under ``torchrun`` every process trains on its share of each step's rows. Gradients are summed once a
step, after the last micro-batch: the loss is a sum over predicted tokens divided by their global
count, so summed gradients are the gradients of the whole step, whatever the shares.
"""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from transformers import PretrainedConfig

from chronomask.errors import RunError, UsageError
from chronomask.model.device import choose_device
from chronomask.runs.layout import RunFolder
from chronomask.types import Device

__all__ = ["World", "join", "refuse_layerdrop"]

_BUCKET_NUMEL = 16 * 2**20
"""Gradient elements summed at a time: a second copy of all gradients at once would cost memory."""


@dataclass(frozen=True, slots=True)
class World:
    """One of ``size`` processes, numbered ``rank``; ``device`` is this one's own."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """Whether this process writes the files and the progress."""
        return self.rank == 0

    def totals(self, *values: float) -> list[float]:
        """Each value summed over all processes; exact for counts below 2⁵³."""
        if self.size == 1:
            return [float(value) for value in values]
        return self.sum(torch.tensor(values, dtype=torch.float64)).tolist()

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum of ``tensor`` over all processes, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def least(self, value: int) -> int:
        """The smallest ``value`` of any process."""
        if self.size == 1:
            return value
        tensor = torch.tensor(value, dtype=torch.int64)
        dist.all_reduce(tensor, dist.ReduceOp.MIN)
        return int(tensor)

    def differ(self, values: Iterable[int]) -> list[bool]:
        """Of each of some numbers below 2⁶³ whether processes have different ones."""
        own = torch.tensor(list(values), dtype=torch.int64)
        if self.size == 1:
            return [False] * len(own)
        most, least = own, -own
        for tensor in (most, least):
            dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return (most != -least).tolist()

    def sum_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Replace every gradient by its sum over all processes; parameters without one are left out.

        All processes must hold gradients for the same parameters.
        """
        if self.size == 1:
            return
        for bucket in _buckets([p.grad for p in parameters if p.grad is not None]):
            flat = torch.cat([gradient.flatten() for gradient in bucket])
            dist.all_reduce(flat)
            parts = flat.split([gradient.numel() for gradient in bucket])
            for gradient, part in zip(bucket, parts, strict=True):
                gradient.copy_(part.view_as(gradient))

    @contextmanager
    def hold(self, folder: RunFolder) -> Iterator[None]:
        """Keep other runs out of ``folder`` while open; the first process holds it for all.

        Raises UsageError in every process where it is held already.
        """
        with ExitStack() as held:
            refused = None
            if self.is_first:
                try:
                    held.enter_context(folder.hold())
                except UsageError as error:
                    refused = error
            if self.totals(refused is not None)[0]:
                raise refused or UsageError(f"{folder.path} is in use, as the first process says")
            yield

    @contextmanager
    def together(self) -> Iterator[None]:
        """Leave when every process has come here; where one raised an error meanwhile, all raise one.

        Otherwise those that wait for it would end with a lost connection, or not at all.
        """
        failed = None
        try:
            yield
        except Exception as error:
            failed = error
        if self.totals(failed is not None)[0]:
            raise failed or RunError("another process could not do its part, as it says itself")

    def wait(self) -> None:
        """Return when every process has come here."""
        if self.size > 1:
            dist.barrier()


def refuse_layerdrop(architecture: PretrainedConfig, processes: int) -> None:
    """Raise UsageError where several processes would each leave out other layers, by chance.

    A layer that is left out has no gradient there, and gradients are summed place by place.
    """
    dropping = {
        name: value
        for name, value in architecture.to_dict().items()
        if name.endswith("layerdrop") and value
    }
    if processes > 1 and dropping:
        shown = " and ".join(f"{name} {value}" for name, value in dropping.items())
        mends = " ".join(f"model.overrides.{name}=0.0" for name in dropping)
        raise UsageError(
            f"model type '{architecture.model_type}' leaves out layers by chance ({shown}), and each of the "
            f"{processes} processes would leave out others: set {mends} (for a model from a folder, in its "
            "config.json), or use one process"
        )


@contextmanager
def join(device: Device) -> Iterator[World]:
    """Take this process's place among those that ``torchrun`` started; alone without it.

    Its CUDA device is torch's current one while this is open, and afterwards the one before is.

    Raises UsageError where CUDA is asked for and there is none, or fewer devices than processes.
    """
    own = choose_device(device)
    size, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    with ExitStack() as modes:
        if own.type == "cuda":
            own = torch.device("cuda", _number_on_this_machine())
            modes.enter_context(torch.cuda.device(own))
        if size > 1 and not dist.is_initialized():
            # Numbers of the host go from host to host: no device is waited for.
            backend = "cpu:gloo,cuda:nccl" if own.type == "cuda" else "gloo"
            dist.init_process_group(backend, store=_store(), rank=rank, world_size=size)
            modes.callback(dist.destroy_process_group)
        chatter = logging.getLogger("chronomask")
        modes.callback(chatter.setLevel, chatter.level)
        if rank:  # what all processes would say, the first one says
            chatter.setLevel(logging.ERROR)
        yield World(rank, size, own)


def _number_on_this_machine() -> int:
    """Which CUDA device this process has: that of its number among those that ``torchrun`` started on this
    machine, without it the one that its caller uses. Raises UsageError where there are fewer.
    """
    if "LOCAL_RANK" not in os.environ:
        return torch.cuda.current_device()
    number, devices = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if number >= devices:
        raise UsageError(
            f"process {number} of this machine, counted from 0, has no CUDA device, for torch finds "
            f"{devices}: start as many processes as there are devices (torchrun --nproc-per-node {devices}); "
            "if a scheduler shows each process one device, let it show all of them to all processes"
        )
    return number


_TRAININGS = itertools.count()
"""How often the processes of this script have found each other, the same for all of them."""


def _store() -> Any:
    """Where the processes find each other.

    ``torchrun`` keeps one store over its restarts (torch 2.13), in which a process may find the address
    of one that is gone, and both then wait for each other. On one node the count of restarts is the same
    for all and keeps them apart; nodes count by themselves (docs/cluster.md). So a process may find those of
    an earlier training of one script, which the count of these keeps apart.
    """
    public: Any = dist  # torch documents these names and does not list them
    store, _, _ = next(public.rendezvous("env://"))
    one_node = os.environ.get("LOCAL_WORLD_SIZE") == os.environ["WORLD_SIZE"]
    restarts = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") if one_node else "0"
    return public.PrefixStore(f"start-{restarts}-{next(_TRAININGS)}", store)


def _buckets(gradients: list[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    """Gradients in order, in groups of at most ``_BUCKET_NUMEL`` elements or one tensor."""
    bucket: list[torch.Tensor] = []
    numel = 0
    for gradient in gradients:
        if bucket and numel + gradient.numel() > _BUCKET_NUMEL:
            yield bucket
            bucket, numel = [], 0
        bucket.append(gradient)
        numel += gradient.numel()
    if bucket:
        yield bucket
