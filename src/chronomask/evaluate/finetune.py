"""Fine-tuning: a model with a new head, AdamW, a warm-up and a straight line down; then its outputs.

Everything random is a function of the seed: the head's initial weights, dropout and the order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, Generic, Protocol, Self, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import nn
from transformers import PreTrainedModel

from chronomask.config import Config
from chronomask.errors import DataError, RunError, UsageError
from chronomask.evaluate.batches import Encoded, by_length, shuffled_batches
from chronomask.evaluate.device import Device, Precision, autocast, device_of, placed
from chronomask.evaluate.progress import Progress
from chronomask.evaluate.subject import Subject
from chronomask.keyed import Stream, permute, row_keys

__all__ = [
    "FineTuning",
    "Loss",
    "Prepared",
    "at_most",
    "check_fine_tuning",
    "choose_rate",
    "fine_tune",
    "open_seeded",
    "outputs",
    "slices",
]

Score = Callable[[float, NDArray[np.int64], NDArray[np.int64]], float]
"""(learning rate, indices to train on, indices to score on) → score, the higher the better"""


class _Examples(Protocol):
    def __len__(self) -> int: ...

    def take(self, index: NDArray[np.int64]) -> Self: ...


Train = TypeVar("Train")
Dev = TypeVar("Dev")
Several = TypeVar("Several", bound=_Examples)


@dataclass(frozen=True, slots=True)
class Prepared(Generic[Train, Dev]):
    """What all seeds of a task share."""

    train: Train
    dev: Dev
    data_sha256: str
    rate: float
    choice: dict[str, float]
    """how the rate was chosen"""


def at_most(limit: int | None, examples: Several) -> Several:
    """Examples, or ``limit`` of them, spread over the file, in its order."""
    size = len(examples)
    if limit is None or limit >= size:
        return examples
    key = int(row_keys(0, Stream.SELECT, 0, 1)) >> 2
    return examples.take(np.sort(permute(np.arange(limit), size, key)))


def choose_rate(
    recipe: FineTuning, groups: NDArray[np.int64], score: Score
) -> tuple[float, dict[str, float]]:
    """The best of the recipe's rates (the lower of equal ones), and the score of each by name.

    ``groups`` [N]: examples of one group are never on both sides. The slice is the same for every
    seed and model. Without rates to choose from it is the recipe's own, and nothing is trained.
    """
    if not recipe.learning_rates:
        return recipe.learning_rate, {}
    train, held_out = slices(groups, recipe.held_out_share)
    scores = {rate: score(rate, train, held_out) for rate in sorted(set(recipe.learning_rates))}
    best = max(scores, key=lambda rate: (scores[rate], -rate))
    details = {f"held_out_score_at_{rate:g}": value for rate, value in scores.items()}
    return best, {"learning_rate": best, **details}


def slices(
    groups: NDArray[np.int64], held_out_share: float
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Indices to train on and to score on, ascending; raises DataError where a side would be empty."""
    names = np.unique(groups)
    count = round(held_out_share * names.size)
    if not 0 < count < names.size:
        raise DataError(
            f"{names.size} groups of training examples are too few to hold out "
            f"{held_out_share:.0%} of them: set learning_rates=[] or another held_out_share"
        )
    key = int(row_keys(0, Stream.SELECT, 0, 0)) >> 2
    chosen = names[permute(np.arange(names.size), names.size, key) < count]
    held_out = np.isin(groups, chosen)
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)


Loss = Callable[[Any, dict[str, torch.Tensor], torch.Tensor], torch.Tensor]
"""(model's output, its inputs, indices of the examples) → mean loss of the batch"""
Share = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]
AtLeastOne = Annotated[int, Field(ge=1)]

_STEPS_BETWEEN_CHECKS = 50


class FineTuning(Config):
    """A recipe. The defaults are those of Devlin et al. (NAACL 2019) for GLUE."""

    learning_rate: Positive = 2e-5
    """peak of the learning rate"""
    learning_rates: tuple[Positive, ...] = ()
    """peaks to choose from, by the score on a held-out slice of the training data; none: no choice"""
    held_out_share: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """share of the training data that the choice of a learning rate is made on"""
    epochs: AtLeastOne = 3
    """passes over the training data"""
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
    precision: Precision = "float32"
    """bfloat16: matrix products in half precision, weights and sums in float32"""
    device: Device = "auto"
    """auto: a CUDA device if there is one"""
    limit: AtLeastOne | None = None
    """at most so many examples of each part, for a quick look; none: all"""


