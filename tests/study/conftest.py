"""A study of two arms and two seeds that is done in seconds, and its tasks' files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from chronomask.data.folder import PreparedData
from tests.support.corpus import made_up_text


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def values(tiny_data: PreparedData, tmp_path: Path) -> dict[str, Any]:
    """Values of a study of 8 steps; CoLA has 24 made-up sentences."""
    for split in ("train", "dev"):
        lines = [f"x\t{k % 2}\t\tword{k % 7} and word{k % 5} ." for k in range(24)]
        file = tmp_path / "tasks" / "CoLA" / f"{split}.tsv"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return {
        "name": "A small study",
        "base": {
            "data": str(tiny_data.path),
            "model": {
                "kind": "config",
                "model_type": "bert",
                "overrides": {
                    "hidden_size": 32,
                    "num_hidden_layers": 1,
                    "num_attention_heads": 2,
                    "intermediate_size": 32,
                    "max_position_embeddings": 64,
                },
            },
            "masking": {"ratio": {"kind": "constant", "base": 0.15}},
            "learning_rate": {"kind": "linear", "peak": 3e-3, "warmup_steps": 2},
            "steps": 8,
            "rows_per_step": 4,
            "device": "cpu",
            "threads": 1,
            "log_every": 2,
            "validation": {"every": 2, "rows": 8, "batch_rows": 8},
            "checkpoint": {"every": 4, "keep": 2},
        },
        "arms": {"fixed": {}, "decay": {"masking.ratio": {"kind": "linear_decay", "base": 0.3}}},
        "seeds": [0, 1],
        "task_data": str(tmp_path / "tasks"),
        "task_seeds": [0, 1],
        "tasks": {
            "cola": {
                "curve": True,
                "settings": {"epochs": 1, "max_length": 16, "batch_size": 8, "device": "cpu"},
            }
        },
        "curve_steps": [4],
    }


@pytest.fixture
def text_of_its_own(tmp_path: Path) -> dict[str, Any]:
    """The section ``prepare`` of a study: made-up text, prepared in a moment."""
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(made_up_text(60)), encoding="utf-8")
    return {
        "sources": [str(text)],
        "tagger": "none",
        "row_length": 32,
        "held_out": 0.2,
        "workers": 1,
        "tokenizer": {"kind": "wordpiece", "vocab_size": 300},
    }
