"""The GPU benchmark runs from end to end at toy size: what it prints there says nothing about speed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import gpu, gpu_goals, low_precision
from tests.support.processes import HANG

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_one_call_gives_every_figure(tmp_path: Path) -> None:
    done = subprocess.run(
        [str(ROOT / "benchmarks" / "gpu.sh"), "--toy", "--out", str(tmp_path / "out")],
        capture_output=True, text=True, timeout=HANG, env=os.environ | {"PYTHON": sys.executable},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert json.loads((tmp_path / "out" / "gpu.json").read_text()) == result
    written = (tmp_path / "out" / "figures.jsonl").read_text().splitlines()
    told = {name: value for line in written for name, value in json.loads(line).items()}
    assert told["device"] == "cpu"
    assert {name: told[name] for name in result} == result
    assert set(gpu_goals.GOALS) | set(gpu_goals.AT_MOST) <= set(result)  # every figure's code ran
    for name in (*gpu_goals.GOALS, "bert_base_mfu", "peak_flops"):
        assert result[name] > 0
    assert result["cuda_tests"] == "passed"
    assert result["varlen_error"] < 1e-5  # float32 here
    assert (
        0 < result["bert_base_best_masking_share"] < 1
    )  # here the device is the host, which masks
    assert 0 < result["masking_host_share"] < 1
    assert 0 <= result["bert_base_best_data_wait_share"] < 1
    assert result["bert_base_best_recompiles"] == 0
    assert result["profile_bert_base_matrix_products_ms"] > 0
    assert result["profile_modernbert_base_busy_share"] > 0
    assert result["many_runs"] == result["many_runs_graphs"] == 1


def test_curves_are_compared_window_by_window() -> None:
    curves = np.full((2, 2, low_precision.WINDOWS), 3.0)
    curves[0, :, -1] = 2.0, 2.2
    curves[1, :, -1] = 2.1, 2.2
    curves[1, :, 8] = 2.8
    curves[1, :, 0] = 9.0  # in the first quarter, where nothing is learnt yet
    figures = low_precision.compare(curves)
    assert figures["last_gap"] == 0.05
    assert figures["spread"] == 0.1414
    assert figures["largest_gap"] == -0.2
    assert figures["spread_there"] == 0
    ids, _ = low_precision.draw_chain(np.random.default_rng(1), 4000, 64)
    assert len(set(pairwise(ids))) < 0.8 * 3999  # some words follow others


def test_without_a_device_it_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu.sh"])
    with pytest.raises(SystemExit) as stopped:
        gpu.main()
    assert stopped.value.code == 2
    assert "no CUDA device; --toy rehearses on a CPU" in capsys.readouterr().err
