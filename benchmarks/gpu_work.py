"""What the figures of a GPU are measured on: models, rows, and a run of them."""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.sides import Work, make_data, ours
from chronomask.data.folder import PreparedData
from chronomask.model.device import data_sheet_flops, peak_flops
from chronomask.train import loop
from chronomask.train import run as runs
from chronomask.train import step as steps

__all__ = [
    "BERT",
    "BF16_WEIGHTS",
    "MASKING",
    "ROOT",
    "SMALL",
    "TINY",
    "Figures",
    "Setting",
    "of_training",
    "settle",
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
        BERT, overrides=BERT.overrides | SMALL, vocabulary=16_384, row_length=128, rows=256,
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


@dataclass(frozen=True, slots=True)
class Setting:
    """Where figures are measured: at full size on CUDA, or at toy size on a CPU."""

    toy: bool
    out: Path
    steps: int

    def work(self, name: str) -> Work:
        """A model and its rows."""
        full = WORK[name]
        if not self.toy:
            return full
        dropout = {} if full.model_type == "modernbert" else BERT.overrides
        return Work(
            TINY | dropout, vocabulary=256, row_length=32, rows=8, model_type=full.model_type
        )

    def folder(self, name: str) -> Path:
        """A folder that is not there yet."""
        return Path(tempfile.mkdtemp(prefix=name, dir=self.out)) / name

    def data(self, name: str) -> PreparedData:
        """Rows for sixteen steps."""
        work = self.work(name)
        return make_data(self.folder("data"), work, num_rows=work.rows * 16)


def of_training(
    name: str, label: str | None = None, **changes: Any
) -> Callable[[Setting], Figures]:
    """Figures of a run of this work: those after a quarter of its steps, which warms up.

    ``label``: what their names begin with; ``changes``: fields of the run's config.
    """
    label = label or name

    def measure(setting: Setting) -> Figures:
        work, warm = setting.work(name), setting.steps // 4
        device, data, out = torch.device(work.device), setting.data(name), setting.folder("run")
        peak = peak_flops(device, work.precision, seconds=0.2 if setting.toy else 1.0)
        graphs: list[int] = []
        if setting.toy:  # generating code for a CPU takes a minute
            runs.COMPILER = "eager"
        with _waits_for_masks() as waits:
            taken = ours(
                work, data, out, setting.steps, masking=MASKING, peak_flops=peak, log_every=1,
                loader_workers=2, after_step=lambda: graphs.append(_graphs()), **changes,
            )[warm:]  # fmt: skip
        logged = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        logged = logged[warm:]
        sheet = data_sheet_flops(device, work.precision)
        mfu = statistics.median(line["mfu"] for line in logged)
        seconds = statistics.median(step.seconds for step in taken)
        return {
            f"{label}_tokens_per_second": statistics.median(s.tokens / s.seconds for s in taken),
            f"{label}_step_seconds": seconds,
            f"{label}_mfu": mfu,
            f"{label}_mfu_of_data_sheet": mfu * peak / sheet if sheet else None,
            f"{label}_peak_flops": peak,
            f"{label}_recompiles": graphs[-1] - graphs[warm],
            f"{label}_masking_share": statistics.mean(waits[warm:]) / seconds,
            f"{label}_data_wait_share": statistics.mean(line["data_wait_share"] for line in logged),
            f"{label}_peak_memory_bytes": logged[-1]["peak_memory_bytes"],
            f"{label}_last_loss": logged[-1]["loss"],
        }

    return measure


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
