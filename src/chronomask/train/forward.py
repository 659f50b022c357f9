"""One micro-batch: rows are masked, run through the model, and their losses summed per class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from transformers import PreTrainedModel

from chronomask.masking.masker import Masker
from chronomask.model.attention import AttentionScope, backbone_inputs, position_offset
from chronomask.model.head import logits_at, token_losses
from chronomask.types import ClassTally, MaskedBatch, Rows

__all__ = ["Forward", "Part", "as_class_tally", "rows_at_fault", "tally"]

Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True, slots=True)
class Part:
    """One micro-batch, masked and on the device; ``rows`` stay on the host."""

    rows: Rows
    batch: MaskedBatch
    inputs: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Forward:
    """How this run turns rows into losses: what stays the same from batch to batch."""

    model: PreTrainedModel
    device: torch.device
    precision: Precision
    attention: AttentionScope
    pad_token_id: int
    compiled: str | None = None
    """backend of ``torch.compile`` for the head; the backbone is compiled in place"""

    def mask(self, rows: Rows, masker: Masker, progress: float) -> Part:
        """Mask host rows at ``progress`` and send them to the run's device.

        Masking on the host knows how many tokens are predicted without asking the device.
        """
        batch = masker(rows, progress).to(self.device)
        first = position_offset(self.model)
        inputs = backbone_inputs(rows, self.attention, self.pad_token_id, first, self.device)
        return Part(rows, batch, inputs)

    def losses(self, part: Part) -> tuple[torch.Tensor, torch.Tensor]:
        """Loss float32 [N] in nats of every predicted token, and whether it was right, bool [N].

        A token is right if no other has a higher logit.
        """
        batch = part.batch
        bf16 = self.precision == "bf16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=bf16):
            logits = logits_at(
                self.model, batch.input_ids, batch.positions, part.inputs, self.compiled
            )
        return token_losses(logits.float(), batch.targets)


def tally(
    classes: torch.Tensor, loss: torch.Tensor, correct: torch.Tensor, num_classes: int
) -> torch.Tensor:
    """float64 [3, C]: loss sum, count and number right of each class; sums add up exactly enough.

    One tensor, so that micro-batches are added and processes summed in one go; counts are exact in
    float64 up to 2⁵³.
    """
    values = torch.stack((loss.detach().double(), torch.ones_like(loss).double(), correct.double()))
    out = torch.zeros(3, num_classes, dtype=torch.float64, device=loss.device)
    return out.index_add_(1, classes.long(), values)


def as_class_tally(sums: torch.Tensor) -> ClassTally:
    """The :class:`ClassTally` of :func:`tally`'s sums."""
    return ClassTally(loss_sum=sums[0], count=sums[1].long(), correct=sums[2].long())


def rows_at_fault(parts: Sequence[Part], losses: Sequence[torch.Tensor]) -> list[int]:
    """Row ids with a loss that is not finite; ``losses`` are those of ``parts``, in order."""
    found: list[int] = []
    for part, values in zip(parts, losses, strict=True):
        positions = part.batch.positions[~values.isfinite()].cpu().numpy()
        found += part.rows.row_id[np.unique(positions // part.rows.row_length)].tolist()
    return found
