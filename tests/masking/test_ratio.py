"""Ratio schedules: exact values at the start, at each corner and at the end."""

import math
import re
from ast import literal_eval

import numpy as np
import pytest
import torch

from chronomask.config_layers import Layer
from chronomask.errors import DataError, UsageError
from chronomask.masking.config import MaskingConfig
from chronomask.masking.ratio import Linear, Responsive, Schedule

VALUES = {
    ("constant", 0.0): 0.15,
    ("constant", 1.0): 0.15,
    ("linear_decay", 0.0): 0.30,
    ("linear_decay", 0.5): 0.15,
    ("linear_decay", 1.0): 0.0,
    ("cosine_decay", 0.0): 0.32,
    ("cosine_decay", 0.5): 0.17,
    ("cosine_decay", 1.0): 0.02,
    ("ascending", 0.0): 0.0,
    ("ascending", 1.0): 0.30,
    ("concave_decay", 0.0): 0.31,
    ("concave_decay", 0.5): 0.235,
    ("concave_decay", 1.0): 0.01,
    ("convex_decay", 0.0): 0.30,
    ("convex_decay", 0.5): 0.075,
    ("convex_decay", 1.0): 0.0,
    ("up_then_down", 0.0): 0.0,
    ("up_then_down", 0.5): 0.30,
    ("up_then_down", 1.0): 0.0,
    ("down_then_up", 0.0): 0.31,
    ("down_then_up", 0.5): 0.01,
    ("down_then_up", 1.0): 0.31,
    ("warmup_decay", 0.0): 0.0,
    ("warmup_decay", 0.1): 0.30,
    ("warmup_decay", 0.55): 0.15,
    ("warmup_decay", 1.0): 0.0,
    ("cosine_then_quadratic", 0.0): 0.30,
    ("cosine_then_quadratic", 0.2): 0.20,
    ("cosine_then_quadratic", 0.4): 0.10,
    ("cosine_then_quadratic", 1.0): 0.01,
    ("linear", 0.0): 0.30,
    ("linear", 0.5): 0.225,
    ("linear", 1.0): 0.15,
    ("uniform_rows", 0.3): 0.15,
    ("beta_rows", 0.3): 0.15,
    ("responsive", 0.9): 0.30,
}
KINDS = sorted({kind for kind, _ in VALUES})
PHASES = {
    "kind": "phases",
    "phases": [{"until": 0.5, "ratio": 0.3}, {"until": 1, "ratio": 0.05}],
}
SEQUENCE = {
    "kind": "sequence",
    "parts": [
        {"until": 0.25, "schedule": {"kind": "ascending", "base": 0.2}},
        {"until": 1, "schedule": {"kind": "linear", "start": 0.4, "end": 0.1}},
    ],
}


@pytest.mark.parametrize(("kind", "progress"), VALUES)
def test_exact_values(kind: str, progress: float) -> None:
    schedule = Schedule.parse({"kind": kind})
    assert schedule.at(progress) == pytest.approx(VALUES[kind, progress], abs=1e-12)


@pytest.mark.parametrize(
    ("text", "start", "end"), [("0.30:0.15", 0.3, 0.15), ("0:.5", 0.0, 0.5), ("1:1e-1", 1.0, 0.1)]
)
def test_two_numbers_are_a_straight_line(text: str, start: float, end: float) -> None:
    assert MaskingConfig.parse({"ratio": text}).ratio == Linear(start=start, end=end)
    changed = MaskingConfig.parse({"ratio": text}).replace([f"ratio={text}", "ratio.end=0.2"])
    assert changed.ratio == Linear(start=start, end=0.2)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0.3:", "a number from 0 to 1, such as 0.3, two of them for a straight line"),
        ("0.3:0.1:0.2", "a number from 0 to 1, such as 0.3, two of them for a straight line"),
        ("30%", "a number from 0 to 1, such as 0.3, two of them for a straight line"),
        ("a:b", "a group of keys with a 'kind'"),
        (":", "a group of keys with a 'kind'"),
    ],
)
def test_other_text_is_no_straight_line(text: str, expected: str) -> None:
    with pytest.raises(UsageError, match=f"expected {expected}"):
        MaskingConfig.parse({"ratio": text})


