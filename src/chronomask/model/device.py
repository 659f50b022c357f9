"""Where a model computes, in what precision, and what the device can do."""

from __future__ import annotations

import os
import re
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal, get_args

import torch

from chronomask.errors import UsageError, nearest, python_command, shown
from chronomask.machine import available_cores
from chronomask.types import Device, Precision

__all__ = [
    "DATA_SHEET_FLOPS",
    "Facts",
    "Reading",
    "autocast",
    "autocast_dtype",
    "beside",
    "choose_device",
    "cuda_graphs",
    "data_sheet_flops",
    "gpu_out_of_reach",
    "is_fast_width",
    "memory_lacking",
    "peak_flops",
    "peak_memory",
    "precision_on",
    "product_dtype",
    "refuse_emulation",
    "slow_on_host",
    "slow_paths",
    "use_own_cores",
]

DATA_SHEET_FLOPS = {
    "A10": 125e12,
    "A30": 165e12,
    "A40": 150e12,
    "A100": 312e12,
    "RTX A6000": 155e12,
    "L4": 121e12,
    "L40S": 362e12,
    "RTX 4090": 165e12,
    "RTX 5090": 210e12,
    "H100": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H200": 989e12,
    "H200 NVL": 835e12,
    "GH200": 989e12,
    "B200": 2250e12,
}
"""FLOP/s of dense bfloat16 products with float32 sums that NVIDIA's data sheets and white papers state; where
they state the rate with structured sparsity alone, half of it. Keys are parts of the device's name."""


_NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")
"""There where Linux has loaded the driver of a GPU."""


def choose_device(choice: str) -> torch.device:
    """The device that one of :data:`Device` means; ``auto`` takes a CUDA device if there is one.

    Raises UsageError for another name, and where CUDA is asked for and torch finds no such device.
    """
    if choice not in get_args(Device):
        raise UsageError(f"device is {shown(choice)}; {nearest(choice, get_args(Device))}")
    there = torch.cuda.is_available()
    if choice == "cuda" and not there:
        raise UsageError("device is 'cuda', but torch finds no CUDA device; set device=cpu or auto")
    return torch.device("cuda" if there and choice != "cpu" else "cpu")


def gpu_out_of_reach() -> str | None:
    """Why torch does not use an NVIDIA GPU that is in this machine, with a way out.

    None where there is none, it is used, or CUDA_VISIBLE_DEVICES hides it.
    """
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    if hidden or torch.cuda.is_available() or not _NVIDIA_DRIVER.exists():
        return None
    if torch.version.cuda is None:
        return (
            f"this machine has an NVIDIA GPU, and torch {torch.__version__} is a build without CUDA, so the "
            "processor is used: install a build of torch with CUDA"
        )
    return (
        f"this machine has an NVIDIA GPU, and torch {torch.__version__} cannot use it, so the processor is "
        f"used: its driver may be too old for CUDA {torch.version.cuda}; "
        f"{python_command('-c', 'import torch; torch.cuda.init()')} says why"
    )


def refuse_emulation(device: torch.device, precision: Precision, way_out: str) -> None:
    """Raise UsageError for bfloat16 on a CUDA device without units for it, with the setting that is another
    precision: torch emulates its products, slower than in float32, and attention has no kernels.
    """
    if device.type == "cuda" and precision == "bf16" and precision_on(device, "auto") != "bf16":
        raise UsageError(
            f"precision is bf16, and {torch.cuda.get_device_name(device)} does not compute it: {way_out}, or "
            "use a device that does"
        )


def precision_on(device: torch.device, precision: Precision) -> Literal["fp32", "bf16"]:
    """The precision in force: ``auto`` is bf16 on CUDA devices that compute it themselves, and on processors
    that are faster with it, else fp32.
    """
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if device.type == "cpu" and _host_is_faster_in_bf16() else "fp32"


@cache
def _host_is_faster_in_bf16() -> bool:
    """Whether the processor is of a kind that was seen to train faster in bfloat16, and torch can use it.

    Intel's Advanced Matrix Extensions multiply matrices several times as fast as it does in float32, and
    AVX-512's instructions on AMD's Zen, from its fourth generation on, twice as fast. On Intel's processors
    these instructions do not make up for the casts. Where there are none, products in bfloat16 are slower by
    themselves.
    """
    from llvmlite.binding import get_host_cpu_features, get_host_cpu_name

    try:
        features = get_host_cpu_features()
    except RuntimeError:  # LLVM does not know this kind of processor
        return False
    amd = get_host_cpu_name().startswith("znver") and features.get("avx512bf16", False)
    return (amd or features.get("amx-bf16", False)) and torch.backends.mkldnn.is_available()


