"""Training steps that are recorded once and replayed, on a device that is faster than its host.

A small model's kernels run for less time than the host takes to start them one by one. A CUDA graph holds
those of a whole step, forward pass to update, and starts them all at once. It holds shapes and places in
memory too. So batches are padded to a few lengths (:func:`padded_length`), with a graph for each, and are
copied to where the graph reads. The kernels are those that steps start without it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import cache
from typing import Any, Protocol

import numpy as np
import torch

from chronomask.model.device import memory_lacking
from chronomask.model.documents import Documents
from chronomask.types import pack, packed_size, unpack

__all__ = ["RecordedSteps", "Recorder", "Step", "padded_length", "recorder_on"]

logger = logging.getLogger(__name__)

Step = Callable[[dict[str, Any], torch.Tensor], None]
"""(inputs of a batch, indices of its examples, both on the device) → nothing; weights are updated in place"""
_INDEX = "index of the examples"


def padded_length(length: int, longest: int) -> int:
    """The length that a batch of ``length`` tokens a row is padded to, at most that of the ``longest`` row.

    A multiple of 16 up to 128 tokens, and above that one of four lengths for each doubling: 14 up to 384.
    """
    step = 1 << max(4, (length - 1).bit_length() - 3)
    return min(longest, -(-length // step) * step)


class Recorder(Protocol):
    """What records on a device."""

    def open(self) -> Any:
        """A context in which all steps run, recorded or not; at its end nothing refers to a recording."""
        ...

    def record(self, run: Callable[[], None]) -> Callable[[], None]:
        """What does the same as ``run`` whenever it is called; raises, and has done nothing, if it cannot."""
        ...


def recorder_on(device: torch.device) -> Recorder | None:
    """What records on this device; None where nothing is gained by it."""
    return _CudaGraphs(device) if device.type == "cuda" else None


class RecordedSteps:
    """Runs a step on batches, and records it for each kind of batch that comes again.

    The first batch of a kind runs as it would without: it loads and chooses kernels, and makes the
    optimiser's state. All batches run so once a recording has failed, or has left too little memory.
    """

    def __init__(self, step: Step, device: torch.device, recorder: Recorder, label: str) -> None:
        self._step, self._device, self._label = step, device, label
        self._recorder: Recorder | None = recorder
        self._kinds: dict[Any, _Kind] = {}

    @contextmanager
    def open(self) -> Iterator[None]:
        """A context in which all steps run; at its end what was recorded is forgotten."""
        assert self._recorder is not None  # it is opened once, before any step
        with self._recorder.open():
            try:
                yield
            finally:
                self._kinds.clear()

    def __call__(
        self, inputs: Mapping[str, Any], index: np.ndarray, *, comes_again: bool = True
    ) -> None:
        """Run the step on a batch that lies on the host; ``comes_again``: its kind is worth recording."""
        values = {**inputs, _INDEX: torch.from_numpy(index)}
        tensors, others = _tensors_in(values)
        key = (*((n, t.shape, t.dtype) for n, t in tensors.items()), *others)
        kind = self._kinds.get(key)
        met = kind is not None
        if kind is None:
            kind = self._kinds[key] = _Kind(values, tensors, self._device)
        kind.fill(tensors)
        if met and comes_again and kind.replay is None and self._recorder is not None:
            kind.replay = self._record(self._recorder, kind)
        if kind.replay is not None:
            return kind.replay()
        try:
            return self._run(kind)
        except RuntimeError as error:
            if memory_lacking(error) is None or all(
                each.replay is None for each in self._kinds.values()
            ):
                raise
            self._give_up(error)
        torch.cuda.empty_cache()
        return self._run(kind)  # from unchanged weights, as an update takes no memory

    def _run(self, kind: _Kind) -> None:
        inputs = kind.inputs()
        index = inputs.pop(_INDEX)
        self._step(inputs, index)

    def _record(self, recorder: Recorder, kind: _Kind) -> Callable[[], None] | None:
        try:
            return recorder.record(lambda: self._run(kind))
        except Exception as error:  # what is wrong with the step itself is raised when it runs
            self._give_up(error)
            return None

    def _give_up(self, error: Exception) -> None:
        """Record no more, forget what was recorded, and say why."""
        # The first error in the chain is the cause; later ones only say that recording ended.
        while isinstance(error.__context__, Exception):
            error = error.__context__
        why = next(iter(str(error).splitlines()), "") or type(error).__name__
        logger.info("%s: steps are not recorded as CUDA graphs: %s", self._label, why)
        self._recorder = None
        for each in self._kinds.values():
            each.replay = None


class _Kind:
    """Batches of one structure: a block of memory on the device for their tensors, and what was recorded."""

    def __init__(
        self, values: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], device: torch.device
    ) -> None:
        self.replay: Callable[[], None] | None = None
        self._values = dict(values)
        arrays = [tensor.numpy() for tensor in tensors.values()]
        self._block = torch.empty(packed_size(arrays), dtype=torch.uint8, device=device)
        self._tensors = dict(zip(tensors, unpack(self._block, arrays), strict=True))

    def fill(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Copy a batch to the device, all at once and behind what is queued there."""
        sent = torch.empty(
            self._block.shape, dtype=torch.uint8, pin_memory=self._block.device.type == "cuda"
        )
        pack([tensor.numpy() for tensor in tensors.values()], sent.numpy())
        self._block.copy_(sent, non_blocking=True)

    def inputs(self) -> dict[str, Any]:
        """The batch that was copied last, on the device.

        Documents are made anew each time: the masks that they keep were made of another batch.
        """
        return {name: self._on_device(name, value) for name, value in self._values.items()}

    def _on_device(self, name: str, value: Any) -> Any:
        if not isinstance(value, Documents):
            return self._tensors[name]
        number, bounds = (self._tensors[each] for each in _names_in(name))
        return replace(value, number=number, cu_seqlens=bounds, _masks={})


