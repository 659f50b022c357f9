"""A bfloat16 copy computes, float32 weights are updated."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForMaskedLM

from chronomask.errors import Stopped, UsageError
from chronomask.model import device
from chronomask.train.config import RunConfig
from chronomask.train.loop import pretrain
from chronomask.train.low_precision import WorkingCopy
from tests.support.tiny_training import ask_to_stop_after, assert_same_run, lines

ON = ["bf16_weights=true", "precision=bf16"]


def tiny_modernbert() -> Any:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = AutoConfig.for_model("modernbert", **sizes, intermediate_size=24, vocab_size=40)
    config.pad_token_id = 0
    return AutoModelForMaskedLM.from_config(config, dtype=torch.float32)


def test_a_copy_keeps_ties_and_the_dtype_of_buffers() -> None:
    master = tiny_modernbert()
    copy = WorkingCopy(master).model
    assert {p.dtype for p in copy.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in master.parameters()} == {torch.float32}
    outputs: Any = copy.get_output_embeddings()
    assert outputs.weight is copy.get_input_embeddings().weight
    buffers = dict(copy.named_buffers())
    assert buffers
    for name, buffer in master.named_buffers():
        assert torch.equal(buffers[name], buffer)
        assert buffers[name].dtype == buffer.dtype


def test_gradients_of_micro_batches_are_summed_in_float32_and_weights_rounded_once() -> None:
    master = tiny_modernbert()
    copy = WorkingCopy(master)
    expected = {name: torch.zeros_like(p) for name, p in master.named_parameters()}
    for seed in range(3):
        ids = torch.randint(4, 40, (2, 8), generator=torch.Generator().manual_seed(seed))
        copy.model(input_ids=ids, labels=ids).loss.backward()
        if not seed:  # a parameter whose gradients begin later than those of the others
            copy.model.get_input_embeddings().weight.grad = None  # pyright: ignore
        for name, own in copy.model.named_parameters():
            if own.grad is not None:
                expected[name] += own.grad.float()
        copy.collect()
        assert all(p.grad is None for p in copy.model.parameters())
    for name, parameter in master.named_parameters():
        gradient = parameter.grad
        assert gradient is not None
        assert gradient.dtype == torch.float32
        assert torch.equal(gradient, expected[name])
    with torch.no_grad():
        for parameter in master.parameters():
            parameter.add_(1e-3)
    copy.refresh()
    for own, parameter in zip(copy.model.parameters(), master.parameters(), strict=True):
        assert torch.equal(own, parameter.bfloat16())


def test_a_run_resumes_bit_for_bit_and_learns_as_in_float32(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Other numbers are drawn for dropout in bfloat16, and PTW would choose by other losses.
    still = [f"model.overrides.{name}_dropout_prob=0" for name in ("hidden", "attention_probs")]
    config = config.replace(["micro_batches=2", "masking.content={kind: none}", *still])
    low = config.replace([*ON, "averaging={kind: ema, decay: 0.5}"])
    pretrain(low, tmp_path / "whole", progress=False)
    with monkeypatch.context() as patch:
        ask_to_stop_after(patch, 7, signal.SIGTERM)
        with pytest.raises(Stopped):
            pretrain(low, tmp_path / "cut", progress=False)
    pretrain(low, tmp_path / "cut", resume=True, progress=False)
    assert_same_run(tmp_path / "whole", tmp_path / "cut")

    pretrain(config, tmp_path / "float32", progress=False)
    of_both = (lines(tmp_path / name / "metrics.jsonl") for name in ("whole", "float32"))
    for ours, theirs in zip(*of_both, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=0.02)
        assert ours["loss"] != theirs["loss"]
    saved = tmp_path / "whole" / "checkpoints" / "step-00000012" / "transformers"
    model = AutoModelForMaskedLM.from_pretrained(saved, local_files_only=True)
    assert model.dtype == torch.float32
    assert any(not torch.equal(p, p.bfloat16().float()) for p in model.parameters())


def test_without_bfloat16_in_force_nothing_is_copied(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "_host_is_faster_in_bf16", lambda: False)
    short = config.replace(["steps=2", "log_every=1"])
    pretrain(short, tmp_path / "plain", progress=False)
    pretrain(
        short.replace(["bf16_weights=true", "precision=auto"]), tmp_path / "auto", progress=False
    )
    losses = [
        [line["loss"] for line in lines(tmp_path / name / "metrics.jsonl")]
        for name in ("plain", "auto")
    ]
    if not torch.cuda.is_available():
        assert losses[0] == losses[1]


@pytest.mark.parametrize("other", ["precision=fp32", "sharding=fsdp2"])
def test_what_does_not_go_with_it_is_refused(config: RunConfig, other: str) -> None:
    key, value = other.split("=")
    with pytest.raises(UsageError, match=f"bf16_weights needs.*{key}.*{value}"):
        config.replace([*ON, other])
