"""The tokenizer of small models, and one thread for them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from chronomask.model.open import open_tokenizer


@pytest.fixture(scope="session")
def tokenizer(tiny_tokenizer: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of ``tiny_data``."""
    return open_tokenizer(tiny_tokenizer)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)  # small tensors gain nothing from more