def _tensors_in(values: Mapping[str, Any]) -> tuple[dict[str, torch.Tensor], list[Any]]:
    """The tensors of a batch by name, and what else decides which kernels it needs."""
    tensors: dict[str, torch.Tensor] = {}
    others: list[Any] = []
    for name, value in values.items():
        if isinstance(value, Documents):
            tensors |= zip(_names_in(name), (value.number, value.cu_seqlens), strict=True)
            others.append((name, value.max_length, value.separate, value.causal))
        else:
            tensors[name] = value
    return tensors, others


def _names_in(documents: str) -> tuple[str, str]:
    return f"{documents}.number", f"{documents}.cu_seqlens"


class _CudaGraphs:
    """Records CUDA graphs that share their memory: a step leaves nothing there that another one reads.

    Random numbers are drawn from torch's generator of the device, which goes on with each replay as with a
    step that is not recorded.

    torch keeps memory for the stream that it was taken on, and that of graphs for no others. So a device has
    one stream for all that are made, and memory is given back when the graphs of one are gone: without this,
    each fine-tuning of a process would take the memory of its steps anew.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = _stream_on(device)
        self._pool = torch.cuda.graph_pool_handle()

    @contextmanager
    def open(self) -> Iterator[None]:
        """Run all on one stream beside the default one, which cannot be recorded.

        Other steps run there too: autograd and cuBLAS keep things for a stream, which a recording needs.
        """
        before = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(before)
        try:
            with torch.cuda.stream(self._stream):
                yield
        finally:
            before.wait_stream(self._stream)
            torch.cuda.empty_cache()

    def record(self, run: Callable[[], None]) -> Callable[[], None]:
        """Record what ``run`` starts, and start none of it; it waits for the device."""
        graph = torch.cuda.CUDAGraph()
        recording = torch.cuda.graph(
            graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
        )
        try:
            with recording:
                run()
        except BaseException:
            self._clean_up()
            raise
        return graph.replay

    def _clean_up(self) -> None:
        """Free torch's generator and allocator from a recording that broke off: neither ends it itself.

        The generator goes on with a copy of its state, same seed and same place, that no graph holds on to.
        """
        torch.cuda.synchronize(self._device)
        index = torch.cuda.current_device() if self._device.index is None else self._device.index
        generator = torch.cuda.default_generators[index]
        generator.graphsafe_set_state(generator.clone_state())
        with suppress(RuntimeError):  # if the allocator was told that the recording is over
            torch._C._cuda_endAllocateToPool(index, self._pool)
            torch._C._cuda_releasePool(index, self._pool)


@cache
def _stream_on(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)
