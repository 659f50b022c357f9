"""Whole scripts in processes of their own: two ranks against one, and every example."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.support import two_processes
from tests.support.processes import HANG, python_path

EXAMPLES = Path(__file__).parents[2] / "examples"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory"),
]


def run(*arguments: str | Path) -> str:
    environment = os.environ | {"PYTHONPATH": python_path(), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=HANG,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_two_ranks_of_the_trainer_equal_one(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    two_processes.main(one, 8)
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    run(*launcher, "-m", "tests.support.two_processes", two, "4")
    alone = torch.load(one / "seen-0.pt", weights_only=True)
    ranks = [torch.load(two / f"seen-{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert torch.equal(alone["inputs"], torch.cat([rank["inputs"] for rank in ranks], dim=1))
    assert ranks[0]["loss"] == pytest.approx(alone["loss"], rel=1e-5)
    for name, value in alone["state"].items():
        assert torch.equal(ranks[0]["state"][name], ranks[1]["state"][name])
        torch.testing.assert_close(ranks[0]["state"][name], value, rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("trainer.py", "loss at 15 %"),
        ("lightning_module.py", "loss at 15 %"),
        ("plain_loop.py", "step 50"),
        ("mask_in_workers.py", "step 60"),
    ],
)
def test_examples_run(
    name: str,
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(EXAMPLES)
    monkeypatch.setattr(sys, "argv", [name])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    assert says in capsys.readouterr().out
    assert len((EXAMPLES / name).read_text(encoding="utf-8").splitlines()) <= 80
