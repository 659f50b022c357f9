"""A tiny masked language model in a folder, and official files for it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

from chronomask.evaluate.subject import Subject, find_subject

from .official import BAD, FILL, GOOD, write_glue

SPECIALS = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A WordPiece that knows the words of the official files, and all letters."""
    letters = "abcdefghijklmnopqrstuvwxyz0123456789?!,'’éß_-"
    words = ["what", "is", "after", "who", "where", "key", "answer", "premise", "claim"]
    pieces = [
        *SPECIALS.values(),
        *GOOD,
        *BAD,
        *FILL,
        *words,
        *letters,
        *(f"##{c}" for c in letters),
    ]
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(strip_accents=False)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    names = {f"{role}_token": token for role, token in SPECIALS.items()}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **names)


def save_model(folder: Path, seed: int = 0, **sizes: float) -> Path:
    """A BERT of 2 layers × 32 without training, and its tokenizer."""
    tokenizer = make_tokenizer()
    torch.manual_seed(seed)
    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    values = {**small, "intermediate_size": 64, "max_position_embeddings": 128, **sizes}
    values |= {"initializer_range": 0.1}  # so small a model learns nothing from smaller weights
    BertForMaskedLM(BertConfig(vocab_size=len(tokenizer), **values)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)  # small tensors gain nothing from more


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def subject(model_folder: Path) -> Subject:
    return find_subject(str(model_folder))


@pytest.fixture
def glue(tmp_path: Path) -> Path:
    """A folder with a small ``glue`` folder in it."""
    write_glue(tmp_path / "data" / "glue")
    return tmp_path / "data"
