"""Tiny models with random weights, saved as ``save_pretrained`` does, with a tokenizer beside them."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoTokenizer,
    PreTrainedTokenizerBase,
)

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "initializer_range": 0.4,  # logits far from uniform
}


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
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        **{**SIZES, **changes},
    )
    torch.manual_seed(0)
    (AutoModelForMaskedLM if head else AutoModel).from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return tokenizer
