"""Fine-tuning: a model with a new head, AdamW, a warm-up and a straight line down; then its answers.

Everything random is a function of the seed: the head's initial weights, dropout and the order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Protocol, Self, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from chronomask.config import Config
from chronomask.errors import RunError
from chronomask.evaluate.batches import Encoded, by_length, shuffled_batches
from chronomask.evaluate.subject import Subject
from chronomask.progress import Progress
from chronomask.types import Device, Precision, send

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedModel

    from chronomask.evaluate.recorded import RecordedSteps

__all__ = [
    "NOT_TOLD",
    "AtLeastOne",
    "Diverged",
    "Examples",
    "FineTuning",
    "Loss",
    "Positive",
    "Telling",
    "at_most",
    "fine_tune",
    "open_seeded",
    "outputs",
]

Loss = Callable[[Any, "dict[str, torch.Tensor]", "torch.Tensor"], "torch.Tensor"]
"""(model's output, its inputs, indices of the examples) → mean loss of the batch"""
Share = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]
"""A number above 0."""
AtLeastOne = Annotated[int, Field(ge=1)]
"""A number of things."""

_STEPS_BETWEEN_CHECKS = 50


class Diverged(RunError):
    """The loss of a fine-tuning, or what the tuned model gives, is not finite."""


@dataclass(frozen=True, slots=True)
class Telling:
    """How fine-tuning is spoken of."""

    task: str = ""
    """whose settings a refusal names"""
    label: str = ""
    """what refusals and lines of progress begin with"""
    progress: bool = False
    """whether lines of progress are shown"""

    def progress_of(self, total: int) -> Progress:
        """The progress of work on ``total`` examples."""
        return Progress(self.label, total, shown=self.progress)

    def refusal_of(self, what: str) -> Diverged:
        """The refusal of numbers that are not finite, with a way out."""
        return Diverged(
            f"{self.label}: {what}; try a lower learning rate (--set {self.task}.learning_rate=NUMBER) or "
            f"--set {self.task}.precision=fp32"
        )


NOT_TOLD = Telling()
"""Of fine-tuning that shows nothing and speaks of no task."""


class FineTuning(Config):
    """A recipe. The defaults are those of Devlin et al. (NAACL 2019) for GLUE."""

    learning_rate: Positive = 2e-5
    """peak of the learning rate"""
    learning_rates: tuple[Positive, ...] = ()
    """peaks to choose from, by the score on a held-out slice of the training data; none: no choice"""
    patience: AtLeastOne | None = None
    """epochs without a better score on the held-out slice after which training stops; the weights of the best
    epoch are then used, and the slice is never trained on; none: all ``epochs``, on all training data"""
    held_out_share: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """share of the training data that decides the learning rate and the epoch; unused if neither is chosen"""
    epochs: AtLeastOne = 3
    """passes over the training data, the most of them if there is a ``patience``"""
    batch_size: AtLeastOne = 32
    """examples a step"""
    max_length: Annotated[int, Field(ge=8)] = 128
    """tokens of an example, special ones included; what is longer is cut"""
    warmup_share: Share = 0.1
    """share of the steps in which the learning rate rises to its peak, before it falls to 0"""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """decay of weight matrices; biases and normalisation weights have none"""
    max_gradient_norm: Positive = 1.0
    """gradients longer than this are shortened to it"""
    precision: Precision = "fp32"
    """of matrix products, weights and sums are float32; auto: bf16 where the device is
    faster with it"""
    device: Device = "auto"
    """auto: a CUDA device if there is one"""
    limit: AtLeastOne | None = None
    """at most so many examples of each part, for a quick look; none: all"""


class _Examples(Protocol):
    def __len__(self) -> int: ...

    def take(self, index: NDArray[np.int64]) -> Self: ...


Examples = TypeVar("Examples", bound=_Examples)
"""What a task reads: it has a length, and parts of it can be taken."""


@contextmanager
def open_seeded(
    model: Subject, head: str, recipe: FineTuning, seed: int, **changes: Any
) -> Iterator[PreTrainedModel]:
    """A model with a new head on the recipe's device; what is drawn inside is a function of the seed."""
    import torch

    from chronomask.keyed import Stream, row_keys
    from chronomask.model.device import choose_device

    device = choose_device(recipe.device)
    key = int(row_keys(seed, Stream.DROPOUT, 0, 0)) >> 1
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(key)
        yield model.open_as(head, device, **changes)


