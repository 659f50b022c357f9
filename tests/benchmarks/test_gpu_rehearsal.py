"""The GPU benchmark runs from end to end at toy size: what it prints there says nothing about speed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import gpu
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
    for name in ("tokens_per_second", "hf_tokens_per_second", "mfu", "peak_flops", "train_vs_hf"):
        assert result[name] > 0
    assert result["varlen_error"] < 1e-5  # float32 here
    assert 0 < result["masking_share"] < 1
    assert 0 <= result["data_wait_share"] < 1
    assert result["recompiles"] == 0
    assert result["steps_counted"] == 5


def test_without_a_device_it_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu.sh"])
    with pytest.raises(SystemExit) as stopped:
        gpu.main()
    assert stopped.value.code == 2
    assert "no CUDA device; --toy rehearses on a CPU" in capsys.readouterr().err
