"""What a step asks of its device: nothing, until its update is queued.

The device is torch's `meta` device, whose tensors have no values: asking for one is an error.
"""

from __future__ import annotations

import json
import re
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from chronomask.errors import RunError, Stopped
from chronomask.model.device import Reading
from chronomask.runs.layout import RunFolder
from chronomask.train import loop
from chronomask.train import step as steps
from chronomask.train.config import RunConfig
from chronomask.train.distributed import World
from chronomask.train.forward import Predictions, parts_of
from chronomask.train.loop import pretrain
from chronomask.train.open import open_run
from chronomask.types import MaskedBatch, pack, packed_size, send, send_all, unpack
from tests.support.tiny_training import weights_of

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
    run, _ = open_run(
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
    sums = steps.queue_update(run, 0, World(0, 1, META), parts, predictions, 1e-3)
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
            sums = steps.queue_update(run, step, world, parts, predictions, 1e-3)
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


AHEAD = ["steps=7", "checkpoint.every=3", "checkpoint.keep=all", "log_every=1"]


@pytest.mark.parametrize(
    "changes",
    [
        [],
        ["masking.content={kind: none}"],
        ["masking.content={kind: token_accuracy}"],
        ["masking.ratio={kind: responsive}", "validation={every: 2, rows: 4}"],
        ["objective={kind: hybrid, causal: 0.5}", "z_loss=0.1", "micro_batches=3"],
        ["outliers={kind: skip, after: 2}"],
        ["averaging={kind: ema}"],
        ["optimiser={kind: muon}", "masking.progress=masked_tokens", "masked_token_budget=500"],
    ],
    ids=lambda changes: changes[0].split("=")[0] if changes else "ptw",
)
def test_a_step_that_is_queued_before_the_last_is_read_is_the_same(
    values: dict[str, Any], changes: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a CPU nothing is queued ahead; here it is made to be."""
    config = RunConfig.parse(values).replace([*AHEAD, *changes])
    pretrain(config, tmp_path / "one", progress=False)
    monkeypatch.setattr(steps, "_computes_behind", lambda device: True)
    pretrain(config, tmp_path / "ahead", progress=False)
    names = {
        file.relative_to(tmp_path / "one") for file in (tmp_path / "one").rglob("*.safetensors")
    }
    assert len(names) >= 3
    for name in names:
        one, ahead = (load_file(tmp_path / run / name) for run in ("one", "ahead"))
        assert one.keys() == ahead.keys()
        for key, tensor in one.items():
            assert torch.equal(tensor, ahead[key]), (name, key)
    assert untimed(tmp_path / "one") == untimed(tmp_path / "ahead")


def untimed(run: Path) -> list[dict[str, Any]]:
    """The lines of a run's logs, without what depends on time and memory."""
    names = ("metrics.jsonl", "validation.jsonl")
    lines = [line for name in names for line in (run / name).read_text().splitlines()]
    return [
        {k: v for k, v in json.loads(line).items() if not re.search("second|wait|mfu|bytes", k)}
        for line in lines
    ]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (["validation={every: 0, rows: 4}"], [1, 2, 4, 5]),  # written: after three steps and six
        (["checkpoint.every=0", "validation={every: 4, rows: 4}"], [1, 2, 3, 5, 6]),
        (["outliers={kind: skip}"], []),
        (["averaging={kind: tail}"], []),
        (["masking.content={kind: model_scores}"], []),
    ],
)
def test_steps_are_queued_before_the_one_before_them_is_read(
    values: dict[str, Any],
    changes: list[str],
    expected: list[int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Unless something looks at the weights in between."""
    config = RunConfig.parse(values).replace(["steps=7", "checkpoint.every=3", *changes])
    monkeypatch.setattr(steps, "_computes_behind", lambda device: True)
    queue, read, unread, found = steps.queue_update, steps.read, [], []

    def queued(run: Any, step: int, *rest: Any) -> Any:
        if unread:
            found.append(step)
        unread.append(step)
        return queue(run, step, *rest)

    def reading(*arguments: Any) -> Any:
        del unread[0]
        return read(*arguments)

    monkeypatch.setattr(steps, "queue_update", queued)
    monkeypatch.setattr(steps, "read", reading)
    pretrain(config, tmp_path / "run", progress=False)
    assert found == expected


def test_a_run_that_is_stopped_reads_what_is_queued_first(
    values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And goes on as if it had never been stopped."""
    config = RunConfig.parse(values).replace(["steps=6", "checkpoint.every=0"])
    monkeypatch.setattr(steps, "_computes_behind", lambda device: True)
    pretrain(config, tmp_path / "whole", progress=False)
    update = steps.queue_update

    def stopping(run: Any, step: int, *rest: Any) -> Any:
        if step == 3:
            signal.raise_signal(signal.SIGTERM)
        return update(run, step, *rest)

    monkeypatch.setattr(steps, "queue_update", stopping)
    with pytest.raises(Stopped, match="stopped after step 4 of 6"):
        pretrain(config, tmp_path / "run", progress=False)
    monkeypatch.setattr(steps, "queue_update", update)
    pretrain(config, tmp_path / "run", progress=False, resume=True)
    whole, run = (weights_of(tmp_path / name) for name in ("whole", "run"))
    assert all(torch.equal(tensor, run[name]) for name, tensor in whole.items())


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


@pytest.mark.parametrize("behind", [False, True])
def test_what_was_learnt_early_is_taken_back_where_the_step_fails(
    values: dict[str, Any], behind: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The masks of the next step are drawn with it already. On a device that is behind, all of that step is
    queued; the dump has what was before.
    """
    config = RunConfig.parse(values).replace(
        ["steps=6", "checkpoint.every=2", "checkpoint.keep=all"]
    )
    pretrain(config, tmp_path / "whole", progress=False)
    monkeypatch.setattr(steps, "_computes_behind", lambda device: behind)
    monkeypatch.setattr(steps, "_finite", lambda loss, norm: torch.tensor(number.pop() > 0))
    number = [1, 0, 1, 1, 1, 1]  # of steps 6, 5 … 1
    with pytest.raises(RunError, match="step 5: "):
        pretrain(config, tmp_path / "run", progress=False)
    (dumped,) = (tmp_path / "run" / "dump" / "step-00000005").glob("step-*")
    before = tmp_path / "whole" / "checkpoints" / "step-00000004"
    assert len(number) == 1 - behind  # the sixth was queued
    for file in ("content.safetensors", "optimiser.safetensors", "transformers/model.safetensors"):
        ours, theirs = (load_file(at / file) for at in (dumped, before))
        for name, tensor in ours.items():
            assert torch.equal(tensor, theirs[name])
    ours = load_file(dumped / "content.safetensors")
    assert any(name.startswith("content.") for name in ours)


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