def fine_tune(
    model: PreTrainedModel,
    examples: Encoded,
    loss_of: Loss,
    recipe: FineTuning,
    rate: float,
    seed: int,
    *,
    telling: Telling = NOT_TOLD,
    stops_after: Callable[[int], bool] | None = None,
) -> None:
    """Train the model in place; raises Diverged if the loss is not finite.

    On a CUDA device steps are recorded and replayed (:mod:`chronomask.evaluate.recorded`), and batches are
    padded to a few lengths for it. Where a model has dropout, so many more numbers are drawn: what is dropped
    is a function of the seed, but another one than without padding. A model that mixes padding into its
    tokens is given the examples of a batch by length, without padding, and their gradients are added up; the
    loss of each length then counts by its share of the examples. ``stops_after``: asked after each epoch,
    counted from 1, whether it was the last.
    """
    from chronomask.evaluate.recorded import RecordedSteps, recorder_on
    from chronomask.keyed import Stream, row_keys
    from chronomask.model.documents import mixes_padding

    mixing = mixes_padding(model)
    device = next(model.parameters()).device
    recorder = None if mixing else recorder_on(device)
    tuning = _Tuning(model, examples, loss_of, recipe, mixing, recorded=recorder is not None)
    recorded = (
        None
        if recorder is None
        else RecordedSteps(tuning.train_on_one, device, recorder, telling.label)
    )
    steps = math.ceil(len(examples) / recipe.batch_size) * recipe.epochs
    warmup = round(recipe.warmup_share * steps)
    step = 0
    with (
        nullcontext() if recorded is None else recorded.open(),
        telling.progress_of(len(examples) * recipe.epochs) as shown,
    ):
        for epoch in range(recipe.epochs):
            key = int(row_keys(seed, Stream.ORDER, epoch, 0)) >> 2
            model.train()  # scoring an epoch leaves it in evaluation mode
            for index in shuffled_batches(examples.lengths, recipe.batch_size, key):
                tuning.set_rate(rate * _share_of_peak(step, steps, warmup))
                tuning.step(index, recorded)
                step += 1
                note = ""
                # Looking at the loss waits for the device, so it is looked at now and then.
                if tuning.steps_not_looked_at == _STEPS_BETWEEN_CHECKS or step == steps:
                    note = f"loss {tuning.mean_loss(step, telling):.3f}"
                shown.advance(index.size, note)
            if stops_after is not None:
                # A model that learnt nothing but NaN has a score as well.
                tuning.check_loss(step, telling)
                if stops_after(epoch + 1):
                    break
    model.eval()


