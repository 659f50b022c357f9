"""Several processes compute what one does; a signal to one stops all; one can take over."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from chronomask.train.config import RunConfig
from chronomask.train.distributed import _buckets
from chronomask.train.loop import pretrain

from .conftest import Driver, lines
from .test_loop import WITHOUT_DROPOUT, assert_close, weights_of


@pytest.mark.slow
@pytest.mark.parametrize("number", [2, 4])
def test_processes_equal_one_and_one_goes_on_from_them(
    config: RunConfig, tmp_path: Path, number: int, driver: Driver
) -> None:
    config = config.replace([*WITHOUT_DROPOUT, "rows_per_step=7"])
    spec = {"config": config.to_dict(), "out": str(tmp_path / "many"), "ask_to_stop": [1, 8]}
    assert driver.codes(spec, number) == [143] * number
    pretrain(config, tmp_path / "one", progress=False)
    pretrain(config, tmp_path / "many", resume=True, progress=False)

    assert_close(weights_of(tmp_path / "one"), weights_of(tmp_path / "many"))
    one, many = (sorted((tmp_path / run / "checkpoints").iterdir())[-1] for run in ("one", "many"))
    ours, theirs = (load_file(path / "content.safetensors") for path in (one, many))
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=1e-5, atol=1e-5)
    for name in ("metrics.jsonl", "validation.jsonl"):
        pairs = zip(lines(tmp_path / "one" / name), lines(tmp_path / "many" / name), strict=True)
        for a, b in pairs:
            assert a["class_count"] == b["class_count"]  # the same rows and masks
            assert a["loss"] == pytest.approx(b["loss"], abs=1e-5)


def test_buckets_hold_every_gradient_once_in_order() -> None:
    gradients = [torch.zeros(n * 2**20) for n in (10, 5, 2, 20, 1)]
    buckets = list(_buckets(gradients))
    assert [[g.numel() // 2**20 for g in bucket] for bucket in buckets] == [[10, 5], [2], [20], [1]]
    assert list(_buckets([])) == []
