"""A run on CUDA says what makes it slower than it need be; shipped recipes for a GPU have nothing to say."""

from __future__ import annotations

import json
import logging
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from chronomask.data.folder import PreparedData
from chronomask.errors import UsageError
from chronomask.model import device as device_module
from chronomask.model.attention import attention_dropout, head_width, implementation_for
from chronomask.model.build import _architecture
from chronomask.model.config import FromConfig
from chronomask.model.device import Facts, refuse_emulation, slow_paths
from chronomask.model.documents import DOCUMENTS_ATTENTION
from chronomask.model.open import open_tokenizer
from chronomask.prepare.config import PrepareConfig
from chronomask.recipes import find_recipe
from chronomask.runs.layout import RunFolder
from chronomask.train import open as opening
from chronomask.train.config import RunConfig
from chronomask.train.distributed import World
from chronomask.train.loop import pretrain


@pytest.fixture(autouse=True)
def _device_that_computes_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)


@pytest.mark.parametrize("recipe", ["bert-base", "modernbert-base"])
def test_bfloat16_on_a_card_that_does_not_compute_it_is_refused_before_any_work(
    recipe: str, config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As those recipes ask for it: its products would be emulated, and attention has no kernel there."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    asked = RunConfig.load(find_recipe(recipe)).precision
    own = config.replace([f"precision={asked}", "device=cuda", "compile=never"])
    said = "precision is bf16, and Tesla T4 does not compute it: set precision=fp32"
    with pytest.raises(UsageError, match=said):
        pretrain(own, tmp_path / "run", progress=False)
    assert not (tmp_path / "run" / "config.yaml").exists()
    for precision in ("auto", "fp32"):
        refuse_emulation(torch.device("cuda", 0), precision, "")
    refuse_emulation(torch.device("cpu"), "bf16", "")


@pytest.mark.parametrize("recipe", ["bert-base", "bert-large", "modernbert-base", "hour-en"])
def test_recipes_for_a_gpu_take_no_slow_path(recipe: str, tiny_data: PreparedData) -> None:
    config, cuda = RunConfig.load(find_recipe(recipe)), torch.device("cuda")
    assert isinstance(config.model, FromConfig)
    english = PrepareConfig.load(find_recipe("prepare/english"))
    assert english.tokenizer.kind == "wordpiece"
    architecture = _architecture(
        config.model, open_tokenizer(tiny_data.tokenizer_path), english.tokenizer.vocab_size
    )
    key, dropout = attention_dropout(architecture)
    facts = Facts(
        model_type=architecture.model_type,
        precision=opening.precision_on(cuda, config.precision),
        computes_bf16=True,
        compiled=opening.compiles(config, cuda),
        attention_dropout=dropout,
        dropout_key=key,
        named_attention=implementation_for(architecture) == DOCUMENTS_ATTENTION,
        vocab_size=architecture.vocab_size,
        head_width=head_width(architecture),
        sets_sizes=True,
    )
    assert slow_paths(facts) == []


def test_a_run_says_once_what_makes_it_slow(
    config: RunConfig,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Opened on a CPU that calls itself a CUDA device: dropout of attention, not compiled."""

    asked = opening._slow_paths
    monkeypatch.setattr(
        opening,
        "_slow_paths",
        lambda run, *others: asked(
            replace(run, forward=replace(run.forward, device=torch.device("cuda"))), *others
        ),
    )
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    with caplog.at_level(logging.WARNING):
        opening.open_run(
            config.replace(["precision=bf16", "model.overrides.attention_probs_dropout_prob=0.1"]),
            RunFolder(tmp_path / "run"),
            World(0, 1, torch.device("cpu")),
            resume=False,
        )
    said = [line for line in caplog.messages if line.startswith("slower than it need be")]
    assert len(said) == 3
    assert "set model.overrides.attention_probs_dropout_prob=0.0" in said[0]
    assert "set compile=auto" in said[1]
    assert "one of 4 devices is used: torchrun --nproc-per-node 4 -m chronomask" in said[2]


@pytest.mark.parametrize(
    ("precision", "faster", "told"),
    [
        ("fp32", True, "half as fast as in bfloat16"),
        ("fp32", False, None),
        ("auto", True, None),
        ("auto", False, None),
        ("bf16", True, None),
        ("bf16", False, "bfloat16 slower than float32"),
    ],
)
def test_the_slower_precision_on_a_processor_is_told_with_the_way_out(
    precision: str,
    faster: bool,
    told: str | None,
    config: RunConfig,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(device_module, "_host_is_faster_in_bf16", lambda: faster)
    with caplog.at_level(logging.WARNING):
        run, _ = opening.open_run(
            config.replace([f"precision={precision}"]),
            RunFolder(tmp_path / "run"),
            World(0, 1, torch.device("cpu")),
            resume=False,
        )
    said = [line for line in caplog.messages if line.startswith("slower than it need be")]
    assert len(said) == (told is not None)
    assert all(str(told) in line and "set precision=auto" in line for line in said)
    in_force = json.loads((tmp_path / "run" / "environment.json").read_text())["precision"]
    assert in_force == (
        "bf16" if precision == "bf16" or (precision == "auto" and faster) else "fp32"
    )
    assert run.forward.precision == in_force
