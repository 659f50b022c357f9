"""A task that fine-tunes the model and scores its answers: what is trained on, with which rate, for how long.

A learning rate is chosen, and training is stopped early, by a held-out slice of the training data, never by
the dev set.
"""

from __future__ import annotations

import logging
import math
from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from chronomask.errors import DataError, UsageError
from chronomask.evaluate.batches import Encoded
from chronomask.evaluate.finetune import (
    Diverged,
    Examples,
    FineTuning,
    Loss,
    Telling,
    at_most,
    fine_tune,
    open_seeded,
)
from chronomask.evaluate.subject import Subject
from chronomask.evaluate.task import Cached, Task
from chronomask.progress import NOT_SHOWN, Progress
from chronomask.vocabulary import vocabulary_size

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

__all__ = ["FineTunedTask", "Part", "Prepared", "Tuned"]

logger = logging.getLogger(__name__)
Recipe = TypeVar("Recipe", bound=FineTuning)
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
    trains_model = True

    def __init__(self, config: Recipe | None = None) -> None:
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
    def encode(self, model: Subject, examples: Examples, shown: Progress = NOT_SHOWN) -> Tokens:
        """Examples as tokens; ``shown``: counts them."""

    @abstractmethod
    def groups(self, examples: Examples) -> NDArray[np.int64]:
        """[N]: a number per example; examples of one group are held out together, or not at all."""

    @abstractmethod
    def loss(self, part: Part[Examples, Tokens], device: torch.device) -> Loss:
        """The loss of batches of ``part``."""

    @abstractmethod
    def answers(
        self, model: PreTrainedModel, part: Part[Examples, Tokens], telling: Telling
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
            ways = " ".join(
                f"--set {self.name}.{key}={value}" for key, value in self.fitting(model).items()
            )
            raise UsageError(
                f"{self.name}: max_length is {self.config.max_length}, but {model.name} has positions for "
                f"{model.max_length}: {ways}, or evaluate a model of longer rows"
            )
        model.check_head(self.head)
        # An example of each part is enough, unless one may have a token that the model has no weights for.
        whole = vocabulary_size(model.tokenizer) > getattr(model.config, "vocab_size", math.inf)
        for examples in (train, *dev_sets.values()):
            self.part(model, examples if whole else examples.take(np.arange(1)))
        if self._chooses:
            self._slices(at_most(self.config.limit, train))

    def fitting(self, model: Subject) -> dict[str, int]:
        """Settings for a model whose rows are shorter than ``max_length``."""
        return {"max_length": model.max_length}

    def part(
        self, model: Subject, examples: Examples, progress: bool = False
    ) -> Part[Examples, Tokens]:
        """Examples and their tokens: at most ``limit``, spread over the file, in its order.

        ``progress``: show how far it is. Raises UsageError where one is a token that the model has no
        weights for.
        """
        examples = at_most(self.config.limit, examples)
        label = f"{self.name} encoding"
        with Progress(label, len(examples), shown=progress, brief=True) as shown:
            encoded = self.encode(model, examples, shown)
        if encoded.ids.max(initial=0) >= getattr(model.config, "vocab_size", math.inf):
            model.check_tokens()
        return Part(examples, encoded)

    def prepare(
        self, model: Subject, task_data: Path, progress: bool
    ) -> Prepared[Examples, Tokens]:
        """Texts as tokens and the learning rate; kept from one seed to the next."""
        digest = self.data_sha256(task_data)

        def make() -> Prepared[Examples, Tokens]:
            examples, dev_sets = self.read(task_data)
            train, held_out = self.part(model, examples, progress), None
            dev = {name: self.part(model, each, progress) for name, each in dev_sets.items()}
            rate, choice = self.config.learning_rate, {}
            if self._chooses:
                inside, outside = (
                    self.part(model, train.examples.take(index), progress)
                    for index in self._slices(train.examples)
                )
                if self.config.learning_rates:
                    rate, choice = self._choose_rate(model, inside, outside, progress)
                if self.config.patience is not None:
                    train, held_out = inside, outside
            return Prepared(train, held_out, dev, digest, rate, choice)

        return self._prepared.of((model.sha256, model.setup_sha256, digest), make)

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
        telling = Telling(self.name, f"{self.name} seed {seed}", progress)
        with self._open_tuned(
            model, prepared.train, prepared.held_out, prepared.rate, seed, telling
        ) as (tuned, best):
            answers = {
                name: self.answers(tuned, part, telling) for name, part in prepared.dev.items()
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
        telling: Telling,
    ) -> Iterator[tuple[PreTrainedModel, dict[str, float]]]:
        """A model fine-tuned on ``train``, stopped by ``held_out`` if there is one, and what decided that."""
        with self.open_copy(model, seed) as opened:
            best = None
            if held_out is not None and self.config.patience is not None:
                score = partial(self._score_of, opened, held_out, telling)
                best = _BestEpoch(opened, score, self.config.patience)
            fine_tune(
                opened, train.encoded, self.loss(train, opened.device), self.config, rate, seed,
                telling=telling, stops_after=best,
            )  # fmt: skip
            yield opened, {} if best is None else best.restore()

    def _score_of(
        self, tuned: PreTrainedModel, part: Part[Examples, Tokens], telling: Telling
    ) -> float:
        return self.score(part, self.answers(tuned, part, telling))

    def _choose_rate(
        self,
        model: Subject,
        inside: Part[Examples, Tokens],
        outside: Part[Examples, Tokens],
        progress: bool,
    ) -> tuple[float, dict[str, float]]:
        """The best of the recipe's rates (the lower of equal ones), and the score of each by name.

        Each trains on ``inside`` and is scored on ``outside``, with seed 0. One whose loss is not finite is
        not chosen; raises Diverged where that is so of all.
        """
        stopped_by = None if self.config.patience is None else outside
        scores, failed = {}, None
        for rate in sorted(set(self.config.learning_rates)):
            telling = Telling(self.name, f"{self.name} at {rate:g}", progress)
            opened = self._open_tuned(model, inside, stopped_by, rate, 0, telling)
            try:
                with opened as (tuned, _):
                    scores[rate] = self._score_of(tuned, outside, telling)
            except Diverged as error:
                failed = error
                logger.warning(
                    "%s: the loss or the answers are not finite, so this rate is not chosen",
                    telling.label,
                )
        if not scores:
            lower = f"{self.name}.learning_rates=[{min(self.config.learning_rates) / 10:g}]"
            raise Diverged(
                f"{self.name}: the loss or the answers are not finite at any of the learning rates: name "
                f"lower ones, such as --set '{lower}'"
            ) from failed
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
                f"{share:.0%} of them: set another share (--set {self.name}.held_out_share=SHARE), or choose "
                f"neither the learning rate (--set '{self.name}.learning_rates=[]') nor the epoch (--set "
                f"{self.name}.patience=null)"
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
