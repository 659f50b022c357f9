"""Figures draw what their numbers carry."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes

from chronomask.report.arms import mean_run
from chronomask.report.class_figures import class_loss, final_class_loss
from chronomask.report.comparison import in_unit, mean_text, unit_of
from chronomask.report.drawing import LABEL_POINTS, ArmLine
from chronomask.report.figures import curve_picture, difference_picture, reference_picture
from chronomask.report.training_figures import FEW_PREDICTIONS, predicted_tokens, training_loss
from chronomask.runs.read import Run, Series, read_run
from tests.support.comparisons import AXES, curve, task
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
        picture = draw({0: mean_run([run], run.name)})
        assert picture is not None
        assert f"fewer than {FEW_PREDICTIONS} predictions are not drawn" in picture.caption
        assert np.isnan(drawn[prefix].y[-3:]).all()
        assert np.isfinite(drawn[prefix].y[:-3]).all()
        assert len(picture.rows) == len(run.metrics)  # the numbers stay in the download
        assert picture.rows[-1][picture.columns.index(column)] is not None
    whole = training_loss({0: mean_run([read_run(tmp_path / "run")], "MRD")})
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
    run = mean_run([read_run(write_run(tmp_path / "run", "MRD"))], "MRD")
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


@pytest.mark.parametrize(
    ("heights", "drawn", "said"),
    [
        ({"entropy": 4.36, "pairs": 2.5}, ("entropy", "pairs"), ""),
        ({"entropy": 6.4, "pairs": 5.0}, ("entropy", "pairs"), ""),
        ({"entropy": 9.0, "pairs": 5.0}, ("pairs",), "not drawn: the loss of entropy (9.00)."),
    ],
    ids=["below the curves", "among them and just above", "far above"],
)
def test_what_the_data_alone_gives_is_drawn_or_told(
    heights: dict[str, float],
    drawn: tuple[str, ...],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The curves of the arms fall from 5.5 to 4.5 nats."""
    limits = []

    def note(axes: Axes, *_: str) -> str:
        limits.append(axes.get_ylim())
        texts.update(text.get_text() for text in axes.texts)
        return "<svg></svg>"

    texts: set[str] = set()
    monkeypatch.setattr("chronomask.report.drawing.to_svg", note)
    picture = curve_picture(curve(["base"], 1) | {"references": heights}, {"base": 0})
    assert texts == set(drawn)
    for low, high in limits:
        assert all(low < heights[name] < high for name in drawn)
    assert said in picture.caption
    assert ("not drawn" in picture.caption) == bool(said)


def test_no_line_is_spoken_of_where_none_of_other_runs_is_drawn() -> None:
    known = {name: ([1e6, 2e6], [7.0, 6.0]) for name in ("far", "further")}
    own = curve(["base"], 1)
    none = reference_picture(own, {"base": 0}, known)
    assert none.caption == "Not drawn, because all begin beyond these runs: “far” and “further”."
    near = {"near": ([0.5, 1.5], [7.0, 6.0]), **known}
    some = reference_picture(own, {"base": 0}, near)
    assert some.caption.startswith(
        "Grey dashed lines are validation losses of other runs: “near”. On other text, "
    )
    assert some.caption.endswith("because they begin beyond these runs: “far” and “further”.")


def test_a_reference_curve_is_drawn_as_far_as_the_runs_whatever_its_points() -> None:
    known = {
        "sparse": ([0.0, 10.0], [8.0, 3.0]),  # no point but its first lies within two tokens
        "out of order": ([4.0, 1.0], [4.0, 7.0]),
        "short": ([0.5, 1.5], [7.0, 6.0]),
        "a point": ([1.0], [6.5]),
        "at the end": ([2.0, 3.0], [6.0, 5.0]),
    }
    picture = reference_picture(curve(["base"], 1), {"base": 0}, known)
    assert "Not drawn" not in picture.caption
    drawn = {name: [row[1:] for row in picture.rows if row[0] == name] for name in known}
    assert drawn == {
        "sparse": [(0, 8), (2, 7)],
        "out of order": [(1, 7), (2, 6)],
        "short": [(0.5, 7), (1.5, 6)],
        "a point": [(1, 6.5)],
        "at the end": [(2, 6)],
    }
    alone = reference_picture(curve(["base"], 1), {"base": 0}, {"far": ([5.0, 6.0], [4.0, 3.0])})
    assert alone.caption == "Not drawn, because it begins beyond these runs: “far”."


