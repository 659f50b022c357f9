"""Architectures beyond those whose head is known: they train with ``attention: row`` or are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from chronomask.data.folder import PreparedData
from chronomask.errors import UsageError
from chronomask.train.config import RunConfig
from chronomask.train.dry_run import dry_run
from chronomask.train.loop import pretrain
from tests.support.tiny_models import sizes

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


@pytest.mark.parametrize("objective", ["{kind: mlm}", "{kind: hybrid}", "{kind: causal_first}"])
@pytest.mark.parametrize("attention", ["row", "documents"])
def test_a_decoder_is_refused_with_the_way_out(
    tiny_data: PreparedData, tmp_path: Path, attention: str, objective: str
) -> None:
    """Training reads both sides, and its files would say that they are to be read in one direction."""
    plain = config(tiny_data, "bert", sizes("bert") | {"is_decoder": True})
    run = plain.replace([f"attention={attention}", f"objective={objective}"])
    with pytest.raises(
        UsageError, match=r"Set model\.overrides\.is_decoder=false; for a model from"
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
