"""Training on a CUDA device: speed, utilisation, memory and exactness. ``benchmarks/gpu.sh`` runs it.

BERT-base on rows of 512 tokens in bfloat16, compiled, with a decaying ratio and part-of-speech weights:

- ``tokens_per_second``, ``data_wait_share``, ``peak_memory_bytes`` of a run, after its warm-up
- ``mfu``: operations by formula (``chronomask.model.flops``) over the rate of a dense bfloat16 product
  measured in the same process (``peak_flops``)
- ``recompiles``: graphs that ``torch.compile`` made after the warm-up, in training
- ``hf_tokens_per_second``, ``train_vs_hf``: transformers' ``Trainer`` on the same rows, device, precision
- ``masking_share``: of a step's time that drawing its masks takes
- ``varlen_error``: largest difference, over the largest value, between attention on packed rows and SDPA
  on each document alone; must be below 2 % in bfloat16

``--toy`` runs the same code on a CPU at a size that says nothing about speed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.sides import Examples, Work, make_data, ours, run_config, trainer
from chronomask.data.folder import PreparedData
from chronomask.model.attention import backbone_inputs, documents_attention
from chronomask.model.device import peak_flops
from chronomask.runs.layout import RunFolder
from chronomask.train.distributed import World
from chronomask.train.run import open_run

FULL = Work(
    overrides={"attention_probs_dropout_prob": 0.0},
    vocabulary=30_522,
    row_length=512,
    rows=256,
    device="cuda",
    precision="bf16",
    micro_batches=4,
    threads=8,
)
TOY = Work(
    overrides={
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "attention_probs_dropout_prob": 0.0,
    },
    vocabulary=256,
    row_length=32,
    rows=8,
)
MASKING = {
    "ratio": {"kind": "linear", "start": 0.30, "end": 0.15},
    "content": {"kind": "ptw"},
}


def measure(work: Work, steps: int, out: Path) -> dict[str, Any]:
    """All figures; ``out`` takes the run's folder."""
    device = torch.device(work.device)
    data = make_data(out / "data", work, num_rows=work.rows * 16)
    peak = peak_flops(device, work.precision, seconds=2.0 if device.type == "cuda" else 0.2)
    result: dict[str, Any] = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "torch": torch.__version__,
        "peak_flops": peak,
        "varlen_error": varlen_error(work, data),
        "masking_share": None,
    }
    result |= our_figures(work, data, out / "run", steps, peak)
    seconds = masking_seconds(work, data, out / "masks")
    result["masking_share"] = seconds / result["step_seconds"]
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    theirs = trainer(work, data, Examples.of(data), out / "trainer", max(6, steps // 4) + 3)
    speed = statistics.median(step.tokens / step.seconds for step in theirs[2:])
    result["hf_tokens_per_second"] = speed
    result["train_vs_hf"] = result["tokens_per_second"] / speed
    return result


def our_figures(
    work: Work, data: PreparedData, out: Path, steps: int, peak: float
) -> dict[str, Any]:
    """Of a run's last three quarters; the first quarter warms up."""
    warm = steps // 4
    graphs: list[int] = []
    taken = ours(
        work,
        data,
        out,
        steps,
        masking=MASKING,
        peak_flops=peak,
        log_every=1,
        loader_workers=2,
        after_step=lambda: graphs.append(_graphs()),
    )
    logged = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()][warm:]
    counted = taken[warm:]
    return {
        "step_seconds": statistics.median(step.seconds for step in counted),
        "tokens_per_second": statistics.median(step.tokens / step.seconds for step in counted),
        "mfu": statistics.median(line["mfu"] for line in logged),
        "data_wait_share": statistics.mean(line["data_wait_share"] for line in logged),
        "peak_memory_bytes": logged[-1]["peak_memory_bytes"],
        "recompiles": graphs[-1] - graphs[warm],
        "steps_counted": len(counted),
        "first_loss": logged[0]["loss"],
        "last_loss": logged[-1]["loss"],
    }


def masking_seconds(work: Work, data: PreparedData, out: Path) -> float:
    """Median seconds to mask a step's rows, all micro-batches."""
    config = run_config(work, data, 8, masking=MASKING, compile="never")
    run, _ = open_run(config, RunFolder(out), World(0, 1, torch.device(work.device)), resume=False)
    taken = []
    for step in range(8):
        rows = run.loader.rows_at(step)
        _settle(work)
        began = time.perf_counter()
        for part in rows.micro_batches(work.micro_batches):
            run.forward.mask(part, run.masker, step / 8)
        _settle(work)
        taken.append(time.perf_counter() - began)
    return statistics.median(taken[2:])


def varlen_error(work: Work, data: PreparedData) -> float:
    """Packed attention against SDPA on every document by itself, forwards."""
    rows = data.split("train").read(np.arange(4), 0)
    inputs = backbone_inputs(rows, "documents", data.manifest.pad_token_id, 0, work.device)
    torch.manual_seed(0)
    dtype = torch.bfloat16 if work.precision == "bf16" else torch.float32
    shape = (rows.num_rows, 4, rows.row_length, 64)
    query, key, value = (torch.randn(shape, device=work.device).to(dtype) for _ in range(3))
    module = torch.nn.Module()
    packed, _ = documents_attention(module, query, key, value, None, documents=inputs["documents"])
    worst, largest = 0.0, 0.0
    for first, last in zip(rows.cu_seqlens[:-1], rows.cu_seqlens[1:], strict=True):
        row, start = divmod(int(first), rows.row_length)
        place = slice(start, start + int(last - first))
        alone = torch.nn.functional.scaled_dot_product_attention(
            query[row : row + 1, :, place].float(),
            key[row : row + 1, :, place].float(),
            value[row : row + 1, :, place].float(),
        )
        found = packed[row : row + 1, place].transpose(1, 2).float()
        worst = max(worst, float((found - alone).abs().max()))
        largest = max(largest, float(alone.abs().max()))
    return worst / largest


def _graphs() -> int:
    """How many graphs ``torch.compile`` has made so far."""
    from torch._dynamo.utils import counters

    return counters["stats"]["unique_graphs"]


def _settle(work: Work) -> None:
    if work.device == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    """Print the figures; the last line is one JSON object."""
    parser = argparse.ArgumentParser(prog="benchmarks/gpu.sh", description="Training on CUDA.")
    parser.add_argument("--toy", action="store_true", help="a CPU at toy size: does it run?")
    parser.add_argument("--steps", type=int, help="steps of our run (80; toy 8)")
    parser.add_argument("--micro-batches", type=int, help="parts of a step (4)")
    parser.add_argument("--out", type=Path, help="folder for the run and gpu.json; none keeps none")
    chosen = parser.parse_args()
    if not chosen.toy and not torch.cuda.is_available():
        parser.error("torch finds no CUDA device; --toy rehearses on a CPU")
    work = TOY if chosen.toy else FULL
    with tempfile.TemporaryDirectory() as folder:
        out = chosen.out or Path(folder)
        out.mkdir(parents=True, exist_ok=True)
        if chosen.micro_batches:
            work = replace(work, micro_batches=chosen.micro_batches)
        result = measure(work, chosen.steps or (8 if chosen.toy else 80), out)
        text = json.dumps(result)
        (out / "gpu.json").write_text(text + "\n", encoding="utf-8")
    for name, value in result.items():
        print(f"{name:<24}{value:,.4g}" if isinstance(value, float) else f"{name:<24}{value}")
    print(text)


if __name__ == "__main__":
    main()
