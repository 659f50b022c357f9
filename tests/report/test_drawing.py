import itertools

import matplotlib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.axes import Axes

from chronomask.report.drawing import (
    ARM_COLOURS,
    GROUP_COLOURS,
    INK,
    MUTED,
    ArmLine,
    EndLabel,
    appearance,
    arm_colour,
    arm_style,
    compact,
    contrast,
    darker,
    label_ends,
    lines_panel,
    panel,
    shorten,
    spread,
    text_width,
    to_svg,
)
from chronomask.yardsticks import CONTENT, FUNCTION, OTHER, PUNCTUATION, group_of


@given(st.lists(st.floats(0, 100), min_size=1, max_size=20), st.floats(0, 5))
def test_spread_keeps_gap_order_and_bounds(positions: list[float], gap: float) -> None:
    placed = spread(sorted(positions), gap, 0, 100)
    assert all(b - a >= gap - 1e-9 for a, b in itertools.pairwise(placed))
    assert placed[0] >= 0
    assert placed[-1] <= 100 + 1e-9


def test_spread_leaves_what_has_room() -> None:
    assert spread([10, 30, 50], 5, 0, 100) == [10, 30, 50]


def test_spread_moves_neighbours_apart_evenly() -> None:
    assert spread([50, 50], 10, 0, 100) == [45, 55]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        *((0, "0"), (0.25, "0.25"), (-0.05, "−0.05"), (1500, "1.5k"), (2e6, "2M"), (3e9, "3B")),
        *((1.5e12, "1.5T"), (2e19, "2e19")),
    ],
)
def test_compact(value: float, text: str) -> None:
    assert compact(value) == text


def test_shorten_keeps_both_ends() -> None:
    assert shorten("PTW") == "PTW"
    short = shorten("linear decay of the ratio, seed 12")
    assert len(short) == 20
    assert short.startswith("linear")
    assert short.endswith("seed 12")


def test_arms_do_not_look_alike() -> None:
    assert len({arm_colour(k) for k in range(10)}) == 10
    assert len({(arm_colour(k), arm_style(k)) for k in range(30)}) == 30


@pytest.mark.parametrize(
    ("losses", "side"),
    [
        ([9.0, 7.0, 6.0, 5.0], "right"),  # a run that has left the height far behind it
        ([np.nan, 7.0, 6.6, 6.5], "left"),  # one that ends near it
        ([6.5, 6.5, 6.5, 6.5], "right"),
        ([], "right"),
    ],
)
def test_a_label_at_a_height_keeps_clear_of_the_lines(
    losses: list[float], side: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sides = []

    def note(axes: Axes, *_: str) -> str:
        sides.extend(text.get_horizontalalignment() for text in axes.texts)
        return ""

    monkeypatch.setattr("chronomask.report.drawing.to_svg", note)
    line = ArmLine(0, "arm", np.arange(len(losses), dtype=float), np.array(losses, dtype=float))
    lines_panel([line], "title", "steps", "nats", "p", {"a height": 6.5})
    assert sides == [side]


def test_text_colours_are_dark_enough() -> None:
    assert contrast("#ffffff") == pytest.approx(1)
    assert contrast("#000000") == pytest.approx(21)
    assert contrast("#767676") == pytest.approx(4.54, abs=0.005)
    assert darker("#4d4d4d") == "#4d4d4d"
    for colour in (*ARM_COLOURS, *GROUP_COLOURS.values(), INK, MUTED):
        assert contrast(darker(colour)) >= 4.5


def test_lines_of_other_runs_keep_their_names_where_arms_have_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def note(axes: Axes, *texts: str) -> str:
        figure = axes.get_figure(root=True)
        assert figure is not None
        written.update(text.get_text() for text in figure.texts)
        return texts[-1]

    monkeypatch.setattr("chronomask.report.drawing.to_svg", note)
    x = np.arange(3.0)
    for arms, named in ((2, {"arm 0", "arm 1", "other"}), (8, {"other"})):
        written = set[str]()
        lines = [ArmLine(k, f"arm {k}", x, x + k) for k in range(arms)]
        said = lines_panel(lines, "title", "steps", "nats", "p", beneath=[("other", x, x)])
        assert written - {"title", "nats"} == named
        assert "grey dashed lines of other runs" in said


def test_a_name_is_written_in_full_contrast_however_few_tokens_its_line_has() -> None:
    with appearance():
        axes = panel("loss", "steps", "nats", labels=["X"])
        label_ends(axes, [EndLabel(1.0, 0.5, "X", "#9aa1a9", faint=True)])
    figure = axes.get_figure(root=True)
    assert figure is not None
    (text,) = [text for text in figure.texts if text.get_text() == "X"]
    assert text.get_alpha() is None
    assert text.get_fontstyle() == "italic"


def test_appearance_leaves_no_settings_behind() -> None:
    before = dict(matplotlib.rcParams)
    with appearance():
        assert matplotlib.rcParams["svg.hashsalt"] == "chronomask"
    assert dict(matplotlib.rcParams) == before


def test_groups_are_those_of_universal_dependencies() -> None:
    assert group_of("NOUN") == group_of("VERB") == CONTENT
    assert group_of("DET") == group_of("ADP") == FUNCTION
    assert group_of("PUNCT") == PUNCTUATION
    assert group_of("SYM") == group_of("none") == group_of("band 3") == OTHER


def test_dollar_signs_in_names_are_dollar_signs() -> None:
    plain, priced = text_width("cost 5 & 6"), text_width("cost $5 & $6")
    assert priced == pytest.approx(plain + 2 * (text_width("a$b") - text_width("ab")), rel=0.01)
    line = ArmLine(0, r"$\frac$", np.arange(3.0), np.arange(3.0))
    assert "<svg" in lines_panel([line], "$a$", "steps", "loss $", "x")


def test_letters_that_the_font_lacks_are_left_to_the_readers_fonts() -> None:
    """Drawn as paths they would be boxes. All other figures are the same with any fonts."""
    for name, kept in (("falling é", False), ("마스크 15%", True)):
        with appearance():
            axes = panel("loss", "steps", "nats")
            axes.plot([0, 1], [0, 1], label=name)
            axes.legend()
            svg = to_svg(axes, "a", "a line")
        assert (f">{name}<" in svg) == kept
        assert ("<text" in svg) == kept