@pytest.mark.parametrize(
    "values",
    [
        {"mask_replace_prob": "0.1:0.2"},
        {"random_replace_prob": "0.1:0.2"},
        {"content": {"kind": "ptw", "strength": "0.1:0.2"}},
        {"content": {"kind": "token_accuracy", "strength": "0.1:0.2"}},
        {"ratio": {"kind": "uniform_rows", "low": "0.1:0.2"}},
        {"ratio": {"kind": "normal_rows", "mean": "0.1:0.2"}},
        {"ratio": {"kind": "beta_rows", "mean": "0.1:0.2"}},
        {"ratio": {"kind": "sequence", "parts": [{"until": 1, "schedule": "0.1:0.2"}]}},
        {"ratio": {"kind": "mixture_rows", "parts": [{"share": 1, "law": "0.1:0.2"}]}},
    ],
    ids=str,
)
def test_two_numbers_are_a_straight_line_wherever_a_schedule_may_be(values: dict) -> None:
    written_out = str(values).replace("'0.1:0.2'", "{'kind': 'linear', 'start': 0.1, 'end': 0.2}")
    assert MaskingConfig.parse(values) == MaskingConfig.parse(literal_eval(written_out))


@pytest.mark.parametrize(
    "key", ["mask_replace_prob", "random_replace_prob", "ratio.mean", "content.strength"]
)
@pytest.mark.parametrize("value", ["much", "30%", "0:4", [0.1]])
def test_what_is_neither_number_nor_schedule_is_answered_with_what_works(
    key: str, value: object
) -> None:
    kinds = {"ratio": {"kind": "normal_rows"}, "content": {"kind": "ptw"}}
    with pytest.raises(UsageError, match=rf"{key} is .*: expected a number, two from 0") as caught:
        MaskingConfig.from_layers([Layer("a.yaml", kinds), Layer("b.yaml", {key: value})])
    for advised in re.findall(r"such as (\d\S*:[\d.]+|\{.*?\})", str(caught.value)):
        MaskingConfig.from_layers([Layer("a.yaml", kinds), Layer.of_override(f"{key}={advised}")])


@pytest.mark.parametrize(
    ("first", "changes", "expected"),
    [
        ({"ratio": 0.2}, ["ratio.base=0.4"], {"ratio": 0.4}),
        ({"ratio": "0.3:0.1"}, ["ratio.end=0.2"], {"ratio": "0.3:0.2"}),
        ({"ratio": 0.2}, ["ratio.kind=linear", "ratio.end=0.1"], {"ratio": "0.3:0.1"}),
        ({}, ["ratio=0.4:0.2", "ratio.end=0.1"], {"ratio": "0.4:0.1"}),
        ({}, ["ratio=0.4", "ratio.base=0.1"], {"ratio": 0.1}),
        ({}, ["ratio=0.4:0.2", "ratio=0.5", "ratio.base=0.1"], {"ratio": 0.1}),
        (
            {"mask_replace_prob": "0.7:0.9"},
            ["mask_replace_prob.end=0.8"],
            {"mask_replace_prob": "0.7:0.8"},
        ),
        (
            {},
            ["mask_replace_prob=0.7", "mask_replace_prob.base=0.6"],
            {"mask_replace_prob": {"kind": "constant", "base": 0.6}},
        ),
        (
            {"content": {"kind": "ptw", "strength": "0.1:0.2"}},
            ["content.strength.start=0"],
            {"content": {"kind": "ptw", "strength": "0:0.2"}},
        ),
        (
            {},
            ["content.strength=0:0.8", "content.strength.end=0.3", "content.kind=ptw"],
            {"content": {"kind": "ptw", "strength": "0:0.3"}},
        ),
    ],
    ids=str,
)
def test_a_later_layer_changes_a_value_within_what_a_number_or_a_line_stands_for(
    first: dict, changes: list[str], expected: dict
) -> None:
    assert MaskingConfig.parse_with(first, changes) == MaskingConfig.parse(expected)
    if not first:  # as well where the first layer says otherwise
        other = {"ratio": 0.7, "mask_replace_prob": 0.75, "content": "token_accuracy"}
        made = MaskingConfig.parse_with(other, changes)
        for key in expected:
            assert getattr(made, key) == getattr(MaskingConfig.parse(expected), key)