def check_fine_tuning(model: Subject, auto: Any, recipe: FineTuning, task: str) -> None:
    """Raise UsageError without the device or the head, or for rows longer than the model's positions."""
    device_of(recipe.device)
    if recipe.max_length > model.max_length:
        raise UsageError(
            f"{task}: rows of {recipe.max_length} tokens, and {model.name} has room for {model.max_length}: "
            f"--set {task}.max_length={model.max_length}, or evaluate a model of longer rows"
        )
    model.check_head(auto)


@contextmanager
def open_seeded(
    model: Subject, auto: Any, recipe: FineTuning, seed: int, **changes: Any
) -> Iterator[PreTrainedModel]:
    """A model with a new head on the recipe's device; what is drawn inside is a function of the seed."""
    device = device_of(recipe.device)
    key = int(row_keys(seed, Stream.DROPOUT, 0, 0)) >> 1
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(key)
        opened, _ = model.open_as(auto, **changes)
        yield placed(opened, device)


def fine_tune(
    model: PreTrainedModel,
    examples: Encoded,
    loss_of: Loss,
    recipe: FineTuning,
    rate: float,
    seed: int,
    *,
    label: str,
    progress: bool,
) -> None:
    """Train the model in place; raises RunError if the loss is not finite."""
    device = next(model.parameters()).device
    per_epoch = math.ceil(len(examples) / recipe.batch_size)
    steps = per_epoch * recipe.epochs
    warmup = round(recipe.warmup_share * steps)
    optimiser = _optimiser(model, recipe.weight_decay, fused=device.type in ("cpu", "cuda"))
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    model.train()
    step, recent, counted = 0, torch.zeros((), device=device), 0
    with Progress(label, len(examples) * recipe.epochs, shown=progress) as shown:
        for epoch in range(recipe.epochs):
            key = int(row_keys(seed, Stream.ORDER, epoch, 0)) >> 2
            for index in shuffled_batches(examples.lengths, recipe.batch_size, key):
                inputs = examples.batch(index, model, device)
                with autocast(device, recipe.precision):
                    output = model(**inputs)
                loss = loss_of(output, inputs, torch.from_numpy(index).to(device))
                loss.backward()
                nn.utils.clip_grad_norm_(parameters, recipe.max_gradient_norm)
                for group in optimiser.param_groups:
                    group["lr"] = rate * _share_of_peak(step, steps, warmup)
                optimiser.step()
                optimiser.zero_grad(set_to_none=True)
                recent += loss.detach()
                step, counted = step + 1, counted + 1
                note = ""
                if counted == _STEPS_BETWEEN_CHECKS or step == steps:
                    note = f"loss {_finite(recent, step, label) / counted:.3f}"
                    recent, counted = torch.zeros_like(recent), 0
                shown.advance(index.size, note)
    model.eval()


@torch.inference_mode()
def outputs(
    model: PreTrainedModel, examples: Encoded, recipe: FineTuning, *, label: str, progress: bool
) -> Iterator[tuple[NDArray[np.int64], Any, dict[str, torch.Tensor]]]:
    """(indices of the examples, the model's output, its inputs), by batches of like length."""
    device = next(model.parameters()).device
    model.eval()
    with Progress(label, len(examples), shown=progress) as shown:
        for index in by_length(examples.lengths, 2 * recipe.batch_size):
            inputs = examples.batch(index, model, device)
            with autocast(device, recipe.precision):
                output = model(**inputs)
            yield index, output, inputs
            shown.advance(index.size)


def _share_of_peak(step: int, steps: int, warmup: int) -> float:
    """Linear warm-up from above 0, then a straight line to 0 after the last step."""
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return (steps - step) / max(1, steps - warmup)


def _optimiser(model: nn.Module, weight_decay: float, *, fused: bool) -> torch.optim.AdamW:
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.999), eps=1e-6, fused=fused)


def _finite(total: torch.Tensor, step: int, label: str) -> float:
    value = float(total)
    if not math.isfinite(value):
        raise RunError(
            f"{label}: the loss is not finite by step {step}; try a lower learning rate "
            "(--set learning_rate=…) or precision=float32"
        )
    return value
