"""Time-variant masking in a Lightning ``Trainer``: one callback, and rows that loaders leave unmasked.

The callback masks each batch in place in the training process, just before ``training_step`` gets it,
with the progress and the class weights of that optimiser step.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, MutableMapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from chronomask.errors import UsageError, need
from chronomask.integrations.step import MicroBatch, StepMasking
from chronomask.masking.config import MaskingConfig
from chronomask.model.attention import without_cudnn
from chronomask.types import MaskedBatch

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
    from lightning.pytorch.callbacks import GradientAccumulationScheduler
    from lightning.pytorch.trainer.states import TrainerFn
except ModuleNotFoundError:
    need("lightning.pytorch", "lightning", "TimeVariantMasking")
    raise

__all__ = ["TimeVariantMasking"]

logger = logging.getLogger(__name__)


class TimeVariantMasking(Callback):
    """Masks training batches by schedule, and validation and test batches at a fixed 15 %.

    ``masking``: how much, what and how: a config, a dict of its fields, or the path of one as YAML; or an
    arm, such as "arms/gpt-bert": the keys ``masking``, ``objective``, ``late_masks`` and ``z_loss`` of a
    run's config. Batches must come from a :class:`~chronomask.masking.rows.RowCollator`; the module then gets
    ``input_ids``, ``attention_mask`` and ``labels``, and ``token_type_ids`` where some are not 0, to be
    passed to the model as they are. With a content schedule that learns from losses, ``training_step`` must
    return a dictionary with ``loss`` and ``logits`` [B, T, V], or the :meth:`loss` of this callback; where
    the loss is another than the mean over labels, it must be the latter. ``class_names``: names of the
    classes in the data's ``token_class`` column. ``monitor``: the logged validation loss that
    a responsive ratio watches.

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
        """Raises UsageError for what no loop but chronomask's own can carry."""
        self.masking = StepMasking(masking, tokenizer, class_names, seed)
        self.monitor = monitor
        self._num_steps = 0
        self._step = self._epoch = 0
        self._micro: MicroBatch | None = None
        self._rows: dict[str, Any] = {}
        self._observed = False
        self._awaits_validation = False  # whether one follows the last batch, and was not seen
        self._kernels = ExitStack()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forget what a training that was broken off was about to see; a checkpoint is read after this."""
        self._awaits_validation = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Raises UsageError when the length of training is unknown, or a step is not seen as a whole.

        Warns where a checkpoint was saved before a validation that the ratio watches: Lightning does not run
        it again.
        """
        num_steps = _number_of_steps(trainer)
        if not math.isfinite(num_steps) or num_steps < 1:
            raise UsageError(
                "the number of training steps is unknown, and with it the progress that schedules "
                "follow: set max_steps, or max_epochs with a loader that has a length"
            )
        if self.masking.masker.watches_validation and not trainer.enable_validation:
            raise UsageError(
                "masking.ratio watches the validation loss, and there is no validation: give fit() a loader "
                "for it and the module a validation_step, or set masking.ratio.watch='training'"
            )
        ahead = self.masking.masker.config.content.look_ahead
        parts = trainer.accumulate_grad_batches * trainer.world_size
        if ahead is not None and ahead.centred and parts > 1:
            raise UsageError(
                "masking.content compares scores with their mean over a step, and Lightning shows one of its "
                f"{parts} micro-batches at a time: set masking.content.reference to a number of nats, or "
                "accumulate_grad_batches and devices to 1"
            )
        if self._awaits_validation and self.masking.masker.watches_validation:
            logger.warning(
                "the checkpoint of step %d was saved before the validation of that step, which Lightning "
                "does not run again and the ratio never sees, so that masks may differ from those of a "
                "training without a stop: let ModelCheckpoint save when a validation ends, as it does "
                "without every_n_train_steps, or after steps that no validation follows",
                trainer.global_step,
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
        _check_batch(batch)
        self._step, self._epoch = trainer.global_step, trainer.current_epoch
        self._observed = False
        if not self.masking.runs_model:
            self._micro = self._begin(batch)
            _mask_in_place(batch, self._micro.parts[0].batch)
            return
        self._micro, self._rows = None, dict(batch)  # masked once the model is known
        names = ("input_ids", "attention_mask")
        shown = {name: batch[name] for name in names if name in batch}
        batch.clear()
        batch.update(shown, labels=shown["input_ids"])

    def _begin(self, batch: Any) -> MicroBatch:
        """The batch masked as the step wants it; of what its loss is divided by, it knows its own part."""
        progress = min(1.0, self._step / self._num_steps)
        return self.masking.begin_step([batch], progress, self._epoch, pooled=False)[0]

    def loss(self, model: Any) -> torch.Tensor:
        """The loss of the batch that ``training_step`` is given, 0-d with its graph, whatever is minimised.

        ``model``: the module's model of transformers. Raises UsageError for one that cannot be trained so.
        """
        self.masking.attach(model, self.masking.masker.content.device)
        micro = self._begin(self._rows) if self._micro is None else self._micro
        self._observed = True
        return self.masking.loss(model, micro)

    def on_before_backward(
        self, trainer: Trainer, pl_module: LightningModule, loss: torch.Tensor
    ) -> None:
        """Raises UsageError, before any update, when a module computes a loss that is not the one asked."""
        if self.masking.has_own_loss and not self._observed:
            raise UsageError(
                "what is minimised here is not the mean loss of a model's labels (loss_weight, loss_per, "
                "z_loss, objective, late_masks or content 'model_scores'), and the module computed its own: "
                "let training_step return masking.loss(self.model), where masking is this callback"
            )

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: torch.Tensor | Mapping[str, Any] | None,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Raises UsageError when losses are needed and the module returned no logits."""
        if self.masking.masker.needs_feedback and not self._observed and self._micro is not None:
            if not isinstance(outputs, Mapping) or "logits" not in outputs:
                raise UsageError(
                    "this masking learns from the model's losses: let training_step return "
                    "{'loss': loss, 'logits': logits}, or the loss of this callback"
                )
            self.masking.loss_of(self._micro, [outputs["logits"].detach()])
        self._micro = None
        self._awaits_validation = _validation_follows(trainer, batch_idx)
        if trainer.global_step == self._step:  # more micro-batches of this step are to come
            return
        self.masking.end_step()
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
        _check_batch(batch)
        _mask_in_place(batch, self.masking.mask_fixed(batch))

    def on_test_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        _check_batch(batch)
        _mask_in_place(batch, self.masking.mask_fixed(batch))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Raises UsageError when a responsive ratio watches a loss that was not logged."""
        fitting = trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking
        if not fitting or not self.masking.masker.watches_validation:
            return
        self._awaits_validation = False
        if self.monitor not in trainer.callback_metrics:
            raise UsageError(
                f"masking.ratio watches {self.monitor!r}, which validation_step did not log; "
                f"logged: {', '.join(sorted(trainer.callback_metrics)) or 'nothing'}"
            )
        # Logged without sync_dist it is the mean of this process's batches alone. It is reduced in place.
        own = trainer.callback_metrics[self.monitor].to(trainer.strategy.root_device, copy=True)
        self.masking.masker.observe_validation(float(trainer.strategy.reduce(own)))

    def state_dict(self) -> dict[str, Any]:
        """All state: tensors and plain text; and whether the validation that the ratio watches is to come."""
        watches = self.masking.masker.watches_validation
        awaits = {"awaits_validation": self._awaits_validation} if watches else {}
        return {
            "settings": self.masking.settings(),
            "tensors": self.masking.state_dict(),
            **awaits,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore :meth:`state_dict`; raises UsageError when it is of other settings."""
        tensors, settings = state_dict["tensors"], state_dict["settings"]
        self.masking.load_state_dict(tensors, settings, where="the checkpoint")
        self._awaits_validation = state_dict.get("awaits_validation", False)


def _number_of_steps(trainer: Trainer) -> int | float:
    """Steps of the whole training; infinity where the trainer does not know them.

    Its own estimate takes the first epoch's number of micro-batches a step for all epochs.
    """
    # The trainer sets this attribute only once it has been constructed.
    callbacks = getattr(trainer, "callbacks", [])
    growing = (each for each in callbacks if isinstance(each, GradientAccumulationScheduler))
    scheduler = next(growing, None)
    batches, epochs = trainer.num_training_batches, trainer.max_epochs
    estimated = trainer.estimated_stepping_batches
    if scheduler is None or epochs is None or epochs < 0 or not math.isfinite(batches):
        return estimated
    number = sum(
        math.ceil(batches / scheduler.get_accumulate_grad_batches(epoch)) for epoch in range(epochs)
    )
    return number if trainer.max_steps < 0 else min(number, trainer.max_steps)


def _validation_follows(trainer: Trainer, batch_idx: int) -> bool:
    """Whether Lightning validates after this batch of training; not foreseen where it goes by the clock."""
    epochs, every = trainer.check_val_every_n_epoch, trainer.val_check_batch
    if not trainer.enable_validation or every is None:
        return False
    if epochs is not None and (trainer.current_epoch + 1) % epochs:
        return False
    if math.isinf(every):  # of a stream
        return trainer.is_last_batch
    number = trainer.fit_loop.total_batch_idx if epochs is None else batch_idx
    return (number + 1) % every == 0


def _check_batch(batch: Any) -> None:
    """Raise UsageError for a batch that cannot be masked in place."""
    if not isinstance(batch, MutableMapping):
        raise UsageError(
            f"a batch is of type {type(batch).__name__}, and this callback masks a dictionary in place: let "
            "the loader give one with 'input_ids', as chronomask.RowCollator does"
        )


def _mask_in_place(batch: dict[str, Any], masked: MaskedBatch) -> None:
    """Turn a collated batch into the model's inputs, in place: the module holds the same object."""
    batch.clear()
    batch.update(masked.inputs(), labels=masked.labels)
