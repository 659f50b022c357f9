"""A checkpoint that the version before the redesign wrote goes on as that version would have.

``tests/assets/earlier_run`` is a run of commit be77f3b with PTW, a falling ratio, growing steps and outliers,
its data from ``golden_runs.make_data``: the whole log of 8 steps, and the checkpoint after step 4.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from chronomask.train.loop import pretrain
from tests.support.golden_runs import make_data

EARLIER = Path(__file__).parents[1] / "assets" / "earlier_run"
RELATIVE = 1e-6
"""Between processors and versions, which add in another order."""
OF_WEIGHTS = 5e-6
"""Of class weights: standardising losses that lie near each other makes their last digits larger."""


def test_a_run_of_the_version_before_goes_on_as_it_would_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run = tmp_path / "run"
    shutil.copytree(EARLIER, run)
    make_data(tmp_path / "data")
    monkeypatch.chdir(tmp_path)  # the run names its data by a relative path
    pretrain("run/config.yaml", run, resume=True, progress=False)
    ours, theirs = (
        [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for folder in (run, EARLIER)
    )
    assert [line["step"] for line in ours] == list(range(1, 9))
    assert ours[:4] == theirs[:4]
    for our, their in zip(ours[4:], theirs[4:], strict=True):
        assert our["masked_tokens"] == their["masked_tokens"]
        assert our["tokens_seen"] == their["tokens_seen"]
        assert our["masking_ratio"] == their["masking_ratio"]
        for key in ("loss", "gradient_norm", "learning_rate"):
            assert our[key] == pytest.approx(their[key], rel=RELATIVE)
        assert our["class_weight"] == pytest.approx(their["class_weight"], rel=OF_WEIGHTS)
    assert "lacks the lines" not in caplog.text
