"""The mean of a run's weights: what it is, what stands for the run, and that training never sees it.

That it is exact under a stop and a resume, and over processes: ``test_resume``, ``test_distributed``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForMaskedLM

from chronomask.errors import DataError, UsageError
from chronomask.evaluate.evaluate import default_out
from chronomask.evaluate.subject import find_subject
from chronomask.masking.masker import Masker
from chronomask.report.arms import arm_row
from chronomask.runs.read import read_run
from chronomask.train.averaging import Average, Averaging, Ema, Tail
from chronomask.train.config import RunConfig
from chronomask.train.loop import pretrain
from tests.support.tiny_training import (
    assert_close,
    lines,
    weights_of,
)

STEPS = 12
RULES: dict[str, tuple[Averaging, dict[int, float]]] = {
    "ema": (Ema(decay=0.8), {step: 0.8 ** (STEPS - step) for step in range(1, STEPS + 1)}),
    "ema, every third": (Ema(decay=0.8, every=3), {s: 0.8 ** (STEPS - s) for s in (3, 6, 9, 12)}),
    "tail": (Tail(last=0.4), dict.fromkeys(range(8, STEPS + 1), 1.0)),
    "tail, every second": (Tail(last=0.4, every=2), dict.fromkeys((8, 10, 12), 1.0)),
}
"""Rules, and what the weights after a step count for in the mean at the end, up to one factor."""


@pytest.mark.parametrize("name", RULES)
def test_the_mean_is_that_of_its_formula(name: str) -> None:
    """Beside float64, over weights of many sizes."""
    rule, factors = RULES[name]
    model = torch.nn.Linear(7, 5)
    average = Average(rule, model)
    generator = torch.Generator().manual_seed(0)
    seen = {}
    for step in range(1, STEPS + 1):
        with torch.no_grad():
            model.weight.copy_(torch.randn(5, 7, generator=generator) * 10.0 ** (step % 5))
        average.take(step, STEPS)
        seen[step] = model.weight.detach().double()
    total = sum(factors.values())
    expected = sum(factor / total * seen[step] for step, factor in factors.items())
    assert average.number == rule.number(STEPS) == len(factors)
    with average.in_place():
        torch.testing.assert_close(model.weight.double(), expected, rtol=1e-5, atol=1e-4)
    assert torch.equal(model.weight.double(), seen[STEPS])


def test_a_tail_of_less_than_a_step_is_the_last_step() -> None:
    assert Tail(last=0.01).first(STEPS) == STEPS - 1
    assert Tail(last=0.01).number(STEPS) == 1


def test_a_checkpoint_holds_the_model_of_what_it_counts() -> None:
    """Before the first weights enter there is none, and afterwards there is one."""
    model = torch.nn.Linear(2, 2)
    average = Average(Tail(), model)
    begun = average.state_dict()
    average.take(STEPS, STEPS)
    for state, saved in ((begun, None), (average.state_dict(), model)):
        again = Average(Tail(), model)
        again.load(state, saved)
        assert again.number == int(saved is not None)
        for other in ({}, None), (state, None if saved is not None else model):
            with pytest.raises(DataError, match="no average of weights"):
                again.load(*other)  # pyright: ignore[reportArgumentType]


@pytest.fixture
def tail(config: RunConfig) -> RunConfig:
    return config.replace(["averaging={kind: tail, last: 0.5, every: 2}", "checkpoint.every=2"])


def test_a_run_with_averaging_gives_the_mean_and_trains_as_without(
    config: RunConfig, tail: RunConfig, tmp_path: Path
) -> None:
    keep = ["checkpoint.keep=all"]
    plain = pretrain(config.replace(keep), tmp_path / "plain", progress=False)
    summary = pretrain(tail.replace(keep), tmp_path / "tail", progress=False)

    ours, theirs = weights_of(tmp_path / "tail"), weights_of(tmp_path / "plain")
    assert all(ours[name].equal(theirs[name]) for name in theirs)
    folder = tmp_path / "tail" / "checkpoints"
    steps = [folder / f"step-{step:08d}" for step in (8, 10, 12)]
    saved = [load_file(step / "transformers" / "model.safetensors") for step in steps]
    mean = {
        name: torch.stack([one[name].double() for one in saved]).mean(0).float()
        for name in saved[0]
    }
    assert_close(load_file(steps[-1] / "averaged" / "model.safetensors"), mean)
    assert not (folder / "step-00000006" / "averaged").exists()  # nothing had entered yet

    assert summary["averaged_steps"] == 3
    for key in ("loss", "accuracy", "mean_loss", "yardstick_loss"):
        assert summary[f"raw_validation_{key}"] == plain[f"validation_{key}"]
    assert summary["validation_mean_loss"] != plain["validation_mean_loss"]
    without = lines(tmp_path / "plain" / "validation.jsonl")
    for own, other in zip(lines(tmp_path / "tail" / "validation.jsonl"), without, strict=True):
        assert own["averaged_steps"] == {4: 0, 8: 1, 12: 3}[own["step"]]
        assert own["raw_class_loss"] == other["class_loss"]
        assert (own["loss"] == other["loss"]) == (own["step"] <= 8)  # a mean of one is that one
    told = read_run(tmp_path / "tail")
    assert told.validation.last("raw_mean_loss") == plain["validation_mean_loss"]
    assert arm_row(told).raw_validation_loss == plain["validation_loss"]
    check_what_stands_for_the_run(tmp_path / "tail", summary)


def test_a_ratio_responds_to_the_weights_as_they_are_trained(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[float] = []
    monkeypatch.setattr(Masker, "observe_validation", lambda _, loss: seen.append(loss))
    averaged = config.replace(["steps=4", "averaging={kind: ema, decay: 0.9}"])
    pretrain(averaged, tmp_path / "run", progress=False)
    logged = lines(tmp_path / "run" / "validation.jsonl")
    assert seen == [line["raw_loss"] for line in logged] != [line["loss"] for line in logged]


def check_what_stands_for_the_run(run: Path, summary: dict[str, Any]) -> None:
    """Evaluation takes the mean, and the cards tell the two models apart."""
    checkpoint = run / summary["checkpoint"]
    own = [find_subject(str(path)) for path in (run, checkpoint, checkpoint / "averaged")]
    assert {subject.path for subject in own} == {checkpoint / "averaged"}
    raw = find_subject(str(checkpoint / "transformers"))
    assert (raw.path, raw.step) == (checkpoint / "transformers", 12)
    assert raw.sha256 != own[0].sha256
    results = run / "results" / "step-00000012"
    assert (default_out(own[0]), default_out(raw)) == (results, results / "transformers")

    AutoModelForMaskedLM.from_pretrained(checkpoint / "averaged")
    cards = [(checkpoint / name / "README.md").read_text() for name in ("averaged", "transformers")]
    assert "a mean of those after 3 steps (every 2, kind tail, last 0.5)" in cards[0]
    assert "as trained; a mean of them lies in ../averaged" in cards[1]
    assert f"{summary['validation_loss']:.4f}" in cards[0]
    assert f"{summary['raw_validation_loss']:.4f}" in cards[1]

    (checkpoint / "averaged" / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(DataError, match=r"averaged/model.safetensors does not match its hash"):
        find_subject(str(run))


def test_a_branch_averages_its_own_steps(config: RunConfig, tmp_path: Path) -> None:
    pretrain(config.replace(["steps=2"]), tmp_path / "first", progress=False)
    branch = [f"branch={tmp_path / 'first'}", "steps=3", "averaging={kind: tail, last: 1}"]
    summary = pretrain(config.replace(branch), tmp_path / "branch", progress=False)
    assert summary["averaged_steps"] == 3


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["averaging.kind=ema", "sharding=fsdp2"], "averaging 'ema' needs whole weights.*sharding"),
        (["averaging={kind: ema, every: 13}"], r"averaging.every \(13\) leaves no step of the 12"),
        (["averaging={kind: tail, last: 0.1, every: 5}"], r"averaging.every \(5\) leaves no step"),
        (["averaging={kind: ema, decay: 1}"], "averaging.decay"),
        (["averaging={kind: tail, last: 0}"], "averaging.last"),
        (["averaging={kind: emma}"], "ema"),
    ],
)
def test_averages_that_cannot_be_are_refused_by_their_key(
    config: RunConfig, changes: list[str], said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        config.replace(changes)


def test_averaging_cannot_begin_or_end_on_resume(
    config: RunConfig, tmp_path: Path, values: dict[str, Any]
) -> None:
    pretrain(config.replace(["steps=2"]), tmp_path / "run", progress=False)
    later = RunConfig.parse({**values, "steps": 2, "averaging": {"kind": "ema"}})
    with pytest.raises(UsageError, match=r"averaging"):
        pretrain(later, tmp_path / "run", resume=True, progress=False)
