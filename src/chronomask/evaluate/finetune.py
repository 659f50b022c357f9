"""Fine-tuning: a model with a new head, AdamW, a warm-up and a straight line down; then its answers.

Everything random is a function of the seed: the head's initial weights, dropout and the order. A learning
rate is chosen, and training is stopped early, by a held-out slice of the training data, never by the dev set.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Generic, Protocol, Self, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from chronomask.config import Config
from chronomask.errors import DataError, RunError, UsageError
from chronomask.evaluate.batches import Encoded, by_length, shuffled_batches
from chronomask.evaluate.subject import Subject
from chronomask.evaluate.task import Cached, Task
from chronomask.progress import Progress
from chronomask.types import Device, Precision, send

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedModel

__all__ = [
    "AtLeastOne",
    "FineTunedTask",
    "FineTuning",
    "Loss",
    "Part",
    "Positive",
    "Prepared",
    "Tuned",
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
    """of matrix products, weights and sums are float32; auto: bf16 on CUDA devices that compute it"""
    device: Device = "auto"
    """auto: a CUDA device if there is one"""
    limit: AtLeastOne | None = None
    """at most so many examples of each part, for a quick look; none: all"""


class _Examples(Protocol):
    def __len__(self) -> int: ...

    def take(self, index: NDArray[np.int64]) -> Self: ...


Recipe = TypeVar("Recipe", bound=FineTuning)
Examples = TypeVar("Examples", bound=_Examples)
Tokens = TypeVar("Tokens", bound=Encoded)


@dataclass(frozen=True, slots=True)
class Part(Generic[Examples, Tokens]):
    """Examples as they were read, and as tokens: what the model is given."""

    examples: Examples
    encoded: Tokens


@dataclass(frozen=True, slots=True)
class Prepared(Generic[Examples, Tokens]):
    """What all seeds of a task share."""

    train: Part[Examples, Tokens]
    """what is trained on"""
    held_out: Part[Examples, Tokens] | None
    """the slice that decides when to stop; None: training goes on to the end"""
    dev: dict[str, Part[Examples, Tokens]]
    """dev sets by name; the first is the one that comparisons use"""
    data_sha256: str
    rate: float
    """peak of the learning rate"""
    choice: dict[str, float]
    """how the rate was chosen"""


@dataclass(frozen=True, slots=True)
class Tuned:
    """What a fine-tuned model says."""

    answers: dict[str, Any]
    """its answers to each dev set, by name"""
    details: dict[str, float]
    """how learning rate and epoch were chosen, for the result's ``details``"""


