"""Training and fine-tuning on a CUDA device, figure by figure. ``benchmarks/gpu.sh`` runs it.

Every figure runs in a process of its own, with a time limit of its own, the most important first, and is
printed and added to ``figures.jsonl`` the moment it is known: a call that is cut off loses nothing. The end
is a table against the floor and the aim of each, and one JSON object, also in ``gpu.json``.

Text is made up. Rows are packed; the ratio falls from 0.30 to 0.15 and part-of-speech weights are learnt;
bfloat16, compiled, no attention dropout. ``--toy`` runs the same code on a CPU, in one process, at sizes that
say nothing about speed.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from benchmarks.gpu_small import (
    SMALL_GRAPHS,
    WAYS,
    WAYS_OF_ONE,
    of_finetuning,
    of_many_runs,
    of_threads,
)
from benchmarks.gpu_work import BF16_WEIGHTS, MASKING, ROOT, Figures, Setting, of_training, settle
from benchmarks.sides import Examples, Work, run_config, trainer
from chronomask.data.folder import PreparedData
from chronomask.model.attention import backbone_inputs, documents_attention
from chronomask.runs.layout import RunFolder
from chronomask.train.distributed import World
from chronomask.train.run import open_run


def of_tests(name: str, chosen: list[str]) -> Callable[[Setting], Figures]:
    """Whether the tests that need CUDA pass; at toy size, whether those of the choice of kernels do."""

    def measure(setting: Setting) -> Figures:
        here = ["tests/model/test_kernels.py", "-k", "switched_off"]
        if setting.toy and name != "cuda_tests":
            return {f"{name}_left_out": "at toy size cuda_tests stands for it"}
        of_cuda = [*chosen, "-k", "cuda or gpu"]
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
        command += here if setting.toy else of_cuda
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        lines = done.stdout.splitlines() or done.stderr.splitlines()
        return {name: "passed" if done.returncode == 0 else "failed", f"{name}_end": lines[-1:]}

    return measure


def of_trainer(compiled: bool) -> Callable[[Setting], Figures]:
    """Speed of transformers' ``Trainer`` on the rows of ``bert_base``."""

    def measure(setting: Setting) -> Figures:
        work, data = setting.work("bert_base"), setting.data("bert_base")
        work = replace(work, micro_batches=2 * work.micro_batches)  # it needs more memory
        steps = max(6, setting.steps // 4) + 3
        backend = None if not compiled else "eager" if setting.toy else "inductor"
        taken = trainer(
            work, data, Examples.of(data), setting.folder("trainer"), steps, compiled=backend
        )
        speed = statistics.median(step.tokens / step.seconds for step in taken[2:])
        return {f"trainer_{'compiled' if compiled else 'eager'}_tokens_per_second": speed}

    return measure


def of_masking(setting: Setting) -> Figures:
    """Median seconds to mask a step's rows, all micro-batches, and the error of packed attention."""
    work, data = setting.work("bert_base"), setting.data("bert_base")
    config = run_config(work, data, 8, masking=MASKING, compile="never")
    world = World(0, 1, torch.device(work.device))
    run, _ = open_run(config, RunFolder(setting.folder("masks")), world, resume=False)
    taken = []
    for step in range(8):
        rows = run.loader.rows_at(step)
        settle(work)
        began = time.perf_counter()
        for part in rows.micro_batches(work.micro_batches):
            run.forward.mask(part, run.masker, step / 8)
        settle(work)
        taken.append(time.perf_counter() - began)
    return {
        "masking_seconds": statistics.median(taken[2:]),
        "varlen_error": varlen_error(work, data),
    }


FIGURES: dict[str, tuple[Callable[[Setting], Figures], int]] = {
    "bert_base": (of_training("bert_base"), 110),
    "bert_base_bf16": (of_training("bert_base", "bert_base_bf16", **BF16_WEIGHTS), 110),
    "tests": (of_tests("cuda_tests", ["tests/model", "tests/train/test_no_waiting.py"]), 90),
    "trainer_eager": (of_trainer(compiled=False), 60),
    "modernbert_base_bf16": (
        of_training("modernbert_base", "modernbert_base_bf16", **BF16_WEIGHTS),
        110,
    ),
    "masking": (of_masking, 30),
    "squad": (of_finetuning("squad"), 60),
    "sst2": (of_finetuning("sst2"), 60),
    "small": (of_training("small"), 60),
    "many_runs": (of_many_runs(), 70),
    "bert_large_bf16": (of_training("bert_large", "bert_large_bf16", **BF16_WEIGHTS), 110),
    "trainer_compiled": (of_trainer(compiled=True), 90),
    "small_graphs": (SMALL_GRAPHS, 70),
    "graph_tests": (of_tests("graph_tests", ["tests/train/test_compiled_shapes.py"]), 90),
    "many_runs_graphs": (of_many_runs("graphs"), 90),
    "many_runs_mps": (of_many_runs("mps"), 70),
    "threads": (of_threads, 40),
    "modernbert_base": (of_training("modernbert_base"), 110),
    "bert_large": (of_training("bert_large"), 110),
}
"""What is measured, and its limit in seconds; the most important first."""
GOALS = {
    "bert_base_best_tokens_per_second": (700e3, 864e3),
    "modernbert_base_best_tokens_per_second": (450e3, 550e3),
    "bert_large_best_tokens_per_second": (200e3, 263e3),
    "train_vs_trainer_eager": (3.0, 4.0),
    "train_vs_trainer_compiled": (2.0, 2.5),
    "many_runs_best_tokens_per_second": (4e6, 8e6),
    "squad_vs_transformers": (2.0, 3.0),
    "sst2_vs_transformers": (2.0, 3.0),
}
"""Floor and aim on one H100 or H200; the higher the better."""
AT_MOST = {
    "bert_base_masking_share": 0.005,
    "bert_base_recompiles": 0,
    "bert_base_data_wait_share": 0.001,
    "varlen_error": 0.02,
}
SECONDS = 540
"""All figures together: what would begin later is left out by name."""


def measure_all(setting: Setting, names: list[str], tell: Callable[[str, Any], None]) -> Figures:
    """Every figure by name; ``tell`` hears of each the moment it is known."""
    found: Figures = {}
    deadline = time.monotonic() + SECONDS

    def note(name: str, value: Any) -> None:
        found[name] = value
        tell(name, value)

    for name in names:
        measure, limit = FIGURES[name]
        left = int(min(limit, deadline - time.monotonic()))
        if left < 1 and not setting.toy:
            note(f"{name}_left_out", "no time was left")
        elif setting.toy:
            for key, value in measure(setting).items():
                note(key, value)
        else:
            _measure_apart(setting, name, left, note)
    for name, value in _ratios(found).items():
        note(name, value)
    return found


def _measure_apart(
    setting: Setting, name: str, seconds: int, note: Callable[[str, Any], None]
) -> None:
    """Measure one figure in a process of its own, which is ended after its time."""
    command = [
        sys.executable, "-m", "benchmarks.gpu", "--figure", name, "--steps", str(setting.steps),
        "--out", str(setting.out),
    ]  # fmt: skip
    errors = setting.out / f"{name}.log"
    with errors.open("w", encoding="utf-8") as log:
        child = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True
        )
        try:
            lines = child.communicate(timeout=seconds)[0].splitlines()
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)  # and the processes it started
            lines = child.communicate()[0].splitlines()
            note(f"{name}_cut_off", f"after {seconds} s")
    for line in lines:
        if line.startswith("["):
            note(*json.loads(line))
    if child.returncode > 0:
        last = errors.read_text(encoding="utf-8").strip().splitlines()[-1:]
        note(f"{name}_failed", " ".join(last))