class _Tuning:
    """A model that is being fine-tuned, its optimiser, and its losses since somebody looked at them."""

    def __init__(
        self,
        model: PreTrainedModel,
        examples: Encoded,
        loss_of: Loss,
        recipe: FineTuning,
        mixing: bool,
        *,
        recorded: bool,
    ) -> None:
        """``mixing``: the model mixes padding into its tokens; ``recorded``: steps are to be replayed."""
        import torch

        self._model, self._examples, self._loss_of, self._recipe = model, examples, loss_of, recipe
        self._mixing, self._recorded = mixing, recorded
        self._device = next(model.parameters()).device
        self._optimiser = _optimiser(model, recipe.weight_decay, self._device, recorded=recorded)
        self._parameters = [p for group in self._optimiser.param_groups for p in group["params"]]
        self._longest = int(examples.lengths.max())
        self._losses = torch.zeros((), device=self._device)
        self.steps_not_looked_at = 0

    def set_rate(self, rate: float) -> None:
        """Give the next steps a learning rate."""
        import torch

        for group in self._optimiser.param_groups:
            if isinstance(group["lr"], torch.Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate

    def step(self, index: NDArray[np.int64], recorded: RecordedSteps | None) -> None:
        """Train on a batch, ``index``: its examples; by ``recorded`` steps where there are any."""
        self.steps_not_looked_at += 1
        if recorded is not None:
            return self._replay(index, recorded)
        parts = [index]
        if self._mixing:
            lengths = self._examples.lengths[index]
            parts = [index[k] for k in by_length(lengths, index.size, self._model)]
        device = self._device
        return self._train_on(
            *((self._examples.batch(k, self._model, device), send(k, device)) for k in parts)
        )

    def _replay(self, index: NDArray[np.int64], recorded: RecordedSteps) -> None:
        import torch

        from chronomask.evaluate.recorded import padded_length

        length = padded_length(int(self._examples.lengths[index].max()), self._longest)
        inputs = self._examples.batch(index, self._model, torch.device("cpu"), length=length)
        recorded(inputs, index, comes_again=index.size == self._recipe.batch_size)

    def train_on_one(self, inputs: dict[str, Any], index: torch.Tensor) -> None:
        """One step on examples that all are in one batch, on the device: what can be recorded."""
        self._train_on((inputs, index))

    def _train_on(self, *parts: tuple[dict[str, Any], torch.Tensor]) -> None:
        """One step on the examples of all parts: what the model is given, and the examples' indices."""
        import torch

        from chronomask.evaluate.heads import run_headed
        from chronomask.model.device import autocast

        number = sum(index.shape[0] for _, index in parts)
        try:
            for inputs, index in parts:
                # A weight cast before a step is recorded would not be cast anew when it is replayed.
                with autocast(self._device, self._recipe.precision, keeps_casts=not self._recorded):
                    output = run_headed(self._model, inputs)
                loss = self._loss_of(output, inputs, index)
                if len(parts) > 1:
                    loss = loss * (index.shape[0] / number)
                loss.backward()
                self._losses.add_(loss.detach())
            torch.nn.utils.clip_grad_norm_(self._parameters, self._recipe.max_gradient_norm)
            self._optimiser.step()
        finally:
            self._optimiser.zero_grad(set_to_none=True)

    def mean_loss(self, step: int, telling: Telling) -> float:
        """Of the steps since it was looked at last; raises Diverged where it is not finite."""
        mean = self.check_loss(step, telling) / self.steps_not_looked_at
        self.steps_not_looked_at = 0
        self._losses.zero_()
        return mean

    def check_loss(self, step: int, telling: Telling) -> float:
        """The sum of the losses since they were looked at; raises Diverged where it is not finite."""
        total = float(self._losses)
        if not math.isfinite(total):
            raise telling.refusal_of(f"the loss is not finite by step {step}")
        return total


def outputs(
    model: PreTrainedModel, examples: Encoded, recipe: FineTuning, telling: Telling = NOT_TOLD
) -> Iterator[tuple[NDArray[np.int64], Any]]:
    """(indices of the examples, the model's output), by batches of like length.

    Raises Diverged for one that is not finite, as of weights that the last step made so.
    """
    import torch

    from chronomask.evaluate.heads import run_headed
    from chronomask.model.device import autocast

    device = next(model.parameters()).device
    model.eval()
    with telling.progress_of(len(examples)) as shown:
        for index in by_length(examples.lengths, 2 * recipe.batch_size, model):
            inputs = examples.batch(index, model, device)
            with torch.inference_mode(), autocast(device, recipe.precision):
                output = run_headed(model, inputs)
            given = (
                getattr(output, name, None) for name in ("logits", "start_logits", "end_logits")
            )
            if not all(bool(each.isfinite().all()) for each in given if each is not None):
                raise telling.refusal_of("what the fine-tuned model gives is not finite")
            yield index, output
            shown.advance(index.size)


def at_most(limit: int | None, examples: Examples) -> Examples:
    """Examples, or ``limit`` of them, spread over the file, in its order."""
    from chronomask.keyed import Stream, permute, row_keys

    size = len(examples)
    if limit is None or limit >= size:
        return examples
    key = int(row_keys(0, Stream.SELECT, 0, 1)) >> 2
    return examples.take(np.sort(permute(np.arange(limit), size, key)))


def _share_of_peak(step: int, steps: int, warmup: int) -> float:
    """Linear warm-up from above 0, then a straight line to 0 after the last step."""
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return (steps - step) / max(1, steps - warmup)


def _optimiser(
    model: nn.Module, weight_decay: float, device: torch.device, *, recorded: bool
) -> torch.optim.AdamW:
    """AdamW, its learning rate 0 so far: a tensor where steps are ``recorded``, as numbers would be too."""
    import torch

    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        groups,
        lr=torch.zeros((), device=device) if recorded else 0.0,
        betas=(0.9, 0.999),
        eps=1e-6,
        fused=device.type in ("cpu", "cuda"),
        capturable=recorded,
    )
