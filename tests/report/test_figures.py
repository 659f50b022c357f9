"""Figures draw what their numbers carry."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from chronomask.report.comparison import in_unit, mean_text, unit_of
from chronomask.report.drawing import ArmLine
from chronomask.report.training_figures import FEW_PREDICTIONS, predicted_tokens, training_loss
from chronomask.runs.read import Run, Series, read_run
from tests.support.synthetic_runs import write_run


def fading(folder: Path) -> Run:
    """A run whose last lines rest on a handful of predictions, with a loss of next to nothing."""
    run = read_run(write_run(folder, "MRD"))
    counts = {name: values.copy() for name, values in run.metrics.per_class["class_count"].items()}
    losses = {name: values.copy() for name, values in run.metrics.per_class["class_loss"].items()}
    for name in counts:
        counts[name][-3:] = 5.0 if name == "NOUN" else 0.0
        losses[name][-3:] = 0.01 if name == "NOUN" else np.nan
    per_class = {**run.metrics.per_class, "class_count": counts, "class_loss": losses}
    return replace(run, metrics=Series(run.metrics.columns, per_class))


def test_few_predictions_draw_no_plunge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = fading(tmp_path / "run")
    drawn: dict[str, ArmLine] = {}

    def note(lines: Sequence[ArmLine], *texts: str) -> str:
        drawn[texts[-1]] = lines[0]
        return "<svg></svg>"

    monkeypatch.setattr("chronomask.report.training_figures.lines_panel", note)
    for draw, column, prefix in (
        (training_loss, "loss", "training"),
        (predicted_tokens, "content_share", "share"),
    ):
        picture = draw({0: run})
        assert picture is not None
        assert f"fewer than {FEW_PREDICTIONS} predictions are not drawn" in picture.caption
        assert np.isnan(drawn[prefix].y[-3:]).all()
        assert np.isfinite(drawn[prefix].y[:-3]).all()
        assert len(picture.rows) == len(run.metrics)  # the numbers stay in the download
        assert picture.rows[-1][picture.columns.index(column)] is not None
    whole = training_loss({0: read_run(tmp_path / "run")})
    assert whole is not None
    assert "not drawn" not in whole.caption


def test_squad_is_in_per_cent_already() -> None:
    assert in_unit({"task": "squad", "family": "squad", "metric": "f1"}, 22.4) == 22.4
    assert in_unit({"quantity": "squad", "metric": "f1"}, 22.4) == 22.4
    assert in_unit({"quantity": "mrpc", "metric": "f1"}, 0.5) == 50
    # A task of somebody's own says what its numbers are, whatever its family and metric are called.
    assert (
        in_unit({"task": "own", "family": "own", "metric": "f1", "unit": "percent"}, 22.4) == 22.4
    )
    assert in_unit({"task": "own", "family": "own", "metric": "rank", "unit": "places"}, 3.5) == 3.5
    assert unit_of({"task": "own", "metric": "rank", "unit": "places"}) == "rank, places"
    assert mean_text({"task": "own", "metric": "bits", "unit": "bits"}, 1.25) == "1.250"


def test_next_tokens_have_a_panel_of_their_own(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "run", "MRD"))
    plain = training_loss({0: run})
    assert plain is not None
    loss = np.linspace(6, 4, len(run.metrics))
    columns = {**run.metrics.columns, "causal_loss": loss}
    picture = training_loss({0: replace(run, metrics=Series(columns, run.metrics.per_class))})
    assert picture is not None
    assert (len(plain.panels), len(picture.panels)) == (1, 2)
    assert "Causal loss" in picture.panels[1]
    assert picture.columns == (*plain.columns, "causal_loss")
    assert [row[-1] for row in picture.rows] == pytest.approx(loss, abs=1e-4)