def autocast(
    device: torch.device, precision: Precision, *, keeps_casts: bool = True
) -> torch.autocast:
    """A context in which matrix products are computed in this precision; weights stay float32.

    ``keeps_casts``: a weight is cast once while it is open, however often it is used, as is torch's way.
    """
    bf16 = precision_on(device, precision) == "bf16"
    kept = None if keeps_casts else False  # None: as torch is set
    return torch.autocast(device.type, torch.bfloat16, enabled=bf16, cache_enabled=kept)


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """The type that matrix products are computed in here and now; None: that of the weights."""
    on = torch.is_autocast_enabled(device.type)
    return torch.get_autocast_dtype(device.type) if on else None


def product_dtype(x: torch.Tensor) -> torch.dtype:
    """The type that products of ``x`` are computed in here and now; autocast leaves float64 as it is."""
    cast = None if x.dtype == torch.float64 else autocast_dtype(x.device)
    return cast or x.dtype


class Reading:
    """Numbers on their way from a device to the host, behind what is queued there and before what follows."""

    def __init__(self, numbers: torch.Tensor) -> None:
        self._copy = numbers.to("cpu", non_blocking=True)  # from CUDA: into pinned memory
        self._arrived = torch.cuda.Event() if numbers.is_cuda else None
        if self._arrived is not None:
            self._arrived.record()

    @property
    def has_arrived(self) -> bool:
        """Whether nothing would be waited for."""
        return self._arrived is None or self._arrived.query()

    def wait(self) -> torch.Tensor:
        """The numbers, once they have arrived."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._copy


@contextmanager
def beside(device: torch.device) -> Iterator[None]:
    """Send what is made while this is open to a CUDA device at once, beside what is queued there.

    What is queued afterwards waits for it. The tensors must live until the host has waited for that work.
    """
    if device.type != "cuda":
        yield
        return
    stream = _stream_beside(device)
    with torch.cuda.stream(stream):
        yield
    torch.cuda.current_stream(device).wait_stream(stream)


@cache
def _stream_beside(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


@contextmanager
def cuda_graphs() -> Iterator[None]:
    """Record what inductor compiles for CUDA devices as CUDA graphs while this is open, as torch's mode
    ``reduce-overhead`` does.

    What such a graph gives lies in memory that the next one overwrites: see ``train.step``.
    """
    import torch._inductor.config

    with torch._inductor.config.patch({"triton.cudagraphs": True}):
        try:
            yield
        finally:  # give their memory back, if there are any
            if trees := sys.modules.get("torch._inductor.cudagraph_trees"):
                trees.reset_cudagraph_trees()


def peak_flops(device: torch.device, precision: Precision, seconds: float = 0.2) -> float:
    """FLOP/s of dense square matrix products of ``precision`` on ``device``: the fastest of a few.

    Measured here and now, so a host that is busy with other work gives less than it could.
    """
    cuda = device.type == "cuda"
    bf16 = precision_on(device, precision) == "bf16"
    dtype = torch.bfloat16 if bf16 else torch.float32
    size = 256 if bf16 else 1024
    if cuda:
        free, _ = torch.cuda.mem_get_info(device)  # other processes may have filled it
        size = next((size for size in (8192, 4096, 2048) if 3 * 4 * size**2 < free), 1024)
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


def data_sheet_flops(device: torch.device, precision: Precision) -> float | None:
    """FLOP/s that the device's data sheet states for bfloat16; None for other precisions and devices."""
    if device.type != "cuda" or precision_on(device, precision) != "bf16":
        return None
    return _on_data_sheet(torch.cuda.get_device_name(device))


def _on_data_sheet(name: str) -> float | None:
    """The rate of the longest entry of the table whose words stand in the name one after the other.

    None for a card of that name for laptops, or for another market ("RTX 4090 D"), which has another rate.
    """
    found = [
        card
        for card in DATA_SHEET_FLOPS
        if re.search(rf"\b{re.escape(card)}\b(?! (?:D|Laptop)\b)", name)
    ]
    return DATA_SHEET_FLOPS[max(found, key=len)] if found else None


_FAST_MULTIPLE = 8
"""Numbers in bfloat16 that a GPU reads at once. Rows of logits that do not begin at a multiple of them are
read and written in smaller pieces: some 3 % of a step of a BERT-base with 30,522 tokens, on an H200."""


_WIDEST_HEAD = 256


def is_fast_width(width: int) -> bool:
    """Whether the kernel for documents takes attention heads of this width."""
    return width % _FAST_MULTIPLE == 0 and width <= _WIDEST_HEAD


