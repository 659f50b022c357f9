"""A run small enough to be repeated many times, ways to stop it, and to compare what two runs left."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from chronomask.data.folder import PreparedData
from chronomask.train import log
from tests.support.processes import python_path
from tests.support.tiny_models import tiny_bert

TIMINGS = {
    "seconds", "tokens_per_second", "predicted_tokens_per_second", "data_wait_share", "mfu",
    "mfu_of_data_sheet",
    "peak_memory_bytes", "seconds_left",
}  # fmt: skip
WITHOUT_DROPOUT = [
    "model.overrides.hidden_dropout_prob=0",
    "model.overrides.attention_probs_dropout_prob=0",
]


def run_values(tiny_data: PreparedData) -> dict[str, Any]:
    """Values of a run of 12 steps with dropout, decaying ratio, content feedback and micro-batches."""
    return {
        "name": "tiny",
        "data": str(tiny_data.path),
        "model": tiny_bert(32),
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


class Driver:
    """Runs specs of ``train_child.py`` in processes forked from one that has imported everything."""

    def __init__(self, first: dict[str, Any]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.train_driver"],
            env=os.environ
            | {"PYTHONPATH": python_path(), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(first), file=self._process.stdin, flush=True)
        assert self._process.stdout.readline() == "ready\n"

    def answer(self, specs: list[dict[str, Any]], *, apart: bool = False) -> dict[str, Any]:
        """What ``train_driver.run`` returns."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps({"specs": specs, "apart": apart}), file=self._process.stdin, flush=True)
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


def ask_to_stop_after(
    monkeypatch: pytest.MonkeyPatch, step: int, signal_number: signal.Signals
) -> None:
    advance = log.RunLog.advance

    def advance_and_ask(self: log.RunLog, done: int, metrics: Any) -> None:
        advance(self, done, metrics)
        if done == step:
            os.kill(os.getpid(), signal_number)

    monkeypatch.setattr(log.RunLog, "advance", advance_and_ask)


def back_to_step_3(run: Path) -> None:
    """As if the run had been killed after step 6 was logged, with the checkpoint of step 3 the newest."""
    shutil.rmtree(run / "checkpoints" / "step-00000006")
    (run / "summary.json").unlink()


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


def weights_of(run: Path) -> dict[str, torch.Tensor]:
    newest = sorted((run / "checkpoints").iterdir())[-1]
    return load_file(newest / "transformers" / "model.safetensors")


def assert_close(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        torch.testing.assert_close(tensor, right[name], rtol=0, atol=1e-5)
