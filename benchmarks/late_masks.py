"""How much faster a step is whose masked tokens enter late, by masking ratio.

    python -m benchmarks.late_masks [--steps 6] [--threads 1] [--toy] [--json]

The same model trains on the same rows with masks that enter at once, half-way and before the last layer, in
turns, one step of each after the other. Printed for each ratio, of medians over the steps, in CPU time of the
process, which other work on the machine stretches less than time on the clock:

- ``half_RATIO``, ``last_RATIO`` (the ratio in per cent): how many times as fast a step is as one whose masks
  enter at once.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.record import print_figures
from benchmarks.sides import Work, make_data
from chronomask.data.folder import PreparedData
from chronomask.runs.layout import RunFolder
from chronomask.train.config import RunConfig
from chronomask.train.distributed import World
from chronomask.train.forward import Predictions, parts_of
from chronomask.train.open import open_run
from chronomask.train.run import Run
from chronomask.train.updates import update

RATIOS = (0.5, 0.3, 0.15)


def work_of(toy: bool, threads: int) -> Work:
    """A BERT of 12 layers × 256 on rows of 128 tokens; of 4 × 32 where only the code is to be tried."""
    sizes = {
        "num_hidden_layers": 4 if toy else 12,
        "hidden_size": 32 if toy else 256,
        "num_attention_heads": 4,
        "intermediate_size": 64 if toy else 1024,
        "attention_probs_dropout_prob": 0.0,
    }
    return Work(
        sizes, 500 if toy else 16_384, 32 if toy else 128, 4 if toy else 16, threads=threads
    )


def opened(work: Work, data: PreparedData, ratio: float, layer: int, out: Path) -> Run:
    """A run at a fixed ratio whose masks enter at a layer."""
    config = RunConfig.parse(
        {
            "data": str(data.path),
            "model": work.model.to_dict(),
            "masking": {"ratio": {"kind": "constant", "base": ratio}},
            "late_masks": {"layer": layer},
            "rows_per_step": work.rows,
            "steps": 1000,
            "device": work.device,
            "validation": {"rows": 8},
        }
    )
    return open_run(config, RunFolder(out), World(0, 1, torch.device("cpu")), resume=False)[0]


def step_of(run: Run) -> Callable[[int], float]:
    """A function that trains on the rows of a step, and gives the CPU seconds of it."""

    def train(step: int) -> float:
        rows = run.loader.rows_at(step)
        began = time.process_time()
        parts = parts_of(run.forward, rows, run.masker, run.config.objective, 0.0, 1)
        predictions = Predictions.of(parts)
        for part in parts:
            losses, _, log_z = run.forward.losses(part)
            predictions.contribution(part, losses, log_z, 0.0).backward()
        norm = torch.nn.utils.get_total_norm([p.grad for p in run.parameters if p.grad is not None])
        update(run.optimiser, 1e-4, norm, 1.0)
        run.optimiser.zero_grad(set_to_none=True)
        return time.process_time() - began

    return train


def benchmark_late_masks(steps: int, threads: int, toy: bool) -> dict[str, float]:
    """The figures of all ratios."""
    work, figures = work_of(toy, threads), {}
    torch.set_num_threads(threads)
    layers: int = work.overrides["num_hidden_layers"]
    entered = {"at once": 0, "half": layers // 2, "last": layers - 1}
    with tempfile.TemporaryDirectory() as folder:
        data = make_data(Path(folder) / "data", work, 64)
        for ratio in RATIOS:
            sides = {
                name: step_of(opened(work, data, ratio, layer, Path(folder) / f"{ratio}-{layer}"))
                for name, layer in entered.items()
            }
            taken: dict[str, list[float]] = {name: [] for name in sides}
            for step in range(steps + 1):
                for name, train in sides.items():  # in turns: a busy machine slows all of them
                    seconds = train(step)
                    if step:  # the first one warms up
                        taken[name].append(seconds)
            at_once, half, last = (statistics.median(values) for values in taken.values())
            figures[f"half_{ratio:.0%}".rstrip("%")] = round(at_once / half, 3)
            figures[f"last_{ratio:.0%}".rstrip("%")] = round(at_once / last, 3)
    return figures


def main() -> None:
    """Print the figures; with ``--json`` as one JSON object."""
    parser = argparse.ArgumentParser(description="Speed of steps whose masks enter late.")
    parser.add_argument("--steps", type=int, default=6, help="steps of each that are timed")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--toy", action="store_true", help="a tiny model, to try the code")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    figures = benchmark_late_masks(options.steps, options.threads, options.toy)
    print_figures(figures, json_alone=options.json)


if __name__ == "__main__":
    main()
