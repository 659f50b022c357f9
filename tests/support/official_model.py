"""A tiny masked language model that knows the words of the official files."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import torch
from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

from tests.support.official_files import BAD, FILL, GOOD
from tests.support.tiny_models import SIZES
from tests.support.tiny_tokenizer import wordpiece


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A WordPiece that knows the words of the official files, and all letters."""
    letters = "abcdefghijklmnopqrstuvwxyz0123456789?!,'’éß_-"
    words = ["what", "is", "after", "who", "where", "key", "answer", "premise", "claim"]
    pieces = [*GOOD, *BAD, *FILL, *words, *letters, *(f"##{letter}" for letter in letters)]
    return wordpiece(pieces, strip_accents=False)


def save_model(folder: Path, seed: int = 0, **sizes: float) -> Path:
    """A BERT of 2 layers × 32 without training, and its tokenizer."""
    tokenizer = make_tokenizer()
    torch.manual_seed(seed)
    values = {**SIZES, "intermediate_size": 64, "max_position_embeddings": 128, **sizes}
    values |= {"initializer_range": 0.1}  # so small a model learns nothing from smaller weights
    BertForMaskedLM(BertConfig(vocab_size=len(tokenizer), **values)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_checkpoint(run: Path, step: int, model: Path) -> Path:
    """A checkpoint as training writes it, as far as evaluation reads it."""
    path = run / "checkpoints" / f"step-{step:08d}"
    shutil.copytree(model, path / "transformers")
    (path / "state.json").write_text(json.dumps({"format_version": 1, "step": step}))
    for name in ("content", "optimiser"):
        (path / f"{name}.safetensors").touch()
    hashes = {
        file.relative_to(path).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(path.rglob("*"))
        if file.is_file()
    }
    (path / "hashes.json").write_text(json.dumps(hashes))
    return path
