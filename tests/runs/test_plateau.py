"""What is said of a run that stands still."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from chronomask.runs.layout import MODEL
from chronomask.runs.plateau import architecture_of, still_since, what_helped
from chronomask.runs.read import read_run
from tests.support.synthetic_runs import write_run


@pytest.mark.parametrize(
    ("losses", "since"),
    [
        ([7.0, 6.25, 6.3], 20),
        ([5.0, 6.25, 6.3], 20),
        ([6.2, 6.25, 6.3], 10),
        ([7.0, 6.9, 6.3], None),
        ([6.3] * 3, 10),
    ],
)
def test_a_loss_stands_still_since_the_first_of_its_last_like_values(
    losses: list[float], since: int | None
) -> None:
    assert still_since([10, 20, 30], losses) == since


@pytest.mark.parametrize(("window", "told"), [(32, False), (33, True)])
def test_a_window_that_is_narrow_is_told_of_no_narrower_one(window: int, told: bool) -> None:
    model = {"model_type": "modernbert", "local_attention": window}
    assert ("a narrower window" in what_helped([model])) == told


def test_a_model_is_known_by_its_checkpoint_or_else_by_what_was_asked(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "run", "fixed", steps=50))
    assert run.summary is not None
    asked = {"kind": "config", "model_type": "modernbert", "overrides": {"hidden_size": 64}}
    run.config["model"] = asked
    assert architecture_of(run) == {"model_type": "modernbert", "hidden_size": 64}
    assert "window" not in what_helped([architecture_of(run)])
    run.summary["checkpoint"] = "checkpoints/step-00000050"
    path = run.path / run.summary["checkpoint"] / MODEL / "config.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"model_type": "modernbert", "local_attention": 128}))
    assert "a narrower window" in what_helped([architecture_of(run)])
    path.write_text("{half")
    assert architecture_of(run) == {"model_type": "modernbert", "hidden_size": 64}
    run.config["model"] = {"kind": "checkpoint", "path": "there"}
    assert architecture_of(run) is None
