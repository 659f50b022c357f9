"""Architectures beyond those whose head is known: they train with ``attention: row`` or are refused."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from chronomask.data.folder import PreparedData
from chronomask.errors import RunError, UsageError
from chronomask.model.build import build_model
from chronomask.model.config import FromConfig
from chronomask.model.open import open_tokenizer
from chronomask.model.trial import settle
from chronomask.train import open as opening
from chronomask.train.config import RunConfig
from chronomask.train.dry_run import dry_run
from chronomask.train.loop import pretrain
from tests.support.tiny_models import sizes
from tests.support.tiny_training import assert_same_run

FNET = {"hidden_size": 32, "num_hidden_layers": 1, "intermediate_size": 48}
PERCEIVER = {"d_model": 16, "d_latents": 16, "num_latents": 4, "num_self_attends_per_block": 1}
XMOD = {**FNET, "num_attention_heads": 2, "max_position_embeddings": 40}


def config(tiny_data: PreparedData, model_type: str, overrides: dict[str, Any]) -> RunConfig:
    """Two steps of a small model."""
    return RunConfig.parse(
        {
            "data": str(tiny_data.path),
            "model": {"kind": "config", "model_type": model_type, "overrides": overrides},
            "attention": "row",
            "steps": 2,
            "rows_per_step": 2,
            "log_every": 1,
            "peak_flops": 1e12,
            "device": "cpu",
            "threads": 1,
            "validation": {"rows": 4},
        }
    )


@pytest.mark.parametrize(
    ("model_type", "overrides"),
    [("fnet", FNET), ("perceiver", PERCEIVER)],
    ids=["fnet", "perceiver"],
)
def test_models_without_attention_heads_train(
    tiny_data: PreparedData, tmp_path: Path, model_type: str, overrides: dict[str, Any]
) -> None:
    run = config(tiny_data, model_type, overrides)
    assert dry_run(run, flops_per_second=1e9).memory.total > 0
    assert pretrain(run, tmp_path / "run", progress=False)["complete"]
    line = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert line["mfu"] > 0  # attention is not counted, all else is


def test_what_cannot_take_a_plain_row_is_refused_before_any_work(
    tiny_data: PreparedData, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=r"'xmod' cannot be trained.*language unknown"):
        pretrain(config(tiny_data, "xmod", XMOD), tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


REFORMER = {
    "hidden_size": 32,
    "num_attention_heads": 2,
    "attention_head_size": 16,
    "feed_forward_size": 48,
    "axial_pos_embds_dim": [16, 16],
}
NYSTROMFORMER = {**sizes("bert"), "num_landmarks": 8, "segment_means_seq_len": 32}


@pytest.mark.parametrize(
    ("model_type", "overrides", "message"),
    [
        (
            "reformer",
            REFORMER,
            r"rows of 32 tokens, some of which end in padding: .*axial_pos_shape",
        ),
        ("nystromformer", NYSTROMFORMER, "rows of 32 tokens, some of which end in padding: "),
    ],
    ids=["in-training", "with-padding"],
)
def test_rows_are_tried_as_they_are_in_training(
    tiny_data: PreparedData,
    tmp_path: Path,
    model_type: str,
    overrides: dict[str, Any],
    message: str,
) -> None:
    with pytest.raises(UsageError, match=message):
        pretrain(config(tiny_data, model_type, overrides), tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


FUNNEL = {
    "block_sizes": [1, 1], "d_model": 32, "n_head": 2, "d_head": 16, "d_inner": 48,
    "num_decoder_layers": 1,
}  # fmt: skip
MBART = {
    "d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48,
}  # fmt: skip


@pytest.mark.parametrize(
    ("model_type", "overrides"), [("funnel", FUNNEL), ("mbart", MBART)], ids=["funnel", "mbart"]
)
def test_what_cannot_take_a_row_of_padding_alone_trains(
    tiny_data: PreparedData, tmp_path: Path, model_type: str, overrides: dict[str, Any]
) -> None:
    run = config(tiny_data, model_type, overrides)
    assert pretrain(run, tmp_path / "run", progress=False)["complete"]


def test_a_trial_leaves_no_trace(tiny_data: PreparedData) -> None:
    """I-BERT counts the ranges of what it sees in training, BigBird draws blocks from numpy."""
    tokenizer = open_tokenizer(tiny_data.tokenizer_path)
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    torch.manual_seed(1)
    drawn = random.random(), np.random.rand(), torch.rand(())  # noqa: NPY002
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    torch.manual_seed(1)
    for model_type in ("ibert", "big_bird"):
        model_config = FromConfig(model_type=model_type, overrides=sizes("bert"))
        model = build_model(model_config, tokenizer, row_length=32, seed=0, attention="row")
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        settle(model, tokenizer, (32,), attention="row", padded=True)
        after = model.state_dict()
        assert before.keys() == after.keys()
        assert all(torch.equal(before[name], after[name]) for name in before)
        assert model.training
    assert drawn == (random.random(), np.random.rand(), torch.rand(()))  # noqa: NPY002


def test_modules_that_are_made_at_the_first_row_are_there_after_a_resume_too(
    tiny_data: PreparedData, tmp_path: Path
) -> None:
    """BigBird's attention becomes a plain one in short rows; to make it draws from torch's generator."""
    run = config(tiny_data, "big_bird", sizes("bert")).replace(
        ["name=tiny", "steps=4", "checkpoint.every=2", "validation.every=0"]
    )
    pretrain(run, tmp_path / "whole", progress=False)
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut" / "checkpoints" / "step-00000004")
    (tmp_path / "cut" / "summary.json").unlink()
    pretrain(run, tmp_path / "cut", resume=True, progress=False)
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


def test_what_an_architecture_cannot_do_in_the_middle_of_a_run_is_told_as_that(
    tiny_data: PreparedData, tmp_path: Path
) -> None:
    """MRA's attention knows float32 alone."""
    run = config(tiny_data, "mra", sizes("bert")).replace(["precision=bf16", "bf16_weights=true"])
    with pytest.raises(
        RunError, match=r"'mra' failed \(.*\): set precision=fp32 and bf16_weights=false"
    ):
        pretrain(run, tmp_path / "run", progress=False)
    mended = run.replace(["precision=fp32", "bf16_weights=false"])
    assert pretrain(mended, tmp_path / "another", progress=False)["complete"]


