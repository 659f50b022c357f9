"""The losses of every arm are those in git: a change to them is made on purpose or not at all.

The tolerance is 1e-5 of each loss. The order in which a processor adds floats follows from the width of its
vectors and from the BLAS that torch was built with, so other machines differ in the last bits and 50
steps carry that on: without torch's vector kernels and MKL's fast paths the losses differ by at most 7e-8.
One token masked differently shows at once.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.golden_runs import ARMS, FOLDER, RUNS, STEPS, losses, make_data

RELATIVE = 1e-5


@pytest.fixture(scope="module")
def golden_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("golden") / "data", ngrams=True)


@pytest.mark.parametrize("arm", [*ARMS, *RUNS])
def test_losses_are_the_ones_in_git(arm: str, golden_data: Path, tmp_path: Path) -> None:
    expected = json.loads((FOLDER / f"{arm}.json").read_text())["loss"]
    assert len(expected) == STEPS
    assert losses(arm, golden_data, tmp_path / "run") == pytest.approx(expected, rel=RELATIVE)


def test_no_file_is_left_from_an_arm_that_is_gone_and_no_two_arms_are_the_same() -> None:
    stored = {path.stem: json.loads(path.read_text())["loss"] for path in FOLDER.iterdir()}
    assert stored.keys() == ARMS.keys() | RUNS.keys()
    assert len({tuple(values) for values in stored.values()}) == len(stored)
    for values in stored.values():
        assert sum(values[30:40]) / 10 < values[0] - 0.5  # what is compared is training, not noise
