"""Rows of words with their classes, a tokenizer that knows these words, and a tiny BERT for both."""

from __future__ import annotations

import re
from typing import Any

import torch
from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

from chronomask.types import UPOS_CLASSES
from tests.support.tiny_models import SIZES
from tests.support.tiny_tokenizer import wordpiece

ROW_LENGTH = 32
TEXT = [
    "The quick brown foxes were jumping over extraordinarily lazy dogs, again and again.",
    "Masked language models predict hidden words; harder words deserve more attention!",
    "Nobody expected the unbelievable regularity of counter-based random numbers.",
    "A schedule lowers the ratio while training goes on, and never the other way round.",
]


def make_tokenizer() -> PreTrainedTokenizerFast:
    # Made, not trained: training breaks ties differently in every process.
    words = sorted({word for text in TEXT for word in re.findall(r"\w+|[^\w\s]", text.lower())})
    letters = sorted({letter for word in words for letter in word})
    pieces = [*letters, *(w[:3] for w in words), *(w for w in words if len(w) < 5)]
    pieces += [f"##{piece}" for piece in (*letters, *(w[-3:] for w in words))]
    return wordpiece(pieces, model_max_length=ROW_LENGTH)


def make_rows(tokenizer: PreTrainedTokenizerFast, number: int) -> list[dict[str, Any]]:
    """``number`` rows of differing length with words and classes; row k has its own text."""
    rows = []
    for k in range(number):
        words = TEXT[k % 4].split()
        text = " ".join(words[k % 5 :] + words[: k % 3])
        encoding = tokenizer(text, truncation=True, max_length=ROW_LENGTH)
        words_of = encoding.word_ids()
        classes = [0 if w is None else 1 + (w * 7) % (len(UPOS_CLASSES) - 1) for w in words_of]
        rows.append(
            {"input_ids": encoding["input_ids"], "word_ids": words_of, "token_class": classes}
        )
    return rows


def tiny_model(tokenizer: PreTrainedTokenizerFast, seed: int = 0) -> BertForMaskedLM:
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(tokenizer),
        **SIZES,
        max_position_embeddings=ROW_LENGTH,
        hidden_dropout_prob=0.1,
        pad_token_id=tokenizer.pad_token_id,
    )
    return BertForMaskedLM(config)
