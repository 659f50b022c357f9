"""Tokens per second of masking beside what people use today, on one thread and the same batch.

    python -m benchmarks.masking [--json] [--rounds N]

The batch is 64 rows of 512 tokens of real text: prose of the installed packages, WordPiece, tagged.

- ``token_vs_hf``, ``whole_word_vs_hf``, ``span_vs_hf_whole_word``: against transformers'
  ``DataCollatorForLanguageModeling``, given the features a data set gives it: lists of ids (and of
  offsets, from which it finds words). Both sides end with torch tensors.
- ``ptw_vs_python``: against a straightforward Python version of the published walk, from lists to
  tensors, given the words.
- ``share_of_step``: masking with PTW, in a training step of a BERT of 4 layers × 256 on 32 rows of 128;
  ``shares_of_step``: the same of masking that changes over time, learns or weighs losses, what it learns of
  the losses included. The pass of the model that ``model_scores`` needs is no masking; its share stands
  apart (``model_scores_pass``), for each step whose rows are scored.

All sides take turns, round by round; figures are ratios of medians of processor time. Ours starts from
the loader's rows as tensors of the host; reading these rows from disk is timed beside it (``loader_ms``).
``peak_mib`` is what masking allocates at most, per kind.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import argparse
import random
import tempfile
import time
import tracemalloc
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from transformers import DataCollatorForLanguageModeling, PreTrainedTokenizerBase

from benchmarks.record import as_json
from chronomask.data.folder import PreparedData
from chronomask.data.loader import RowLoader
from chronomask.data.ngrams import add_ngrams, find_ngrams
from chronomask.masking.config import MaskingConfig
from chronomask.masking.content import ModelScores
from chronomask.masking.masker import Masker, Vocabulary
from chronomask.model.build import build_model
from chronomask.model.config import FromConfig
from chronomask.model.open import open_tokenizer
from chronomask.prepare.config import PrepareConfig
from chronomask.prepare.pipeline import prepare
from chronomask.train.foresight import Scorer
from chronomask.train.forward import Forward
from chronomask.types import ClassTally, Rows
from tests.support.published_walk import mask_row

ROWS, LENGTH, RATIO = 64, 512, 0.15
OURS: dict[str, dict[str, Any]] = {
    "token": {"strategy": {"kind": "token"}},
    "whole_word": {"strategy": {"kind": "whole_word"}},
    "ptw": {"strategy": {"kind": "whole_word"}, "content": {"kind": "ptw", "strength": 1}},
    "span": {"strategy": {"kind": "span"}},
}
OVER_TIME: dict[str, dict[str, Any]] = {
    "pmi": {"strategy": {"kind": "pmi"}},
    "strategy": {
        "strategy": {
            "kind": "mixed",
            "parts": [
                {
                    "share": {"kind": "linear", "start": 1.0, "end": 0.0},
                    "strategy": {"kind": "token"},
                },
                {
                    "share": {"kind": "linear", "start": 0.0, "end": 1.0},
                    "strategy": {"kind": "span"},
                },
            ],
        }
    },
    "loss_weights": {
        "ratio": {"kind": "cosine_rows"},
        "loss_weight": {"kind": "inverse_ratio"},
        "loss_per": "token",
    },
    "strength": {"content": {"kind": "ptw", "strength": {"kind": "linear", "start": 0, "end": 1}}},
    "learning_progress": {"content": {"kind": "learning_progress"}},
    "reducible_loss": {"content": {"kind": "reducible_loss"}},
    "model_scores": {"content": {"kind": "model_scores"}},
}
"""Masking that changes over time, learns or weighs losses; of whole words where nothing else is said."""
PEERS = {
    "token_vs_hf": ("token", "hf_token"),
    "whole_word_vs_hf": ("whole_word", "hf_whole_word"),
    "ptw_vs_python": ("ptw", "python_walk"),
    "span_vs_hf_whole_word": ("span", "hf_whole_word"),
}


def prepared(folder: Path) -> PreparedData:
    """Real text on this machine as rows of 512 tokens with parts of speech."""
    config = {
        "sources": [{"kind": "installed_packages", "max_bytes": 600_000}],
        "tokenizer": {"kind": "wordpiece", "vocab_size": 8192},
        "row_length": LENGTH,
        "held_out": 0.0,
        "workers": 1,
    }
    return prepare(PrepareConfig.parse(config), folder / "data", progress=False)


def masker_of(spec: dict[str, Any], data: PreparedData, vocabulary: Vocabulary) -> Masker:
    """A masker whose classes have had losses, so that their weights differ."""
    values = {"ratio": {"kind": "constant", "base": RATIO}, **spec}
    masker = Masker(MaskingConfig.parse(values), vocabulary, data.class_names)
    count = np.full(masker.num_feedback_classes, 10)
    masker.update(ClassTally(count * np.linspace(1, 4, count.size), count, count * 0))
    return masker


def word_offsets(rows: Rows) -> list[list[tuple[int, int]]]:
    """Character offsets in which the pieces of a word touch and words do not."""
    out = []
    for words in rows.word_id:
        position, offsets = 0, []
        for column, word in enumerate(words):
            if column and word != words[column - 1]:
                position += 1
            offsets.append((position, position + 1))
            position += 1
        out.append(offsets)
    return out


def python_walk(
    rows: list[tuple[list[int], list[int], list[int]]],
    weights: list[float],
    mask_id: int,
    vocabulary: list[int],
    rng: random.Random,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The published procedure as one would write it; ids and labels [B, T]."""
    masked = [
        mask_row(
            *row, weights, RATIO, mask_id, vocabulary, rng
        )  # as tests hold the method against it
        for row in rows
    ]
    all_ids, all_labels = zip(*masked, strict=True)
    return torch.tensor(all_ids), torch.tensor(all_labels)


