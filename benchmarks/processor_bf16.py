"""Speed of training in bfloat16 on a processor, beside float32 and beside transformers' ``Trainer``.

    python -m benchmarks.processor_bf16 [--steps 3] [--rounds 4] [--threads 1] [--toy] [--json]

It pays on processors that have units for it, which are Intel's with AMX and AMD's since Zen 4, where
``precision: auto`` chooses it.
Sides take turns in short rounds as in ``benchmarks.training``, and figures are ratios of the median seconds
that a token takes:

- ``bert_4x256``, ``bert_4x768``, ``modernbert_4x512``: our speed in bfloat16 over ours in float32. The first
  has 32 rows of 128 tokens, the others 8 of 512; BERT has dropout, ModernBERT none
- ``train_vs_hf_bf16``: ours over the ``Trainer``'s, both in bfloat16, for the first of these models
- ``sst2_vs_hf_bf16``, ``squad_vs_hf_bf16``: fine-tuning it beside the loop of transformers' examples, both in
  bfloat16, as ``benchmarks.evaluation`` does in float32
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.evaluation import TASKS, fine_tuning
from benchmarks.record import print_figures
from benchmarks.sides import CPU_WORK, Work, make_data, ours, trainer
from benchmarks.training import Examples, per_token, take_turns


def works(toy: bool) -> dict[str, Work]:
    """The models and their rows; with ``toy`` narrow ones on short rows, to try the code."""
    wide = {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072}
    gated = {"hidden_size": 512, "num_attention_heads": 8, "intermediate_size": 768}
    long = replace(CPU_WORK, row_length=512, rows=8)
    found = {
        "bert_4x256": CPU_WORK,
        "bert_4x768": replace(long, overrides={"num_hidden_layers": 4, **wide}),
        "modernbert_4x512": replace(
            long, model_type="modernbert", overrides={"num_hidden_layers": 4, **gated}
        ),
    }
    if not toy:
        return found
    small = {
        "num_hidden_layers": 1,
        "hidden_size": 32,
        "num_attention_heads": 2,
        "intermediate_size": 64,
    }
    return {
        name: replace(work, overrides=small, vocabulary=64, row_length=32, rows=4)
        for name, work in found.items()
    }


def measure(steps: int, rounds: int, threads: int, toy: bool) -> Iterator[dict[str, Any]]:
    """Figures, those of each model as they come."""
    torch.set_num_threads(threads)
    for name, work in works(toy).items():
        exact = replace(work, threads=threads)
        low = replace(exact, precision="bf16")
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            data = make_data(root / "data", work, num_rows=work.rows * 16)
            rows = Examples.of(data)
            sides = [
                lambda out, n, low=low, data=data: ours(low, data, out, n),
                lambda out, n, exact=exact, data=data: ours(exact, data, out, n),
            ]
            if name == "bert_4x256":
                sides.append(
                    lambda out, n, low=low, data=data, rows=rows: trainer(low, data, rows, out, n)
                )
            taken = take_turns(root / "runs", steps, rounds, *sides)
        mine, in_fp32, *theirs = (per_token(side)[0] for side in taken)
        yield {name: in_fp32 / mine, f"{name}_tokens_per_second": 1 / mine}
        if theirs:
            yield {"train_vs_hf_bf16": theirs[0] / mine}
    for task in TASKS:
        found = fine_tuning(None, (task,), 24 if toy else 800, 1e-3, 1 if toy else 3, "bf16")
        yield {f"{task}_vs_hf_bf16": found[f"{task}_vs_hf"]}


def main() -> None:
    """Print the figures; with ``--json`` the last line is one JSON object."""
    parser = argparse.ArgumentParser(description="Speed of bfloat16 on a processor.")
    parser.add_argument("--steps", type=int, default=3, help="counted steps of a round")
    parser.add_argument("--rounds", type=int, default=4, help="turns each side takes")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--toy", action="store_true", help="small models, to try the code")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    figures: dict[str, Any] = {}
    for found in measure(options.steps, options.rounds, options.threads, options.toy):
        rounded = {name: round(value, 2) for name, value in found.items()}
        figures |= rounded
        print_figures(rounded, json_alone=False)
    if options.json:
        print_figures(figures, json_alone=True)


if __name__ == "__main__":
    main()