def test_what_cannot_be_compiled_goes_on_without(
    tiny_data: PreparedData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "COMPILER", "eager")
    run = config(tiny_data, "yoso", sizes("bert")).replace(["compile=always"])
    with pytest.raises(
        RunError, match=r"'yoso' cannot be compiled here .*: set compile=never; the"
    ):
        pretrain(run, tmp_path / "run", progress=False)
    again = run.replace(["compile=never"])
    assert pretrain(again, tmp_path / "run", resume=True, progress=False)["complete"]


@pytest.mark.parametrize("objective", ["{kind: mlm}", "{kind: hybrid}", "{kind: causal_first}"])
@pytest.mark.parametrize("attention", ["row", "documents"])
def test_a_decoder_is_refused_with_the_way_out(
    tiny_data: PreparedData, tmp_path: Path, attention: str, objective: str
) -> None:
    """Training reads both sides, and its files would say that they are to be read in one direction."""
    plain = config(tiny_data, "bert", sizes("bert") | {"is_decoder": True})
    run = plain.replace([f"attention={attention}", f"objective={objective}"])
    with pytest.raises(
        UsageError, match=r"set model\.overrides\.is_decoder=false; for a model from"
    ):
        dry_run(run, flops_per_second=1e9)
    mended = run.replace(["model.overrides.is_decoder=false", "steps=1"])
    done = pretrain(mended, tmp_path / "run", progress=False)
    file = tmp_path / "run" / str(done["checkpoint"]) / "transformers" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"is_decoder": True}))
    given = run.replace([f"model={{kind: checkpoint, path: '{file.parent}'}}"])
    with pytest.raises(UsageError, match=r"in its config\.json"):
        pretrain(given, tmp_path / "another", progress=False)


def test_sizes_are_found_by_the_names_an_architecture_has(tiny_data: PreparedData) -> None:
    bert, distilbert = (
        dry_run(config(tiny_data, name, sizes(name)), flops_per_second=1e9).memory
        for name in ("bert", "distilbert")
    )
    assert distilbert.activations == bert.activations


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            {"num_attention_heads": 3, "hidden_size": 32},
            r"num_attention_heads=3, hidden_size=32 make",
        ),
        ({"hidden_act": "nope"}, r"model\.overrides hidden_act=nope make no 'bert'"),
        ({"num_hidden_layers": -1}, r"num_hidden_layers is -1; it must be at least 1"),
        ({"hidden_dropout_prob": 3.0}, r"hidden_dropout_prob=3\.0 make no 'bert'"),
        ({"vocab_size": 0}, r"vocab_size is 0"),
    ],
)
def test_sizes_that_make_no_model_are_refused_by_name(
    tiny_data: PreparedData, tmp_path: Path, overrides: dict[str, Any], message: str
) -> None:
    run = config(tiny_data, "bert", overrides)
    with pytest.raises(UsageError, match=message):
        pretrain(run, tmp_path / "run", progress=False)
    with pytest.raises(UsageError, match=message):
        dry_run(run, flops_per_second=1e9)
    assert not (tmp_path / "run").exists()
