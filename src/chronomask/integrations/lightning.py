"""Time-variant masking in a Lightning ``Trainer``: one callback, and rows that loaders leave unmasked.

The callback masks each batch in place in the training process, just before ``training_step`` gets it,
with the progress and the class weights of that optimiser step.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from chronomask.errors import UsageError
from chronomask.integrations.step import StepMasking
from chronomask.masking.masker import MaskingConfig
from chronomask.types import MaskedBatch

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["TimeVariantMasking"]


class TimeVariantMasking(Callback):
    """Masks training batches by schedule, and validation and test batches at a fixed 15 %.

    Batches must come from a :class:`~chronomask.integrations.rows.RowCollator`; the module then gets
    ``input_ids``, ``attention_mask`` and ``labels``, to be passed to the model as they are. With a
    content schedule that learns from losses, ``training_step`` must return a dictionary with
    ``loss`` and ``logits`` [B, T, V]. ``monitor``: the logged validation loss that a responsive ratio
    watches.

    Under gradient accumulation Lightning averages the losses of the micro-batches, whatever they
    predict; feedback is pooled over them and over ranks.
    """

    def __init__(
        self,
        masking: MaskingConfig,
        tokenizer: PreTrainedTokenizerBase,
        class_names: Sequence[str] = ("none",),
        seed: int = 0,
        monitor: str = "val_loss",
    ) -> None:
        self.masking = StepMasking(masking, tokenizer, class_names, seed)
        self.monitor = monitor
        self._num_steps = 0
        self._step = 0
        self._masked: MaskedBatch | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Raises UsageError when the length of training is unknown."""
        num_steps = trainer.estimated_stepping_batches
        if not math.isfinite(num_steps) or num_steps < 1:
            raise UsageError(
                "the number of training steps is unknown, and with it the progress that schedules "
                "follow: set max_steps, or max_epochs with a loader that has a length"
            )
        self._num_steps = int(num_steps)
        self.masking.masker.to(pl_module.device)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._step = trainer.global_step
        progress = min(1.0, self._step / self._num_steps)
        self._masked = self.masking.mask(batch, trainer.current_epoch, progress)
        _hide(batch, self._masked)

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: torch.Tensor | Mapping[str, Any] | None,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Raises UsageError when losses are needed and the module returned no logits."""
        if self.masking.needs_feedback and self._masked is not None:
            if not isinstance(outputs, Mapping) or "logits" not in outputs:
                raise UsageError(
                    "this masking learns from the model's losses: let training_step return "
                    "{'loss': loss, 'logits': logits}"
                )
            self.masking.losses(self._masked, outputs["logits"].detach())
        self._masked = None
        if trainer.global_step == self._step:  # more micro-batches of this step are to come
            return
        self.masking.end_step()
        every = getattr(
            trainer, "log_every_n_steps", 1
        )  # set by the trainer after its construction
        if every and trainer.global_step % every == 0:
            pl_module.log_dict(self.masking.take_ratios())

    def on_validation_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        _hide(batch, self.masking.mask_fixed(batch))

    def on_test_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        _hide(batch, self.masking.mask_fixed(batch))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Raises UsageError when a responsive ratio watches a loss that was not logged."""
        if trainer.sanity_checking or not self.masking.watches_validation:
            return
        if self.monitor not in trainer.callback_metrics:
            raise UsageError(
                f"masking.ratio watches {self.monitor!r}, which validation_step did not log; "
                f"logged: {', '.join(sorted(trainer.callback_metrics)) or 'nothing'}"
            )
        self.masking.observe_validation(float(trainer.callback_metrics[self.monitor]))

    def state_dict(self) -> dict[str, Any]:
        """All state: tensors and plain text."""
        settings = json.dumps(self.masking.settings())
        return {"settings": settings, "tensors": self.masking.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore :meth:`state_dict`; raises UsageError when it is of other settings."""
        settings = json.loads(state_dict["settings"])
        self.masking.load_state_dict(state_dict["tensors"], settings, where="the checkpoint")


def _hide(batch: dict[str, Any], masked: MaskedBatch) -> None:
    """Turn a collated batch into the model's inputs, in place: the module holds the same object."""
    attention_mask = batch["attention_mask"]
    batch.clear()
    batch["input_ids"] = masked.input_ids
    batch["attention_mask"] = attention_mask
    batch["labels"] = masked.labels
