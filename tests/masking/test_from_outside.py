"""A ratio schedule, a content schedule and a strategy that this package does not know: all of them train.

Each is one class (and the state it begins), defined here as a user would define it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pytest
import torch

from chronomask.config import json_schema
from chronomask.data.folder import PreparedData
from chronomask.errors import Stopped, UsageError
from chronomask.masking import content, ratio, strategy
from chronomask.masking.config import MaskingConfig
from chronomask.masking.masker import Masker, Vocabulary
from chronomask.runs.rules import unknown_before
from chronomask.train.config import RunConfig
from chronomask.train.loop import pretrain
from chronomask.types import UPOS_CLASSES, ClassTally, Rows
from tests.support.masked_text import FIRST_ORDINARY, VOCAB_SIZE, rows_like_text
from tests.support.processes import python_path
from tests.support.tiny_training import ask_to_stop_after, assert_same_run, run_values


class Sawtooth(ratio.PureSchedule):
    """Falls from ``top`` to 0 and starts anew, ``teeth`` times."""

    ratio_fields: ClassVar[tuple[str, ...]] = ("top",)

    kind: Literal["sawtooth"] = "sawtooth"
    top: float = 0.4
    """where every tooth begins"""
    teeth: int = 2
    """how many there are"""

    def at(self, progress: float) -> float:
        return self.top * (1 - progress * self.teeth % 1)


class Thermostat(ratio.Schedule):
    """Keeps the training loss near ``target``: masks less while it is higher, more while it is lower."""

    kind: Literal["thermostat"] = "thermostat"
    target: float = 4.0
    course: ratio.PureSchedule = Sawtooth()

    def at(self, progress: float) -> float:
        return self.course.at(progress)

    @property
    def watches(self) -> ratio.Watched:
        return "training"

    def begin(self) -> ratio.RatioState:
        return _Heat(self)


class _Heat(ratio.RatioState):
    def __init__(self, schedule: Thermostat) -> None:
        super().__init__(schedule)
        self.target = schedule.target
        self.heat = 1.0

    def at(self, progress: float) -> float:
        return min(1.0, self.heat * super().at(progress))

    def ratios(self, progress: float, rows: Rows, seed: int) -> np.ndarray:
        return np.minimum(1.0, self.heat * super().ratios(progress, rows, seed))

    def observe(self, loss: float) -> None:
        self.heat *= self.target / loss

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {"heat": torch.tensor(self.heat, dtype=torch.float64)}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        self.heat = float(state["heat"])


class Learning(content.ContentSchedule):
    """Prefers classes whose loss falls: a slow average of the loss over a fast one."""

    kind: Literal["learning"] = "learning"
    fast: float = 0.5
    slow: float = 0.9

    def begin(self, class_names: Sequence[str], vocab_size: int) -> content.ContentState:
        return _LearningState(self, class_names, vocab_size)


class _LearningState(content.ContentState[Learning]):
    tensor_names = ("fast", "slow")

    def learn(self, loss: torch.Tensor, count: torch.Tensor, correct: torch.Tensor) -> None:
        mean = loss / count.clamp(min=1)
        for name, decay in (("fast", self.config.fast), ("slow", self.config.slow)):
            average = self.tensors[name]
            new = decay * average + (1 - decay) * mean
            average.copy_(torch.where(count > 0, new, average))

    def weights(self) -> torch.Tensor:
        return (self.tensors["slow"] - self.tensors["fast"]).sigmoid()


class Pairs(strategy.Strategy):
    """Two words at a time."""

    kind: Literal["pairs"] = "pairs"

    def units(self, rows: Rows, seed: int) -> np.ndarray:
        return np.where(rows.word_id < 0, -1, rows.word_id // 2)


MASKING: dict[str, Any] = {
    "ratio": {"kind": "thermostat", "course": {"kind": "sawtooth", "top": 0.5}},
    "content": {"kind": "learning", "slow": 0.8},
    "strategy": {"kind": "pairs"},
}
TYPED = MaskingConfig(
    ratio=Thermostat(course=Sawtooth(top=0.5)), content=Learning(slow=0.8), strategy=Pairs()
)
VOCABULARY = Vocabulary(4, np.arange(FIRST_ORDINARY, VOCAB_SIZE), VOCAB_SIZE)
ROWS = rows_like_text(16, 64)


def test_keys_and_values_make_the_same_config_and_survive_a_file(tmp_path: Path) -> None:
    assert MaskingConfig.parse(MASKING) == TYPED
    file = tmp_path / "masking.yaml"
    file.write_text(TYPED.to_yaml(), encoding="utf-8")
    assert MaskingConfig.load(file) == TYPED
    changed = MaskingConfig.load(file, ["ratio.course.teeth=3", "content.fast=0.2"])
    assert changed.ratio == Thermostat(course=Sawtooth(top=0.5, teeth=3))
    assert changed.content == Learning(fast=0.2, slow=0.8)
    assert TYPED.to_dict()["ratio"]["course"] == {"kind": "sawtooth", "top": 0.5, "teeth": 2}


def test_they_train_and_resume_bit_for_bit(
    tiny_data: PreparedData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = run_values(tiny_data) | {"masking": MASKING, "steps": 4, "log_every": 1}
    config = RunConfig.parse(values)
    summary = pretrain(config, tmp_path / "whole", progress=False)
    assert RunConfig.load(tmp_path / "whole" / "config.yaml").masking == TYPED
    assert summary["masked_tokens"] > 0
    with monkeypatch.context() as patch:
        ask_to_stop_after(patch, 2, signal.SIGTERM)
        with pytest.raises(Stopped):
            pretrain(config, tmp_path / "cut", progress=False)
    again = RunConfig.load(tmp_path / "cut" / "config.yaml")
    pretrain(again, tmp_path / "cut", resume=True, progress=False)
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


def test_what_they_learn_is_in_the_masks_and_in_the_state() -> None:
    masker = Masker(TYPED, VOCABULARY, UPOS_CLASSES)
    assert masker.needs_feedback
    assert masker(ROWS, 0.25).masking_ratio == pytest.approx(0.25)
    size = masker.num_feedback_classes
    count = np.full(size, 10)
    for step in range(20):
        loss = 30.0 + 30.0 * (np.arange(size) % 2) / (1 + step)
        masker.update(ClassTally(loss, count, 0 * count))
    weights = masker.class_weights()
    assert weights is not None
    assert weights["ADJ"] > weights["ADP"]  # of odd number, and so falling
    ratio_now = masker(ROWS, 0.25).masking_ratio
    assert ratio_now == pytest.approx(masker.ratio_at(0.25)) != 0.25
    assert {"response.heat", "content.fast", "content.slow"} <= masker.state_dict().keys()
    other = Masker(TYPED, VOCABULARY, UPOS_CLASSES)
    other.load_state_dict(masker.state_dict())
    assert np.array_equal(other(ROWS, 0.25).labels, masker(ROWS, 0.25).labels)
    pairs = np.where(ROWS.word_id < 0, -1, ROWS.word_id // 2)
    chosen = masker(ROWS, 0.25).labels >= 0
    same = (pairs[:, 1:] == pairs[:, :-1]) & (pairs[:, 1:] >= 0)
    assert (chosen[:, 1:] == chosen[:, :-1])[same].all()


def test_other_rooms_ask_what_they_can_do() -> None:
    with pytest.raises(UsageError, match=r"the ratios of 'thermostat' cannot be scaled by 0\.5"):
        TYPED.ratio.times(0.5)
    assert Sawtooth().times(0.5) == Sawtooth(top=0.2)
    plan = RunConfig(data="d", masking=TYPED)
    assert unknown_before(plan) == "its ratio responds to the loss"
    parts = [
        {"until": 0.5, "schedule": {"kind": "sawtooth"}},
        {"until": 1, "schedule": {"kind": "linear"}},
    ]
    inside = ratio.Schedule.parse({"kind": "sequence", "parts": parts})
    assert inside.at(0.25) == Sawtooth().at(0.5)


def test_a_kind_that_nobody_defined_is_refused_with_those_that_are() -> None:
    for key, kind, near in (
        ("ratio", "sawtoth", "did you mean 'sawtooth'? Valid: constant, "),
        ("content", "leaning", "did you mean 'learning'? Valid: none, "),
        ("strategy", "pears", "did you mean 'pairs'? Valid: token, "),
    ):
        with pytest.raises(UsageError) as refused:
            MaskingConfig.parse({key: {"kind": kind}})
        assert f"{key}.kind is '{kind}'; {near}" in str(refused.value)
    with pytest.raises(UsageError, match=r"unknown key 'ratio\.course\.tops'; did you mean 'top'"):
        MaskingConfig.parse(
            {"ratio": {"kind": "thermostat", "course": {"kind": "sawtooth", "tops": 1}}}
        )
    with pytest.raises(UsageError, match=r"ratio\.course\.kind is 'thermostat'; .*linear"):
        MaskingConfig.parse({"ratio": {"kind": "thermostat", "course": {"kind": "thermostat"}}})


def test_editors_know_them() -> None:
    schema = json_schema(MaskingConfig)
    groups, names, _ = schema["properties"]["ratio"]["anyOf"][0]["anyOf"]
    assert {"constant", "sawtooth", "thermostat"} <= groups["discriminator"]["mapping"].keys()
    assert {"constant", "sawtooth", "thermostat"} <= {*names["enum"]}
    assert (
        schema["$defs"]["Sawtooth"]["properties"]["top"]["description"]
        == "where every tooth begins"
    )


def test_configs_of_masking_need_nothing_heavy() -> None:
    """Also where they are parsed and asked: a refusal must not wait for torch."""
    code = """
import sys
from chronomask.masking.config import MaskingConfig

kinds = {"ratio": "beta_rows", "content": "ptw", "strategy": "span"}
config = MaskingConfig.parse({key: {"kind": kind} for key, kind in kinds.items()})
assert config.ratio.at(0.5) == config.ratio.times(2).at(0.5) / 2 == 0.15
heavy = {"torch", "transformers", "numba", "scipy", "pyarrow"} & sys.modules.keys()
assert not heavy, heavy
"""
    subprocess.run(
        [sys.executable, "-c", code], check=True, env=os.environ | {"PYTHONPATH": python_path()}
    )
