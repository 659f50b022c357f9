"""What masking did since somebody asked: ratios and losses, as sums."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from chronomask.train.forward import Part

__all__ = ["Ratios"]


@dataclass(slots=True)
class Ratios:
    """What masking did, summed: as many numbers however long nobody asks.

    Those that may lie on a device stay there, and nothing waits for them.
    """

    rows: float = 0
    causal_rows: float = 0
    predicted: float = 0
    maskable: Any = 0
    asked: Any = 0.0
    causal_predicted: int = 0
    causal_loss: Any = 0.0

    @property
    def counts(self) -> tuple[Any, ...]:
        """What masking says before the model has run: all but the losses."""
        return self.rows, self.causal_rows, self.predicted, self.maskable, self.asked

    def add_counts(self, counts: Sequence[Any]) -> None:
        """Take in the :attr:`counts` of a step."""
        rows, causal_rows, predicted, maskable, asked = counts
        self.rows += rows
        self.causal_rows += causal_rows
        self.predicted += predicted
        self.maskable = self.maskable + maskable
        self.asked = self.asked + asked

    def note(self, part: Part) -> None:
        """Take in rows that were masked, or are causal."""
        batch, num_rows = part.batch, part.rows.num_rows
        self.rows += num_rows
        if part.causal:
            self.causal_rows += num_rows
            return
        maskable: Any = batch.num_maskable
        if isinstance(maskable, torch.Tensor):
            maskable = maskable.double()
        self.predicted += batch.num_predicted
        self.maskable = self.maskable + maskable
        self.asked = self.asked + batch.masking_ratio * num_rows

    def note_causal_loss(self, number: int, losses: torch.Tensor) -> None:
        """Take in the losses of ``number`` next tokens."""
        self.causal_predicted += number
        self.causal_loss = self.causal_loss + losses.detach().double().sum()