def test_a_line_has_no_values_of_another_kind() -> None:
    with pytest.raises(UsageError, match=r"'ratio\.base'; valid: kind, start, end") as caught:
        MaskingConfig.parse_with({"ratio": "0.3:0.1"}, ["ratio.base=0.2"])
    assert str(caught.value).startswith("--set ratio.base=0.2: ")


def test_a_number_is_a_constant_schedule_within_another() -> None:
    schedule = Schedule.parse({"kind": "uniform_rows", "low": 0.1, "high": "0.5:0.3"})
    assert schedule.at(0.5) == pytest.approx((0.1 + 0.4) / 2)


def test_a_fault_in_a_phase_is_told_with_its_place() -> None:
    phases = [{"until": 0.5, "ratio": 0.3}, {"until": 1, "ratio": 3}]
    with pytest.raises(UsageError, match=r"ratio\.phases\.1\.ratio is 3"):
        MaskingConfig.parse({"ratio": {"kind": "phases", "phases": phases}})


@pytest.mark.parametrize("spec", [{"kind": k} for k in KINDS] + [PHASES, SEQUENCE], ids=str)
def test_always_a_ratio(spec: dict) -> None:
    schedule = Schedule.parse(spec)
    values = [schedule.at(t) for t in np.linspace(0, 1, 1001)]
    assert 0 <= min(values) <= max(values) <= 1
    uniform = np.random.default_rng(0).random(4000)
    rows = schedule.of_rows(0.3, uniform)
    assert rows.min() >= 0
    assert rows.max() <= 1
    assert rows.mean() == pytest.approx(schedule.at(0.3), abs=0.01)


@pytest.mark.parametrize(
    ("kind", "mean"),
    [("linear_decay", 0.15), ("cosine_decay", 0.17), ("ascending", 0.15), ("convex_decay", 0.10)],
)
def test_mean_over_training(kind: str, mean: float) -> None:
    schedule = Schedule.parse({"kind": kind})
    middle = (np.arange(10_000) + 0.5) / 10_000
    assert np.mean([schedule.at(t) for t in middle]) == pytest.approx(mean, abs=1e-6)


def test_phases_and_sequence_switch_where_they_say() -> None:
    phases = Schedule.parse(PHASES)
    assert [phases.at(t) for t in (0, 0.4999, 0.5, 1)] == [0.3, 0.3, 0.05, 0.05]
    sequence = Schedule.parse(SEQUENCE)
    expected = [0.0, 0.2, 0.4, 0.25, 0.1]
    assert [sequence.at(t) for t in (0, 0.125, 0.25, 0.625, 1)] == pytest.approx(expected)


def test_rows_of_uniform_schedule_follow_its_ends() -> None:
    spec = {"kind": "uniform_rows", "low": {"kind": "constant", "base": 0.1}, "high": SEQUENCE}
    schedule = Schedule.parse(spec)
    rows = schedule.of_rows(0.625, np.array([0.0, 0.5, 1.0]))
    assert rows == pytest.approx([0.1, 0.175, 0.25])


