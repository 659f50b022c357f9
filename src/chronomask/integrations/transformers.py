"""Time-variant masking in the Hugging Face ``Trainer``.

The collator pads and carries unmasked rows, so loader workers never meet a schedule. The Trainer
then gathers all micro-batches of an optimiser step before it runs the first of them
(``get_batch_samples``): there they are masked, in the training process, with that step's progress
and class weights, and there the predicted tokens of the whole step are counted. A callback alone
could mask no earlier than inside the model's forward, one micro-batch at a time, when the count
that the loss is divided by has already been fixed; hence a subclass of two overridden methods.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint
from transformers.utils import logging

from chronomask.errors import UsageError
from chronomask.integrations.arm import read_arm
from chronomask.integrations.order import (
    FILLS,
    check_rows,
    fill_up,
    made_on_reading,
    refuse_several,
    share_by_rows,
    with_row_ids,
)
from chronomask.integrations.step import MicroBatch, StepMasking, logits_of
from chronomask.masking.columns import COLUMNS
from chronomask.masking.config import MaskingConfig
from chronomask.masking.rows import RowCollator
from chronomask.masking.tally import score
from chronomask.model.attention import without_cudnn
from chronomask.storage import make_folder
from chronomask.types import MaskedBatch

__all__ = ["MaskingCallback", "TimeVariantTrainer"]

logger = logging.get_logger(__name__)

_TYPES = "token_type_ids"
_MASKED = "masked"
"""Key under which a masked batch travels beside the model's own inputs."""


class MaskingCallback(TrainerCallback):
    """What masking does between batches: feedback once per optimiser step, and from validations.

    :class:`TimeVariantTrainer` adds it by itself. ``epoch``: the visit of the data under way; ``state``: what
    every training begins with, also one that begins anew with smaller batches; None: with what is there;
    ``in_training``: whether a validation is one of a training; ``first_step``: the one it began at.
    """

    def __init__(self, masking: StepMasking) -> None:
        self.masking = masking
        self.epoch = 0
        self.state: dict[str, torch.Tensor] | None = None
        self.in_training = False
        self.first_step = 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Raises UsageError when the ratio waits for validations that never come."""
        if self.masking.masker.watches_validation and args.eval_strategy == "no":
            raise UsageError(
                "masking.ratio watches the validation loss, but eval_strategy is 'no': set "
                "eval_strategy and eval_dataset, or masking.ratio.watch='training'"
            )
        if self.state is not None:
            self.masking.begin_in(self.state)
        self.epoch = int(state.epoch) - 1
        self.first_step = state.global_step

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        # Counted here, because state.epoch is a share of an expected length, which streams overrun.
        self.epoch += 1

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Raises UsageError, before any update, where a subclass computes the loss without masking's."""
        if self.masking.misses_losses:
            raise UsageError(
                "this masking learns from the losses, or minimises another than the mean loss of the labels "
                "(loss_weight, loss_per, z_loss, objective, late_masks or content 'model_scores'), and "
                "compute_loss of the Trainer computed its own: let it begin with loss, outputs = "
                "super().compute_loss(model, inputs, return_outputs=True, "
                "num_items_in_batch=num_items_in_batch), and add to that loss"
            )

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.masking.end_step()

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        loss = kwargs.get("metrics", {}).get("eval_loss")
        # With eval_on_start a resumed training evaluates where one without a stop does not.
        again = self.first_step and state.global_step == self.first_step
        if self.in_training and loss is not None and not again:
            self.masking.masker.observe_validation(loss)


