"""A run small enough to be repeated many times, and ways to compare what two runs left."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
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
    """What :func:`run_values` gives."""
    return run_values(tiny_data)


def run_values(tiny_data: PreparedData) -> dict[str, Any]:
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


class Driver:
    """Runs ``child.py`` specs in processes forked from one that has imported everything."""

    def __init__(self, first: dict[str, Any]) -> None:
        here = Path(__file__).parent
        self._process = subprocess.Popen(
            [sys.executable, str(here / "driver.py")],
            env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(first), file=self._process.stdin, flush=True)
        assert self._process.stdout.readline() == "ready\n"

    def answer(self, specs: list[dict[str, Any]], **how: Any) -> dict[str, Any]:
        """What ``driver.run`` returns."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps({"specs": specs, **how}), file=self._process.stdin, flush=True)
        return json.loads(self._process.stdout.readline())

    def codes(self, spec: dict[str, Any], number: int = 1) -> list[int]:
        """Exit codes of ``number`` processes that all do ``spec``."""
        answer = self.answer([spec] * number)
        print(*answer["errors"])  # shown where the test fails
        return answer["codes"]

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.kill()  # a tidy end of an interpreter with torch takes seconds
        self._process.wait()
        self._process.stdin.close()
        self._process.stdout.close()


@pytest.fixture(scope="session")
def driver(tiny_data: PreparedData, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Driver]:
    """One for all tests: its import takes longer than most of what it runs."""
    config = run_values(tiny_data) | {"steps": 2}
    started = Driver({"config": config, "out": str(tmp_path_factory.mktemp("driver") / "run")})
    yield started
    started.close()


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
