"""A run small enough to be repeated many times, and ways to compare what two runs left."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from chronomask.data.format import PreparedData
from chronomask.train.config import RunConfig

TIMINGS = {
    "seconds", "tokens_per_second", "predicted_tokens_per_second", "data_wait_share", "mfu",
    "peak_memory_bytes", "seconds_left",
}  # fmt: skip


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)  # small tensors gain nothing from more


@pytest.fixture
def values(tiny_data: PreparedData) -> dict[str, Any]:
    """Values of a run of 12 steps with dropout, decaying ratio, content feedback and micro-batches."""
    return {
        "name": "tiny",
        "data": str(tiny_data.path),
        "model": {
            "kind": "config",
            "model_type": "bert",
            "overrides": {
                "hidden_size": 32,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "intermediate_size": 48,
                "max_position_embeddings": 32,
            },
        },
        "masking": {
            "ratio": {"kind": "linear_decay", "base": 0.3},
            "content": {"kind": "ptw", "ema_decay": 0.9},
        },
        "learning_rate": {"kind": "linear", "peak": 3e-3, "warmup_steps": 2},
        "steps": 12,
        "rows_per_step": 8,
        "micro_batches": 2,
        "device": "cpu",
        "threads": 1,
        "peak_flops": 1e12,
        "log_every": 3,
        "validation": {"every": 4, "rows": 8, "batch_rows": 4},
        "checkpoint": {"every": 5, "keep": 2},
    }


@pytest.fixture
def config(values: dict[str, Any]) -> RunConfig:
    """The run of :func:`values`."""
    return RunConfig.parse(values)


def lines(path: Path) -> list[dict[str, Any]]:
    """Logged objects without what depends on the clock."""
    objects = [json.loads(line) for line in path.read_text().splitlines()]
    return [{k: v for k, v in item.items() if k not in TIMINGS} for item in objects]


def assert_same_run(left: Path, right: Path) -> None:
    """Two run folders hold the same training: state bit for bit, logs apart from the clock."""
    ours, theirs = (sorted((run / "checkpoints").glob("step-*"))[-1] for run in (left, right))
    assert ours.name == theirs.name
    hashes = [json.loads((path / "hashes.json").read_text()) for path in (ours, theirs)]
    clocked = {"state.json"}
    assert hashes[0].keys() == hashes[1].keys()
    assert [k for k, v in hashes[0].items() if v != hashes[1][k] and k not in clocked] == []
    for name in ("metrics.jsonl", "validation.jsonl"):
        assert lines(left / name) == lines(right / name)
