"""What a step asks of its device: nothing, until its update is queued.

The device is torch's `meta` device, whose tensors have no values: asking for one is an error.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from chronomask.errors import RunError
from chronomask.model.device import Reading
from chronomask.runs.layout import RunFolder
from chronomask.train import loop
from chronomask.train import step as steps
from chronomask.train.config import RunConfig
from chronomask.train.distributed import World
from chronomask.train.forward import Predictions, parts_of
from chronomask.train.loop import pretrain
from chronomask.train.run import open_run
from chronomask.types import MaskedBatch, pack, packed_size, send, send_all, unpack

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
    enabled, dtype = torch.is_autocast_enabled, torch.get_autocast_dtype
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda _: enabled("cpu"))
    monkeypatch.setattr(torch, "get_autocast_dtype", lambda _: dtype("cpu"))
    run.forward.model.to("meta")  # pyright: ignore[reportArgumentType]
    run.forward = replace(run.forward, device=META)
    run.parameters = list(run.forward.model.parameters())
    run.optimiser = config.optimiser.build(run.forward.model)
    for loss in (1.0, 2.0):  # so that a step may stand out
        run.outliers.remember(loss, loss)
    rows, number = run.loader.rows_at(0), config.micro_batches
    parts = parts_of(run.forward, rows, run.masker, config.objective, 0.0, number)
    monkeypatch.setattr(steps, "Reading", lambda numbers: numbers)
    predictions = Predictions.of(parts)
    sums = steps.queue_update(run, state, World(0, 1, META), parts, predictions, 1e-3)
    for numbers in (sums.tallies, sums.ending):
        with pytest.raises(NotImplementedError, match="no data"):
            numbers.cpu()  # pyright: ignore[reportAttributeAccessIssue]
    assert run.optimiser.state


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("compiled", "optimiser"),
    [
        ("never", "adamw"),
        ("always", "adamw"),
        ("never", "stable_adamw"),
        ("never", "lamb"),
        ("never", "muon"),
    ],
)
def test_a_cuda_device_is_not_waited_for(
    values: dict[str, Any],
    compiled: str,
    optimiser: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Torch refuses what would wait, from the third step's forward pass until its update is queued."""
    options = [
        f"compile={compiled}",
        "device=cuda",
        "precision=bf16",
        f"optimiser.kind={optimiser}",
    ]
    config = RunConfig.parse(values).replace(options)
    world = World(0, 1, torch.device("cuda", 0))
    run, state = open_run(config, RunFolder(tmp_path / "run"), world, resume=False)
    update, queued = steps.update, []

    def noted(*arguments: Any, **named: Any) -> None:
        update(*arguments, **named)
        torch.cuda.set_sync_debug_mode("default")
        queued.append(True)

    monkeypatch.setattr(steps, "update", noted)
    rows = run.loader.rows_at(0)
    try:
        for step in range(3):
            micro_batches = rows.micro_batches(config.micro_batches)
            parts = [run.forward.mask(micro, run.masker, 0.0) for micro in micro_batches]
            predictions = Predictions.of(parts)
            torch.cuda.set_sync_debug_mode("error" if step == 2 else "default")
            sums = steps.queue_update(run, state, world, parts, predictions, 1e-3)
            steps.read(run, state, world, parts, predictions, sums)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(queued) == 3


