"""What the figures of a GPU are measured on: models, rows, and a run of them."""

from __future__ import annotations

import json
import os
import re
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch.nn.attention import varlen
from torch.profiler import ProfilerActivity, profile

from benchmarks.sides import Work, make_data, ours
from chronomask.data.folder import PreparedData
from chronomask.evaluate import heads
from chronomask.model import attention, head
from chronomask.train import loop
from chronomask.train import open as opening
from chronomask.train import step as steps

__all__ = [
    "BEGIN",
    "BERT",
    "BF16_WEIGHTS",
    "MASKING",
    "ROOT",
    "SMALL",
    "SO_FAR",
    "TINY",
    "Figures",
    "Setting",
    "Tell",
    "at_toy_size",
    "by_kind",
    "of_profile",
    "of_training",
    "ready_file",
    "settle",
    "speed_so_far",
]

BERT = Work(
    overrides={"attention_probs_dropout_prob": 0.0},
    vocabulary=30_528,
    row_length=512,
    rows=256,
    device="cuda",
    precision="bf16",
    micro_batches=2,
    threads=8,
)
SMALL = {
    "hidden_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 1024,
}
LARGE = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
}
WORK = {
    "bert_base": BERT,
    "bert_base_no_dropout": replace(BERT, overrides=BERT.overrides | {"hidden_dropout_prob": 0.0}),
    "bert_large": replace(BERT, overrides=BERT.overrides | LARGE, micro_batches=8),
    "modernbert_base": replace(
        BERT, model_type="modernbert", overrides={}, row_length=1024, rows=128, micro_batches=4
    ),
    "small": replace(
        BERT, overrides=BERT.overrides | SMALL, vocabulary=16_384, row_length=128, rows=128,
        micro_batches=1, threads=2,
    ),
}  # fmt: skip
TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
}
KINDS = {
    "attention": "flash|fmha|attention",
    "matrix_products": "gemm|nvjet|cutlass|xmma|::addmm|::mm|matmul",
    "layer_norm": "layer_norm",
    "gelu": "gelu",
    "rotary": "rotary|rotate|_turn_both|flip",
    "optimiser": "adam|multi_tensor",
    "sums": "reduce|sum",
    "copies": "memcpy|memset|copy|::cat",
}
"""Kinds of work, by what the names of their kernels contain; the first that fits. A kernel that inductor
fused has the names of all that it does."""
BF16_WEIGHTS = {"precision": "bf16", "bf16_weights": True}
MASKING = {"ratio": {"kind": "linear", "start": 0.30, "end": 0.15}, "content": {"kind": "ptw"}}
ROOT = Path(__file__).parents[1]
Figures = dict[str, Any]
Tell = Callable[[str, Any], None]
"""Hears of the name and value of a figure as soon as it is known."""
SO_FAR = "_so_far"
"""Ends the name of a figure that is not final: all there is where the rest was cut off."""
BEGIN = "begin"
"""The file by which processes that wait for their turn begin."""


def ready_file(runs: Path, pid: int) -> Path:
    """What process ``pid`` makes when it waits for its turn in folder ``runs``."""
    return runs / f"{pid}.ready"


@dataclass(frozen=True, slots=True)
class Setting:
    """Where figures are measured, at full size on CUDA or at toy size on a CPU, and who hears of them."""

    toy: bool
    runs: Path
    """folder for data and runs, which nobody keeps"""
    tell: Tell
    steps: int | None = None
    """of every run, instead of its own number"""
    peak: float = 1e12
    """operations a second of a large product on the device, measured while nothing else ran"""
    waits: bool = False
    """whether other processes have their turn in ``runs`` as well"""

    def work(self, name: str) -> Work:
        """A model and its rows."""
        full = WORK[name]
        if not self.toy:
            return full
        dropout = {name: p for name, p in full.overrides.items() if "dropout" in name}
        return Work(
            TINY | dropout, vocabulary=256, row_length=32, rows=8, model_type=full.model_type
        )

    def steps_or(self, usual: int) -> int:
        """Steps of a run that has ``usual`` on a GPU."""
        return self.steps or (8 if self.toy else usual)

    def folder(self, name: str) -> Path:
        """A folder that is not there yet."""
        return Path(tempfile.mkdtemp(prefix=name, dir=self.runs)) / name

    def wait_for_turn(self) -> None:
        """Say that all is warm, and wait until nothing else runs on this machine.

        Meanwhile others have the device's memory that torch kept in reserve.
        """
        if not self.waits:
            return
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
        ready_file(self.runs, os.getpid()).touch()
        while not (self.runs / BEGIN).exists():
            time.sleep(0.005)

    def data(self, name: str) -> PreparedData:
        """Rows for sixteen steps."""
        work = self.work(name)
        return make_data(self.folder("data"), work, num_rows=work.rows * 16)


