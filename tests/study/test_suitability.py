"""What the masking of an arm needs of the data is named before anything is trained, and works when given."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from chronomask.cli import app
from chronomask.errors import ChronomaskError, RunError, UsageError
from chronomask.study.command import plan, study
from chronomask.study.execute import run_study
from tests.support.opened_study import opened

COLLOCATIONS = {"masking.strategy": "pmi"}
SCORED = {"masking.content": "scores"}


def _follow(error: ChronomaskError) -> None:
    """Give the commands that a refusal names; made-up words follow each other by chance."""
    commands = re.findall(
        r"chronomask (data (?:ngrams|score) \S+(?: informativeness)?)\b", str(error)
    )
    assert commands
    for command in commands:
        lower = ["--min-count", "2", "--min-pmi", "0"] if "ngrams" in command else []
        app([*shlex.split(command), *lower], standalone_mode=False)


@pytest.fixture
def small(values: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """A study of one seed and no tasks, on data of its own."""
    data = tmp_path / "data"
    shutil.copytree(values["base"]["data"], data)
    values["base"] |= {"data": str(data), "steps": 2, "checkpoint": {"every": 2}}
    return values | {"seeds": [0], "tasks": {}, "curve_steps": []}


def test_data_that_lack_something_are_refused_before_any_run(
    small: dict[str, Any], tmp_path: Path
) -> None:
    small["arms"] = {"fixed": {}, "together": COLLOCATIONS, "hard": SCORED}
    file, out = tmp_path / "small.yaml", tmp_path / "out"
    file.write_text(yaml.safe_dump(small), encoding="utf-8")
    with pytest.raises(
        UsageError, match=r"arm 'hard': .*data score.*; arm 'together': .*ngrams"
    ) as no:
        study(file, out, progress=False)
    assert not (out / "runs").exists()
    assert f"not ready to run: {no.value}" in plan(file, out)
    with pytest.raises(UsageError, match="arm 'hard'"):
        app(["study", "run", str(file), "--out", str(out), "--unit", "1"], standalone_mode=False)
    _follow(no.value)
    assert "not ready" not in plan(file, out)
    assert study(file, out, progress=False).is_file()


def test_an_arm_that_is_added_too_late_is_told_of_the_runs_that_are_there(
    small: dict[str, Any], tmp_path: Path
) -> None:
    small["arms"] = {"fixed": {}}
    study(small, tmp_path / "out", progress=False)
    small["arms"]["together"] = COLLOCATIONS
    with pytest.raises(
        UsageError, match=r"as .*/runs/fixed/seed-0, .*: remove .*/out/runs then"
    ) as no:
        study(small, tmp_path / "out", progress=False)
    _follow(no.value)
    shutil.rmtree(tmp_path / "out" / "runs")
    study(small, tmp_path / "out", progress=False)


def test_text_that_the_study_prepares_is_asked_for_what_arms_need(
    small: dict[str, Any], text_of_its_own: dict[str, Any], tmp_path: Path
) -> None:
    """Scores, which a setting gives, before it is prepared; collocations between that and the first run."""
    small["prepare"] = text_of_its_own
    del small["base"]["data"]
    small["arms"] = {"fixed": {}, "together": COLLOCATIONS, "hard": SCORED}
    with pytest.raises(UsageError, match=r"arm 'hard': .*set prepare\.scores=informativeness$"):
        study(small, tmp_path / "out", progress=False)
    assert not (tmp_path / "out" / "data").exists()

    small["prepare"]["scores"] = "informativeness"
    with pytest.raises(
        RunError, match=r"3 units .* left out:\n  prepare: arm 'together': .*ngrams"
    ) as no:
        study(small, tmp_path / "out", progress=False)
    assert not (tmp_path / "out" / "runs").exists()
    with pytest.raises(UsageError, match=r"^arm 'together'"):
        study(small, tmp_path / "out", progress=False)
    _follow(no.value)
    begun = opened(small, tmp_path)
    assert not run_study(begun, begun.in_order()).failed
