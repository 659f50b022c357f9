"""From a model's logits to losses per predicted token, and to one step's tally per class."""

from __future__ import annotations

import torch

from chronomask.errors import UsageError
from chronomask.masking.masker import Masker
from chronomask.types import ClassTally, MaskedBatch

__all__ = ["StepTally", "score"]


def score(logits: torch.Tensor, masked: MaskedBatch) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss and correctness of every predicted token.

    ``logits`` [B, T, V], or [N, V] of the predicted tokens alone. Gives float32 [N], cross-entropy in
    nats with its graph, and bool [N]. Raises UsageError for logits of another shape.
    """
    flat = logits.flatten(0, -2)
    if flat.shape[0] == masked.input_ids.numel():
        flat = flat[masked.positions]
    elif flat.shape[0] != masked.num_predicted:
        raise UsageError(
            f"logits of shape {tuple(logits.shape)} fit neither the batch "
            f"{tuple(masked.input_ids.shape)} nor its {masked.num_predicted} predicted tokens"
        )
    losses = torch.nn.functional.cross_entropy(flat.float(), masked.targets, reduction="none")
    return losses, flat.detach().argmax(-1) == masked.targets


class StepTally:
    """Losses per class, gathered over the micro-batches and ranks of one optimiser step.

    Stays on the device of the losses; nothing waits for it.
    """

    def __init__(self, masker: Masker) -> None:
        self.masker = masker
        self._sums: torch.Tensor | None = None

    def add(self, masked: MaskedBatch, losses: torch.Tensor, correct: torch.Tensor) -> None:
        """Take in one micro-batch's :func:`score`."""
        classes = self.masker.feedback_class(masked).to(torch.int64)
        if self._sums is None:
            shape = 3, self.masker.num_feedback_classes
            self._sums = torch.zeros(shape, dtype=torch.float64, device=losses.device)
        values = (losses.detach(), torch.ones_like(losses), correct)
        for sums, value in zip(self._sums, values, strict=True):
            sums.index_add_(0, classes, value.to(torch.float64))

    def close(self) -> ClassTally:
        """The step's tally, pooled over all ranks when torch.distributed runs; empties this one.

        All ranks must call it at the same step. Raises UsageError when nothing was added.
        """
        sums, self._sums = self._sums, None
        if sums is None:
            raise UsageError("no losses were tallied in this step; call add() for each micro-batch")
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(sums)
        return ClassTally(sums[0], sums[1].to(torch.int64), sums[2].to(torch.int64))