def speed_so_far(setting: Setting, name: str, tokens: int) -> Callable[[], None]:
    """To be called after every warm step, of so many tokens: tells the median speed every fourth time."""
    ends: list[float] = []

    def after_step() -> None:
        ends.append(time.perf_counter())
        if len(ends) % 4 == 0:
            seconds = statistics.median(b - a for a, b in pairwise(ends))
            setting.tell(f"{name}_tokens_per_second{SO_FAR}", tokens / seconds)

    return after_step


def of_training(
    name: str, label: str | None = None, *, steps: int = 40, **changes: Any
) -> Callable[[Setting], None]:
    """Figures of a run of this work: those after a quarter of its steps, which warms up.

    ``label``: what their names begin with; ``changes``: fields of the run's config.
    """
    label = label or name

    def measure(setting: Setting) -> None:
        work, number = setting.work(name), setting.steps_or(steps)
        warm = number // 4
        turn = max(1, warm - 2)  # the steps after it get back the memory that others had
        data, out = setting.data(name), setting.folder("run")
        graphs: list[int] = []
        so_far = speed_so_far(setting, label, work.tokens)

        def after_step() -> None:
            graphs.append(_graphs())
            if len(graphs) == turn:
                setting.wait_for_turn()
            elif len(graphs) > turn:
                so_far()

        with at_toy_size(setting), _waits_for_masks() as waits:
            taken = ours(
                work, data, out, number, masking=MASKING, peak_flops=setting.peak, log_every=1,
                loader_workers=2, after_step=after_step, **changes,
            )[warm:]  # fmt: skip
        logged = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        logged = logged[warm:]
        of_sheet = [line["mfu_of_data_sheet"] for line in logged if line["mfu_of_data_sheet"]]
        seconds = statistics.median(step.seconds for step in taken)
        found = {
            "tokens_per_second": statistics.median(s.tokens / s.seconds for s in taken),
            "step_seconds": seconds,
            "mfu": statistics.median(line["mfu"] for line in logged),
            "mfu_of_data_sheet": statistics.median(of_sheet) if of_sheet else None,
            "recompiles": graphs[-1] - graphs[warm],
            "masking_share": statistics.mean(waits[warm:]) / seconds,
            "data_wait_share": statistics.mean(line["data_wait_share"] for line in logged),
            "peak_memory_bytes": logged[-1]["peak_memory_bytes"],
            "last_loss": logged[-1]["loss"],
        }
        for figure, value in found.items():
            setting.tell(f"{label}_{figure}", value)

    return measure


def of_profile(name: str) -> Callable[[Setting], None]:
    """Milliseconds of the device by kind of work in a step of this work, with weights in bfloat16.

    Told with them: the share of a step in which the device is busy, and the longest kernels by name.
    """

    def measure(setting: Setting) -> None:
        spent, seconds = _profiled(setting, name, setting.steps_or(8))
        for kind, milliseconds in by_kind(spent).items():
            setting.tell(f"profile_{name}_{kind}_ms", milliseconds)
        setting.tell(f"profile_{name}_busy_share", sum(spent.values()) / (1e3 * seconds))
        longest = sorted(spent, key=lambda kernel: -spent[kernel])[:20]
        shown = [f"{spent[kernel]:8.3f} ms  {kernel[:120]}" for kernel in longest]
        setting.tell(f"profile_{name}_longest", shown)

    return measure


def _profiled(setting: Setting, name: str, steps: int) -> tuple[dict[str, float], float]:
    """Milliseconds of each kernel in a step, by name, and seconds of a step: of the second half of a run.

    On a host, of each operation without those that it calls.
    """
    work = setting.work(name)
    on_device = work.device == "cuda"
    profiler = profile(activities=[ProfilerActivity.CUDA if on_device else ProfilerActivity.CPU])
    ends: list[float] = []
    first, last = steps // 2, steps - 1  # nothing is queued behind the last step

    def after_step() -> None:
        if len(ends) + 1 == max(1, first - 2):
            setting.wait_for_turn()
        if len(ends) + 1 in (first, last):
            settle(work)  # the step that is queued by then ends as well, here as there
        ends.append(time.perf_counter())
        if len(ends) == first:
            profiler.start()
            ends[-1] = time.perf_counter()
        elif len(ends) == last:
            profiler.stop()

    with at_toy_size(setting):
        ours(
            work, setting.data(name), setting.folder("run"), steps, masking=MASKING,
            loader_workers=2, after_step=after_step, **BF16_WEIGHTS,
        )  # fmt: skip
    spent: defaultdict[str, float] = defaultdict(float)
    for event in profiler.events() or ():
        if not on_device:
            spent[event.name] += event.self_cpu_time_total
        elif event.device_type.name == "CUDA" and not event.is_user_annotation:
            spent[event.name] += event.time_range.elapsed_us()
    counted = last - first
    seconds = (ends[last - 1] - ends[first - 1]) / counted
    return {kernel: each / (1e3 * counted) for kernel, each in spent.items()}, seconds


