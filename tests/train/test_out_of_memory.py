"""A device without memory left ends a run in one sentence, and what it advises lets the run go on."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import pytest
import torch

from chronomask.errors import RunError
from chronomask.train import loop
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


def out_of(error: Exception, at: int, patch: pytest.MonkeyPatch, name: str) -> None:
    """Let the function of the loop raise ``error`` when it is called for the ``at``-th time."""
    real, calls = getattr(loop, name), []

    def fail(*arguments: Any, **named: Any) -> Any:
        calls.append(1)
        if len(calls) == at:
            raise error
        return real(*arguments, **named)

    patch.setattr(loop, name, fail)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError(CUDA), RuntimeError(HOST), MemoryError()])
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
    assert f"set {way_out} or activation_checkpointing=true; then the same command goes on" in said
    pretrain(config.replace([way_out]), tmp_path / "run", resume=True, progress=False)


def test_a_validation_without_memory_names_its_own_setting(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretrain(config, tmp_path / "whole", progress=False)
    with monkeypatch.context() as patch:
        out_of(torch.OutOfMemoryError(CUDA), 1, patch, "validate")
        with pytest.raises(RunError) as refused:
            pretrain(config, tmp_path / "run", progress=False)
    way_out = f"validation.batch_rows={max(1, config.validation.batch_rows // 2)}"
    assert f"set {way_out}; then the same command goes on with --resume" in str(refused.value)
    pretrain(config.replace([way_out]), tmp_path / "run", resume=True, progress=False)
    assert_close(weights_of(tmp_path / "whole"), weights_of(tmp_path / "run"))


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
