"""What the figures of a GPU are measured on: models, rows, and a run of them."""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch.nn.attention import varlen

from benchmarks.sides import Work, make_data, ours
from chronomask.data.folder import PreparedData
from chronomask.evaluate import heads
from chronomask.model import attention, head
from chronomask.model.device import peak_flops
from chronomask.train import loop
from chronomask.train import run as runs
from chronomask.train import step as steps

__all__ = [
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
    "of_training",
    "settle",
    "speed_so_far",
]

BERT = Work(
    overrides={"attention_probs_dropout_prob": 0.0},
    vocabulary=30_522,
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
BF16_WEIGHTS = {"precision": "bf16", "bf16_weights": True}
MASKING = {"ratio": {"kind": "linear", "start": 0.30, "end": 0.15}, "content": {"kind": "ptw"}}
ROOT = Path(__file__).parents[1]
Figures = dict[str, Any]
Tell = Callable[[str, Any], None]
"""Hears of the name and value of a figure as soon as it is known."""
SO_FAR = "_so_far"
"""Ends the name of a figure that is not final: all there is where the rest was cut off."""


@dataclass(frozen=True, slots=True)
class Setting:
    """Where figures are measured, at full size on CUDA or at toy size on a CPU, and who hears of them."""

    toy: bool
    runs: Path
    """folder for data and runs, which nobody keeps"""
    tell: Tell
    steps: int | None = None
    """of every run, instead of its own number"""

    def work(self, name: str) -> Work:
        """A model and its rows."""
        full = WORK[name]
        if not self.toy:
            return full
        dropout = {} if full.model_type == "modernbert" else BERT.overrides
        return Work(
            TINY | dropout, vocabulary=256, row_length=32, rows=8, model_type=full.model_type
        )

    def steps_or(self, usual: int) -> int:
        """Steps of a run that has ``usual`` on a GPU."""
        return self.steps or (8 if self.toy else usual)

    def folder(self, name: str) -> Path:
        """A folder that is not there yet."""
        return Path(tempfile.mkdtemp(prefix=name, dir=self.runs)) / name

    def data(self, name: str) -> PreparedData:
        """Rows for sixteen steps."""
        work = self.work(name)
        return make_data(self.folder("data"), work, num_rows=work.rows * 16)


def speed_so_far(setting: Setting, name: str, tokens: int) -> Callable[[], None]:
    """To be called after every step, of so many tokens: tells the median speed every fourth time."""
    ends: list[float] = []

    def after_step() -> None:
        ends.append(time.perf_counter())
        if len(ends) % 4 == 0:  # the first step, which compiles, ended before the first of them
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
        device, data, out = torch.device(work.device), setting.data(name), setting.folder("run")
        peak = peak_flops(device, work.precision, seconds=0.2 if setting.toy else 1.0)
        setting.tell(f"{label}_peak_flops", peak)
        graphs: list[int] = []
        so_far = speed_so_far(setting, label, work.tokens)

        def after_step() -> None:
            graphs.append(_graphs())
            so_far()

        with at_toy_size(setting), _waits_for_masks() as waits:
            taken = ours(
                work, data, out, number, masking=MASKING, peak_flops=peak, log_every=1,
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
        (runs, "COMPILER", "eager"),
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