def three_validations(changes: dict[str, list[float]]) -> dict[str, Any]:
    """A curve of one arm, whose axes are alike but for ``changes``."""
    line = {axis: [1.0, 2.0, 3.0] for axis in AXES} | changes
    by_seed = {"0": {**line, "value": [6.0, 5.0, 4.0]}}
    numbers = {**line, "mean": [6.0, 5.0, 4.0], "by_seed": by_seed}
    return {**curve(["base"], 1), "arms": {"base": numbers}}


def test_captions_speak_of_the_panels_that_are_there() -> None:
    for changes, panels, time in (
        ({}, False, False),
        ({"seconds": [1.0, 5.0, 6.0]}, True, True),  # of no other axis a multiple
        ({"masked_tokens": [1.0, 3.0, 7.0]}, True, False),
    ):
        found = curve_picture(three_validations(changes), {"base": 0})
        assert (len(found.panels) > 1) == panels
        assert ("The panels show" in found.caption) == panels
        assert ("Time depends on" in found.caption) == time


def test_flops_are_counted_in_a_power_of_ten(monkeypatch: pytest.MonkeyPatch) -> None:
    names = []

    def note(lines: Sequence[ArmLine], *texts: str) -> str:
        names.append((texts[1], float(lines[0].x[-1])))
        return ""

    monkeypatch.setattr("chronomask.report.figures.lines_panel", note)
    curve_picture(three_validations({"flops": [1e14, 3e14, 8.2e14]}), {"base": 0})
    assert ("FLOPs, 10¹⁴", pytest.approx(8.2)) in names


def test_differences_have_words_for_what_is_drawn() -> None:
    arms = {"base": 0, "a": 1}
    sure = difference_picture([task("cola", {"a": (0.1, 0.3)})], "base", arms)
    unsure = difference_picture([task("cola", {"a": None}, seeds=1)], "base", arms)
    assert sure is not None
    assert unsure is not None
    assert "interval excludes zero" in sure.caption
    assert "cross" not in sure.caption
    assert "interval excludes zero" not in unsure.caption
    assert "small dots" not in unsure.caption
    assert "A cross has no interval" in unsure.caption


def with_classes(run: Run, names: Sequence[str], number: float) -> Run:
    """The run with other classes, of which each validation predicted ``number`` tokens."""
    series = run.validation
    losses, counts = ({}, {})
    for place, name in enumerate(names):
        losses[name] = np.linspace(6, 2 + place / 10, len(series))
        counts[name] = np.full(len(series), number)
    per_class = {**series.per_class, "class_loss": losses, "class_count": counts}
    return replace(run, validation=Series(series.columns, per_class))


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize(
    ("names", "count", "groups", "faint"),
    [(("N1", "N2"), 500.0, False, False), (("NOUN", "DET", "X"), 10.0, True, True)],
    ids=["tags of a tagger", "parts of speech"],
)
def test_captions_of_classes_name_the_groups_that_are_there(
    number: int, names: Sequence[str], count: float, groups: bool, faint: bool, tmp_path: Path
) -> None:
    runs = {}
    for k in range(number):
        run = read_run(write_run(tmp_path / str(k), f"arm {k}", steps=100))
        runs[k] = mean_run([with_classes(run, names, count)], run.name)
    lines, dots = class_loss(runs), final_class_loss(runs)
    assert lines is not None
    assert dots is not None
    assert ("content words" in lines.caption) == groups
    assert ("content words" in dots.caption) == (groups and number > 1)
    assert ("Dashed lines" in lines.caption) == faint
    assert ("Hollow dots" in dots.caption) == faint
    assert ("all panels" in lines.caption) == (number > 1)
    assert ("one dot per arm" in dots.caption) == (number > 1)
    assert dots.title.startswith("Where the arms end" if number > 1 else "Where it ends")


def test_a_figure_of_classes_grows_with_their_number(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "run", "arm", steps=100))
    heights = []
    for number in (10, 54):
        names = [f"TAG{k}" for k in range(number)]
        picture = class_loss({0: mean_run([with_classes(run, names, 500.0)], "arm")})
        assert picture is not None
        box = re.search(r'viewBox="0 0 [\d.]+ ([\d.]+)"', picture.panels[0])
        assert box is not None
        heights.append(float(box[1]))
    assert heights[0] == pytest.approx(288)
    assert heights[1] > 54 * LABEL_POINTS  # no name lies on another
