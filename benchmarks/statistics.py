"""How long the statistics of a whole study take: 20 arms, 5 seeds, 10 tasks.

    python -m benchmarks.statistics [--json]

Made-up results of the sizes of the real test sets: every arm's interval, its paired difference from one
baseline and its p value, on 2000 resamples of the examples.

- ``statistics_seconds``: of all tasks, process CPU time (numpy on the threads it chooses).
"""

from __future__ import annotations

import argparse
import time

import numpy as np

from benchmarks.record import as_json
from chronomask.study.resample import Examples
from chronomask.study.statistics import Results, compare, holm

NUM_ARMS, NUM_SEEDS = 20, 5
TASKS = {
    "cola": ("mcc", 1043),
    "sst2": ("accuracy", 872),
    "mrpc": ("f1", 408),
    "rte": ("accuracy", 277),
    "stsb": ("spearman", 1500),
    "qnli": ("accuracy", 5463),
    "mnli": ("accuracy", 9815),
    "squad": ("f1", 10570),
    "upos_probe": ("accuracy", 25147),
    "blimp": ("accuracy", 67000),
}
"""Task → metric and number of examples."""


def made_up(task: str, random: np.random.Generator, label: np.ndarray) -> Examples:
    """What one model answered: right four times in five."""
    size = len(label)
    if task == "squad":
        return {"f1": random.choice([0.0, 50.0, 100.0], size)}
    if task == "blimp":
        return {"correct": (random.random(size) < 0.8).astype(float)}
    if task == "stsb":
        return {"prediction": label + random.normal(0, 1, size), "label": label}
    wrong = random.random(size) < 0.2
    return {"prediction": np.where(wrong, 1 - label, label), "label": label}


def benchmark_statistics() -> dict[str, float]:
    """Seconds of the statistics of all tasks; making the results up does not count."""
    random = np.random.default_rng(0)
    total = 0.0
    for number, (task, (metric, size)) in enumerate(TASKS.items()):
        label = random.integers(0, 6 if task == "stsb" else 2, size)
        arms: dict[str, Results] = {
            f"arm {k}": {(seed, 0): made_up(task, random, label) for seed in range(NUM_SEEDS)}
            for k in range(NUM_ARMS)
        }
        began = time.process_time()
        found = compare(arms, "arm 0", metric, key=number)
        holm([each.p_value for each in found.values() if each.p_value is not None])
        taken = time.process_time() - began
        print(f"{task:12}{size:8,} examples{taken:8.2f} s")
        total += taken
    return {"statistics_seconds": round(total, 3)}


def main() -> None:
    """Print the figures; with ``--json`` the last line is one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", action="store_true", help="print one JSON object last")
    options = parser.parse_args()
    figures = benchmark_statistics()
    print(f"{'statistics_seconds':24}{figures['statistics_seconds']:10.2f}")
    if options.json:
        print(as_json(figures))


if __name__ == "__main__":
    main()
