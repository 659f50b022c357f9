"""What a step asks of its device: nothing, until its update is queued.

The device is torch's `meta` device, whose tensors have no values: asking for one is an error.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from chronomask.runs.layout import RunFolder
from chronomask.train import loop
from chronomask.train.config import RunConfig
from chronomask.train.distributed import World
from chronomask.train.forward import Predictions, parts_of
from chronomask.train.run import open_run

META = torch.device("meta")
NO_HOST_DROPOUT = "model.overrides.attention_probs_dropout_prob=0.0"  # a CPU draws it by itself


@pytest.mark.parametrize(
    "change",
    [
        "seed=0",
        "attention=row",
        "gradient_clip=null",
        "z_loss=0.1",
        "objective={kind: hybrid, causal: 0.5}",
        "masking.content={kind: token_accuracy}",
        "masking.content={kind: none}",
        "activation_checkpointing=true",
        "outliers={kind: skip, after: 2}",
        "optimiser={kind: stable_adamw}",
        "optimiser={kind: lamb}",
        "optimiser={kind: muon}",
    ],
)
def test_nothing_is_read_before_the_update_is_queued(
    values: dict[str, Any], change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = RunConfig.parse(values).replace([change, NO_HOST_DROPOUT])
    run, state = open_run(
        config, RunFolder(tmp_path / "run"), World(0, 1, torch.device("cpu")), resume=False
    )
    # torch has no fused update for this device, but knows what one would return.
    monkeypatch.setattr(
        sys.modules[torch.optim.Adam.__module__],
        "_device_dtype_check_for_fused",
        lambda *_, **__: None,
    )
    autocast = torch.autocast
    monkeypatch.setattr(torch, "autocast", lambda _, *a, **named: autocast("cpu", *a, **named))
    run.forward.model.to("meta")  # pyright: ignore[reportArgumentType]
    run.forward = replace(run.forward, device=META)
    run.parameters = list(run.forward.model.parameters())
    run.optimiser = config.optimiser.build(run.forward.model)
    for loss in (1.0, 2.0):  # so that a step may stand out
        run.outliers.remember(loss, loss)
    rows, number = run.loader.rows_at(0), config.micro_batches
    parts = parts_of(run.forward, rows, run.masker, config.objective, 0.0, number)
    queued: list[bool] = []
    update = loop.update

    def noted(*arguments: Any, **named: Any) -> None:
        update(*arguments, **named)
        queued.append(True)

    monkeypatch.setattr(loop, "update", noted)
    with pytest.raises(NotImplementedError, match="no data"):
        loop._update(run, state, World(0, 1, META), parts, Predictions.of(parts), 1e-3)
    assert queued == [True]
    assert run.optimiser.state


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("compiled", ["never", "always"])
def test_a_cuda_device_is_not_waited_for(
    values: dict[str, Any], compiled: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Torch refuses what would wait, from the third step's forward pass until its update is queued."""
    options = [f"compile={compiled}", "device=cuda", "precision=bf16"]
    config = RunConfig.parse(values).replace(options)
    world = World(0, 1, torch.device("cuda", 0))
    run, state = open_run(config, RunFolder(tmp_path / "run"), world, resume=False)
    update, queued = loop.update, []

    def noted(*arguments: Any, **named: Any) -> None:
        update(*arguments, **named)
        torch.cuda.set_sync_debug_mode("default")
        queued.append(True)

    monkeypatch.setattr(loop, "update", noted)
    rows = run.loader.rows_at(0)
    try:
        for step in range(3):
            micro_batches = rows.micro_batches(config.micro_batches)
            parts = [run.forward.mask(micro, run.masker, 0.0) for micro in micro_batches]
            predictions = Predictions.of(parts)
            torch.cuda.set_sync_debug_mode("error" if step == 2 else "default")
            loop._update(run, state, world, parts, predictions, 1e-3)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(queued) == 3
