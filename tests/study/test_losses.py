"""Which runs are compared by their losses: seeds that all arms have, without those in which one diverged."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import pytest

from chronomask.report.answer import answer
from chronomask.report.sentences import findings
from chronomask.report.tables import task_table
from chronomask.runs.read import read_run
from chronomask.study.command import report
from chronomask.study.contrasts import compare_runs
from tests.support.synthetic_runs import cosine, write_run

_CHANGES = {
    "half": {},
    "quarter": {"weighted": True},
    "falling": {"ratio": cosine, "weighted": True},
}


def compared(folder: Path, **seeds: str) -> dict[str, Any]:
    """The comparison of arms with these seeds, as ``0 1!``: the marked one diverged. A page is drawn too."""
    folders = []
    for arm, own in seeds.items():
        for text in own.split():
            seed = int(text.rstrip("!"))
            where, change = folder / f"{arm}-{seed}", _CHANGES[arm]
            path = write_run(where, arm, seed=seed, gain=0.01 * seed, **change)
            if text.endswith("!"):
                file = path / "validation.jsonl"
                *before, last = file.read_text().splitlines()
                last = json.dumps(json.loads(last) | {"loss": math.nan})
                file.write_text("\n".join([*before, last]) + "\n")
            folders.append(path)
    report(folders, folder / "page")
    return compare_runs([read_run(path) for path in folders], "made up")[0]


def seeds_of(found: dict[str, Any]) -> dict[str, list[str]]:
    """The seeds of every arm whose loss is compared."""
    if not found["tasks"]:
        return {}
    return {name: list(own["by_seed"]) for name, own in found["tasks"][0]["arms"].items()}


def test_a_seed_in_which_a_run_diverged_is_no_arms(tmp_path: Path) -> None:
    found = compared(tmp_path, half="0 1!", quarter="0 1 2")
    assert seeds_of(found) == {"half": ["0"], "quarter": ["0"]}
    assert found["notices"][1:] == [
        "Losses are compared on the seeds that all arms have; left out: “quarter” seed 2."
    ]
    # With none in common it does not come back for the others.
    found = compared(tmp_path / "none", half="0! 1", quarter="0 2")
    assert seeds_of(found) == {"half": ["1"], "quarter": ["2"]}
    first, second = found["notices"]
    assert first == (
        "“half” ended with a loss that is no number with seed 0: such a run has diverged, and its seed is "
        "left out of every comparison of losses, of all arms."
    )
    assert second == (
        "No seed is common to all arms (“half” seed 1 and “quarter” seed 2): losses are means over each "
        "arm’s own seeds, so that their differences are of other seeds too, and have no interval."
    )


def test_an_arm_that_diverged_in_all_runs_takes_no_seed_from_others(tmp_path: Path) -> None:
    found = compared(tmp_path, half="0 1", quarter="0! 1!", falling="0 1")
    assert seeds_of(found) == {"half": ["0", "1"], "falling": ["0", "1"]}
    assert found["notices"] == [
        "“quarter” ended with a loss that is no number with seeds 0 and 1: such a run has diverged, and the "
        "arm has no other that is complete, so that it is left out of every comparison of losses."
    ]
    assert found["tasks"][0]["arms"]["falling"]["difference_low"] is not None
    assert found["reach"][0]["arms"].keys() == {"half", "falling"}
    curve = found["curves"][0]["arms"]["quarter"]
    assert "difference" not in curve  # though the curve is drawn, to where it diverged
    assert curve["step"][-1] == 450


def test_where_every_seed_has_a_run_that_diverged_no_loss_is_compared(tmp_path: Path) -> None:
    found = compared(tmp_path, half="0! 1", quarter="0 1!")
    assert seeds_of(found) == {}
    assert [text for text in found["notices"] if "no seed left" in text] == [
        f"“{name}” has no seed left in which no run diverged: it is left out of every comparison of losses."
        for name in ("half", "quarter")
    ]
    assert answer(found) == (
        "No loss of the baseline “half” is left to compare the others with: “Before you read on” says why."
    )
    assert found["reach"][0]["arms"] == {}
    assert "difference" not in found["curves"][0]["arms"]["quarter"]


@pytest.mark.parametrize("quarter", ["1", "1 2"])
def test_arms_that_share_no_seed_have_their_own_and_no_interval_between_them(
    tmp_path: Path, quarter: str
) -> None:
    found = compared(tmp_path, half="0", quarter=quarter)
    own = found["tasks"][0]["arms"]["quarter"]
    assert own["difference"] == pytest.approx(
        own["mean"] - found["tasks"][0]["arms"]["half"]["mean"]
    )
    assert own["difference_low"] is None
    assert [own["low"] is None, own["covers"] == []] == [quarter == "1"] * 2
    assert found["notices"][-1].startswith("No seed is common to all arms")
    number = len(quarter.split())
    note = task_table(found["tasks"][0], found, {"half": 0, "quarter": 1})["note"]
    if number == 1:
        assert note.startswith("1 pre-training seed, 1 result an arm")
        assert note.endswith("One seed: no intervals.")
    else:
        assert note.startswith("1 to 2 pre-training seeds, 1 to 2 results an arm")
        assert note.endswith("Intervals allow for other pre-training seeds.")
    for name in ("tasks", "differences"):
        lines = (tmp_path / "page" / "csv" / f"{name}.csv").read_text().splitlines()
        last = next(line for line in csv.DictReader(lines) if line["arm"] == "quarter")
        assert last["pre_training_seeds"] == str(number)


@pytest.mark.parametrize(
    ("seeds", "weights", "alike"),
    [
        ({"half": "0", "quarter": "1 2"}, "abc", False),  # none is shared
        ({"half": "0 1", "quarter": "1 2"}, "abbc", True),
        ({"half": "0 1", "quarter": "1 2"}, "abcd", False),
        ({"half": "0 1", "quarter": "0 1"}, "abac", False),
    ],
)
def test_a_like_start_is_that_of_the_seeds_that_arms_share(
    tmp_path: Path, seeds: dict[str, str], weights: str, alike: bool
) -> None:
    compared(tmp_path, **seeds)
    folders = [tmp_path / f"{arm}-{seed}" for arm, own in seeds.items() for seed in own.split()]
    for folder, letter in zip(folders, weights, strict=True):
        noted = {"initial_weights_sha256": letter, "data_fingerprint": "d"}
        (folder / "environment.json").write_text(json.dumps(noted))
    found, _ = compare_runs([read_run(path) for path in folders], "made up")
    assert found["shared_start"] is alike
    assert ("from the same initial weights" in findings(found, {})[0]) is alike