def _ratios(found: Figures) -> Figures:
    """What follows from several figures; of ways to do the same the fastest counts."""
    made: Figures = {}
    ways = {name: (name, f"{name}_bf16") for name in ("bert_base", "modernbert_base", "bert_large")}
    for name, tried in (ways | {"many_runs": WAYS}).items():
        speeds = {way: found.get(f"{way}_tokens_per_second") for way in tried}
        if known := {way: speed for way, speed in speeds.items() if speed}:
            made[f"{name}_fastest"] = max(known, key=lambda way: known[way])
            made[f"{name}_best_tokens_per_second"] = max(known.values())
    speed = made.get("bert_base_best_tokens_per_second")
    for kind in ("eager", "compiled"):
        theirs = found.get(f"trainer_{kind}_tokens_per_second")
        if speed and theirs:
            made[f"train_vs_trainer_{kind}"] = speed / theirs
    if "bert_base_step_seconds" in found and "masking_seconds" in found:
        made["masking_host_share"] = found["masking_seconds"] / found["bert_base_step_seconds"]
    return made


def varlen_error(work: Work, data: PreparedData) -> float:
    """Packed attention against SDPA on every document by itself, forwards; over the largest value."""
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


def table(found: Figures) -> str:
    """The figures that have a goal, against it."""
    lines = [f"{'figure':<46}{'found':>14}{'floor':>12}{'aim':>12}"]
    for name, (floor, aim) in GOALS.items():
        value = found.get(name)
        met = "" if value is None else "" if value >= floor else "  below its floor"
        shown = "not measured" if value is None else f"{value:,.4g}"
        lines.append(f"{name:<46}{shown:>14}{floor:>12,.4g}{aim:>12,.4g}{met}")
    for name, most in AT_MOST.items():
        value = found.get(name)
        met = "" if value is None or value <= most else "  above its limit"
        shown = "not measured" if value is None else f"{value:,.4g}"
        lines.append(f"{name:<46}{shown:>14}{'at most':>12}{most:>12,.4g}{met}")
    return "\n".join(lines)


