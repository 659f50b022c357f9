"""One run's masking inside another training loop: what is masked, what is minimised, what is saved.

Every loop gives the micro-batches of a step and gets back what each of them adds to the loss, made of the
same parts as in chronomask's own loop (:mod:`chronomask.train.forward`). Where rows are causal, masks enter
late or the model scores its rows, the model is run as that loop runs it, inside whatever wraps it.
Letters: B rows, T tokens, N predicted tokens, V vocabulary.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from transformers import PreTrainedModel

from chronomask.config import kind_of
from chronomask.errors import DataError, UsageError
from chronomask.integrations.arm import read_arm
from chronomask.integrations.ratios import Ratios
from chronomask.masking.config import MaskingConfig
from chronomask.masking.masker import Masker, fixed_masker
from chronomask.masking.objective import MaskedOnly
from chronomask.masking.tally import logits_of_targets
from chronomask.model.attention import check_supported, implementation_for, without_cudnn
from chronomask.model.head import token_losses
from chronomask.storage import write_bytes
from chronomask.train.foresight import Scorer
from chronomask.train.forward import Forward, Part, Predictions, entering, parts_of
from chronomask.types import MaskedBatch, Precision, Rows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["STATE_FILE", "MicroBatch", "StepMasking"]

STATE_FILE = "chronomask.safetensors"
"""Name of the masking state in a checkpoint folder."""
_RUNNING = "objective, late_masks and content 'model_scores'"


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Rows that are computed together: those that are masked, and those that are causal."""

    parts: tuple[Part, ...]
    predictions: Predictions
    """of the whole step, over all its micro-batches and processes"""
    processes: float = 1.0
    """how many there are; gradients are averaged over them, and ``predictions`` counts all"""


