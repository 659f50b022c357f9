"""Learning rates at the first step, at each corner and at the end, to the digit."""

from __future__ import annotations

import math

import pytest
from pydantic import TypeAdapter

from chronomask.train.learning_rate import LearningRate

ADAPTER: TypeAdapter[LearningRate] = TypeAdapter(LearningRate)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"kind": "constant"}, {0: 1, 50: 1, 99: 1}),
        ({"kind": "constant", "warmup_steps": 4}, {0: 0.25, 3: 1, 4: 1, 99: 1}),
        ({"kind": "linear"}, {0: 1, 50: 0.5, 99: 0.01, 100: 0, 101: 0}),
        ({"kind": "linear", "warmup_steps": 50}, {0: 0.02, 49: 1, 50: 1, 75: 0.5, 100: 0}),
        ({"kind": "linear", "final": 0.5}, {0: 1, 50: 0.75, 100: 0.5}),
        ({"kind": "cosine"}, {0: 1, 50: 0.5, 25: (1 + math.sqrt(0.5)) / 2, 100: 0}),
        ({"kind": "cosine", "final": 0.2}, {0: 1, 50: 0.6, 100: 0.2}),
        ({"kind": "wsd", "decay_share": 0.2}, {0: 1, 80: 1, 90: 0.5, 100: 0}),
        (
            {"kind": "wsd", "decay_share": 0.2, "shape": "one_minus_sqrt", "final": 0.5},
            {80: 1, 85: 0.75, 100: 0.5},
        ),
        ({"kind": "one_minus_sqrt"}, {0: 1, 25: 0.5, 64: 0.2, 100: 0}),
        (
            {"kind": "one_minus_sqrt", "final": 0.5, "warmup_steps": 50},
            {49: 1, 62.5: 0.75, 100: 0.5},
        ),
        ({"kind": "damped_cosine", "waves": 2}, {0: 1, 25: 0, 50: 0.5, 75: 0, 100: 0}),
        ({"kind": "damped_cosine", "waves": 1, "final": 0.2}, {0: 1, 50: 0.2, 75: 0.3, 100: 0.2}),
        ({"kind": "wsd", "decay_share": 0.0}, {0: 1, 100: 1}),
        ({"kind": "linear", "warmup_steps": 200}, {0: 0.005, 99: 0.5}),
    ],
)
def test_exact_values(values: dict[str, object], expected: dict[int, float]) -> None:
    schedule = ADAPTER.validate_python({"peak": 1.0} | values)
    for step, rate in expected.items():
        assert schedule.at(step, 100) == pytest.approx(rate, abs=1e-12)


@pytest.mark.parametrize(
    ("follow", "factors"),
    [(None, (1, 1, 1, 1)), ("sqrt", (1, 2, 0.5, 0)), ("linear", (1, 4, 0.25, 0))],
)
def test_what_labels_make_of_a_rate(follow: str | None, factors: tuple[float, ...]) -> None:
    schedule = ADAPTER.validate_python({"kind": "cosine", "follow_labels": follow})
    assert tuple(schedule.factor(labels, 50) for labels in (50, 200, 12.5, 0)) == factors


def test_the_peak_scales_everything() -> None:
    schedule = ADAPTER.validate_python({"kind": "linear", "peak": 3e-4})
    assert schedule.at(50, 100) == pytest.approx(1.5e-4)
