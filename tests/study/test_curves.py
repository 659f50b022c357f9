"""Curves of a comparison: the lines of the data stand beside them where all runs have the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from chronomask.runs.read import read_run
from chronomask.study.command import report
from chronomask.study.contrasts import compare_runs
from tests.support.synthetic_runs import write_four_arms


@pytest.mark.parametrize("bounds", [[(6.3, 5.6)] * 4, [(6.3, 5.6)] * 3 + [(6.0, 5.0)], [None] * 4])
def test_entropies_are_lines_where_all_runs_have_the_same(
    tmp_path: Path, bounds: list[tuple[float, float] | None]
) -> None:
    folders = write_four_arms(tmp_path)
    for folder, bound in zip(folders, bounds, strict=True):
        path = folder / "validation.jsonl"
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        for line in lines:
            if bound is not None:
                line |= {"unigram_entropy": bound[0], "bigram_bound": bound[1]}
        path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    found, _ = compare_runs([read_run(folder) for folder in folders], "made up")
    expected = (
        {"words’ frequencies": 6.3, "pairs of words": 5.6} if set(bounds) == {(6.3, 5.6)} else {}
    )
    assert found["curves"][0]["references"] == expected
    report(folders, tmp_path / "page")