class FineTunedTask(Task[Recipe], Generic[Recipe, Examples, Tokens]):
    """A task that trains the model with a new head on its training part, and scores its dev sets."""

    head: ClassVar[str]
    """name of transformers' auto class with the head, such as ``AutoModelForQuestionAnswering``"""

    def __init__(self, config: Recipe) -> None:
        super().__init__(config)
        self._prepared = Cached[Prepared[Examples, Tokens]]()

    @property
    def head_options(self) -> dict[str, Any]:
        """Further keywords of the head's ``from_pretrained``."""
        return {}

    @abstractmethod
    def read(self, task_data: Path) -> tuple[Examples, dict[str, Examples]]:
        """The training examples, and the dev sets by name, the one that comparisons use first."""

    @abstractmethod
    def encode(self, model: Subject, examples: Examples) -> Tokens:
        """Examples as tokens."""

    @abstractmethod
    def groups(self, examples: Examples) -> NDArray[np.int64]:
        """[N]: a number per example; examples of one group are held out together, or not at all."""

    @abstractmethod
    def loss(self, part: Part[Examples, Tokens], device: torch.device) -> Loss:
        """The loss of batches of ``part``."""

    @abstractmethod
    def answers(
        self, model: PreTrainedModel, part: Part[Examples, Tokens], label: str, progress: bool
    ) -> Any:
        """What a fine-tuned model says of each example of ``part``."""

    @abstractmethod
    def score(self, part: Part[Examples, Tokens], answers: Any) -> float:
        """The primary metric of answers, the higher the better."""

    def check(self, model: Subject, task_data: Path) -> None:
        """Read everything once, and encode an example of each part; raises UsageError or DataError."""
        train, dev_sets = self.read(task_data)
        from chronomask.model.device import choose_device  # brings torch: files that lack cost none

        choose_device(self.config.device)
        if self.config.max_length > model.max_length:
            raise UsageError(
                f"{self.name}: max_length is {self.config.max_length}, but {model.name} has positions for "
                f"{model.max_length}: --set {self.name}.max_length={model.max_length}, or evaluate a "
                "model of longer rows"
            )
        model.check_head(self.head)
        for examples in (train, *dev_sets.values()):
            self.encode(model, examples.take(np.arange(1)))
        if self._chooses:
            self._slices(at_most(self.config.limit, train))

    def part(self, model: Subject, examples: Examples) -> Part[Examples, Tokens]:
        """Examples and their tokens: at most ``limit``, spread over the file, in its order."""
        examples = at_most(self.config.limit, examples)
        return Part(examples, self.encode(model, examples))

    def prepare(
        self, model: Subject, task_data: Path, progress: bool
    ) -> Prepared[Examples, Tokens]:
        """Texts as tokens and the learning rate; kept from one seed to the next."""
        digest = self.data_sha256(task_data)

        def make() -> Prepared[Examples, Tokens]:
            examples, dev_sets = self.read(task_data)
            train, held_out = self.part(model, examples), None
            dev = {name: self.part(model, each) for name, each in dev_sets.items()}
            rate, choice = self.config.learning_rate, {}
            if self._chooses:
                inside, outside = (
                    Part(each := train.examples.take(index), self.encode(model, each))
                    for index in self._slices(train.examples)
                )
                if self.config.learning_rates:
                    rate, choice = self._choose_rate(model, inside, outside, progress)
                if self.config.patience is not None:
                    train, held_out = inside, outside
            return Prepared(train, held_out, dev, digest, rate, choice)

        return self._prepared.of((model.sha256, digest), make)

    def left_out(self, prepared: Prepared[Examples, Tokens]) -> dict[str, int]:
        """What the tokens of each part do not hold, such as ``training examples cut at 128 tokens``."""
        parts = {"training": prepared.train, "held-out": prepared.held_out, **prepared.dev}
        return {
            f"{name} {reason}": count
            for name, part in parts.items()
            if part is not None
            for reason, count in part.encoded.left_out.items()
        }

    def tune(
        self, model: Subject, prepared: Prepared[Examples, Tokens], seed: int, progress: bool
    ) -> Tuned:
        """Fine-tune with the recipe, and answer the dev sets."""
        label = f"{self.name} seed {seed}"
        with self._open_tuned(
            model, prepared.train, prepared.held_out, prepared.rate, seed, label, progress
        ) as (tuned, best):
            answers = {
                name: self.answers(tuned, part, label, progress)
                for name, part in prepared.dev.items()
            }
        return Tuned(answers, prepared.choice | best)

    def open_copy(self, model: Subject, seed: int) -> AbstractContextManager[PreTrainedModel]:
        """The model with its new head; what is drawn inside the context is a function of the seed."""
        return open_seeded(model, self.head, self.config, seed, **self.head_options)

    @contextmanager
    def _open_tuned(
        self,
        model: Subject,
        train: Part[Examples, Tokens],
        held_out: Part[Examples, Tokens] | None,
        rate: float,
        seed: int,
        label: str,
        progress: bool,
    ) -> Iterator[tuple[PreTrainedModel, dict[str, float]]]:
        """A model fine-tuned on ``train``, stopped by ``held_out`` if there is one, and what decided that."""
        with self.open_copy(model, seed) as opened:
            best = None
            if held_out is not None and self.config.patience is not None:
                score = partial(self._score_of, opened, held_out, label, progress)
                best = _BestEpoch(opened, score, self.config.patience)
            fine_tune(
                opened, train.encoded, self.loss(train, opened.device), self.config, rate, seed,
                label=label, progress=progress, stops_after=best,
            )  # fmt: skip
            yield opened, {} if best is None else best.restore()

    def _score_of(
        self, tuned: PreTrainedModel, part: Part[Examples, Tokens], label: str, progress: bool
    ) -> float:
        return self.score(part, self.answers(tuned, part, label, progress))

    def _choose_rate(
        self,
        model: Subject,
        inside: Part[Examples, Tokens],
        outside: Part[Examples, Tokens],
        progress: bool,
    ) -> tuple[float, dict[str, float]]:
        """The best of the recipe's rates (the lower of equal ones), and the score of each by name.

        Each trains on ``inside`` and is scored on ``outside``, with seed 0.
        """
        stopped_by = None if self.config.patience is None else outside
        scores = {}
        for rate in sorted(set(self.config.learning_rates)):
            label = f"{self.name} at {rate:g}"
            with self._open_tuned(model, inside, stopped_by, rate, 0, label, progress) as (
                tuned,
                _,
            ):
                scores[rate] = self._score_of(tuned, outside, label, progress)
        best = max(scores, key=lambda rate: (scores[rate], -rate))
        details = {f"held_out_score_at_{rate:g}": value for rate, value in scores.items()}
        return best, {"learning_rate": best, **details}

    @property
    def _chooses(self) -> bool:
        """Whether a slice of the training data decides something."""
        return bool(self.config.learning_rates) or self.config.patience is not None

    def _slices(self, examples: Examples) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Indices to train on and to score on, ascending: the same for every seed and model.

        Raises DataError where a side would be empty.
        """
        from chronomask.keyed import Stream, permute, row_keys

        groups, share = self.groups(examples), self.config.held_out_share
        names = np.unique(groups)
        count = round(share * names.size)
        if not 0 < count < names.size:
            raise DataError(
                f"{self.name}: {names.size} groups of training examples are too few to hold out "
                f"{share:.0%} of them: set another {self.name}.held_out_share, or choose neither the "
                "learning rate (learning_rates=[]) nor the epoch (patience=null)"
            )
        key = int(row_keys(0, Stream.SELECT, 0, 0)) >> 2
        chosen = names[permute(np.arange(names.size), names.size, key) < count]
        held_out = np.isin(groups, chosen)
        return np.flatnonzero(~held_out), np.flatnonzero(held_out)


class _BestEpoch:
    """Keeps the weights of the epoch with the best score, the first of equal ones, and says when to stop."""

    def __init__(self, model: PreTrainedModel, score: Callable[[], float], patience: int) -> None:
        self._model, self._score_now, self._patience = model, score, patience
        self._weights: dict[str, torch.Tensor] = {}
        self._score, self._epoch, self._trained = -math.inf, 0, 0

    def __call__(self, epoch: int) -> bool:
        """Score the model after ``epoch``, counted from 1; whether ``patience`` is at an end."""
        score, self._trained = self._score_now(), epoch
        if not self._weights or score > self._score:
            self._score, self._epoch = score, epoch
            self._weights = {name: t.clone() for name, t in self._model.state_dict().items()}
        return epoch - self._epoch >= self._patience

    def restore(self) -> dict[str, float]:
        """Give the model its best weights back, and say which they are."""
        self._model.load_state_dict(self._weights)
        return {
            "best_epoch": self._epoch,
            "epochs_trained": self._trained,
            "held_out_score": self._score,
        }


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
    label: str,
    progress: bool,
    stops_after: Callable[[int], bool] | None = None,
) -> None:
    """Train the model in place; raises RunError if the loss is not finite.

    On a CUDA device steps are recorded and replayed (:mod:`chronomask.evaluate.recorded`), and batches are
    padded to a few lengths for it. Where a model has dropout, so many more numbers are drawn: what is dropped
    is a function of the seed, but another one than without padding. ``stops_after``: asked after each epoch,
    counted from 1, whether it was the last.
    """
    import torch

    from chronomask.evaluate.heads import run_headed
    from chronomask.evaluate.recorded import RecordedSteps, padded_length, recorder_on
    from chronomask.keyed import Stream, row_keys
    from chronomask.model.device import autocast

    device = next(model.parameters()).device
    steps = math.ceil(len(examples) / recipe.batch_size) * recipe.epochs
    warmup = round(recipe.warmup_share * steps)
    recorder = recorder_on(device)
    optimiser = _optimiser(model, recipe.weight_decay, device, recorded=recorder is not None)
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    step, recent, counted = 0, torch.zeros((), device=device), 0

    def train_on(inputs: dict[str, Any], index: torch.Tensor) -> None:
        try:
            # A weight that was cast before a step is recorded would not be cast anew when it is replayed.
            with autocast(device, recipe.precision, keeps_casts=recorder is None):
                output = run_headed(model, inputs)
            loss = loss_of(output, inputs, index)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, recipe.max_gradient_norm)
            optimiser.step()
            recent.add_(loss.detach())
        finally:
            optimiser.zero_grad(set_to_none=True)

    lengths = examples.lengths
    longest = int(lengths.max())
    run = None if recorder is None else RecordedSteps(train_on, device, recorder, label)
    with (
        nullcontext() if recorder is None else recorder.open(),
        Progress(label, len(examples) * recipe.epochs, shown=progress) as shown,
    ):
        for epoch in range(recipe.epochs):
            key = int(row_keys(seed, Stream.ORDER, epoch, 0)) >> 2
            model.train()  # scoring an epoch leaves it in evaluation mode
            for index in shuffled_batches(lengths, recipe.batch_size, key):
                _set_rate(optimiser, rate * _share_of_peak(step, steps, warmup))
                if run is None:
                    train_on(examples.batch(index, model, device), send(index, device))
                else:
                    length = padded_length(int(lengths[index].max()), longest)
                    inputs = examples.batch(index, model, torch.device("cpu"), length=length)
                    run(inputs, index, comes_again=index.size == recipe.batch_size)
                step, counted = step + 1, counted + 1
                note = ""
                # Looking at the loss waits for the device, so it is looked at now and then.
                if counted == _STEPS_BETWEEN_CHECKS or step == steps:
                    note = f"loss {_finite(recent, step, label) / counted:.3f}"
                    counted = 0
                    recent.zero_()
                shown.advance(index.size, note)
            if stops_after is not None and stops_after(epoch + 1):
                break
    model.eval()


def outputs(
    model: PreTrainedModel, examples: Encoded, recipe: FineTuning, *, label: str, progress: bool
) -> Iterator[tuple[NDArray[np.int64], Any]]:
    """(indices of the examples, the model's output), by batches of like length."""
    import torch

    from chronomask.evaluate.heads import run_headed
    from chronomask.model.device import autocast

    device = next(model.parameters()).device
    model.eval()
    with Progress(label, len(examples), shown=progress) as shown:
        for index in by_length(examples.lengths, 2 * recipe.batch_size):
            inputs = examples.batch(index, model, device)
            with torch.inference_mode(), autocast(device, recipe.precision):
                output = run_headed(model, inputs)
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


def _set_rate(optimiser: torch.optim.AdamW, rate: float) -> None:
    import torch

    for group in optimiser.param_groups:
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def _finite(total: torch.Tensor, step: int, label: str) -> float:
    value = float(total)
    if not math.isfinite(value):
        raise RunError(
            f"{label}: the loss is not finite by step {step}; try a lower learning rate "
            "(--set learning_rate=…) or precision=fp32"
        )
    return value
