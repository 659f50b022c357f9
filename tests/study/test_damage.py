"""What is lost or damaged in a study's folder is named with a way out that works when followed."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from chronomask.cli import app
from chronomask.data.folder import PreparedData
from chronomask.errors import DataError, UsageError
from chronomask.storage import write_text
from chronomask.study.command import report_of_study, status, study


@pytest.fixture
def small(values: dict[str, Any]) -> dict[str, Any]:
    """A study of one seed and no tasks."""
    values["base"] |= {"steps": 2, "checkpoint": {"every": 2}}
    return values | {"seeds": [0], "tasks": {}, "curve_steps": []}


def test_damaged_data_of_a_study_are_prepared_again(
    small: dict[str, Any], text_of_its_own: dict[str, Any], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    small["prepare"] = text_of_its_own
    del small["base"]["data"]
    study(small, out, progress=False)
    data = PreparedData.open(out / "data")
    said = ""
    for name in (data.manifest.shard_files()[0].file, "manifest.json", "config.yaml"):
        before = (out / "data" / name).read_bytes()
        (out / "data" / name).write_bytes(before[: len(before) // 2] + b": [")
        with pytest.raises(DataError, match="prepares the study's text again") as refused:
            _open(small, out)
        (out / "data" / name).write_bytes(before)
        said = str(refused.value)
    found = re.search(r"remove (\S+), and  chronomask (.*)  prepares", said)
    assert found is not None
    shutil.rmtree(found[1])
    app([*shlex.split(found[2]), "--quiet"], standalone_mode=False)
    assert PreparedData.open(out / "data").fingerprint == data.fingerprint


def _open(values: dict[str, Any], out: Path) -> None:
    """Read what a study in a folder reads of its data."""
    PreparedData.open(out / "data")
    study(values, out, progress=False)


def test_damaged_data_of_an_adaptation_are_prepared_again(
    tiny_data: PreparedData, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    shutil.copytree(tiny_data.path, data)
    (data / "manifest.json").write_text("{", encoding="utf-8")
    with pytest.raises(DataError, match="again with --force"):
        PreparedData.open(data)
    write_text(tmp_path / ".adaptation", "")
    with pytest.raises(DataError, match=f"remove {data} and repeat the command of the adaptation"):
        PreparedData.open(data)


def test_what_a_study_has_lost_is_put_back(small: dict[str, Any], tmp_path: Path) -> None:
    file, out = tmp_path / "mine.yaml", tmp_path / "out"
    file.write_text(yaml.safe_dump(small), encoding="utf-8")
    study(file, out, progress=False)
    (out / "study.yaml").unlink()
    for ask in (lambda: status(out), lambda: study(file, out, progress=False)):
        with pytest.raises(UsageError, match=r"is lost: copy the study's YAML file to") as lost:
            ask()
        to = str(lost.value).split(" file to ")[1].split(" and repeat")[0]
    shutil.copy(file, to)
    status(out)
    study(file, out, progress=False)

    run = out / "runs" / "decay" / "seed-0"
    noted = run / "environment.json"
    kept = noted.read_text()
    noted.write_text("{")
    with pytest.raises(DataError, match="put it back from a copy, or remove it"):
        report_of_study(out)
    with pytest.raises(DataError, match=f"or remove {run} to train the run again"):
        study(small | {"seeds": [0, 1]}, out, progress=False)
    noted.unlink()
    with pytest.raises(DataError, match=f"or remove {run} to train the run again") as refused:
        report_of_study(out)
    assert "None" not in str(refused.value)
    noted.write_text(kept)
    config = run / "config.yaml"
    shutil.rmtree(run / "checkpoints")
    for damaged in ("steps: [", "steps: none\n"):
        config.write_text(damaged)
        with pytest.raises(UsageError, match=f"or remove {run} to train the run again"):
            study(file, out, progress=False)
    shutil.rmtree(run)
    study(file, out, progress=False)
