"""Too little memory is told in one sentence, where it can be beforehand, and what it advises helps."""

from __future__ import annotations

import logging
import re
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForMaskedLM

from chronomask.cli import app
from chronomask.errors import RunError, UsageError
from chronomask.model.memory import Memory
from chronomask.runs.layout import RunFolder
from chronomask.train import loop, memory
from chronomask.train.config import RunConfig
from chronomask.train.loop import pretrain
from tests.support.tiny_training import assert_close, weights_of

CUDA = (
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 139.81 GiB of which "
    "1.00 GiB is free. See documentation for Memory Management"
)
HOST = (
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: 12"
)
BESIDE = [
    torch.AcceleratorError("CUDA error: out of memory\nCUDA kernel errors might be reported later"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
]
"""Of what a device allocates beside torch's allocator."""


def out_of(error: Exception, at: int, patch: pytest.MonkeyPatch, name: str) -> None:
    """Let the function of the loop raise ``error`` when it is called for the ``at``-th time."""
    real, calls = getattr(loop, name), []

    def fail(*arguments: Any, **named: Any) -> Any:
        calls.append(1)
        if len(calls) == at:
            raise error
        return real(*arguments, **named)

    patch.setattr(loop, name, fail)


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError(CUDA), RuntimeError(HOST), MemoryError(), *BESIDE]
)
def test_a_step_without_memory_names_what_takes_less_and_that_goes_on(
    config: RunConfig, tmp_path: Path, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        out_of(error, 3, patch, "finish")
        with pytest.raises(RunError, match="cpu has too little memory: ") as refused:
            pretrain(config, tmp_path / "run", progress=False)
    said = str(refused.value)
    assert ("Tried to allocate 2.00 GiB. A micro-batch" in said) == (error.args == (CUDA,))
    assert "free. See" not in said
    way_out = f"micro_batches={2 * config.micro_batches}"
    assert (
        f"set {way_out} or activation_checkpointing=true; then the same call goes on with" in said
    )
    pretrain(config.replace([way_out]), tmp_path / "run", resume=True, progress=False)


@pytest.mark.parametrize("hours", [None, 0.01])
def test_a_model_that_finds_no_place_is_told_before_the_first_step(
    config: RunConfig, tmp_path: Path, hours: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError(CUDA)

    monkeypatch.setattr(nn.Module, "to", full)
    said = (
        "cpu has too little memory for the model and what its optimiser keeps: CUDA out of memory"
    )
    with pytest.raises(RunError, match=said) as refused:
        pretrain(config, tmp_path / "run", progress=False, hours=hours)
    assert "choose a smaller model, or end what else has memory there" in str(refused.value)


def test_what_takes_less_is_nothing_that_a_resume_refuses(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config.replace(["masking.budget=batch", "checkpoint.every=1", "steps=4"])
    with monkeypatch.context() as patch:
        out_of(torch.OutOfMemoryError(CUDA), 3, patch, "finish")
        with pytest.raises(RunError, match="tokens: set activation_checkpointing=true; then"):
            pretrain(config, tmp_path / "run", progress=False)
    way_out = config.replace(["activation_checkpointing=true"])
    pretrain(way_out, tmp_path / "run", resume=True, progress=False)


def test_a_validation_without_memory_names_its_own_setting(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretrain(config, tmp_path / "whole", progress=False)
    with monkeypatch.context() as patch:
        out_of(torch.OutOfMemoryError(CUDA), 1, patch, "validate")
        with pytest.raises(RunError) as refused:
            pretrain(config, tmp_path / "run", progress=False)
    way_out = f"validation.batch_rows={max(1, (config.validation.batch_rows or 64) // 2)}"
    assert f"set {way_out}; then the same call goes on with resume=True" in str(refused.value)
    pretrain(config.replace([way_out]), tmp_path / "run", resume=True, progress=False)
    assert_close(weights_of(tmp_path / "whole"), weights_of(tmp_path / "run"))


def test_a_command_goes_on_with_its_own_option(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, out = tmp_path / "config.yaml", tmp_path / "run"
    file.write_text(config.to_yaml(), encoding="utf-8")
    command = ["pretrain", str(file), "--out", str(out), "--quiet"]
    with monkeypatch.context() as patch:
        out_of(torch.OutOfMemoryError(CUDA), 3, patch, "finish")
        with pytest.raises(RunError) as refused:
            app(command, standalone_mode=False)
    found = re.search(
        r"set (micro_batches=\d+) or .*=true; then the same command goes on with (--resume)$",
        str(refused.value),
    )
    assert found is not None, refused.value
    with pytest.raises(UsageError, match=r"already holds a run: .* goes on with --resume, or"):
        app(command, standalone_mode=False)
    app([*command, "--set", found[1], found[2]], standalone_mode=False)
    assert RunFolder(out).read_summary() is not None


@pytest.mark.parametrize("part", ["finish", "validate"])
def test_a_trial_without_memory_begins_again(
    config: RunConfig, tmp_path: Path, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        out_of(torch.OutOfMemoryError(CUDA), 1, patch, part)
        with pytest.raises(RunError, match=r"; then the same call begins again$") as refused:
            pretrain(config, tmp_path / "run", progress=False, hours=0.01)
    found = re.search(r"set ([a-z_.]+=\d+)", str(refused.value))
    assert found is not None
    mended = config.replace([found[1], "checkpoint.every=0"])
    assert pretrain(mended, tmp_path / "run", progress=False, hours=0.005)["complete"]


def test_what_is_in_force_is_not_advised(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    least = config.replace(
        [
            "micro_batches=8", "activation_checkpointing=true", "validation.batch_rows=1",
            "validation.rows=2",
        ]
    )  # fmt: skip
    for part, what in (
        ("finish", "A micro-batch has up to 1 row of"),
        ("validate", "A validation takes 1 row at a time"),
    ):
        with monkeypatch.context() as patch:
            out_of(torch.OutOfMemoryError(CUDA), 1, patch, part)
            with pytest.raises(RunError, match=what) as refused:
                pretrain(least, tmp_path / part, progress=False)
        said = str(refused.value).partition(what)[2]
        assert "set " not in said
        assert "end what else has memory there, then the same call goes on with resume" in said
        assert "another output folder, with shorter rows or a smaller model" in said
        pretrain(least, tmp_path / part, progress=False, resume=True)


def test_nothing_is_held_that_the_failed_step_made(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[weakref.ref[torch.Tensor]] = []

    def fail(*_: Any) -> None:
        large = torch.zeros(10)
        made.append(weakref.ref(large))
        raise torch.OutOfMemoryError(CUDA)

    monkeypatch.setattr(loop, "finish", fail)
    with pytest.raises(RunError) as refused:
        pretrain(config, tmp_path / "run", progress=False)
    assert refused.value.__cause__ is not None
    assert made[0]() is None


def test_other_errors_stay_what_they_are(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out_of(RuntimeError("shapes do not fit"), 2, monkeypatch, "finish")
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        pretrain(config, tmp_path / "run", progress=False)


def _warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [said for said in caplog.messages if said.startswith("a step takes up to")]


def test_a_host_with_too_little_memory_is_told_before_the_first_step(
    config: RunConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What is advised takes less than there is, and trains; enough memory is not spoken of."""
    caplog.set_level(logging.WARNING)
    config = config.replace(["steps=1", "micro_batches=1", "rows_per_step=64"])
    pretrain(config, tmp_path / "enough", progress=False)
    assert _warnings(caplog) == []
    monkeypatch.setattr(memory, "memory_of_process", lambda: 8_000_000)
    pretrain(config, tmp_path / "little", progress=False)
    (said,) = _warnings(caplog)
    assert "there are 0.0 GB" in said
    found = re.search("set (micro_batches=[0-9]+), which takes up to 0.0 GB", said)
    assert found is not None, said
    caplog.clear()
    pretrain(config.replace([found[1]]), tmp_path / "less", progress=False)
    assert _warnings(caplog) == []


def test_a_host_that_cannot_hold_a_row_is_not_told_what_is_in_force(
    config: RunConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(memory, "memory_of_process", lambda: 1000)
    one_row = config.replace(["steps=1", "micro_batches=1", "rows_per_step=1"])
    for name, change, said in (
        ("plain", "activation_checkpointing=false", "set activation_checkpointing=true, or begin"),
        ("least", "activation_checkpointing=true", "begin another run, with shorter rows or"),
    ):
        caplog.clear()
        pretrain(one_row.replace([change]), tmp_path / name, progress=False)
        (told,) = _warnings(caplog)
        assert f"without a word; {said}" in told


def test_more_rows_than_the_host_can_hold_are_told_before_they_are_read(
    config: RunConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "_train", stop)
    with pytest.raises(KeyboardInterrupt):
        pretrain(config.replace(["rows_per_step=1000000000"]), tmp_path / "run", progress=False)
    (said,) = _warnings(caplog)
    found = re.search("set (rows_per_step=[0-9]+) or fewer", said)
    assert found is not None, said
    caplog.clear()
    fewer = config.replace([found[1], "micro_batches=1000000"])
    with pytest.raises(KeyboardInterrupt):
        pretrain(fewer, tmp_path / "fewer", progress=False)
    assert _warnings(caplog) == []


def test_a_model_that_finds_no_place_when_it_goes_on_stays_the_model(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretrain(config, tmp_path / "run", progress=False)
    summary = RunFolder(tmp_path / "run").summary
    summary.unlink()

    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError(CUDA)

    monkeypatch.setattr(nn.Module, "to", full)
    with pytest.raises(
        RunError, match=r"; end what else has memory there, then the same call goes on"
    ):
        pretrain(config, tmp_path / "run", resume=True, progress=False)


def test_a_validation_of_few_rows_is_advised_fewer_than_it_takes(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = config.replace(["validation.rows=6", "validation.batch_rows=64"])
    out_of(torch.OutOfMemoryError(CUDA), 1, monkeypatch, "validate")
    said = r"takes 6 rows at a time: set validation\.batch_rows=3;"
    with pytest.raises(RunError, match=said):
        pretrain(few, tmp_path / "run", progress=False)


@pytest.mark.parametrize(
    ("batches", "said"),
    [
        (2, "up to 2 rows of 64 tokens: set micro_batches=4 or activation_checkpointing=true;"),
        (3, "up to 2 rows of 64 tokens: set micro_batches=4 or activation_checkpointing=true;"),
        (4, "up to 1 row of 64 tokens: set activation_checkpointing=true;"),
    ],
)
def test_what_takes_less_counts_the_rows_of_one_process(
    config: RunConfig, tmp_path: Path, batches: int, said: str
) -> None:
    """Two processes share seven rows of a step, so that one of them has four. Without a checkpoint also what
    a resume would refuse may be set.
    """
    changes = ["rows_per_step=7", f"micro_batches={batches}", "masking.budget=batch"]
    shared = config.replace(changes)
    data = SimpleNamespace(row_length=64)
    run: Any = SimpleNamespace(config=shared, data=data, folder=RunFolder(tmp_path))
    world: Any = SimpleNamespace(device=torch.device("cpu"), size=2)
    with (
        pytest.raises(RunError, match=said),
        memory.telling_what_takes_less(run, world),
    ):
        raise torch.OutOfMemoryError(CUDA)


def test_the_memory_of_a_step_follows_its_devices_its_average_and_what_it_predicts(
    config: RunConfig,
) -> None:
    config = config.replace(["rows_per_step=7", "micro_batches=1", "masking.ratio=0.25"])
    model = BertForMaskedLM(BertConfig(vocab_size=50, hidden_size=16, num_attention_heads=2))

    def of_step(*changes: str, devices: int = 1) -> Memory:
        return memory.memory_of_step(
            config.replace(changes), model, devices=devices, row_length=64, maskable=60,
            bf16=False, on_cuda=False,
        )  # fmt: skip

    whole, numbers = of_step(), sum(p.numel() for p in model.parameters())
    shared = of_step(devices=2)
    assert shared.activations * 7 == whole.activations * 4  # one of the two has four rows
    assert shared.parameters == whole.parameters
    averaged = of_step("averaging.kind=ema")
    assert averaged.optimiser - whole.optimiser == 4 * numbers
    causal = of_step("objective.kind=hybrid", "objective.causal=0.4")
    assert causal.logits * 60 * 0.25 == pytest.approx(whole.logits * 64)