@dataclass(frozen=True, slots=True)
class Facts:
    """What decides which kernels a run reaches on a CUDA device, and how many devices."""

    model_type: str
    precision: Literal["fp32", "bf16"]
    """in force"""
    computes_bf16: bool
    """whether the device does"""
    compiled: bool
    attention_dropout: float
    dropout_key: str | None
    """the setting that changes it; None where only the model's own config.json does"""
    named_attention: bool
    """whether the architecture takes an attention function from outside"""
    head_width: int | None
    """numbers in the query of one attention head; None where the config tells of no heads"""
    vocab_size: int
    """rows of the model's own embedding"""
    sets_sizes: bool
    """whether settings decide it and the width of heads; a checkpoint's are as they are"""
    devices: int = 1
    """that are there for a run of one process, which uses one of them"""


def slow_paths(facts: Facts) -> list[str]:
    """Why a run on CUDA is slower than it need be, each with the setting that mends it; most costly first."""
    found = []
    if facts.precision == "fp32" and facts.computes_bf16:
        found.append(
            "matrix products and attention run in float32, several times slower than bfloat16 on this "
            "device: set precision=bf16"
        )
    if not facts.named_attention:
        found.append(
            f"model type '{facts.model_type}' computes attention with a dense mask in its own way: choose a "
            "model type whose attention can be replaced, such as bert or modernbert"
        )
    elif facts.attention_dropout and facts.precision == "bf16":
        mend = (
            f"set {facts.dropout_key}=0.0"
            if facts.dropout_key
            else "set it to 0 in the config.json of the checkpoint"
        )
        found.append(
            f"attention dropout of {facts.attention_dropout:g} keeps attention from the kernel that needs "
            f"no mask: {mend}"
        )
    elif facts.head_width and facts.precision == "bf16" and not is_fast_width(facts.head_width):
        mend = (
            "set model.overrides.num_attention_heads so that hidden_size over it is one"
            if facts.sets_sizes
            else "choose a checkpoint with such heads"
        )
        found.append(
            f"attention heads are {facts.head_width} wide, and the kernel that needs no mask takes multiples "
            f"of {_FAST_MULTIPLE} up to {_WIDEST_HEAD}: {mend}"
        )
    if not facts.compiled:
        found.append("the model is not compiled: set compile=auto")
    if facts.precision == "bf16" and facts.sets_sizes and facts.vocab_size % _FAST_MULTIPLE:
        filled_up = -(-facts.vocab_size // _FAST_MULTIPLE) * _FAST_MULTIPLE
        found.append(
            f"matrix products over a vocabulary of {facts.vocab_size:,} are slower than over a multiple of "
            f"{_FAST_MULTIPLE}: set model.overrides.vocab_size={filled_up}"
        )
    if facts.devices > 1:
        found.append(
            f"one of {facts.devices} devices is used: torchrun --nproc-per-node {facts.devices} -m "
            "chronomask pretrain … trains on all of them"
        )
    return found


def slow_on_host(precision: Literal["fp32", "bf16"]) -> list[str]:
    """Why a run in this precision is slower on a processor than it need be; see :func:`slow_paths`."""
    if precision == precision_on(torch.device("cpu"), "auto"):
        return []
    if precision == "bf16":
        return ["this processor computes bfloat16 slower than float32: set precision=auto"]
    return [
        "matrix products run in float32, half as fast as in bfloat16 on this processor or slower: set "
        "precision=auto"
    ]


def use_own_cores() -> None:
    """Compute with no more threads than this process has processor cores' time for.

    torch has a thread for each core that a process may run on, and knows nothing of a container's share of
    their time. A number in ``OMP_NUM_THREADS`` is kept.
    """
    cores = available_cores()
    if "OMP_NUM_THREADS" not in os.environ and torch.get_num_threads() > cores:
        torch.set_num_threads(cores)


_LACKING = (
    "can't allocate memory",
    "CUDA error: out of memory",
    "HIP error: out of memory",
    "_ALLOC_FAILED",
)
"""What errors without a class of their own say: of torch's allocator on the host, and of what a device's
libraries allocate beside it (for graphs, pinned memory, a context, workspaces of cuBLAS and cuDNN)."""


def memory_lacking(error: BaseException) -> str | None:
    """What an allocator said that had no memory left, of a device or of the host; None for other errors.

    It is the beginning of what it said, without a stop at its end.
    """
    known = isinstance(error, torch.OutOfMemoryError | MemoryError)
    if not known and not (
        isinstance(error, RuntimeError) and any(words in str(error) for words in _LACKING)
    ):
        return None
    sentences = " ".join(str(error).split()).split(". ")
    return ". ".join(sentences[:2]).rstrip(".") or type(error).__name__


def peak_memory(device: torch.device) -> int:
    """Most bytes in use so far: allocated on a CUDA device, else resident in this process."""
    if device.type == "cuda":
        # As torch.cuda.max_memory_allocated, which names and sorts all other statistics at every call.
        return torch.cuda.memory_stats_as_nested_dict(device)["allocated_bytes"]["all"]["peak"]
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