def test_beta_rows_have_the_variance_of_the_beta_distribution() -> None:
    schedule = Schedule.parse({"kind": "beta_rows", "concentration": 9})
    grid = (np.arange(20_000) + 0.5) / 20_000
    rows = schedule.of_rows(0.0, grid)
    assert rows.var() == pytest.approx(0.15 * 0.85 / 10, rel=1e-3)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"kind": "constant", "base": 1.5}, "less than or equal to 1"),
        ({"kind": "linear", "start": -0.1}, "greater than or equal to 0"),
        ({"kind": "phases", "phases": [{"until": 0.5, "ratio": 0.1}]}, "last 'until' must be 1"),
        (
            {"kind": "phases", "phases": [{"until": 1, "ratio": 0.1}, {"until": 0.5, "ratio": 0}]},
            "must increase",
        ),
        ({"kind": "warmup_decay", "warmup": 0}, "greater than 0"),
    ],
)
def test_impossible_values_are_refused(spec: dict, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        Schedule.parse(spec)


@pytest.mark.parametrize(
    "spec",
    [
        *({"kind": kind} for kind in KINDS if kind != "cosine_then_quadratic"),
        PHASES,
        SEQUENCE,
        {"kind": "uniform_rows", "low": PHASES, "high": SEQUENCE},
    ],
    ids=str,
)
def test_a_scaled_schedule_has_every_ratio_multiplied(spec: dict) -> None:
    schedule = Schedule.parse(spec)
    scaled = schedule.times(0.5)
    assert type(scaled) is type(schedule)
    for progress in np.linspace(0, 1, 41):
        assert scaled.at(progress) == pytest.approx(schedule.at(progress) / 2, abs=1e-12)
    uniform = np.linspace(0.1, 0.9, 5)
    if spec["kind"] == "uniform_rows":
        assert scaled.of_rows(0.3, uniform) == pytest.approx(schedule.of_rows(0.3, uniform) / 2)


@pytest.mark.parametrize(
    ("spec", "factor", "words"),
    [
        ({"kind": "cosine_then_quadratic"}, 0.5, "are not values of the config"),
        ({"kind": "constant", "base": 0.4}, 3, "'constant' cannot be scaled by 3: base is 1.2"),
        ({"kind": "linear_decay", "base": 0.4}, 2, r"at progress 0 it would be 1 instead of 1\.6"),
        (
            {"kind": "linear_decay", "base": 0.8},
            0.5,
            r"at progress 0 it would be 0\.8 instead of 0\.5",
        ),
        (PHASES, 4, r"a phase of ratio 0\.3, scaled by 4: ratio is 1\.2"),
        (
            {
                "kind": "sequence",
                "parts": [{"until": 1, "schedule": {"kind": "cosine_then_quadratic"}}],
            },
            0.5,
            "'cosine_then_quadratic' cannot be scaled",
        ),
    ],
)
def test_what_cannot_be_scaled_is_refused(spec: dict, factor: float, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        Schedule.parse(spec).times(factor)


def test_cosine_is_not_linear_in_between() -> None:
    schedule = Schedule.parse({"kind": "cosine_decay"})
    assert schedule.at(0.25) == pytest.approx(0.15 * (1 + math.cos(math.pi / 4)) + 0.02)


def test_a_responsive_ratio_waits_for_its_patience_and_counts_anew() -> None:
    """At its defaults, also where it is saved and restored after every observation."""
    observed = [
        5.0,
        4.0,
        3.99,
        3.98,
        3.97,
        6.0,
        5.95,
        5.9,
        *[5.9] * 3,
        5.0,
        *[5.0] * 3,
        4.0,
        *[4.0] * 9,
    ]
    levels = [0.3] * 4 + [0.24] * 6 + [0.192] * 4 + [0.1536] * 4 + [0.15] * 7
    schedule, state = Responsive(), Responsive().begin()
    for loss, level in zip(observed, levels, strict=True):
        state.observe(loss)
        assert state.at(0.5) == pytest.approx(level)
        saved, state = state.state_dict(), schedule.begin()
        state.load_state_dict(saved)
    for other in ({}, {"other": torch.zeros(5)}, {"values": torch.zeros(4)}):
        with pytest.raises(DataError, match="no state of a responsive"):
            state.load_state_dict(other)


def test_a_responsive_ratio_that_could_never_respond_is_refused() -> None:
    with pytest.raises(UsageError, match=r"start \(0\.1\) must not be below end \(0\.3\)"):
        Responsive.parse({"start": 0.1, "end": 0.3})
