"""Whole scripts in processes of their own: two ranks against one, and every example."""

from __future__ import annotations

import ast
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForMaskedLM

import chronomask as cm
from tests.support import two_processes
from tests.support.processes import HANG, python_path

EXAMPLES = Path(__file__).parents[2] / "examples"
pytestmark = pytest.mark.slow


def run(*arguments: str | Path, cwd: Path | None = None) -> str:
    environment = os.environ | {"PYTHONPATH": python_path(), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        env=environment,
        cwd=cwd,
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
def test_examples_run_at_their_defaults(name: str, says: str, tmp_path: Path) -> None:
    assert says in run(EXAMPLES / name, cwd=tmp_path)


def test_a_whole_training_goes_on_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script, out = EXAMPLES / "train.py", tmp_path / "train_output"
    whole = run(script, cwd=tmp_path).splitlines()
    assert whole[-1].startswith("held-out loss at 15 %")
    (out / "state.pt").unlink()
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(EXAMPLES)
    main = runpy.run_path(str(script))["main"]
    main(stop="25")  # the state of step 20 is saved
    capsys.readouterr()
    main()
    resumed = capsys.readouterr().out.splitlines()
    assert resumed == whole[2:]
    assert resumed[0].startswith("step 30: ratio 0.227")
    AutoModelForMaskedLM.from_pretrained(out / "model")


def test_examples_use_only_the_face() -> None:
    scripts = sorted(EXAMPLES.glob("*.py"))
    assert len(scripts) == 6
    for script in scripts:
        text = script.read_text(encoding="utf-8")
        assert len(text.splitlines()) <= 80, script.name
        nodes = list(ast.walk(ast.parse(text)))
        for node in nodes:
            if isinstance(node, ast.ImportFrom):
                assert not (node.module or "").startswith("chronomask"), script.name
            if isinstance(node, ast.Import):
                names = [alias for alias in node.names if alias.name.startswith("chronomask")]
                assert all((a.name, a.asname) == ("chronomask", "cm") for a in names), script.name
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "cm":
                assert node.attr in cm.__all__, f"{script.name}: cm.{node.attr}"
