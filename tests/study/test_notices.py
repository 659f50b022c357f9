"""What is said beside the numbers of runs, and that nothing is where nothing is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from chronomask.runs.read import Run, read_run
from chronomask.study.notices import data_notices, device_notices, few_notices
from chronomask.yardsticks import YARDSTICKS
from tests.support.synthetic_runs import write_run

Change = Callable[[dict[str, Any]], object]


def _run(folder: Path, validation: Change = lambda line: None, **environment: str) -> Run:
    """A run with lines of its validation changed."""
    path = write_run(folder, folder.name)
    file = path / "validation.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    for line in lines:
        validation(line)
    file.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    if environment:
        (path / "environment.json").write_text(json.dumps(environment))
    return read_run(path)


def test_runs_of_one_precision_and_device_are_told_nothing(tmp_path: Path) -> None:
    here: dict[str, str] = {"device_name": "NVIDIA H200", "precision": "bf16"}
    first, alike = (_run(tmp_path / name, **here) for name in "ab")
    assert device_notices([first, alike]) == []


def test_other_devices_and_other_precisions_are_told_apart(tmp_path: Path) -> None:
    first, elsewhere, whole = (
        _run(tmp_path / name, device_name=f"NVIDIA {card}", precision=precision)
        for name, card, precision in (
            ("a", "H200", "bf16"), ("b", "A100", "bf16"), ("c", "H200", "fp32"),
        )
    )  # fmt: skip
    assert device_notices([first, elsewhere]) == [
        "Runs were made on NVIDIA A100 and NVIDIA H200: do not compare their times."
    ]
    (said,) = device_notices([first, whole])
    assert said.startswith("Some runs computed in bf16 and some in fp32: ")


def test_validations_at_other_ratios_do_not_compare(tmp_path: Path) -> None:
    """Also where one run alone has lines of both, as of two versions."""
    first = _run(tmp_path / "a", lambda line: line.update(masking_ratio=0.15))
    other = _run(tmp_path / "b", lambda line: line.update(masking_ratio=0.3))
    bare = _run(tmp_path / "c", lambda line: line.pop("masking_ratio", None))
    said = "These runs were not validated at the same masking ratio: do not compare their losses."
    assert data_notices([first, other]) == [said]
    assert said not in data_notices([first, bare])
    both = _run(
        tmp_path / "d", lambda line: line.update(masking_ratio=0.15 if line["step"] > 99 else 0.4)
    )
    assert data_notices([both]) == [said]


def test_yardsticks_without_a_number_of_predictions_say_nothing_of_chance(tmp_path: Path) -> None:
    few = {own.name: 3 for own in YARDSTICKS}
    counted = _run(tmp_path / "a", lambda line: line.update(yardstick_count=few, num_predicted=20))
    assert "rest on 20 predictions" in few_notices([counted])[0]
    bare = _run(
        tmp_path / "b",
        lambda line: (line.update(yardstick_count=few), line.pop("num_predicted", None)),
    )
    assert few_notices([bare]) == []
    assert few_notices([bare, counted]) == few_notices([counted])