class TimeVariantTrainer(Trainer):
    """A Trainer that masks every step with the step's own ratio and class weights.

    ``masking``: how much, what and how: a config, a dict of its fields, or the path of one as YAML; or an
    arm, such as "arms/gpt-bert": the keys ``masking``, ``objective``, ``late_masks`` and ``z_loss`` of a
    run's config; ``class_names``: names of the classes in the data's ``token_class`` column, those that
    the column's type holds when None, as ``add_classes`` writes it; ``masking_seed``: keys the masks,
    ``args.seed`` when None. Everything else is as for ``transformers.Trainer``; ``processing_class`` must
    be the tokenizer, and data sets hold tokenised rows, not masked ones. Rows without a ``row_id`` are
    numbered by their place.

    The training loss is the sum over the step's predicted tokens divided by their number, over all
    micro-batches and processes; where some rows are causal, that of each kind times its share of the rows.
    ``evaluate`` masks 15 % of the tokens, the same at every evaluation; its loss is the mean over them.

    Raises UsageError for options under which masking would be wrong.
    """

    loss_is_scaled_for_ga = True

    def __init__(
        self,
        model: Any = None,
        args: TrainingArguments | None = None,
        *,
        masking: MaskingConfig | Mapping[str, Any] | str | Path,
        class_names: Sequence[str] | None = None,
        masking_seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        """Number the rows of the data sets, and add the callback that masking needs."""
        tokenizer = kwargs.get("processing_class")
        if tokenizer is None:
            raise UsageError(
                "TimeVariantTrainer needs the tokenizer: pass processing_class=tokenizer"
            )
        if kwargs.get("compute_loss_func") is not None:
            raise UsageError(
                "compute_loss_func cannot be combined with time-variant masking, whose loss is the "
                "cross-entropy of the predicted tokens; override compute_loss in a subclass instead, and add "
                "to what super().compute_loss gives"
            )
        if kwargs.get("data_collator") is None:
            kwargs["data_collator"] = RowCollator(tokenizer)
        _refuse_masked_or_untokenised(kwargs)
        if class_names is None:
            # Elsewhere none are needed, and a checkpoint of before they were read has none.
            needs = read_arm(masking).masking.content.needs_classes
            class_names = _names_of_classes(kwargs.get("train_dataset")) if needs else ("none",)
        for name in ("train_dataset", "eval_dataset"):
            kwargs[name] = _of_every(with_row_ids, kwargs.get(name))
        self._evaluated: list[torch.Tensor] = []  # of one evaluation: what each batch's rows lost
        self._sums_of_rows: torch.Tensor | None = None
        super().__init__(model, args, **kwargs)
        _refuse_unsupported(self.args)
        # Else they are those that the model's forward names, which is given none here.
        if self.args.label_names is None:
            self.label_names = ["labels"]
        self.train_dataset = _of_every(share_by_rows, self.train_dataset)
        self.eval_dataset = _of_every(self._to_evaluate, self.eval_dataset)
        seed = self.args.seed if masking_seed is None else masking_seed
        self.masking = StepMasking(masking, tokenizer, class_names, seed, self.args.device)
        if self.masking.runs_model:
            self._refuse_what_runs_the_model()
        self.masking.attach(self.model, self.args.device)
        self._untrained = _copy_state(self.masking.state_dict())
        self._masking_callback = MaskingCallback(self.masking)
        self.add_callback(self._masking_callback)

    def train(
        self,
        resume_from_checkpoint: str | os.PathLike[str] | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> Any:
        """As ``Trainer.train``; resuming also restores the masking state.

        A model that ``model_init`` makes anew begins with masking that has learnt nothing. Raises DataError
        for a checkpoint without the state, UsageError when it is of other settings, or when a ratio watches
        the loss of several data sets.
        """
        if self.masking.masker.watches_validation and isinstance(self.eval_dataset, dict):
            raise UsageError(
                "masking.ratio watches one validation loss, and eval_dataset is a dict of "
                f"{', '.join(map(str, self.eval_dataset))}: give one of them, or set "
                "masking.ratio.watch='training'"
            )
        if resume_from_checkpoint is True and self.args.output_dir is not None:
            resume_from_checkpoint = get_last_checkpoint(self.args.output_dir) or True
        if isinstance(resume_from_checkpoint, str | os.PathLike):
            resume_from_checkpoint = os.fspath(resume_from_checkpoint)
            self.masking.load(Path(resume_from_checkpoint))
        elif self.model_init is not None:
            self.masking.begin_in(self._untrained)
        self._masking_callback.state = _copy_state(self.masking.state_dict())
        self._masking_callback.in_training = True
        try:
            return super().train(resume_from_checkpoint, trial, ignore_keys_for_eval)
        finally:
            self._masking_callback.in_training = False

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], torch.Tensor | int | None]:
        """The step's micro-batches, masked, and what their losses are divided by, over all processes:
        the number of tokens that they predict, unless masking weighs losses otherwise.
        """
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        # A Trainer resumed at its last step runs one step more.
        progress = min(1.0, self.state.global_step / max(1, self.state.max_steps))
        self.masking.attach(self.model, device)  # model_init may have made another
        epoch = self._masking_callback.epoch
        micros = self.masking.begin_step(batches, progress, epoch, device=device)
        divisor = micros[0].predictions.divisor if micros else 0.0
        # A tensor made of a number on the host would be copied, and waited for.
        return [self._inputs(micro) for micro in micros], torch.full((), divisor, device=device)

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """Cross-entropy of the predicted tokens; the model sees no labels and computes no loss."""
        inputs = dict(inputs)
        micro: MicroBatch = inputs.pop(_MASKED)
        del inputs["labels"]
        if model.training and self.masking.runs_model:
            with self.accelerator.autocast():
                logits = self.masking.logits(model, micro)
            loss = self.masking.loss_of(micro, logits)
            return (loss, {"loss": loss, "logits": torch.cat(logits)}) if return_outputs else loss
        with without_cudnn():  # the model's own attention may be given a mask
            outputs = model(**inputs)
        logits = logits_of(outputs)
        if not model.training:  # nothing is learnt from it
            batch = micro.parts[0].batch
            losses = score(logits, batch)[0]
            self._sums_of_rows = _sums_of_rows(losses, batch)
            loss = losses.sum() / max(1, batch.num_predicted)
            return (loss, {"loss": loss, "logits": logits}) if return_outputs else loss
        loss = self.masking.loss_of(micro, [logits])
        return (loss, outputs) if return_outputs else loss

    def prediction_step(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
        """As ``Trainer.prediction_step``, on rows masked the same at every evaluation."""
        masked = self._inputs(self.masking.begin_evaluation(inputs, self.args.device))
        fills = torch.as_tensor(inputs.get("row_id", ())) == FILLS
        if fills.any():  # these rows count neither for the loss nor for other measures
            fills = fills.to(masked["labels"].device)[:, None]
            masked["labels"] = masked["labels"].masked_fill(fills, -100)
        if "inputs" in self.args.include_for_metrics and isinstance(inputs, MutableMapping):
            inputs["input_ids"] = masked[
                "input_ids"
            ]  # what the Trainer hands on is what the model saw
        self._sums_of_rows = None  # and stays so where a subclass computes another loss
        result = super().prediction_step(model, masked, prediction_loss_only, ignore_keys)
        if self._sums_of_rows is not None:
            if fills.any():
                self._sums_of_rows.masked_fill_(fills, 0.0)
            sums: Any = self.accelerator.pad_across_processes(self._sums_of_rows)
            gathered: Any = self.gather_function(sums)
            self._evaluated.append(gathered)
        return result

    def evaluation_loop(
        self,
        dataloader: DataLoader[Any],
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> Any:
        """As ``Trainer.evaluation_loop``; the loss is the mean over all predicted tokens of the data set.

        The Trainer's own is a mean of batch means, which a batch without any predicted token has not.
        """
        self._evaluated.clear()
        output = super().evaluation_loop(
            dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
        )
        evaluated, self._evaluated = self._evaluated, []
        name = f"{metric_key_prefix}_loss"
        metrics = output.metrics or {}
        if evaluated and name in metrics:
            loss, number = torch.cat(evaluated).sum(0).tolist()
            metrics[name] = loss / number if number else math.nan
        return output

    def get_train_dataloader(self) -> DataLoader[Any]:
        """As ``Trainer.get_train_dataloader``; batches stay on the host until they are masked."""
        return _keep_on_host(super().get_train_dataloader())

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Any]:
        """As ``Trainer.get_eval_dataloader``; rows of a data set given here are numbered too, and batches
        stay on the host until they are masked.
        """
        known = eval_dataset is None or isinstance(eval_dataset, str)
        read = eval_dataset if known else _of_every(self._to_evaluate, eval_dataset)
        return _keep_on_host(super().get_eval_dataloader(read))

    def get_test_dataloader(self, test_dataset: Any) -> DataLoader[Any]:
        """As :meth:`get_eval_dataloader`."""
        read = _of_every(self._to_evaluate, test_dataset)
        return _keep_on_host(super().get_test_dataloader(read))

    def _to_evaluate(self, dataset: Any) -> Any:
        """The data set with numbered rows, of which several processes count each once."""
        rows, number = with_row_ids(dataset), self.args.world_size
        return rows if number == 1 else fill_up(rows, number * self.args.eval_batch_size)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As ``Trainer.log``; training logs also have what masking did (``StepMasking.take_ratios``)."""
        if "loss" in logs:
            logs |= self.masking.take_ratios()
        super().log(logs, start_time)

    def create_accelerator_and_postprocess(self) -> None:
        """As in ``Trainer``; every process reads a stream by itself.

        Else one process would join the batches of all and cut them apart again, and rows of differing
        lengths and their numbers cannot be joined. Raises UsageError when this was asked for.
        """
        super().create_accelerator_and_postprocess()
        if self.accelerator.dispatch_batches:
            raise UsageError(
                "accelerator_config sets dispatch_batches, which joins batches of several processes; rows of "
                "differing lengths cannot be joined: leave it out"
            )
        self.accelerator.dataloader_config.dispatch_batches = False

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        # Not in a callback: a checkpoint that is saved on SIGTERM calls none.
        if self.args.should_save:
            folder = Path(self._get_output_dir(trial=trial), f"checkpoint-{self.state.global_step}")
            make_folder(folder)
            self.masking.save(folder)
        super()._save_checkpoint(model, trial)

    def _set_signature_columns_if_needed(self) -> None:
        # The collator's columns are not arguments of the model, yet must reach the collator; but for token
        # types, of which only the model has a use.
        super()._set_signature_columns_if_needed()
        known = self._signature_columns or []
        missing = (name for name in COLUMNS if name not in known and name != _TYPES)
        self._signature_columns = [*known, *missing]

    def _inputs(self, micro: MicroBatch) -> dict[str, Any]:
        """What is handed to ``compute_loss``: the model's inputs, labels, and the micro-batch itself."""
        inputs = _inputs(micro)
        if _TYPES in inputs:
            self._set_signature_columns_if_needed()
            if _TYPES not in (self._signature_columns or ()):
                del inputs[_TYPES]
                logger.warning_once(
                    f"the rows have token_type_ids, and the forward of {type(self.model).__name__} names no "
                    "such argument: it is given none"
                )
        return inputs

    def _refuse_what_runs_the_model(self) -> None:
        """Raise UsageError for arguments under which the layers cannot be run one by one."""
        args = self.args
        for name, on in (
            ("torch_compile", args.torch_compile),
            ("fp16", args.fp16),
            ("fsdp", self.is_fsdp_enabled),
            ("deepspeed", self.is_deepspeed_enabled),
        ):
            if on:
                raise UsageError(
                    f"{name} cannot be combined with objective, late_masks or content 'model_scores', which "
                    f"run the model's layers one by one: leave {name} out"
                )


def _inputs(micro: MicroBatch) -> dict[str, Any]:
    """The inputs and labels of all parts of a micro-batch, joined, and the micro-batch itself."""
    batches = [part.batch for part in micro.parts]
    every = [batch.inputs() | {"labels": torch.as_tensor(batch.labels)} for batch in batches]
    joined = every[0] if len(every) == 1 else {
        name: torch.cat([inputs[name] for inputs in every]) for name in every[0]
    }  # fmt: skip
    return {**joined, _MASKED: micro}


def _copy_state(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in state.items()}


def _sums_of_rows(losses: torch.Tensor, batch: MaskedBatch) -> torch.Tensor:
    """float64 [B, 2]: the sum of each row's losses, and their number; ``losses`` [N]."""
    num_rows, length = batch.input_ids.shape
    row = torch.as_tensor(batch.positions, device=losses.device) // length
    values = torch.stack((losses.double(), torch.ones_like(losses, dtype=torch.float64)), 1)
    return values.new_zeros(num_rows, 2).index_add_(0, row, values)


def _refuse_masked_or_untokenised(given: Mapping[str, Any]) -> None:
    """Raise UsageError for a collator that masks, several training sets in one, and text."""
    collator = given["data_collator"]
    if getattr(collator, "mlm", False):
        raise UsageError(
            f"data_collator is a {type(collator).__name__}, which masks rows itself: leave it out, or give "
            "chronomask.RowCollator(tokenizer)"
        )
    train = given.get("train_dataset")
    refuse_several(train, "train_dataset")
    for name in ("train_dataset", "eval_dataset"):
        several = given.get(name)
        by_name = several if isinstance(several, dict) and "input_ids" not in several else {}
        for dataset in by_name.values() or [several]:
            if dataset is not None:
                check_rows(dataset, name)
            columns = getattr(dataset, "column_names", None)
            if (
                isinstance(columns, list)
                and "input_ids" not in columns
                and not made_on_reading(dataset)
            ):
                raise UsageError(
                    f"{name} has no column 'input_ids' (it has {', '.join(columns)}): tokenise it first, "
                    "such as dataset.map(lambda rows: tokenizer(rows['text'], truncation=True), batched=True)"
                )
    if train is not None and hasattr(train, "__len__") and not len(train):
        raise UsageError("train_dataset has no rows: give one that has some")


def _names_of_classes(dataset: Any) -> Sequence[str]:
    """The names in the type of the column ``token_class``; without them "none" alone."""
    features = getattr(dataset, "features", None)
    column = features.get("token_class") if isinstance(features, Mapping) else None
    return getattr(getattr(column, "feature", None), "names", None) or ("none",)


def _keep_on_host(loader: DataLoader[Any]) -> DataLoader[Any]:
    """The loader, which does not send its batches to a device.

    Masking there would wait for the step that is at work on it.
    """
    from accelerate.data_loader import DataLoaderShard

    if isinstance(loader, DataLoaderShard):
        loader.device = None
    return loader


def _of_every(change: Callable[[Any], Any], dataset: Any) -> Any:
    """``change`` of a data set, or of each of several by name."""
    if dataset is None:
        return None
    if isinstance(dataset, dict):
        return {name: _of_every(change, part) for name, part in dataset.items()}
    return change(dataset)


def _refuse_unsupported(args: TrainingArguments) -> None:
    if args.n_gpu > 1:
        raise UsageError(
            f"{args.n_gpu} GPUs in one process would split batches inside the model; start one "
            "process per GPU (torchrun --nproc-per-node), or set CUDA_VISIBLE_DEVICES"
        )
    if args.label_smoothing_factor:
        raise UsageError(
            f"label_smoothing_factor is {args.label_smoothing_factor}; time-variant masking feeds "
            "back plain cross-entropy: set it to 0"
        )
