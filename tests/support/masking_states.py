"""What a masker has learnt from eight made-up steps, of every content schedule, in ``tests/assets/``.

    python -m tests.support.masking_states     # writes the file anew; checkpoints of before open no more

The file was first written by the version in which one class held the state of all content schedules.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from chronomask.masking.config import MaskingConfig
from chronomask.masking.masker import Masker, Vocabulary
from chronomask.types import ClassTally
from tests.support.masked_text import CLASSES, rows_like_text

FILE = Path(__file__).parents[1] / "assets" / "masking_states.json"
VOCAB_SIZE = 40
VOCABULARY = Vocabulary(4, np.arange(5, VOCAB_SIZE), VOCAB_SIZE)
CONTENTS: dict[str, dict[str, Any]] = {
    "none": {"kind": "none"},
    "ptw": {"kind": "ptw", "strength": 1, "ema_decay": 0.9},
    "ptw softmax": {"kind": "ptw", "strength": 1, "weight_map": {"kind": "softmax"}},
    "ptw clipped": {"kind": "ptw", "strength": 1, "weight_map": {"kind": "clipped"}},
    "ptw_faithful": {"kind": "ptw_faithful", "ema_decay": 0.9},
    "fixed": {"kind": "fixed", "weights": {"NOUN": 4, "DET": 0}},
    "token_accuracy": {"kind": "token_accuracy", "every": 3},
}
_ROWS = rows_like_text(16, 64)
ROWS = replace(_ROWS, input_ids=np.where(_ROWS.word_id < 0, 0, 5 + _ROWS.input_ids % 35))


def fresh(content: dict[str, Any]) -> Masker:
    """A masker that has learnt nothing; its ratio responds to the validation loss."""
    ratio = {"kind": "responsive", "patience": 1}
    return Masker(
        MaskingConfig.parse({"ratio": ratio, "content": content}), VOCABULARY, CLASSES, seed=3
    )


def taught(content: dict[str, Any]) -> Masker:
    """A masker that has taken in eight steps and five validations."""
    masker, rng = fresh(content), np.random.Generator(np.random.PCG64(7))
    for step in range(8):
        count = rng.integers(0, 9, masker.num_feedback_classes)
        correct = np.minimum(count, rng.integers(0, 5, count.size))
        loss = count * (1 + np.arange(count.size) % 7) / 4 + correct / 8
        masker.update(ClassTally(loss, count, correct))
        if step % 2:
            masker.observe_validation(3.0 if step < 5 else 2.0)
    return masker


def masks(masker: Masker) -> dict[str, Any]:
    """The ratio that a masker asks for, and the hash of the labels that it makes."""
    batch = masker(ROWS, 0.5)
    labels = hashlib.sha256(np.ascontiguousarray(batch.labels).tobytes()).hexdigest()
    return {"masking_ratio": batch.masking_ratio, "labels": labels}


def main() -> None:
    """Write the file: tensors as their type and values, floats exactly."""
    out = {}
    for name, content in CONTENTS.items():
        masker = taught(content)
        state = {
            key: {"dtype": str(tensor.dtype).removeprefix("torch."), "values": tensor.tolist()}
            for key, tensor in masker.state_dict().items()
        }
        out[name] = {"state": state, **masks(masker)}
    FILE.write_text(json.dumps(out) + "\n", encoding="utf-8")


def saved_states() -> dict[str, dict[str, Any]]:
    """The file's entries, with states as tensors."""
    entries = json.loads(FILE.read_text(encoding="utf-8"))
    for entry in entries.values():
        entry["state"] = {
            key: torch.tensor(value["values"], dtype=getattr(torch, value["dtype"]))
            for key, value in entry["state"].items()
        }
    return entries


if __name__ == "__main__":
    main()
