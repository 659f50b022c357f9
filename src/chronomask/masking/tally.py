"""From a model's logits to losses per predicted token, and to sums of them per class.

Loss, count and number of right predictions of each class are summed here and nowhere else, as one
float64 tensor [3, C]: micro-batches are added and processes summed in one go, and counts are exact up
to 2⁵³. Letters: B rows, T tokens, N predicted tokens, C classes, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from chronomask.errors import UsageError
from chronomask.types import ClassTally, MaskedBatch

__all__ = [
    "StepTally",
    "class_means",
    "class_sums",
    "class_tally",
    "logits_of_targets",
    "score",
    "weighted_sum",
]


def score(logits: torch.Tensor, batch: MaskedBatch) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss and correctness of every predicted token.

    ``logits`` [B, T, V], or [N, V] of the predicted tokens alone. Gives float32 [N], cross-entropy in
    nats with its graph, and bool [N]. Raises UsageError for logits of another shape; where they lie on a GPU,
    a token beyond V is torch's error.
    """
    flat = logits_of_targets(logits, batch)
    targets = torch.as_tensor(batch.targets, device=logits.device)
    # On a GPU this would wait for it.
    if targets.device.type == "cpu" and targets.numel() and int(targets.max()) >= flat.shape[-1]:
        raise UsageError(
            f"logits of shape {tuple(logits.shape)} have no place for the token {int(targets.max())}: the "
            "model has fewer tokens than the tokenizer; give it as many with "
            "model.resize_token_embeddings(len(tokenizer))"
        )
    losses = torch.nn.functional.cross_entropy(flat.float(), targets, reduction="none")
    return losses, flat.detach().argmax(-1) == targets


def logits_of_targets(logits: torch.Tensor, batch: MaskedBatch) -> torch.Tensor:
    """The logits [N, V] of the predicted tokens, of all [B, T, V] or of these alone.

    Raises UsageError for logits of another shape.
    """
    if not isinstance(logits, torch.Tensor):
        raise UsageError(
            f"logits is of type {type(logits).__name__}; give the model's logits, "
            "such as model(**batch.inputs()).logits"
        )
    flat = logits.flatten(0, -2)
    num_tokens = batch.input_ids.shape[0] * batch.input_ids.shape[1]
    if flat.shape[0] == num_tokens:
        flat = flat[torch.as_tensor(batch.positions, device=logits.device)]
    elif flat.shape[0] != batch.num_predicted:
        raise UsageError(
            f"logits of shape {tuple(logits.shape)} fit neither the batch "
            f"{tuple(batch.input_ids.shape)} nor its {batch.num_predicted} predicted tokens"
        )
    return flat


def weighted_sum(losses: torch.Tensor, batch: MaskedBatch) -> torch.Tensor:
    """The losses [N] of :func:`score` summed with the batch's weights: 0-d, with its graph.

    Over all micro-batches and ranks of a step, the sum of these divided by the sum of
    ``batch.loss_divisor`` is what training minimises, however the step is cut.
    """
    if batch.loss_weights is None:
        return losses.sum()
    return (losses * torch.as_tensor(batch.loss_weights, device=losses.device)).sum()


def class_sums(
    classes: Any, losses: torch.Tensor, correct: torch.Tensor, num_classes: int
) -> torch.Tensor:
    """float64 [3, C] on the losses' device: loss sum, count and number right of each class.

    ``classes`` integer [N] below C; ``losses`` [N] in nats; ``correct`` bool [N].
    """
    index = torch.as_tensor(classes, device=losses.device).long()
    values = torch.stack(
        (losses.detach().double(), torch.ones_like(losses, dtype=torch.float64), correct.double())
    )
    sums = torch.zeros(3, num_classes, dtype=torch.float64, device=losses.device)
    return sums.index_add_(1, index, values)


def class_tally(sums: torch.Tensor) -> ClassTally:
    """The :class:`~chronomask.types.ClassTally` of :func:`class_sums`' float64 [3, C]."""
    return ClassTally(loss_sum=sums[0], count=sums[1].long(), correct=sums[2].long())


def class_means(sums: torch.Tensor, class_names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """``class_loss``, ``class_accuracy`` and ``class_count`` of the classes that were predicted.

    ``sums``: :func:`class_sums`' float64 [3, C].
    """
    loss, count, correct = sums.tolist()
    seen = [(i, name) for i, name in enumerate(class_names) if count[i]]
    return {
        "class_loss": {name: loss[i] / count[i] for i, name in seen},
        "class_accuracy": {name: correct[i] / count[i] for i, name in seen},
        "class_count": {name: int(count[i]) for i, name in seen},
    }


class StepTally:
    """The sums of one optimiser step, gathered over its micro-batches and all ranks.

    They stay on the device of the losses; nothing waits for them.
    """

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self._sums: torch.Tensor | None = None

    def add(self, classes: Any, losses: torch.Tensor, correct: torch.Tensor) -> None:
        """Take in one micro-batch: class, loss and correctness of each predicted token, all [N]."""
        sums = class_sums(classes, losses, correct, self.num_classes)
        self._sums = sums if self._sums is None else self._sums.add_(sums)

    def discard(self) -> None:
        """Forget what was added since the last :meth:`close`."""
        self._sums = None

    def close(self) -> ClassTally:
        """The step's tally, pooled over all ranks where torch.distributed runs; empties this one.

        All ranks must call it at the same step. Raises UsageError when nothing was added.
        """
        sums, self._sums = self._sums, None
        if sums is None:
            raise UsageError(
                "no losses were observed in this step; call masker.observe(batch, losses, correct), or the "
                "loss of a StepMasking, after each micro-batch, before end_step()"
            )
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(sums)
        return class_tally(sums)
