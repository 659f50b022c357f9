"""One micro-batch: rows are masked, run through the model, and their losses summed per class."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from chronomask.masking.masker import Masker
from chronomask.masking.tally import weighted_sum
from chronomask.model.attention import AttentionScope, backbone_inputs, position_offset
from chronomask.model.device import autocast
from chronomask.model.head import logits_at, token_losses
from chronomask.types import MaskedBatch, Precision, Rows

__all__ = ["Forward", "Part", "objective", "rows_at_fault"]

LogitsAt = Callable[
    [PreTrainedModel, torch.Tensor, torch.Tensor, Mapping[str, Any], str | None], torch.Tensor
]
"""What :func:`~chronomask.model.head.logits_at` is."""


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
    tokens: int | None = None
    """tokens of a full micro-batch where the model is compiled: rows of padding bring smaller ones to a
    quarter, a half, three quarters or all of it, so that a warm-up compiles four sizes at most; None: no
    padding"""
    logits_at: LogitsAt = logits_at
    """how logits are computed: by a whole model, or by one shared out over processes"""

    def mask(self, rows: Rows, masker: Masker, progress: float) -> Part:
        """Mask host rows at ``progress`` and send them to the run's device.

        Masking on the host knows how many tokens are predicted without asking the device.
        """
        return self.place(rows, masker(rows, progress))

    def place(self, rows: Rows, batch: MaskedBatch) -> Part:
        """Host rows, masked already, on the run's device."""
        shaped = rows
        if self.tokens is not None:
            shaped = rows.pad_to(self._room_for(rows), self.pad_token_id)
            more = ((0, shaped.num_rows - rows.num_rows), (0, 0))
            ids = np.pad(batch.input_ids, more, constant_values=self.pad_token_id)
            batch = replace(batch, input_ids=ids)
        inputs = backbone_inputs(
            shaped,
            self.attention,
            self.pad_token_id,
            position_offset(self.model),
            self.device,
            uniform=self.tokens is not None,
        )
        return Part(rows, batch.to(self.device), inputs)

    def _room_for(self, rows: Rows) -> int:
        """Rows of the smallest of the four sizes that holds these; themselves if none does."""
        assert self.tokens is not None
        full = self.tokens // rows.row_length
        quarter = -(-full // 4)
        return max(rows.num_rows, min(full, -(-rows.num_rows // quarter) * quarter))

    def losses(self, part: Part) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """What :func:`~chronomask.model.head.token_losses` says of every predicted token."""
        batch = part.batch
        # Weights that are bfloat16 themselves need no casts, and norms are to give bfloat16 as well.
        casting = "fp32" if self.model.dtype is torch.bfloat16 else self.precision
        with autocast(self.device, casting):
            logits = self.logits_at(
                self.model, batch.input_ids, batch.positions, part.inputs, self.compiled
            )
        return token_losses(logits.float(), batch.targets)


def objective(
    losses: torch.Tensor,
    log_z: torch.Tensor,
    batch: MaskedBatch,
    *,
    divisor: float,
    z_loss: float,
    predicted: float,
) -> torch.Tensor:
    """What a micro-batch adds to what its step minimises: 0-d, with its graph.

    The weighted sum of its ``losses`` [N] over ``divisor`` and, with a coefficient ``z_loss``, that times
    the sum of log² Z [N] over ``predicted`` (PaLM, arXiv 2204.02311, section 5). Both numbers are those of
    the whole step, so that it does not matter how the step is cut. Loss weights do not weigh log² Z.
    """
    total = weighted_sum(losses, batch) / divisor
    return total + z_loss * (log_z.square().sum() / predicted) if z_loss else total


def rows_at_fault(parts: Sequence[Part], losses: Sequence[torch.Tensor]) -> list[int]:
    """Row ids with a loss that is not finite; ``losses`` are those of ``parts``, in order."""
    found: list[int] = []
    for part, values in zip(parts, losses, strict=True):
        positions = part.batch.positions[~values.isfinite()].cpu().numpy()
        found += part.rows.row_id[np.unique(positions // part.rows.row_length)].tolist()
    return found
