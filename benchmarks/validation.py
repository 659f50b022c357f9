"""What share of a run its validations take, yardsticks included, at the settings of a recipe.

    python -m benchmarks.validation bert-small --data DATA [--steps 8] [--json]

A run of a few steps of the recipe is trained, and one validation of its model is timed by itself:

- ``step_seconds``: of a training step, the median;
- ``validation_seconds``: of one validation;
- ``validation_share``: of a whole run, with a validation each ``validation.every`` steps and one at the end.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from itertools import pairwise
from pathlib import Path

from benchmarks.record import print_figures
from chronomask.runs.layout import RunFolder
from chronomask.train.config import RunConfig
from chronomask.train.distributed import join
from chronomask.train.loop import pretrain
from chronomask.train.open import open_run
from chronomask.train.validation import validate


def benchmark_validation(recipe: str, data: str, steps: int) -> dict[str, float]:
    """The figures of one recipe on prepared data."""
    whole = RunConfig.of(recipe, data=data)
    short = RunConfig.of(
        whole, steps=steps, log_every=1, validation={**whole.validation.to_dict(), "every": 0}
    )
    with tempfile.TemporaryDirectory() as folder, join(short.device) as world:
        out = Path(folder) / "run"
        pretrain(short, out, progress=False)
        lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        ends = [line["seconds"] for line in lines]
        took = sorted(end - before for before, end in pairwise(ends))
        run, _ = open_run(short, RunFolder(out), world, resume=True)
        began = time.perf_counter()
        validate(
            run.forward, run.validation_masker, run.data.split("held_out"),
            run.data.class_names, whole.validation, world,
        )  # fmt: skip
        validation = time.perf_counter() - began
    step = took[len(took) // 2]
    every = whole.validation.every or whole.steps
    times = -(-whole.steps // every)
    share = times * validation / (whole.steps * step + times * validation)
    return {
        "step_seconds": round(step, 4),
        "validation_seconds": round(validation, 3),
        "validation_share": round(share, 4),
    }


def main() -> None:
    """Print the figures; with ``--json`` as one JSON object."""
    parser = argparse.ArgumentParser(description="What share of a run its validations take.")
    parser.add_argument("recipe", help="name or path of a run config")
    parser.add_argument("--data", required=True, help="folder of prepared data")
    parser.add_argument("--steps", type=int, default=8, help="steps that are timed")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    figures = benchmark_validation(options.recipe, options.data, options.steps)
    print_figures(figures, json_alone=options.json)


if __name__ == "__main__":
    main()
