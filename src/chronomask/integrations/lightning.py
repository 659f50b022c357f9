"""Time-variant masking in a Lightning ``Trainer``: one callback, and rows that loaders leave unmasked.

The callback masks each batch in place in the training process, just before ``training_step`` gets it,
with the progress and the class weights of that optimiser step.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from chronomask.errors import UsageError, need
from chronomask.integrations.step import StepMasking
from chronomask.masking.config import MaskingConfig
from chronomask.model.attention import without_cudnn
from chronomask.types import MaskedBatch

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
except ModuleNotFoundError:
    need("lightning.pytorch", "lightning", "TimeVariantMasking")
    raise

__all__ = ["TimeVariantMasking"]


class TimeVariantMasking(Callback):
    """Masks training batches by schedule, and validation and test batches at a fixed 15 %.

    ``masking``: how much, what and how: a config, a dict of its fields, or the path of one as YAML.
    Batches must come from a :class:`~chronomask.masking.rows.RowCollator`; the module then gets
    ``input_ids``, ``attention_mask`` and ``labels``, to be passed to the model as they are. With a
    content schedule that learns from losses, ``training_step`` must return a dictionary with
    ``loss`` and ``logits`` [B, T, V]. ``class_names``: names of the classes in the data's
    ``token_class`` column. ``monitor``: the logged validation loss that a responsive ratio watches.

    Under gradient accumulation Lightning averages the losses of the micro-batches, whatever they
    predict; feedback is pooled over them and over ranks.
    """

    def __init__(
        self,
        masking: MaskingConfig | Mapping[str, Any] | str | Path,
        tokenizer: PreTrainedTokenizerBase,
        class_names: Sequence[str] = ("none",),
        seed: int = 0,
        monitor: str = "val_loss",
    ) -> None:
        """Raises UsageError for masking that weighs losses: the module computes its own."""
        self.masking = StepMasking(masking, tokenizer, class_names, seed)
        if self.masking.masker.config.weighs_losses:
            raise UsageError(
                "loss_weight and loss_per of this masking weigh the losses of rows, and a module computes "
                "its own loss: train with chronomask pretrain, TimeVariantTrainer or a loop of your own, or "
                "leave them out"
            )
        self.monitor = monitor
        self._num_steps = 0
        self._step = 0
        self._masked: MaskedBatch | None = None
        self._kernels = ExitStack()

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
        self._kernels.enter_context(without_cudnn())  # the module's attention may be given a mask

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let torch choose among all its kernels again."""
        self._kernels.close()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """As at the end of training."""
        self._kernels.close()

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._step = trainer.global_step
        progress = min(1.0, self._step / self._num_steps)
        self._masked = self.masking.mask(batch, trainer.current_epoch, progress)
        _mask_in_place(batch, self._masked)

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: torch.Tensor | Mapping[str, Any] | None,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Raises UsageError when losses are needed and the module returned no logits."""
        if self.masking.masker.needs_feedback and self._masked is not None:
            if not isinstance(outputs, Mapping) or "logits" not in outputs:
                raise UsageError(
                    "this masking learns from the model's losses: let training_step return "
                    "{'loss': loss, 'logits': logits}"
                )
            self.masking.observed_losses(self._masked, outputs["logits"].detach())
        self._masked = None
        if trainer.global_step == self._step:  # more micro-batches of this step are to come
            return
        self.masking.masker.end_step()
        # The trainer sets this attribute only once it has been constructed.
        every = getattr(trainer, "log_every_n_steps", 1)
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
        _mask_in_place(batch, self.masking.mask_fixed(batch))

    def on_test_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        _mask_in_place(batch, self.masking.mask_fixed(batch))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Raises UsageError when a responsive ratio watches a loss that was not logged."""
        if trainer.sanity_checking or not self.masking.masker.watches_validation:
            return
        if self.monitor not in trainer.callback_metrics:
            raise UsageError(
                f"masking.ratio watches {self.monitor!r}, which validation_step did not log; "
                f"logged: {', '.join(sorted(trainer.callback_metrics)) or 'nothing'}"
            )
        self.masking.masker.observe_validation(float(trainer.callback_metrics[self.monitor]))

    def state_dict(self) -> dict[str, Any]:
        """All state: tensors and plain text."""
        return {"settings": self.masking.settings(), "tensors": self.masking.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore :meth:`state_dict`; raises UsageError when it is of other settings."""
        tensors, settings = state_dict["tensors"], state_dict["settings"]
        self.masking.load_state_dict(tensors, settings, where="the checkpoint")


def _mask_in_place(batch: dict[str, Any], masked: MaskedBatch) -> None:
    """Turn a collated batch into the model's inputs, in place: the module holds the same object."""
    batch.clear()
    batch.update(masked.inputs(), labels=masked.labels)
