"""Loss on held-out rows at a fixed 15 %, uniform over tokens, with the same masks for every run.

The masks are keyed by row and by nothing of the run, so the losses of two runs on the same data are
those of the same predictions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import torch

from chronomask.data.folder import PreparedSplit
from chronomask.data.loader import validation_batches
from chronomask.data.mixture import MixedSplit
from chronomask.masking.masker import Masker
from chronomask.masking.tally import class_means, class_sums
from chronomask.train.config import ValidationConfig
from chronomask.train.distributed import World
from chronomask.train.forward import Forward

__all__ = ["VALIDATION_RATIO", "validate"]

VALIDATION_RATIO = 0.15
"""The masking ratio of every validation, of every run."""


@torch.no_grad()
@torch.compiler.set_stance("force_eager")  # other shapes than training's: not worth compiling
def validate(
    forward: Forward,
    masker: Masker,
    split: PreparedSplit | MixedSplit,
    class_names: Sequence[str],
    config: ValidationConfig,
    world: World,
) -> dict[str, Any] | None:
    """Loss (nats per predicted token), accuracy, and both per class; None without held-out rows.

    Every process takes its share of the batches; all get the result. ``masker``: from
    :func:`~chronomask.masking.masker.fixed_masker`.
    """
    sums = torch.zeros(3, len(class_names), dtype=torch.float64, device=world.device)
    forward = replace(forward, compiled=None)
    forward.model.eval()
    batches = validation_batches(split, config.rows, config.batch_rows)
    while turn := list(islice(batches, world.size)):
        # Left without a batch in the last turn, a process runs one again: if the model is shared out,
        # the others need it to.
        part = forward.mask(turn[min(world.rank, len(turn) - 1)], masker, 0.0)
        loss, correct = forward.losses(part)
        if world.rank < len(turn):
            sums += class_sums(part.batch.target_class, loss, correct, len(class_names))
    forward.model.train()
    loss_sum, count, correct_sum = world.sum(sums).sum(1).tolist()
    if not count:
        return None
    return {
        "masking_ratio": VALIDATION_RATIO,
        "loss": loss_sum / count,
        "accuracy": correct_sum / count,
        "num_predicted": int(count),
        **class_means(sums, class_names),
    }
