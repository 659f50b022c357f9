"""Runs of any folders side by side: copies, repetitions and branches among them are told."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from chronomask.report.sentences import findings
from chronomask.runs.read import read_run
from chronomask.study.contrasts import compare_runs
from tests.support.synthetic_runs import cosine, write_run


def compared(*folders: Path) -> dict[str, Any]:
    """The comparison of the runs in these folders."""
    return compare_runs([read_run(folder) for folder in folders], "made up")[0]


def started(folder: Path, weights: str, **branch: Any) -> Path:
    """The run, noted to have begun with these weights and, where they are given, from a checkpoint."""
    noted = {"initial_weights_sha256": weights, "data_fingerprint": "d"}
    noted |= {"branch": branch} if branch else {}
    (folder / "environment.json").write_text(json.dumps(noted))
    return folder


def test_a_copy_of_a_run_is_left_out_and_a_run_made_again_is_told(tmp_path: Path) -> None:
    first = write_run(tmp_path / "first", "fixed")
    other = write_run(tmp_path / "other", "falling", cosine, weighted=True)
    shutil.copytree(first, tmp_path / "copy")
    found = compared(first, other, tmp_path / "copy")
    assert [arm["name"] for arm in found["arms"]] == ["fixed", "falling"]
    assert found["notices"] == [
        f"{tmp_path / 'copy'} is left out as a copy of {first}: their logs are the same byte for byte."
    ]
    again = write_run(tmp_path / "again", "fixed", gain=0.1)
    found = compared(first, other, again)
    assert len(found["arms"]) == 3
    assert found["notices"] == [
        "“fixed (first)” and “fixed (again)” are the same way to mask, with several runs of seed 0: an arm "
        "has one of each seed, so that they stand apart. Leave out what you do not mean to compare."
    ]


def test_a_branch_is_told_and_not_said_to_have_begun_like_the_others(tmp_path: Path) -> None:
    first = started(write_run(tmp_path / "first", "fixed"), "w")
    like = started(write_run(tmp_path / "like", "like", weighted=True), "w")
    checkpoint = str(first.resolve() / "checkpoints" / "step-00000040")
    branch = write_run(tmp_path / "branch", "falling", cosine, weighted=True, steps=100)
    (branch / "config.yaml").write_text((branch / "config.yaml").read_text() + "branch: first\n")
    started(branch, "v", checkpoint=checkpoint, step=40)
    found = compared(first, like, branch)
    assert found["notices"] == [
        "“falling” goes on from step 40 of “fixed”, with the weights that it had there: its steps, tokens "
        "and labels are those after that."
    ]
    assert (found["shared_start"], found["other_weights"]) == (False, [])
    assert "in the same order" not in findings(found, {})[0]
    (alone,) = compared(branch)["notices"]
    assert f"goes on from step 40 of {first.resolve()}, with" in alone
    # Weights alone are another matter: rows and their order are those of the others.
    found = compared(first, started(like, "v"))
    assert found["other_weights"] == ["like"]
    assert "in the same order, “like” from other initial weights" in findings(found, {})[0]
