"""Published encoders as they are found: opened, trained on, written, and asked to fill a mask."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForMaskedLM, AutoTokenizer, PreTrainedModel, pipeline

from chronomask.data.folder import PreparedData
from chronomask.runs.layout import MODEL
from chronomask.train.config import RunConfig
from chronomask.train.loop import pretrain
from tests.support.tiny_models import SIZES, sizes

SEPARATE_ATTENTION = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]}
OWN: dict[str, dict[str, object]] = {
    "deberta": SIZES | SEPARATE_ATTENTION,
    "deberta-v2": SIZES | SEPARATE_ATTENTION | {"position_buckets": 8, "share_att_key": True},
    "mpnet": SIZES,
}
DOCUMENTS = (
    "albert", "bert", "camembert", "distilbert", "electra", "esm", "eurobert", "modernbert",
    "roberta", "xlm-roberta",
)  # fmt: skip
"""Those whose attention can be told where documents are; the others see whole rows."""


def made(model_type: str, tokenizer: Any, extra: int = 0, auto: Any = AutoModelForMaskedLM) -> Any:
    """A tiny random model; ``extra``: rows of its vocabulary that the tokenizer has no token for."""
    config = AutoConfig.for_model(
        model_type,
        vocab_size=len(tokenizer) + extra,
        **OWN.get(model_type, sizes(model_type)) | {"max_position_embeddings": 80},
        pad_token_id=tokenizer.pad_token_id,
        cls_token_id=tokenizer.cls_token_id,
        sep_token_id=tokenizer.sep_token_id,
        mask_token_id=tokenizer.mask_token_id,
        bos_token_id=tokenizer.cls_token_id,
        eos_token_id=tokenizer.sep_token_id,
    )
    torch.manual_seed(0)
    return auto.from_config(config) if hasattr(auto, "from_config") else auto(config)


def train_and_fill(
    folder: Path, tiny_data: PreparedData, out: Path, attention: str, **changes: Any
) -> None:
    """Three steps on from ``folder``; what is written opens strictly and fills a mask."""
    config = RunConfig.parse(
        {
            "data": str(tiny_data.path),
            "model": {"kind": "checkpoint", "path": str(folder), **changes},
            "attention": attention,
            "steps": 3,
            "rows_per_step": 4,
            "learning_rate": {"kind": "constant", "peak": 1e-3, "warmup_steps": 0},
            "peak_flops": 1e12,
            "device": "cpu",
            "threads": 1,
            "validation": {"rows": 4},
        }
    )
    summary = pretrain(config, out, progress=False)
    written = out / str(summary["checkpoint"]) / MODEL
    model, info = AutoModelForMaskedLM.from_pretrained(written, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["mismatched_keys"]
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    fill = pipeline("fill-mask", model=str(written), tokenizer=str(written), device="cpu")
    mask = fill.tokenizer.mask_token
    answers: Any = fill(f"the {mask} of it")
    assert len(answers) == 5
    assert all(answer["token"] < len(fill.tokenizer) for answer in answers)


# DeBERTa's own, in transformers 5.17.
@pytest.mark.filterwarnings("ignore:.*torch.jit.script. is deprecated:DeprecationWarning")
@pytest.mark.parametrize("model_type", [*DOCUMENTS, "deberta", "deberta-v2", "mpnet"])
def test_every_common_encoder_trains_and_fills_masks(
    model_type: str, tiny_data: PreparedData, tmp_path: Path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_data.tokenizer_path)
    made(model_type, tokenizer).save_pretrained(tmp_path / "m")
    tokenizer.save_pretrained(tmp_path / "m")
    attention = "documents" if model_type in DOCUMENTS else "row"
    train_and_fill(tmp_path / "m", tiny_data, tmp_path / "run", attention)


def in_shards(model: PreTrainedModel, folder: Path) -> None:
    model.save_pretrained(folder, max_shard_size="20KB")
    assert len(list(folder.glob("*.safetensors"))) > 1


def in_bfloat16(model: PreTrainedModel, folder: Path) -> None:
    model.bfloat16().save_pretrained(folder)
    (file,) = folder.glob("*.safetensors")
    assert {tensor.dtype for tensor in load_file(file).values()} == {torch.bfloat16}


def as_they_are(model: PreTrainedModel, folder: Path) -> None:
    model.save_pretrained(folder)


@pytest.mark.parametrize("model_type", ["bert", "modernbert", "roberta"])
@pytest.mark.parametrize(
    ("save", "extra", "head", "changes"),
    [
        (in_shards, 0, "MaskedLM", {}),
        (in_bfloat16, 0, "MaskedLM", {}),
        (as_they_are, 13, "MaskedLM", {}),
        (as_they_are, 0, "SequenceClassification", {"new_head": True}),
        (as_they_are, 0, "Model", {"new_head": True}),
    ],
    ids=["shards", "bfloat16", "padded-vocabulary", "another-head", "no-head"],
)
def test_encoders_as_they_are_published(
    save: Callable[[PreTrainedModel, Path], None],
    extra: int,
    head: str,
    changes: dict[str, Any],
    model_type: str,
    tiny_data: PreparedData,
    tmp_path: Path,
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_data.tokenizer_path)
    auto = getattr(transformers, "AutoModel" if head == "Model" else f"AutoModelFor{head}")
    save(made(model_type, tokenizer, extra, auto), tmp_path / "m")
    tokenizer.save_pretrained(tmp_path / "m")
    train_and_fill(tmp_path / "m", tiny_data, tmp_path / "run", "documents", **changes)


def test_the_head_of_the_first_bert_is_left_aside(tiny_data: PreparedData, tmp_path: Path) -> None:
    """Next-sentence prediction beside masked tokens, as Devlin et al. published theirs."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_data.tokenizer_path)
    made("bert", tokenizer, auto=transformers.BertForPreTraining).save_pretrained(tmp_path / "m")
    tokenizer.save_pretrained(tmp_path / "m")
    train_and_fill(tmp_path / "m", tiny_data, tmp_path / "run", "documents")