def by_kind(spent: Mapping[str, float]) -> dict[str, float]:
    """What kernels took, summed by kind of work; the largest first."""
    kinds: defaultdict[str, float] = defaultdict(float)
    for name, milliseconds in spent.items():
        fitting = (kind for kind, words in KINDS.items() if re.search(words, name, re.IGNORECASE))
        kinds[next(fitting, "other")] += milliseconds
    return dict(sorted(kinds.items(), key=lambda kind: -kind[1]))


@contextmanager
def at_toy_size(setting: Setting) -> Iterator[None]:
    """At toy size, attention takes the way of CUDA in bfloat16, and no code is generated.

    Generating code for a CPU takes a minute. Nothing changes at full size.
    """
    if not setting.toy:
        yield
        return
    patches = [
        (varlen, "varlen_attn", _plain_varlen),
        (attention, "varlen_fits", lambda *_: True),
        (head, "asks_alone", _asks_alone),
        (heads, "asks_alone", _asks_alone),
        (opening, "COMPILER", "eager"),
    ]
    before = [getattr(module, name) for module, name, _ in patches]
    for module, name, value in patches:
        setattr(module, name, value)
    try:
        yield
    finally:
        for (module, name, _), value in zip(patches, before, strict=True):
            setattr(module, name, value)


def _asks_alone(model: Any, ending: Any, inputs: Any, **_: Any) -> bool:
    """Whether the last layer's queries are computed at predicted positions alone, as on CUDA."""
    return inputs.get("documents") is not None and ending.attention(model).window is None


def _plain_varlen(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    query_bounds: torch.Tensor,
    key_bounds: torch.Tensor,
    *_: int,
    scale: float | None,
    window_size: tuple[int, int],
) -> torch.Tensor:
    """What torch's kernel for documents computes, by a mask of [N, M]; [N, heads, width].

    As there, a window needs as many queries as keys.
    """
    of_query, of_key = (
        torch.searchsorted(bounds, torch.arange(tokens.shape[0], dtype=bounds.dtype), right=True)
        for bounds, tokens in ((query_bounds, query), (key_bounds, key))
    )
    seen = of_query[:, None] == of_key
    if window_size[0] >= 0:
        place = torch.arange(key.shape[0])
        seen = seen & ((place[:, None] - place).abs() <= window_size[0])
    q, k, v = (x.transpose(0, 1) for x in (query, key, value))
    found = torch.nn.functional.scaled_dot_product_attention(q, k, v, seen, scale=scale)
    return found.transpose(0, 1)


@contextmanager
def _waits_for_masks() -> Iterator[list[float]]:
    """Seconds by step for which the device may have waited for the next step's masks.

    That is the time in which they were drawn, without what rows were waited for, if by then the device had
    done all of its step, and else 0.
    """
    waits, draw, draw_ahead = [0.0], steps.draw, loop.draw_ahead

    def timed(*arguments: Any) -> steps.Drawn:
        began = time.perf_counter()
        drawn = draw(*arguments)
        waits.append(time.perf_counter() - began - drawn.waited)
        return drawn

    def watched(run: Any, state: Any, world: Any, upcoming: Any, queued: steps.Queued) -> Any:
        drawn = draw_ahead(run, state, world, upcoming, queued)
        if drawn is not None and queued.sums is not None and not queued.sums.ending.has_arrived:
            waits[-1] = 0.0
        return drawn

    steps.draw = loop.draw = timed
    loop.draw_ahead = watched
    try:
        yield waits
    finally:
        steps.draw = loop.draw = draw
        loop.draw_ahead = draw_ahead


def _graphs() -> int:
    """How many graphs ``torch.compile`` has made so far."""
    from torch._dynamo.utils import counters

    return counters["stats"]["unique_graphs"]


def settle(work: Work) -> None:
    """Wait for the device."""
    if work.device == "cuda":
        torch.cuda.synchronize()
