"""The bytes of prepared folders are those in git: a change to them is made on purpose or not at all.

A tokenizer that is trained by another version of its library may differ; the file names the versions. Classes
of the bundled tagger are sums of floats, whose last bits differ between processors: no word of the text
is near a tie.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.golden_preparations import CASES, FILE, hashes, prepared, write_sources


@pytest.mark.parametrize("case", CASES)
def test_the_bytes_are_the_ones_in_git(case: str, tmp_path: Path) -> None:
    expected = json.loads(FILE.read_text())["sha256"][case]
    assert hashes(prepared(case, write_sources(tmp_path), tmp_path / "out")) == expected


def test_no_two_cases_are_the_same_and_none_is_left_that_is_gone() -> None:
    stored = json.loads(FILE.read_text())["sha256"]
    assert stored.keys() == CASES.keys()
    classes_and_words = {values["train/annotation-00000.npy"] for values in stored.values()}
    assert len(classes_and_words) == len(CASES)
