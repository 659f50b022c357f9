"""The loss curve of weights in bfloat16 beside that of float32, against the noise between seeds.

    python -m benchmarks.low_precision [--steps 1000] [--seeds 3] [--threads 1] [--json]

A small ModernBERT trains on made-up text in which a word depends on the one before it, once in float32 and
once with ``bf16_weights``, from the same weights, on the same rows under the same masks; so with every seed.
No row is read twice, so the loss of a step is one of text that was never seen. Printed, in nats:

- ``first_loss``: mean loss of the first window of a twentieth of the steps, in float32;
- ``last_loss_float32``, ``last_loss_bf16``: of the last window, mean over the seeds;
- ``last_gap``: by how much that of bfloat16 is higher, and ``largest_gap``, the largest such difference,
  either way, of any window after the first quarter of the steps;
- ``spread``: the standard deviation between the seeds of the last window in float32, and ``spread_there``
  that of the window of the largest gap.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.record import print_figures
from benchmarks.sides import SPECIALS, Work, draw_tokens, make_data, run_config
from chronomask.data.folder import PreparedData
from chronomask.train.loop import pretrain

WORK = Work(
    {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 128,
    },
    vocabulary=256,
    row_length=64,
    rows=32,
    model_type="modernbert",
)
FOLLOWERS = 4
WINDOWS = 20


def draw_chain(
    random: np.random.Generator, size: int, vocabulary: int
) -> tuple[np.ndarray, np.ndarray]:
    """Ids and annotation [size] of text in which three words of four are one of few that follow the last.

    Which words follow which is the same whatever ``random`` gives.
    """
    ids, annotation = draw_tokens(random, size, vocabulary)
    first = len(SPECIALS)
    followers = np.random.default_rng(0).integers(first, vocabulary, (vocabulary, FOLLOWERS))
    follows, which = random.random(size) < 0.75, random.integers(FOLLOWERS, size=size)
    for place in range(1, size):
        if follows[place]:
            ids[place] = followers[ids[place - 1], which[place]]
    return ids, annotation


def losses_of(
    data: PreparedData, out: Path, steps: int, seed: int, *, bf16: bool, threads: int
) -> np.ndarray:
    """Losses of all steps, float64 [steps]."""
    low = {"precision": "bf16", "bf16_weights": True} if bf16 else {}
    rate = {"kind": "linear", "peak": 2e-3, "warmup_steps": steps // 10}
    masking = {"ratio": {"kind": "constant", "base": 0.15}, "content": {"kind": "none"}}
    config = run_config(
        WORK, data, steps, seed=seed, threads=threads, learning_rate=rate, masking=masking, **low
    )
    pretrain(config, out, progress=False)
    return np.array([json.loads(line)["loss"] for line in (out / "metrics.jsonl").open()])


def benchmark_low_precision(steps: int, seeds: int, threads: int) -> dict[str, float]:
    """The figures; curves of windows are means over their steps."""
    curves = np.empty((2, seeds, WINDOWS))
    with tempfile.TemporaryDirectory() as folder:
        data = make_data(Path(folder) / "data", WORK, steps * WORK.rows, draw_chain)
        for seed in range(seeds):
            for which, bf16 in enumerate((False, True)):
                out = Path(folder) / f"{seed}-{which}"
                losses = losses_of(data, out, steps, seed, bf16=bf16, threads=threads)
                curves[which, seed] = [part.mean() for part in np.array_split(losses, WINDOWS)]
    return compare(curves)


def compare(curves: np.ndarray) -> dict[str, float]:
    """Figures of ``curves`` float64 [float32 and bfloat16, seeds, windows]."""
    means, spread = curves.mean(1), curves[0].std(0, ddof=1)
    gaps = means[1] - means[0]
    later = np.arange(gaps.size) >= gaps.size // 4
    worst = int(np.argmax(np.abs(gaps) * later))
    figures = {
        "first_loss": means[0, 0],
        "last_loss_float32": means[0, -1],
        "last_loss_bf16": means[1, -1],
        "last_gap": gaps[-1],
        "spread": spread[-1],
        "largest_gap": gaps[worst],
        "spread_there": spread[worst],
    }
    return {name: round(float(value), 4) for name, value in figures.items()}


def main() -> None:
    """Print the figures; with ``--json`` as one JSON object."""
    parser = argparse.ArgumentParser(description="Loss curves of bfloat16 and float32 weights.")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    figures = benchmark_low_precision(options.steps, options.seeds, options.threads)
    print_figures(figures, json_alone=options.json)


if __name__ == "__main__":
    main()
