"""Runs whose masked tokens enter late: trained so, validated and saved as the plain model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from chronomask.errors import UsageError
from chronomask.masking.objective import LateMasks
from chronomask.runs.layout import RunFolder
from chronomask.train import step as steps
from chronomask.train.config import RunConfig
from chronomask.train.distributed import World
from chronomask.train.dry_run import dry_run
from chronomask.train.forward import Forward, parts_of
from chronomask.train.loop import pretrain
from chronomask.train.open import open_run
from tests.support.tiny_training import WITHOUT_DROPOUT, assert_close, lines, weights_of

LATE = (
    "late_masks={layer: {kind: phases, phases: [{until: 0.6, ratio: 0.5}, {until: 1, ratio: 0}]}}"
)


@pytest.fixture
def config(config: RunConfig) -> RunConfig:
    """Five steps, half of the words masked, in a BERT of two layers; nothing is dropped."""
    changes = [
        *WITHOUT_DROPOUT,
        "steps=5",
        "log_every=1",
        "masking.ratio={kind: constant, base: 0.5}",
    ]
    return config.replace([*changes, "checkpoint.every=0"])


def test_layers_follow_progress_and_stay_below_the_last() -> None:
    falling = LateMasks.parse({"layer": {"kind": "linear", "start": 1.0, "end": 0.0}})
    assert [falling.layer_at(at, 12) for at in (0, 0.25, 0.5, 1)] == [11, 9, 6, 0]
    assert falling.layer_at(0, 1) == 0
    assert LateMasks(layer=3).layer_at(0.7, 12) == 3


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["late_masks.layer=-1"], "late_masks.layer"),
        (["late_masks.layer=0.5"], "late_masks.layer"),
        (["late_masks={}"], "late_masks"),
        (["late_masks.layer=1", "sharding=fsdp2"], "use sharding 'none', or leave late_masks out"),
    ],
)
def test_what_cannot_be_is_refused(config: RunConfig, changes: list[str], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        config.replace(changes)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["late_masks.layer=2"], "late_masks.layer is 2; the model has 2 layers.*at most 1"),
        (
            ["late_masks.layer=1", "model={kind: config, model_type: albert}"],
            "layers of model type 'albert' cannot be run one by one",
        ),
    ],
)
def test_what_a_model_cannot_is_refused_before_any_work(
    config: RunConfig, tmp_path: Path, changes: list[str], said: str
) -> None:
    config = config.replace(changes)
    with pytest.raises(UsageError, match=said):
        dry_run(config, flops_per_second=1e9)
    with pytest.raises(UsageError, match=said):
        pretrain(config, tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_late_masks_train_alone_and_however_a_step_is_cut(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[bool, int]] = []
    real = Forward.losses

    def watch(self: Forward, part: Any) -> Any:
        early = part.inputs.get("early")
        seen.append((torch.is_grad_enabled(), 0 if early is None else early.layers))
        return real(self, part)

    monkeypatch.setattr(Forward, "losses", watch)
    for number in (1, 4):
        cut = config.replace([LATE, f"micro_batches={number}"])
        pretrain(cut, tmp_path / f"{number}", progress=False)
    training = [layers for learns, layers in seen if learns]
    assert training == [1, 1, 1, 0, 0] + [1] * 12 + [0] * 8
    assert {layers for learns, layers in seen if not learns} == {0}  # validated as it will be used
    assert_close(weights_of(tmp_path / "1"), weights_of(tmp_path / "4"))

    pretrain(config, tmp_path / "plain", progress=False)
    pretrain(config.replace(["late_masks.layer=0"]), tmp_path / "zero", progress=False)
    plain, zero = weights_of(tmp_path / "plain"), weights_of(tmp_path / "zero")
    assert all(torch.equal(plain[name], zero[name]) for name in plain)
    late = lines(tmp_path / "1" / "metrics.jsonl")
    assert [line["masks_enter"] for line in late] == [1, 1, 1, 0, 0]
    for a, b in zip(late, lines(tmp_path / "plain" / "metrics.jsonl"), strict=True):
        assert a["masked_tokens"] == b["masked_tokens"]
        assert a["loss"] != b["loss"]


def test_a_run_that_ends_with_late_masks_is_warned_of_and_skipped_work_is_not_counted(
    config: RunConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    alone = World(0, 1, torch.device("cpu"))
    opened = [
        open_run(config.replace(change), RunFolder(tmp_path / name), alone, resume=False)[0]
        for name, change in (("late", ["late_masks.layer=1"]), ("plain", []))
    ]
    assert caplog.text.count("masked tokens enter at layer 1, and the model that is validated") == 1
    flops = []
    for one in opened:
        rows = one.loader.rows_at(0)
        (part,) = parts_of(one.forward, rows, one.masker, one.config.objective, 0.0, 1)
        flops.append(steps._flops_beside(one, part))
    shown = np.asarray(part.batch.input_ids)
    skipped = np.count_nonzero(shown == one.masker.vocabulary.mask_token_id)
    matrices = one.layers[0].per_token * skipped
    assert matrices < flops[1] - flops[0] < 1.5 * matrices  # and their attention
