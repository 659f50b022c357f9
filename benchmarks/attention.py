"""Speed of attention on the host, beside the attention of torch that transformers calls.

    python -m benchmarks.attention [--rounds 7] [--threads 1] [--toy] [--json]

Forward and backward pass of one layer of the size of BERT-base (12 heads of 64) in float32, in turns, medians
of CPU time of the process over the rounds. Theirs is ``scaled_dot_product_attention`` with the mask that says
which documents see each other; to make the mask is not timed. Figures are how many times as fast ours is:

- ``documents_512``, ``documents_1024``: 4,096 tokens in rows of that length, packed with documents of 20 to
  200 tokens
- ``documents_512_dropout``: the same with 10 % of the weights dropped
- ``rows_384_dropout``: 12 rows of 384 tokens that are one document each, as in fine-tuning on questions, with
  10 % of the weights dropped
- ``documents_512_bf16``, ``documents_512_dropout_bf16``: queries, keys and values of both sides in bfloat16
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median

import numpy as np
import torch
from torch import nn

from benchmarks.record import print_figures
from chronomask.model.attention import documents_attention
from chronomask.model.documents import Documents, documents_between

HEADS, WIDTH = 12, 64


def packed(rows: int, length: int) -> Documents:
    """Rows that are packed with documents of 20 to 200 tokens, the last of a row cut at its end."""
    random = np.random.default_rng(0)
    bounds: list[int] = []
    for start in range(0, rows * length, length):
        ends = np.cumsum(random.integers(20, 201, size=length))
        bounds += [start, *(start + ends[ends < length]).tolist()]
    return documents_between(np.array([*bounds, rows * length]), rows, length, "cpu")


def single(rows: int, length: int) -> Documents:
    """Rows that are one document each."""
    return documents_between(np.arange(rows + 1) * length, rows, length, "cpu")


def ratio(
    documents: Documents,
    dropout: float,
    heads: int,
    rounds: int,
    dtype: torch.dtype = torch.float32,
) -> float:
    """Seconds of torch's attention within documents over those of ours."""
    rows, length = documents.number.shape
    drawn = torch.randn(4, rows, length, heads, WIDTH).to(dtype)
    states, given = [x.requires_grad_() for x in drawn[:3].unbind()], drawn[3]
    mask = documents.mask(None, dtype)

    def ours() -> torch.Tensor:
        query, key, value = (x.transpose(1, 2) for x in states)
        return documents_attention(
            nn.Module(), query, key, value, None, dropout, documents=documents
        )[0]

    def theirs() -> torch.Tensor:
        query, key, value = (x.transpose(1, 2) for x in states)
        attend = nn.functional.scaled_dot_product_attention
        return attend(query, key, value, mask, dropout).transpose(1, 2).contiguous()

    def seconds(side: Callable[[], torch.Tensor]) -> float:
        before = time.process_time()
        torch.autograd.grad(side(), states, given)
        return time.process_time() - before

    taken = [(seconds(theirs), seconds(ours)) for _ in range(rounds + 1)][1:]  # the first warms up
    of_theirs, of_ours = (median(side) for side in zip(*taken, strict=True))
    return of_theirs / of_ours


def benchmark_attention(rounds: int, threads: int, toy: bool) -> dict[str, float]:
    """The figures; with ``toy`` of rows an eighth as long and two heads, to try the code."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    shrink, heads = (8, 2) if toy else (1, HEADS)
    at_512 = packed(8, 512 // shrink)
    figures = {
        "documents_512": ratio(at_512, 0.0, heads, rounds),
        "documents_1024": ratio(packed(4, 1024 // shrink), 0.0, heads, rounds),
        "documents_512_dropout": ratio(at_512, 0.1, heads, rounds),
        "rows_384_dropout": ratio(single(12, 384 // shrink), 0.1, heads, rounds),
        "documents_512_bf16": ratio(at_512, 0.0, heads, rounds, torch.bfloat16),
        "documents_512_dropout_bf16": ratio(at_512, 0.1, heads, rounds, torch.bfloat16),
    }
    return {name: round(figure, 2) for name, figure in figures.items()}


def main() -> None:
    """Print the figures; with ``--json`` as one JSON object."""
    parser = argparse.ArgumentParser(description="Speed of attention on the host.")
    parser.add_argument("--rounds", type=int, default=7, help="passes of each that are timed")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--toy", action="store_true", help="small states, to try the code")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    figures = benchmark_attention(options.rounds, options.threads, options.toy)
    print_figures(figures, json_alone=options.json)


if __name__ == "__main__":
    main()
