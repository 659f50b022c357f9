"""Speed and memory of the training loop beside transformers' ``Trainer``, on the same work.

    python -m benchmarks.training [--json] [--threads N] [--steps N] [--rounds N]

Both train the same BERT (4 layers × 256, vocabulary 16k) in float32 on the same rows (length 128, 32 a
step): the ``Trainer`` with ``DataCollatorForLanguageModeling``, ours with whole words, part-of-speech
weights and documents kept apart, which is more work. Sides take turns in short rounds; the first steps
of every round warm up and are not counted; figures are medians over steps, of the clock and of CPU time.

- ``train_vs_hf``, ``train_vs_hf_030``: speed over the ``Trainer``'s at 15 % and 30 % masked, rows full
- ``train_vs_hf_padded``: the same per token that is not padding, on documents of natural length (mean at
  most half a row): ours packs them, theirs pads to the longest of a batch, as its example does unless
  told to pad to a fixed length
- ``peak_memory_vs_hf``: memory over theirs: the peak of a process less what it held after its imports,
  medians of five turns
- ``overhead``: seconds of a step without masking, tallying, logging and loading, over those with them
"""

from __future__ import annotations

import os

os.environ.setdefault(
    "OMP_WAIT_POLICY", "PASSIVE"
)  # on a busy machine, spinning threads starve others
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.record import as_json
from benchmarks.sides import (
    CPU_WORK,
    Examples,
    Step,
    Work,
    bare,
    make_data,
    make_documents,
    ours,
    trainer,
)
from chronomask.data.folder import PreparedData
from chronomask.model.device import peak_memory

Side = Callable[[Path, int], list[Step]]


def take_turns(root: Path, steps: int, rounds: int, *sides: Side) -> list[list[Step]]:
    """Counted steps of each side; every side warms up at the beginning of its turn."""
    counted: list[list[Step]] = [[] for _ in sides]
    for number in range(rounds):
        order = range(len(sides)) if number % 2 == 0 else reversed(range(len(sides)))
        for side in order:
            taken = sides[side](root / f"{side}-{number}", steps + 2)
            counted[side] += taken[-steps:]
    return counted


def per_token(steps: list[Step]) -> tuple[float, float]:
    """Median seconds, and CPU seconds, of a token that is not padding."""
    return (
        median(step.seconds / step.tokens for step in steps),
        median(step.cpu_seconds / step.tokens for step in steps),
    )


def compare(name: str, mine: list[Step], theirs: list[Step]) -> dict[str, float]:
    """Speed over speed by the clock, the same by CPU time, and tokens per second of both."""
    (ours_clock, ours_cpu), (their_clock, their_cpu) = per_token(mine), per_token(theirs)
    return {
        name: their_clock / ours_clock,
        f"{name}_cpu": their_cpu / ours_cpu,
        f"{name}_tokens_per_second": 1 / ours_clock,
        f"{name}_hf_tokens_per_second": 1 / their_clock,
    }


def measure(work: Work, steps: int, rounds: int, only: set[str]) -> Iterator[dict[str, Any]]:
    """The figures named in the module's text, as they come."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        data = make_data(root / "data", work, num_rows=work.rows * 64)
        rows = Examples.of(data)
        for name, ratio in (("train_vs_hf", 0.15), ("train_vs_hf_030", 0.30)):
            if name in only:
                mine, theirs = take_turns(
                    root / name,
                    steps,
                    rounds,
                    lambda out, n, r=ratio: ours(work, data, out, n, ratio=r),
                    lambda out, n, r=ratio: trainer(work, data, rows, out, n, ratio=r),
                )
                yield compare(name, mine, theirs)
        if "train_vs_hf_padded" in only:
            packed, documents = make_documents(root / "packed", work, work.rows * 64 * 2)
            yield {"padded_mean_length": sum(map(len, documents)) / len(documents)}
            mine, theirs = take_turns(
                root / "padded",
                steps,
                rounds,
                lambda out, n: ours(work, packed, out, n),
                lambda out, n: trainer(work, packed, Examples(documents), out, n),
            )
            yield compare("train_vs_hf_padded", mine, theirs)
        if "overhead" in only:
            without, complete = take_turns(
                root / "overhead",
                steps,
                2 * rounds,
                lambda out, n: bare(work, data, out, n),
                lambda out, n: ours(work, data, out, n),
            )
            clock, cpu = zip(per_token(without), per_token(complete), strict=True)
            yield {"overhead": clock[0] / clock[1], "overhead_cpu": cpu[0] / cpu[1]}
        if "peak_memory_vs_hf" in only:
            turns = [
                [_memory_of(side, work, data) for side in ("ours", "theirs")] for _ in range(5)
            ]
            mine, theirs = map(median, zip(*turns, strict=True))
            yield {
                "peak_memory_vs_hf": mine / theirs,
                "peak_memory_bytes": mine,
                "hf_peak_memory_bytes": theirs,
            }


FIGURES = (
    "train_vs_hf",
    "train_vs_hf_030",
    "train_vs_hf_padded",
    "peak_memory_vs_hf",
    "overhead",
)


def _memory_of(side: str, work: Work, data: PreparedData) -> int:
    """What training in a process of its own takes beyond imports."""
    command = [sys.executable, "-m", "benchmarks.training", "--memory-of", side]
    command += ["--data", str(data.path), "--threads", str(work.threads)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(done.stdout.splitlines()[-1])


def _print_memory(side: str, work: Work, folder: Path) -> None:
    data = PreparedData.open(folder)
    rows = Examples.of(data) if side == "theirs" else Examples([])
    before = peak_memory(torch.device("cpu"))
    with tempfile.TemporaryDirectory() as out:
        if side == "ours":
            ours(work, data, Path(out) / "run", 3)
        else:
            trainer(work, data, rows, Path(out), 3)
    print(peak_memory(torch.device("cpu")) - before)


def main() -> None:
    """Print the figures; with ``--json`` the last line is one JSON object."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.training",
        description="Training speed and memory beside transformers' Trainer.",
    )
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object as the last line"
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=3, help="counted steps of a round")
    parser.add_argument("--rounds", type=int, default=6, help="turns each side takes")
    parser.add_argument("--only", nargs="+", choices=FIGURES, default=FIGURES)
    parser.add_argument("--memory-of", choices=("ours", "theirs"), help=argparse.SUPPRESS)
    parser.add_argument("--data", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    work = replace(CPU_WORK, threads=chosen.threads)
    if chosen.memory_of:
        _print_memory(chosen.memory_of, work, chosen.data)
        return
    print("BERT 4 × 256, vocabulary 16k, 32 rows of 128 tokens, float32; medians over steps")
    result: dict[str, Any] = {"threads": work.threads, "torch": torch.__version__}
    for found in measure(work, chosen.steps, chosen.rounds, set(chosen.only)):
        result |= found
        for name, value in found.items():
            shown = f"{value:,.0f}" if value > 100 else f"{value:.3f}"
            print(f"  {name:<40}{shown:>14}", flush=True)
    if chosen.json:
        print(as_json(result))


if __name__ == "__main__":
    main()