class StepMasking:
    """A :class:`~chronomask.masking.masker.Masker` and what a training loop needs around it.

    ``masking``: what :func:`~chronomask.integrations.arm.read_arm` takes; ``class_names``: names of the
    classes in the data's ``token_class`` column, "none" first. Evaluation always masks 15 % of the tokens,
    uniformly and the same at every evaluation.

    One training step: :meth:`begin_step` with its micro-batches, :meth:`loss` of each, :meth:`end_step`.
    """

    def __init__(
        self,
        masking: MaskingConfig | Mapping[str, Any] | str | Path,
        tokenizer: PreTrainedTokenizerBase,
        class_names: Sequence[str] = ("none",),
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        """Raises UsageError for what no loop but chronomask's own can carry."""
        arm = read_arm(masking)
        self.objective, self.late_masks, self.z_loss = arm.objective, arm.late_masks, arm.z_loss
        config = arm.masking
        if config.progress != "steps":
            raise UsageError(
                f"masking.progress is '{config.progress}'; inside another framework's trainer only "
                "'steps' is known beforehand: set masking.progress to it"
            )
        ahead = config.content.look_ahead
        if ahead is not None and ahead.every > 1:
            raise UsageError(
                f"masking.content '{kind_of(config.content)}' scores the rows of {ahead.every} steps to "
                "come, and here those of one step are known: set masking.content.every to 1, which passes "
                "over each row as often"
            )
        self.masker = Masker.for_tokenizer(tokenizer, config, class_names=class_names, seed=seed)
        self.masker.to(device)
        # The same for every seed and schedule.
        self._evaluation = fixed_masker(self.masker.vocabulary)
        self._ratios = Ratios()
        self._observed = False
        self._forward: Forward | None = None
        self._scorer: Scorer | None = None

    @property
    def runs_model(self) -> bool:
        """Whether the model is run in chronomask's way, and :meth:`attach` must come first."""
        looks = self.masker.config.content.look_ahead is not None
        return self.objective.has_causal_rows or self.late_masks is not None or looks

    @property
    def has_own_loss(self) -> bool:
        """Whether what is minimised is another than the mean loss of a model's labels."""
        return self.runs_model or self.masker.config.weighs_losses or self.z_loss > 0

    @property
    def misses_losses(self) -> bool:
        """Whether a step needs :meth:`loss`, to learn from or to minimise, and it was not called since
        :meth:`begin_step`.
        """
        return (self.masker.needs_feedback or self.has_own_loss) and not self._observed

    def attach(self, model: Any, device: torch.device | str | None = None) -> None:
        """Take the model that is trained, where it is :attr:`runs_model`; its attention becomes ours.

        ``device``: where batches go, that of the model if None. Raises UsageError for a model that cannot,
        and for one that lacks some of the tokenizer's tokens.
        """
        known = getattr(getattr(model, "config", None), "vocab_size", None)
        if isinstance(known, int) and known < self.masker.vocabulary.size:
            raise UsageError(
                f"the model has weights for {known:,} tokens, and the tokenizer has "
                f"{self.masker.vocabulary.size:,}: give the model's own tokenizer, or call "
                f"model.resize_token_embeddings({self.masker.vocabulary.size}) first"
            )
        if not self.runs_model or (self._forward is not None and self._forward.model is model):
            return
        if not isinstance(model, PreTrainedModel):
            raise UsageError(
                f"the model is a {type(model).__name__}; {_RUNNING} run a model of transformers layer by "
                "layer: give that model itself, not compiled and without adapters, or leave these keys out"
            )
        causal = self.objective.has_causal_rows
        documents = causal or self.late_masks is not None
        if documents:
            check_supported(model, "row", causal)
        attention = implementation_for(model.config)
        if documents and attention is not None:
            model.set_attn_implementation(attention)
        self._forward = Forward(
            model,
            torch.device(device or model.device),
            "fp32",
            "documents" if documents else "row",
            int(self.masker.vocabulary.pad_token_id),
            masks_enter=entering(self.late_masks, model),
        )
        ahead = self.masker.config.content.look_ahead
        if ahead is not None:
            self._scorer = Scorer(ahead, self._forward, self.masker.vocabulary, self.masker.seed)

    def begin_step(
        self,
        batches: Sequence[Any],
        progress: float,
        epoch: int | None = None,
        *,
        pooled: bool = True,
        device: torch.device | None = None,
    ) -> list[MicroBatch]:
        """The micro-batches of this process's part of a step, masked at ``progress``.

        ``batches``: unmasked rows, each as a masker takes them; ``epoch``: None where they know it
        themselves. ``pooled``: whether predictions are counted over the processes of torch.distributed, all
        of which must then call it. ``device``: where rows go once they are masked; None: they stay
        where they are, and where the model is :attr:`runs_model` they go where it was attached. Raises
        UsageError where the model must be known and is not.
        """
        self._observed = False
        given = [self.masker.rows_of(batch, progress, epoch) for batch in batches]
        if not self.runs_model:
            parts = [[_whole_part(self.masker, rows, progress, device)] for rows in given]
        else:
            if self._forward is None:
                raise UsageError(
                    f"{_RUNNING} need the model: call attach(model) once before the first step"
                )
            _refuse_token_types(given)
            rows = [_as_documents(each) for each in given]
            if self._scorer is not None:
                rows = self._with_scores(rows, self._scorer, pooled)
            parts = [
                parts_of(self._forward, each, self.masker, self.objective, progress, 1)
                for each in rows
            ]
        predictions = Predictions.of([part for each in parts for part in each])
        step = Ratios()
        for part in (part for each in parts for part in each):
            step.note(part)
        shared = pooled and _in_processes()
        told = step.counts if shared else ()  # else they stay where they are, and nothing waits
        numbers = [*astuple(predictions), 1.0, *told]
        sums = _sum_over_processes(numbers, self.masker, pooled)
        *counts, processes = sums[: len(numbers) - len(told)]
        self._ratios.add_counts(sums[-len(told) :] if shared else step.counts)
        return [MicroBatch(tuple(each), Predictions(*counts), processes) for each in parts]

    def _with_scores(self, rows: Sequence[Rows], scorer: Scorer, pooled: bool) -> list[Rows]:
        """Host rows of a step with what the model finds hard in them."""
        scores = scorer.score(rows)
        ahead = self.masker.config.content.look_ahead
        if ahead is not None and ahead.centred:
            total = sum(float(each.double().sum()) for each in scores)
            number = sum(int(np.count_nonzero(each.word_id >= 0)) for each in rows)
            total, number = _sum_over_processes([total, number], self.masker, pooled)
            scores = [each - total / max(number, 1) for each in scores]
        rounded = [each.half().float().cpu().numpy() for each in scores]  # as a run keeps them
        return [replace(each, scores=own) for each, own in zip(rows, rounded, strict=True)]

    def logits(self, model: Any, micro: MicroBatch) -> list[torch.Tensor]:
        """The logits of each part of a micro-batch, [B, T, V] or [N, V], with their graph.

        ``model``: the one that is trained, or what wraps it to train in several processes.
        """
        with without_cudnn():  # the model's own attention may be given a mask
            if self._forward is None:
                return [logits_of(model(**part.batch.inputs())) for part in micro.parts]
            forward = replace(self._forward, precision=_precision_in_force(self._forward.device))
            run = lambda *parts: [forward.logits(part) for part in parts]  # noqa: E731
            return _call_within(model, self._forward.model, run, *micro.parts)

    def loss(self, model: Any, micro: MicroBatch) -> torch.Tensor:
        """What a micro-batch adds to what its step minimises, 0-d with its graph; the masker observes it.

        Gradients are added over micro-batches and averaged over processes.
        """
        return self.loss_of(micro, self.logits(model, micro))

    def loss_of(self, micro: MicroBatch, logits: Sequence[torch.Tensor]) -> torch.Tensor:
        """:meth:`loss` of logits that are there already."""
        self._observed = True
        total = torch.zeros((), device=logits[0].device)
        for part, given in zip(micro.parts, logits, strict=True):
            batch = part.batch
            targets = torch.as_tensor(batch.targets, device=given.device)
            losses, correct, log_z = token_losses(logits_of_targets(given, batch).float(), targets)
            total = total + micro.predictions.contribution(part, losses, log_z, self.z_loss)
            if (
                part.causal
            ):  # next tokens teach masking nothing, but every process has something to pool
                self._ratios.note_causal_loss(batch.num_predicted, losses)
                first = ("positions", "targets", "target_class")
                batch = replace(batch, **{name: getattr(batch, name)[:0] for name in first})
                losses, correct = losses[:0], correct[:0]
            self.masker.observe(batch, losses, correct)
        return total * micro.processes

    def end_step(self) -> None:
        """Learn from the losses of the step; on every process, once per optimiser step."""
        self.masker.end_step()

    def mask_fixed(self, batch: Mapping[str, Any]) -> MaskedBatch:
        """The batch masked for evaluation."""
        return self.begin_evaluation(batch).parts[0].batch

    def begin_evaluation(
        self, batch: Mapping[str, Any], device: torch.device | None = None
    ) -> MicroBatch:
        """The batch masked for evaluation, a step by itself; raises UsageError where it cannot be.

        ``device``: as for :meth:`begin_step`.
        """
        rows = self.masker.rows_of(batch, 0.0, epoch=0, uniform=True)
        part = _whole_part(self._evaluation, rows, 0.0, device)
        return MicroBatch((part,), Predictions.of([part]))

    def take_ratios(self) -> dict[str, float]:
        """What masking did since the last call, in all processes where steps are ``pooled``.

        ``masking_ratio`` (asked) and ``masking_ratio_achieved``; where rows are causal, also their share
        ``causal_share``, and ``causal_loss``, the mean loss of a next token in this process, if it had one.
        """
        ratios, self._ratios = self._ratios, Ratios()
        if not ratios.rows:
            return {}
        total = max(1.0, float(ratios.maskable))
        said = {
            "masking_ratio": float(ratios.asked) / max(1, ratios.rows - ratios.causal_rows),
            "masking_ratio_achieved": ratios.predicted / total,
        }
        if self.objective.has_causal_rows:
            said["causal_share"] = ratios.causal_rows / ratios.rows
            if ratios.causal_predicted:
                said["causal_loss"] = float(ratios.causal_loss) / ratios.causal_predicted
        return said

    def settings(self) -> str:
        """JSON of what must be equal for a run to go on: configuration, classes and seed."""
        masker = self.masker
        names = list(masker.class_names)
        values: dict[str, Any] = {
            "masking": masker.config.to_dict(), "class_names": names, "seed": masker.seed,
        }  # fmt: skip
        if not isinstance(self.objective, MaskedOnly):
            values["objective"] = self.objective.to_dict()
        if self.late_masks is not None:
            values["late_masks"] = self.late_masks.to_dict()
        if self.z_loss:
            values["z_loss"] = self.z_loss
        return json.dumps(values)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """All state as tensors on the host."""
        return {name: tensor.cpu() for name, tensor in self.masker.state_dict().items()}

    def load_state_dict(
        self,
        state: dict[str, torch.Tensor],
        settings: str | None = None,
        where: str = "the checkpoint",
    ) -> None:
        """Restore; raises UsageError when ``settings``, saved with the state, are not this run's. None: they
        were not saved, as where a library saves what has a state.
        """
        own = json.loads(self.settings())
        saved = own if settings is None else json.loads(settings)
        for name in own | saved:
            if saved.get(name) != own.get(name):
                raise UsageError(
                    f"{where} was saved with {name} = {saved.get(name)!r}, this run has "
                    f"{own.get(name)!r}: masks would change in the middle of training; resume with the saved "
                    "settings, or start a new run from the checkpoint's weights"
                )
        self.begin_in(state)

    def begin_in(self, state: dict[str, torch.Tensor]) -> None:
        """Begin training in a state; what a step that was broken off had observed is forgotten."""
        self.masker.load_state_dict(state)
        self._ratios = Ratios()

    def save(self, folder: str | Path) -> None:
        """Write :data:`STATE_FILE` into a checkpoint folder. Raises RunError."""
        content = save(self.state_dict(), metadata={"settings": self.settings()})
        write_bytes(Path(folder) / STATE_FILE, content)

    def load(self, folder: str | Path) -> None:
        """Restore :meth:`save`; raises DataError when the folder has no readable state."""
        folder = Path(folder)
        path = folder / STATE_FILE
        if not folder.is_dir():
            raise DataError(f"there is no checkpoint folder {folder}: name one that exists")
        if not path.is_file():
            raise DataError(
                f"checkpoint {folder} has no {STATE_FILE}: it was written without time-variant "
                "masking; start a new run from its weights instead of resuming"
            )
        try:
            with safe_open(path, framework="pt") as file:
                settings = (file.metadata() or {})["settings"]
                state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            self.load_state_dict(state, settings, where=str(path))
        except (SafetensorError, KeyError, ValueError) as error:
            raise DataError(f"{path} cannot be read ({error}); use another checkpoint") from None


def logits_of(outputs: Any) -> torch.Tensor:
    """Those of what a model gives: an output with names, or a tuple that begins with them.

    Raises UsageError for a model without a head.
    """
    if not isinstance(outputs, Mapping):
        return outputs[0]
    if "logits" not in outputs:
        raise UsageError(
            f"the model gives no 'logits' (it gives {', '.join(outputs)}): train one with a head for masked "
            "language modelling, as AutoModelForMaskedLM opens it"
        )
    return outputs["logits"]


def _whole_part(masker: Masker, rows: Rows, progress: float, device: torch.device | None) -> Part:
    """Masked rows for a model that computes all logits itself, on ``device``; None: where the rows are."""
    if device is None:
        batch = masker(rows, progress)
    else:
        if not isinstance(rows.input_ids, np.ndarray) and rows.input_ids.is_cpu:
            rows = rows.on_host()  # numpy arrays are sent in one piece
        batch = masker(rows, progress).to(device)
    return Part(rows, batch, batch.inputs())


def _refuse_token_types(given: Sequence[Rows]) -> None:
    """Raise UsageError for rows of several segments, of which a model run by its layers is not told."""
    for rows in given:
        if rows.token_type_ids is not None:
            row = rows.row_id[int(np.argmax(_on_host(rows.token_type_ids).any(1)))]
            raise UsageError(
                f"row {row} has token_type_ids other than 0, which {_RUNNING} do not pass to the model: "
                "leave the column out of the data set, or leave these keys out"
            )


def _on_host(values: Any) -> np.ndarray:
    return values.cpu().numpy() if isinstance(values, torch.Tensor) else values


def _as_documents(rows: Rows) -> Rows:
    """Rows on the host, whose padding is no part of their document.

    Raises DataError for a row that is padded elsewhere than behind.
    """
    mask, rows = rows.attention_mask, rows.on_host()
    if mask is None:
        return rows
    there = np.asarray(mask.cpu() if isinstance(mask, torch.Tensor) else mask) != 0
    num_rows, length = there.shape
    own = there.sum(1)
    wrong = (there != (np.arange(length) < own[:, None])).any(1)
    if wrong.any():
        raise DataError(
            f"row {rows.row_id[wrong][0]} has a 0 before a 1 in its attention_mask; with {_RUNNING}, padding "
            "must stand behind the text: set tokenizer.padding_side to 'right', or leave the column out"
        )
    starts = length * np.arange(num_rows + 1)
    bounds = np.union1d(starts, starts[:-1] + own).astype(np.int32)
    return replace(rows, cu_seqlens=bounds, attention_mask=None)


def _in_processes() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _sum_over_processes(values: Sequence[Any], masker: Masker, pooled: bool) -> list[float]:
    """Numbers (or 0-d tensors) summed over the processes of torch.distributed, if there are any."""
    numbers = [float(value) for value in values]
    if not (pooled and _in_processes()):
        return numbers
    sums = torch.tensor(numbers, dtype=torch.float64, device=masker.content.device)
    torch.distributed.all_reduce(sums)
    return sums.tolist()


def _precision_in_force(device: torch.device) -> Precision:
    """That of the autocast around a call; raises UsageError for float16."""
    if not torch.is_autocast_enabled(device.type):
        return "fp32"
    if torch.get_autocast_dtype(device.type) is not torch.bfloat16:
        raise UsageError(
            f"{_RUNNING} run in float32 or bfloat16, and autocast is set to float16: set bf16=True, or "
            "precision='bf16-mixed'"
        )
    return "bf16"


def _call_within(model: Any, inner: Any, run: Callable[..., Any], *values: Any) -> Any:
    """``run(*values)`` in place of the forward of ``inner``, called through ``model``, which may wrap it.

    So a wrapper that makes gradients those of all processes notices the call, once. Raises UsageError for
    one that has compiled the forward.
    """
    if model is inner:
        return run(*values)
    if any(hasattr(module, "_orig_mod") for module in (model, getattr(model, "module", None))):
        raise UsageError(
            f"the model is compiled; {_RUNNING} run it layer by layer: leave torch.compile out"
        )
    before = inner.__dict__.get("forward")

    def restore() -> None:
        inner.__dict__.pop("forward", None)
        if before is not None:
            inner.forward = before

    def once(*given: Any) -> Any:
        restore()
        return run(*given)

    inner.forward = once
    try:
        return model(*values)
    finally:
        restore()
