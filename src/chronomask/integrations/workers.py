"""Masking in loader workers: possible when everything a mask depends on travels with the sample.

A worker runs ahead of training, so it cannot know the current step; here the sampler hands out the
step together with each row, and the worker masks on numpy arrays with that step's progress. What a
worker can never know is what the model has just learnt: content schedules and ratios that respond to
losses are refused here. Prefer masking in the training process, which has no such limit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from chronomask.config import kind_of
from chronomask.data.order import visits
from chronomask.errors import UsageError
from chronomask.integrations.order import (
    ReadByItsLoader,
    check_rows,
    number_of_rows,
    rank_and_world,
    refuse_other_orders,
    refuse_several,
)
from chronomask.masking.masker import Masker
from chronomask.masking.rows import RowCollator

__all__ = ["MaskedLoader", "StepBatches", "SteppedRows", "WorkerMasking"]

Place = tuple[int, int, int]
"""(step, epoch, row of the data set)."""


class MaskedLoader(DataLoader[dict[str, torch.Tensor]]):
    """The batches of every step of a training, masked in the loader's workers.

    ``dataset``: features by number, as a list is; ``masker``: masking that learns nothing from losses;
    ``batch_size``: rows of a step, which ranks of torch.distributed share out; ``num_steps``: the length
    of training; ``collate_fn``: a :class:`~chronomask.masking.rows.RowCollator`; ``seed`` keys the order
    of the rows; to resume, start at ``start_step``. ``options`` are those of a DataLoader that do not say
    which rows come when. A batch is what the model takes: ``input_ids``, ``attention_mask`` and ``labels``
    (−100 = not predicted), all int64 [B, T], and ``token_type_ids`` where some are not 0. Raises
    UsageError for masking that learns from losses, and for options of another order, such as ``shuffle``
    and ``in_order=False``.
    """

    def __init__(
        self,
        dataset: Any,
        masker: Masker,
        *,
        batch_size: int,
        num_steps: int,
        collate_fn: RowCollator,
        seed: int = 0,
        start_step: int = 0,
        **options: Any,
    ) -> None:
        """Join the sampler that knows each row's step with the collator that masks for it."""
        refuse_other_orders("MaskedLoader", "seed and step", options)
        places = _LoaderBatches(
            number_of_rows(dataset),
            batch_size=batch_size,
            num_steps=num_steps,
            seed=seed,
            start_step=start_step,
        )
        self._places = places
        super().__init__(
            SteppedRows(dataset),
            batch_sampler=places,
            collate_fn=WorkerMasking(collate_fn, masker, num_steps),
            **options,
        )

    def __iter__(self) -> Any:
        self._places.allow_reading()
        return super().__iter__()


class StepBatches(Sampler[list[Place]]):
    """The places of every step's rows, a pure function of (seed, step): a ``batch_sampler``.

    Epochs are keyed permutations of the rows; a batch may reach into the next one. Ranks of torch.distributed
    share the rows of every step out. To resume, start at ``start_step``. Raises UsageError where they cannot
    be shared evenly.
    """

    def __init__(
        self, num_rows: int, *, batch_size: int, num_steps: int, seed: int = 0, start_step: int = 0
    ) -> None:
        if num_rows < 1 or batch_size < 1:
            raise UsageError(f"{num_rows} rows in batches of {batch_size}: both must be 1 or more")
        if not 0 <= start_step <= num_steps:
            raise UsageError(f"start_step {start_step} is not between 0 and {num_steps} steps")
        self.num_rows = num_rows
        self.batch_size = batch_size
        self.num_steps = num_steps
        self.seed = seed
        self.start_step = start_step

    def __len__(self) -> int:
        return self.num_steps - self.start_step

    def __iter__(self) -> Iterator[list[Place]]:
        rank, world = rank_and_world()
        if self.batch_size % world:
            raise UsageError(
                f"batch_size is {self.batch_size}, the rows of a step, and {world} processes share them: "
                f"make it a multiple of {world}"
            )
        for step in range(self.start_step, self.num_steps):
            numbers = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
            rows, epochs = visits(self.num_rows, self.seed, numbers)
            places = [(step, e, r) for e, r in zip(epochs.tolist(), rows.tolist(), strict=True)]
            yield places[rank::world]


class _LoaderBatches(ReadByItsLoader, StepBatches):
    """The places of a :class:`MaskedLoader`."""


class SteppedRows(Dataset[dict[str, Any]]):
    """A map-style data set of features, read at :data:`Place` instead of an index."""

    def __init__(self, dataset: Any) -> None:
        """Raises UsageError as :func:`with_row_ids` does."""
        refuse_several(dataset, "the data set")
        check_rows(dataset)
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, place: Place) -> dict[str, Any]:
        step, epoch, row = place
        return {**self.dataset[row], "row_id": row, "step": step, "epoch": epoch}


class WorkerMasking:
    """A collator that masks: features with ``step`` and ``epoch`` → the model's inputs.

    ``num_steps`` is the length of training.
    """

    def __init__(self, collate: RowCollator, masker: Masker, num_steps: int) -> None:
        """Raises UsageError for masking that learns from losses, or weighs them, or counts tokens."""
        if masker.config.progress != "steps":
            raise UsageError(
                f"masking.progress is '{masker.config.progress}', and loader workers know steps alone: set "
                "masking.progress to steps"
            )
        content, ratio = masker.config.content, masker.config.ratio
        if content.learns:
            raise UsageError(
                f"content schedule '{kind_of(content)}' learns from the model's losses, which loader workers "
                "never see: mask in the training process, or use content kind 'none' or 'fixed'"
            )
        if ratio.watches is not None:
            raise UsageError(
                f"a '{kind_of(ratio)}' ratio follows the loss, which loader workers never see: mask in the "
                "training process, or use a schedule of progress alone"
            )
        if content.look_ahead is not None:
            raise UsageError(
                f"content schedule '{kind_of(content)}' asks the model for scores of the rows, and loader "
                "workers have no model: mask in the training process, or use content kind 'scores'"
            )
        if masker.config.weighs_losses:
            raise UsageError(
                "loss_weight and loss_per of this masking weigh the losses of rows, and batches of labels "
                "carry no weights: mask in the training process, or leave them out"
            )
        if num_steps < 1:
            raise UsageError(f"num_steps is {num_steps}; it must be 1 or more")
        self.collate = collate
        self.masker = masker
        self.num_steps = num_steps

    def __call__(self, features: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """``input_ids``, ``attention_mask``, ``labels`` int64 [B, T], −100 = not predicted; and
        ``token_type_ids`` where some are not 0.
        """
        steps = {int(feature.get("step", -1)) for feature in features}
        step = steps.pop()
        if steps or step < 0:
            raise UsageError(
                "a batch must carry one step, the same in all of its rows: read SteppedRows with a "
                "StepBatches batch_sampler, as MaskedLoader does"
            )
        epochs = [feature["epoch"] for feature in features]
        progress = min(1.0, step / self.num_steps)
        rows = self.masker.rows_of(self.collate(features), progress, epochs)
        masked = self.masker(rows, progress)
        return {**masked.inputs(), "labels": masked.labels}
