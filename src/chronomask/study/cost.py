"""What a run had spent at a step: tokens, predictions, operations, time. One place for the formula.

Operations are those of :mod:`chronomask.model.flops`: 6 × matrix entries × tokens, the head for predicted
tokens alone, and 12 × layers × width × pairs for attention, with every token seeing its whole row (an upper
bound where documents are kept apart; the same for all arms).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForMaskedLM

from chronomask.model.flops import count_flops
from chronomask.runs.read import Run

__all__ = ["AXES", "Cost", "spent"]

AXES = ("step", "tokens_seen", "masked_tokens", "flops", "seconds")
"""What a curve may be drawn against."""


class Cost:
    """The operations of one architecture on rows of one length."""

    def __init__(self, model: Path, row_length: int) -> None:
        config = AutoConfig.from_pretrained(model, local_files_only=True, trust_remote_code=False)
        with torch.device("meta"):
            flops = count_flops(AutoModelForMaskedLM.from_config(config))
        self._per_token = flops.per_token + flops.of_attention(np.array([row_length])) / row_length
        self._per_prediction = flops.per_prediction

    def flops(self, tokens: np.ndarray, predicted: np.ndarray) -> np.ndarray:
        """Floating-point operations of training on so many tokens, so many of them predicted."""
        return self._per_token * tokens + self._per_prediction * predicted


def spent(run: Run, cost: Cost, steps: np.ndarray) -> dict[str, np.ndarray]:
    """Each of ``AXES`` at these steps of a run, read between its logged lines."""
    lines = run.metrics
    logged = {
        key: np.interp(
            steps, np.concatenate(([0.0], lines["step"])), np.concatenate(([0.0], lines[key]))
        )
        for key in ("tokens_seen", "masked_tokens", "seconds")
    }
    flops = cost.flops(logged["tokens_seen"], logged["masked_tokens"])
    return {"step": steps.astype(float), **logged, "flops": flops}