@pytest.mark.parametrize(
    ("changes", "order"),
    [
        (["masking.content={kind: none}"], ["update", "draw", "ending"]),
        (["masking.content={kind: fixed, weights: {X: 2.0}}"], ["update", "draw", "ending"]),
        ([], ["update", "tallies", "draw", "ending"]),
        (["masking.content={kind: token_accuracy}"], ["update", "tallies", "draw", "ending"]),
        (["outliers={kind: skip}"], ["update", "ending", "draw"]),
        (["outliers={kind: skip}", "masking.content={kind: none}"], ["update", "draw", "ending"]),
    ],
)
def test_the_next_masks_are_drawn_while_the_device_works(
    values: dict[str, Any],
    changes: list[str],
    order: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is noted of each step but the last: the update is queued, a number is waited for, masks are drawn.

    Where masking learns, the tallies alone are waited for; they are on their way before the last backward
    pass is queued.
    """
    config = RunConfig.parse(values).replace([*changes, "steps=4", "checkpoint.every=0"])
    noted: list[str] = []

    def note(name: str, work: Any) -> Any:
        def noting(*arguments: Any, **named: Any) -> Any:
            noted.append(name)
            return work(*arguments, **named)

        return noting

    class Noting(Reading):
        def wait(self) -> torch.Tensor:
            noted.append("tallies" if self._copy.ndim == 2 else "ending")
            return super().wait()

    monkeypatch.setattr(steps, "update", note("update", steps.update))
    monkeypatch.setattr(steps, "draw", note("draw", steps.draw))
    monkeypatch.setattr(loop, "draw", note("draw", loop.draw))
    monkeypatch.setattr(steps, "Reading", Noting)
    pretrain(config, tmp_path / "run", progress=False)
    first = noted.index("draw")
    by_step = " ".join(noted[first + 1 :]).split("update ")[1:4]
    for told in by_step:
        firsts = list(dict.fromkeys(told.split()))  # a number that has arrived is read again
        ended = firsts if "tallies" in order else [name for name in firsts if name != "tallies"]
        assert ["update", *ended] == order


def test_the_tallies_are_on_their_way_before_the_last_backward_pass(
    values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = RunConfig.parse(values).replace(["steps=1", "micro_batches=3"])
    noted: list[str] = []
    backward = torch.Tensor.backward

    class Noting(Reading):
        def __init__(self, numbers: torch.Tensor) -> None:
            noted.append("tallies" if numbers.ndim == 2 else "ending")
            super().__init__(numbers)

    def note(self: torch.Tensor, *arguments: Any, **named: Any) -> None:
        noted.append("backward")
        backward(self, *arguments, **named)

    monkeypatch.setattr(steps, "Reading", Noting)
    monkeypatch.setattr(torch.Tensor, "backward", note)
    pretrain(config, tmp_path / "run", progress=False)
    assert noted == ["backward", "backward", "tallies", "backward", "ending"]


def test_what_was_learnt_early_is_taken_back_where_the_step_fails(
    values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The masks of the next step are drawn with it already; the dump has what was before."""
    config = RunConfig.parse(values).replace(
        ["steps=6", "checkpoint.every=2", "checkpoint.keep=all"]
    )
    pretrain(config, tmp_path / "whole", progress=False)
    monkeypatch.setattr(steps, "_finite", lambda loss, norm: torch.tensor(number.pop() > 0))
    number = [0, 1, 1, 1, 1]  # of steps 5, 4 … 1
    with pytest.raises(RunError, match="step 5: "):
        pretrain(config, tmp_path / "run", progress=False)
    (dumped,) = (tmp_path / "run" / "dump" / "step-00000005").glob("step-*")
    before = tmp_path / "whole" / "checkpoints" / "step-00000004"
    ours, theirs = (load_file(at / "content.safetensors") for at in (dumped, before))
    assert any(name.startswith("content.") for name in ours)
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name])


@pytest.mark.parametrize(("target", "waits"), [("cpu", True), ("cuda", False)])
def test_batches_that_come_back_to_the_host_are_waited_for(target: str, waits: bool) -> None:
    """A stub stands for a tensor of a second device."""

    asked: list[tuple[torch.device, bool]] = []

    class Elsewhere:
        device, is_cuda = torch.device("cuda", 1), True

        def to(self, device: torch.device, non_blocking: bool = False) -> None:
            asked.append((device, non_blocking))

    elsewhere: Any = Elsewhere()
    none: Any = None
    MaskedBatch(elsewhere, *[none] * 7).to(target)
    assert asked == [(torch.device(target), not waits)]


ARRAYS = {
    "ids": np.arange(12).reshape(3, 4),
    "classes": np.arange(7, dtype=np.uint8),
    "none": np.zeros(0, np.int64),
    "bounds": np.arange(5, dtype=np.int32),
    "shown": np.eye(3, dtype=np.bool_),
    "turned": np.arange(6, dtype=np.float32).reshape(2, 3).T,
}


def test_arrays_that_go_together_come_out_as_they_were() -> None:
    memory = torch.empty(packed_size(ARRAYS.values()), dtype=torch.uint8)
    pack(ARRAYS.values(), memory.numpy())
    for array, part in zip(ARRAYS.values(), unpack(memory, ARRAYS.values()), strict=True):
        alone = send(array, "cpu")
        assert torch.equal(part, alone)
        assert part.dtype == alone.dtype
        assert part.is_contiguous()
        assert not part._is_view()
        assert not part.numel() or (part.data_ptr() - memory.data_ptr()) % 512 == 0


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_all_arrives(device: str) -> None:
    """Also what is a tensor already, and what is not there."""
    given = {**ARRAYS, "mask": torch.ones(2), "missing": None}
    sent = send_all(given, device)
    assert sent.keys() == given.keys()
    assert sent["missing"] is None
    for name, array in given.items():
        if array is not None:
            assert torch.equal(sent[name], send(array, device))  # pyright: ignore[reportArgumentType]
