"""Tiny models with random weights: of every architecture, in memory, in a folder or as a config."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from chronomask.model.build import build_model
from chronomask.model.config import AttentionScope, FromConfig
from chronomask.types import Rows

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
}
FAR_FROM_UNIFORM = {"max_position_embeddings": 64, "initializer_range": 0.4}
"""Of a model that is saved: weights so large that its logits are far from uniform."""
OWN_SIZES: dict[str, dict[str, object]] = {
    "albert": {"embedding_size": 16},
    "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 48},
    "electra": {"embedding_size": 16},
    "esm": {"position_embedding_type": "rotary", "emb_layer_norm_before": True},
    "eurobert": {"num_key_value_heads": 1},
    "mobilebert": {"embedding_size": 16, "intra_bottleneck_size": 16},
    "modernbert": {"local_attention": 8, "global_attn_every_n_layers": 2},
}


SEPARATING = (
    "albert", "bert", "camembert", "distilbert", "electra", "esm", "modernbert",
    "roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl",
)  # fmt: skip
"""Architectures whose attention keeps documents apart."""


def rows_of(input_ids: np.ndarray, bounds: list[int]) -> Rows:
    """Rows of these tokens, all of them words, with documents between the bounds."""
    num_rows = input_ids.shape[0]
    return Rows(
        input_ids=input_ids,
        word_id=np.zeros(input_ids.shape, np.int32),
        token_class=np.zeros(input_ids.shape, np.uint8),
        row_id=np.arange(num_rows),
        epoch=np.zeros(num_rows, np.int64),
        cu_seqlens=np.array(bounds, np.int32),
    )


def sizes(model_type: str) -> dict[str, object]:
    """Config fields of a model that trains in no time."""
    own = OWN_SIZES.get(model_type, {}) | {"max_position_embeddings": 80}
    return own if model_type == "distilbert" else SIZES | own


def small(
    model_type: str, tokenizer: PreTrainedTokenizerBase, attention: AttentionScope
) -> PreTrainedModel:
    """A small model without dropout in effect, with weights large enough for logits to differ."""
    config = FromConfig(model_type=model_type, overrides=sizes(model_type))
    model = build_model(config, tokenizer, row_length=64, seed=0, attention=attention)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter *= 4
    return model.eval()


def tiny_bert(row_length: int, **overrides: object) -> dict[str, Any]:
    """The ``model`` of a run's config: a BERT for rows of this length."""
    own = {**SIZES, "max_position_embeddings": row_length, **overrides}
    return {"kind": "config", "model_type": "bert", "overrides": own}


def save_tiny(
    folder: Path,
    tokenizer_path: Path,
    model_type: str = "bert",
    head: bool = True,
    **changes: object,
) -> PreTrainedTokenizerBase:
    """Write a tiny model of a type, with a masked-language-model head or without any."""
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_path)
    config = AutoConfig.for_model(
        model_type,
        pad_token_id=tokenizer.pad_token_id,
        **{"vocab_size": len(tokenizer), **SIZES, **FAR_FROM_UNIFORM, **changes},
    )
    torch.manual_seed(0)
    (AutoModelForMaskedLM if head else AutoModel).from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return tokenizer
