"""Small models of every architecture that has a head of its own here, and one that has none."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from chronomask.model.attention import AttentionScope
from chronomask.model.build import FromConfig, build_model, load_tokenizer

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 80,
}
OWN_SIZES: dict[str, dict[str, object]] = {
    "albert": {"embedding_size": 16},
    "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 48},
    "electra": {"embedding_size": 16},
    "esm": {"position_embedding_type": "rotary", "emb_layer_norm_before": True},
    "eurobert": {"num_key_value_heads": 1},
    "mobilebert": {"embedding_size": 16, "intra_bottleneck_size": 16},
    "modernbert": {"local_attention": 8, "global_attn_every_n_layers": 2},
}


def sizes(model_type: str) -> dict[str, object]:
    """Config fields of a model that trains in no time."""
    if model_type == "distilbert":
        return OWN_SIZES[model_type] | {"max_position_embeddings": 80}
    return SIZES | OWN_SIZES.get(model_type, {})


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


@pytest.fixture(scope="session")
def tokenizer(tiny_tokenizer: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of ``tiny_data``."""
    return load_tokenizer(tiny_tokenizer)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)  # small tensors gain nothing from more