def _plain(value: Any) -> Any:
    """As JSON takes it: no infinity and no NaN."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def main() -> None:
    """Print each figure as it is known, then a table; the last line is one JSON object."""
    parser = argparse.ArgumentParser(prog="benchmarks/gpu.sh", description="Training on CUDA.")
    parser.add_argument("--toy", action="store_true", help="a CPU at toy size: does it run?")
    parser.add_argument("--steps", type=int, help="steps of a run (60; toy 8)")
    parser.add_argument(
        "--only", action="append", choices=FIGURES, metavar="NAME", help=", ".join(FIGURES)
    )
    parser.add_argument(
        "--out", type=Path, help="folder for runs, logs and figures; none keeps none"
    )
    parser.add_argument("--figure", choices=[*FIGURES, *WAYS_OF_ONE], help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if not chosen.toy and not torch.cuda.is_available():
        parser.error("torch finds no CUDA device; --toy rehearses on a CPU")
    steps = chosen.steps or (8 if chosen.toy else 60)
    kept = nullcontext(str(chosen.out)) if chosen.out else tempfile.TemporaryDirectory()
    with kept as folder:
        out = Path(folder)
        out.mkdir(parents=True, exist_ok=True)
        setting = Setting(chosen.toy, out, steps)
        if chosen.figure:  # one of several processes: one pair of name and value a line
            measure = WAYS_OF_ONE.get(chosen.figure) or FIGURES[chosen.figure][0]
            for pair in measure(setting).items():
                print(json.dumps([pair[0], _plain(pair[1])]), flush=True)
            return
        report(setting, chosen.only or list(FIGURES))


def report(setting: Setting, names: list[str]) -> None:
    """Measure, print and write."""
    file = setting.out / "figures.jsonl"

    def tell(name: str, value: Any) -> None:
        shown = f"{value:,.4g}" if isinstance(value, float) else value
        print(f"{name:<46}{shown}", flush=True)
        with file.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps({name: _plain(value)}) + "\n")

    cuda = not setting.toy
    tell("device", torch.cuda.get_device_name() if cuda else "cpu")
    tell("torch", torch.__version__)
    tell("transformers", transformers.__version__)
    found = measure_all(setting, names, tell)
    print(table(found))
    text = json.dumps({name: _plain(value) for name, value in found.items()})
    (setting.out / "gpu.json").write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