def contenders(
    data: PreparedData, tokenizer: PreTrainedTokenizerBase, rows: Rows
) -> dict[str, Callable[[], object]]:
    """Every procedure as a call that masks the batch once."""
    vocabulary = Vocabulary.from_tokenizer(tokenizer)
    on_torch = rows.to("cpu")
    calls: dict[str, Callable[[], object]] = {}
    for name, spec in OURS.items():
        masker = masker_of(spec, data, vocabulary)
        calls[name] = lambda masker=masker: masker(on_torch, 0.5)

    ids = rows.input_ids.tolist()
    attention = [[1] * LENGTH] * ROWS
    features = [{"input_ids": i, "attention_mask": a} for i, a in zip(ids, attention, strict=True)]
    with_offsets = [
        {**feature, "offset_mapping": offsets}
        for feature, offsets in zip(features, word_offsets(rows), strict=True)
    ]
    token = DataCollatorForLanguageModeling(tokenizer, mlm_probability=RATIO)
    whole = DataCollatorForLanguageModeling(
        tokenizer,
        mlm_probability=RATIO,
        whole_word_mask=True,
        mask_replace_prob=1,
        random_replace_prob=0,
    )
    calls["hf_token"] = lambda: token([dict(feature) for feature in features])
    calls["hf_whole_word"] = lambda: whole([dict(feature) for feature in with_offsets])

    weights = masker_of(OURS["ptw"], data, vocabulary).class_weights()
    assert weights is not None
    as_lists = list(zip(ids, rows.word_id.tolist(), rows.token_class.tolist(), strict=True))
    rng, ordinary = random.Random(0), vocabulary.ordinary_ids.tolist()
    values = list(weights.values())
    calls["python_walk"] = lambda: python_walk(
        as_lists, values, vocabulary.mask_token_id, ordinary, rng
    )
    return calls


def seconds(call: Callable[[], object], repeat: int) -> float:
    """Median processor time of ``repeat`` calls."""
    times = []
    for _ in range(repeat):
        began = time.thread_time()
        call()
        times.append(time.thread_time() - began)
    return median(times)


