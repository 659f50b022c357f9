"""The quickstart is a study of four arms and one seed, run by the study's engine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from chronomask.study import command
from chronomask.study.arms import resolve_arms
from chronomask.study.config import load_study
from tests.support.corpus import made_up_text


def test_arms_mask_in_four_ways() -> None:
    study = load_study(command.QUICKSTART)
    arms = resolve_arms(study, "data")
    kinds = {
        name: (arm.config.masking.ratio.kind, arm.config.masking.content.kind)
        for name, arm in arms.items()
    }
    assert kinds == {
        "fixed 15 %": ("constant", "none"),
        "MRD cosine": ("cosine_decay", "none"),
        "PTW": ("constant", "ptw"),
        "MRD + PTW": ("cosine_decay", "ptw"),
    }
    assert (study.seeds, study.tasks, study.baseline) == ((0,), {}, "fixed 15 %")


@pytest.mark.slow
def test_it_runs_reports_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The shipped study with a small text and a small model in place of its own."""
    values = yaml.safe_load(command.QUICKSTART.read_text(encoding="utf-8"))
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(made_up_text(150)), encoding="utf-8")
    values["prepare"] = {
        "sources": [str(text)],
        "tokenizer": {"kind": "wordpiece", "vocab_size": 300},
        "row_length": 32,
        "held_out": 0.1,
    }
    small = {"hidden_size": 16, "num_hidden_layers": 1, "intermediate_size": 16}
    values["base"]["model"]["overrides"] |= small
    values["base"]["learning_rate"]["warmup_steps"] = 2
    path = tmp_path / "quickstart.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    monkeypatch.setattr(command, "QUICKSTART", path)
    out = tmp_path / "out"
    table = command.quickstart(out, 20, quiet=True)
    assert [line.split("  ")[0] for line in table.splitlines()[1:5]] == list(values["arms"])
    assert table.endswith(f"report: {out / 'report.html'}")
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "with one seed each this is no evidence" in page
    found = json.loads((out / "comparison.json").read_text())
    assert [arm["steps"] for arm in found["arms"]] == [20.0] * 4
    before = (out / "runs" / "PTW" / "seed-0" / "summary.json").stat().st_mtime_ns
    assert command.quickstart(out, 20, quiet=True) == table
    assert command.quickstart(out, quiet=True) == table  # as the study that it was begun as
    assert (out / "runs" / "PTW" / "seed-0" / "summary.json").stat().st_mtime_ns == before
