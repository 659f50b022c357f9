"""The script for Slurm, with an ``srun`` and a ``scontrol`` that only note what they are asked."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from chronomask.recipes import find_recipe

SRUN = """#!/bin/bash
echo "srun $*" >> "$NOTES"
mkdir -p "$RUN/checkpoints"
[ "$ENDS" = further ] && mkdir "$RUN/checkpoints/step-00000200"
[ "$ENDS" = unfinished ] && mkdir "$RUN/checkpoints/step-00000200.unfinished"
[ "$ENDS" = done ] && touch "$RUN/summary.json" && exit 0
exit 1
"""
SCONTROL = """#!/bin/bash
echo "scontrol $*" >> "$NOTES"
echo first; echo second
"""


@pytest.mark.parametrize(
    ("ends", "restarts", "again"),
    [
        ("further", "0", True),
        ("further", "19", True),
        ("further", "20", False),
        ("unfinished", "0", False),  # a checkpoint that was begun
        ("refused", "0", False),
        ("done", "0", False),
    ],
)
@pytest.mark.parametrize("before", [None, "step-00000100"])
def test_a_job_is_sent_again_where_it_got_further(
    tmp_path: Path, ends: str, restarts: str, again: bool, before: str | None
) -> None:
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (tmp_path / name).write_text(text, encoding="utf-8")
        (tmp_path / name).chmod(0o755)
    run, notes = tmp_path / "my run", tmp_path / "notes"
    if before is not None:
        (run / "checkpoints" / before).mkdir(parents=True)
    given = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}", "NOTES": str(notes), "RUN": str(run), "ENDS": ends,
        "SLURM_JOB_ID": "77", "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_NNODES": "2",
        "SLURM_CPUS_PER_TASK": "16", "SLURM_GPUS_ON_NODE": "8", "SLURM_RESTART_COUNT": restarts,
    }  # fmt: skip
    script = find_recipe("slurm/pretrain")
    ended = subprocess.run(
        ["bash", str(script), "bert-base", "data", str(run), "--set", "sharding=fsdp2"],
        env=os.environ | given, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ended.returncode == (ends != "done"), ended.stderr
    assert ended.stderr == ""
    asked = notes.read_text(encoding="utf-8")
    assert f"--out {run} --resume --quiet --set sharding=fsdp2" in asked
    assert ("scontrol requeue 77" in asked) is again