def time_in_turns(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median processor time per call of each contender; all take turns in every round."""
    for call in calls.values():
        call()
    repeats = {name: max(1, int(0.03 / seconds(call, 3))) for name, call in calls.items()}
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            times[name].append(seconds(call, repeats[name]))
    return {name: median(values) for name, values in times.items()}


def peak_mib(call: Callable[[], object]) -> float:
    """Most memory that a call holds at a time, as far as numpy and Python allocate it, in MiB."""
    call()
    tracemalloc.start()
    call()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak / 2**20


def shares_of_step(
    data: PreparedData, tokenizer: PreTrainedTokenizerBase, rounds: int
) -> dict[str, float]:
    """Time of each masking over the time of a step (masking, forward, backward, AdamW) on 32 rows of 128
    tokens: of PTW, of :data:`OVER_TIME`, and of the pass that scores a step's rows.
    """
    config = FromConfig(
        overrides={
            "hidden_size": 256,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "intermediate_size": 1024,
        }
    )
    model = build_model(config, tokenizer, row_length=128, seed=0, attention="row")
    forward = Forward(model, torch.device("cpu"), "fp32", "row", data.manifest.pad_token_id)
    vocabulary = Vocabulary.from_tokenizer(tokenizer)
    masker = masker_of(OURS["ptw"], data, vocabulary)
    optimiser = torch.optim.AdamW(model.parameters(), fused=True)
    rows = short_rows(data)

    def step() -> None:
        part = forward.mask(rows, masker, 0.5)
        loss, _, _ = forward.losses(part)
        loss.mean().backward()
        optimiser.step()
        optimiser.zero_grad()

    ahead = ModelScores().look_ahead
    scorer = Scorer(ahead, forward, vocabulary, seed=0)
    calls: dict[str, Callable[[], object]] = {
        "step": step,
        "model_scores_pass": lambda: scorer.score([rows]),
    }
    on_torch = rows.to("cpu")
    for name, spec in {"ptw": OURS["ptw"], **OVER_TIME}.items():
        calls[name] = masking_and_learning(masker_of(spec, data, vocabulary), on_torch)
    times = time_in_turns(calls, rounds)
    return {name: value / times["step"] for name, value in times.items() if name != "step"}


def short_rows(data: PreparedData) -> Rows:
    """32 rows of 128 tokens, with collocations and with scores as if a model had made them."""
    whole = data.split("train").read(np.arange(8), 0)
    assert whole.ngrams is not None
    columns = (whole.input_ids, whole.word_id, whole.token_class)
    return Rows(
        *(column.reshape(32, 128) for column in columns),
        row_id=np.arange(32),
        epoch=np.zeros(32, np.int64),
        cu_seqlens=np.arange(0, 32 * 128 + 1, 128, dtype=np.int32),
        scores=np.random.default_rng(0).normal(size=(32, 128)).astype(np.float32),
        ngrams=whole.ngrams.reshape(32, 128),
    )


def masking_and_learning(masker: Masker, rows: Rows) -> Callable[[], object]:
    """All that a step has of masking: the masks, and what is learnt of the losses where it learns."""
    losses = torch.linspace(0, 10, rows.input_ids.numel())
    correct = losses < 1

    def run() -> None:
        batch = masker(rows, 0.5)
        if masker.needs_feedback:
            masker.observe(batch, losses[: batch.num_predicted], correct[: batch.num_predicted])
            masker.end_step()

    return run


def main() -> None:
    """Print the figures; with ``--json`` the last line is one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", action="store_true", help="print one JSON object last")
    parser.add_argument("--rounds", type=int, default=15, help="turns each contender takes")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message="Random token replacement is not supported")

    with tempfile.TemporaryDirectory() as folder:
        data = prepared(Path(folder))
        tokenizer = open_tokenizer(data.tokenizer_path)
        split = data.split("train")
        rows = split.read(np.arange(ROWS), 0)
        calls = contenders(data, tokenizer, rows)
        times = time_in_turns(calls, options.rounds)
        loader = RowLoader(split, seed=0, rows_per_step=ROWS)
        steps = iter(range(10**6))
        loader_ms = seconds(lambda: loader.rows_at(next(steps)), 50) * 1e3
        memory = {name: round(peak_mib(calls[name]), 2) for name in OURS}
        with_ngrams = add_ngrams(data, find_ngrams(split, progress=False))
        shares = shares_of_step(with_ngrams, tokenizer, max(5, options.rounds // 2))

    print(f"{ROWS} rows × {LENGTH} tokens, one thread, medians of {options.rounds} rounds")
    for name, value in times.items():
        rate = ROWS * LENGTH / value / 1e6
        print(f"  {name:16}{value * 1e3:9.3f} ms{rate:10.2f} M tokens/s")
    figures = {key: round(times[peer] / times[ours], 1) for key, (ours, peer) in PEERS.items()}
    for key, value in figures.items():
        print(f"{key:24}{value:8.1f}×")
    for name, share in shares.items():
        print(f"{'share of step: ' + name:34}{share:9.3%}")
    print(f"{'loader_ms':24}{loader_ms:8.3f}")
    print("peak MiB:", ", ".join(f"{name} {value}" for name, value in memory.items()))
    if options.json:
        shares = {name: round(share, 5) for name, share in shares.items()}
        extra = {
            "share_of_step": shares.pop("ptw"),
            "model_scores_pass": shares.pop("model_scores_pass"),
            "shares_of_step": shares,
            "loader_ms": round(loader_ms, 3),
        }
        milliseconds = {name: round(value * 1e3, 3) for name, value in times.items()}
        print(as_json(figures | extra | {"peak_mib": memory, "milliseconds": milliseconds}))


if __name__ == "__main__":
    main()
