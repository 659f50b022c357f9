"""Which classes of tokens are preferred: content schedules, each with what training teaches it.

A schedule is one config class, which begins a :class:`ContentState`: a few numbers per class, updated
once per optimiser step from a :class:`~chronomask.types.ClassTally` pooled over micro-batches and ranks,
and saved in the checkpoint. Weights used in step s come from steps before s: a delay of exactly one step.
A new schedule is one more pair of classes, here or anywhere (see :class:`~chronomask.config.Alternative`).

A class is a value of the data's class column (a part of speech, a frequency band, anything a user
brings), or a token id, where a schedule says so. Arrays: C classes.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar, Generic, Literal, TypeVar

from pydantic import Field, model_validator

from chronomask.config import Alternative, kind_of
from chronomask.errors import DataError, UsageError, nearest
from chronomask.types import NO_CLASS, ClassTally

if TYPE_CHECKING:
    import torch

__all__ = ["ContentSchedule", "ContentState", "WeightMap"]

Decay = Annotated[float, Field(ge=0, lt=1)]


class ContentSchedule(Alternative):
    """What every content schedule says of itself; ``begin`` is the one thing a new one must define."""

    learns: ClassVar[bool] = True
    """whether its state takes in losses; if not, nothing need be observed"""
    needs_classes: ClassVar[bool] = True
    """whether it is about the classes of the data, so that data without any cannot be masked by it"""
    by_token_id: ClassVar[bool] = False
    """whether its classes are the vocabulary's token ids"""
    selection: ClassVar[Literal["exact", "published"]] = "exact"
    """how units are chosen: in expectation exactly by their weights, or by the published walk"""

    @abstractmethod
    def begin(self, class_names: Sequence[str], vocab_size: int) -> ContentState:
        """The state before training.

        ``class_names``: of the data's class column, "none" first; ``vocab_size``: number of token ids.
        Raises UsageError when the schedule cannot work with these classes.
        """


_Schedule = TypeVar("_Schedule", bound=ContentSchedule)


class ContentState(Generic[_Schedule]):
    """The running state of a schedule: named tensors, one float64 number per class in each.

    ``tensor_names``: those that a subclass keeps in :attr:`tensors`, zero at first; they are moved, saved
    and restored here. A subclass defines :meth:`learn` and :meth:`weights`.
    """

    tensor_names: ClassVar[tuple[str, ...]] = ()

    def __init__(self, config: _Schedule, class_names: Sequence[str], vocab_size: int) -> None:
        import torch

        if config.needs_classes and len(class_names) < 2:
            raise UsageError(
                f"content schedule '{kind_of(config)}' needs token classes, but the data has none: "
                "prepare it with a tagger, or use content kind 'none' or 'token_accuracy'"
            )
        self.config = config
        self.class_names = tuple(class_names)
        self.num_classes = vocab_size if config.by_token_id else len(self.class_names)
        self.num_updates = 0
        self.device = torch.device("cpu")
        self.tensors = {
            name: torch.zeros(self.num_classes, dtype=torch.float64) for name in self.tensor_names
        }

    def learn(self, loss: torch.Tensor, count: torch.Tensor, correct: torch.Tensor) -> None:
        """Take in one step's sums: float64 [C] on the state's device, losses in nats.

        :attr:`num_updates` counts this step already.
        """

    def weights(self) -> torch.Tensor | None:
        """float64 [C] in [0, 1], larger = masked more; None when every class is alike."""
        return None

    def update(self, tally: ClassTally) -> None:
        """Take in one optimiser step's pooled sums; ``tally`` has this state's ``num_classes``."""
        import torch

        self.num_updates += 1
        if self.config.learns:
            sums = (tally.loss_sum, tally.count, tally.correct)
            self.learn(*(torch.as_tensor(each, device=self.device).double() for each in sums))

    def to(self, device: torch.device | str) -> None:
        """Move the state."""
        import torch

        self.device = torch.device(device)
        self.tensors = {name: tensor.to(device) for name, tensor in self.tensors.items()}

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Copies of all tensors of the state, and the number of updates."""
        import torch

        updates = torch.tensor(self.num_updates, dtype=torch.int64)
        return {"num_updates": updates} | {k: v.clone() for k, v in self.tensors.items()}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Restore what :meth:`state_dict` gave; raises DataError if it is of another schedule."""
        expected = {"num_updates"} | set(self.tensors)
        if set(state) != expected:
            raise DataError(
                f"the saved content state holds {sorted(state)}, schedule '{kind_of(self.config)}' "
                f"needs {sorted(expected)}: resume with the schedule it was trained with"
            )
        for name, tensor in self.tensors.items():
            if state[name].shape != tensor.shape:
                raise DataError(
                    f"the saved content state '{name}' has shape {tuple(state[name].shape)}, "
                    f"the data's classes need {tuple(tensor.shape)}: resume with the data it was trained on"
                )
            tensor.copy_(state[name])
        self.num_updates = int(state["num_updates"])


class WeightMap(Alternative):
    """From z-scored losses to weights."""

    @abstractmethod
    def weights(self, z: torch.Tensor) -> torch.Tensor:
        """float64 [C], larger = masked more, of z = (L − mean L) / std L."""


class Sigmoid(WeightMap):
    """w = sigmoid(slope · z), z = (L − mean L) / std L: the published map, slope 2."""

    kind: Literal["sigmoid"] = "sigmoid"
    slope: Annotated[float, Field(gt=0)] = 2.0
    """the larger, the more the hard classes are preferred"""

    def weights(self, z: torch.Tensor) -> torch.Tensor:
        return (self.slope * z).sigmoid()


class Softmax(WeightMap):
    """w ∝ exp(z / temperature), scaled so that the largest weight is 1."""

    kind: Literal["softmax"] = "softmax"
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """the smaller, the more the hard classes are preferred"""

    def weights(self, z: torch.Tensor) -> torch.Tensor:
        return ((z - z.max()) / self.temperature).exp()


class Clipped(WeightMap):
    """w = ½ + slope · z, kept inside [low, high]: no class is ever shut out or masked alone."""

    kind: Literal["clipped"] = "clipped"
    slope: Annotated[float, Field(gt=0)] = 0.25
    """gain per standard deviation of loss"""
    low: Annotated[float, Field(gt=0, le=1)] = 0.2
    """smallest weight"""
    high: Annotated[float, Field(gt=0, le=1)] = 0.8
    """largest weight"""

    @model_validator(mode="after")
    def _check_bounds(self) -> Clipped:
        if self.low > self.high:
            raise ValueError(f"low ({self.low}) must not exceed high ({self.high})")
        return self

    def weights(self, z: torch.Tensor) -> torch.Tensor:
        return (0.5 + self.slope * z).clamp(self.low, self.high)


class NoContent(ContentSchedule):
    """Every unit is as likely as any other."""

    learns: ClassVar[bool] = False
    needs_classes: ClassVar[bool] = False

    kind: Literal["none"] = "none"

    def begin(self, class_names: Sequence[str], vocab_size: int) -> ContentState:
        return ContentState(self, class_names, vocab_size)


class Ptw(ContentSchedule):
    """POS-Tagging Weighted masking, corrected: classes with a higher running loss are masked more.

    Yang, Zhang and Zhao (ACL 2023) §4, with the running loss of a class taken as the ratio of two
    averages, of loss sums and of token counts. Both start at 0 and their ratio is unbiased from the
    first step on, so rare classes do not look easy; every token counts once, whatever the step.
    """

    kind: Literal["ptw"] = "ptw"
    ema_decay: Decay = 0.999
    """m of the running averages, per optimiser step"""
    weight_map: WeightMap = Sigmoid()
    """from z-scored losses to weights"""

    def begin(self, class_names: Sequence[str], vocab_size: int) -> ContentState:
        return _PtwState(self, class_names, vocab_size)


class _PtwState(ContentState[Ptw]):
    tensor_names = ("loss_average", "count_average")

    def learn(self, loss: torch.Tensor, count: torch.Tensor, correct: torch.Tensor) -> None:
        m = self.config.ema_decay
        self.tensors["loss_average"].mul_(m).add_(loss * (1 - m))
        self.tensors["count_average"].mul_(m).add_(count * (1 - m))

    def weights(self) -> torch.Tensor:
        import torch

        count = self.tensors["count_average"]
        seen = count > 0
        seen[NO_CLASS] = False
        loss = self.tensors["loss_average"] / torch.where(seen, count, 1.0)
        return self.config.weight_map.weights(_z_scores(loss, seen))


class PtwFaithful(ContentSchedule):
    """PTW as published: averages from 0 without correction, and the published walk over words.

    For reproduction. The walk mixes ratio and content and drives multi-piece words out at low
    ratios; see docs/masking.md.
    """

    selection: ClassVar[Literal["exact", "published"]] = "published"

    kind: Literal["ptw_faithful"] = "ptw_faithful"
    ema_decay: Decay = 0.999
    """m of the running averages, per optimiser step"""

    def begin(self, class_names: Sequence[str], vocab_size: int) -> ContentState:
        return _PublishedState(self, class_names, vocab_size)


class _PublishedState(ContentState[PtwFaithful]):
    tensor_names = ("loss_average",)

    def learn(self, loss: torch.Tensor, count: torch.Tensor, correct: torch.Tensor) -> None:
        import torch

        m, average = self.config.ema_decay, self.tensors["loss_average"]
        new = m * average + (1 - m) * (loss / count.clamp(min=1))
        average.copy_(torch.where(count > 0, new, average))

    def weights(self) -> torch.Tensor:
        """As published: z over all tags, those never seen included with their average of 0."""
        import torch

        loss = self.tensors["loss_average"]
        tags = torch.ones(loss.shape, dtype=torch.bool, device=loss.device)
        tags[NO_CLASS] = False
        return torch.sigmoid(2 * _z_scores(loss, tags))


class Fixed(ContentSchedule):
    """Weights given by hand, never changed; a ratio of two weights is a ratio of odds."""

    learns: ClassVar[bool] = False

    kind: Literal["fixed"] = "fixed"
    weights: dict[str, Annotated[float, Field(ge=0)]]
    """class name → weight; classes not named get ``other``"""
    other: Annotated[float, Field(ge=0)] = 1.0
    """weight of all other classes"""

    def begin(self, class_names: Sequence[str], vocab_size: int) -> ContentState:
        return _FixedState(self, class_names, vocab_size)


class _FixedState(ContentState[Fixed]):
    def __init__(self, config: Fixed, class_names: Sequence[str], vocab_size: int) -> None:
        super().__init__(config, class_names, vocab_size)
        for name in config.weights:
            if name not in self.class_names:
                raise UsageError(
                    f"content.weights names class '{name}'; {nearest(name, self.class_names)}"
                )

    def weights(self) -> torch.Tensor:
        """Relative to the largest; raises UsageError where all are 0."""
        import torch

        values = [self.config.weights.get(name, self.config.other) for name in self.class_names]
        top = max(values)
        if top <= 0:
            raise UsageError("content.weights must give at least one class a weight above 0")
        return torch.tensor([v / top for v in values], dtype=torch.float64, device=self.device)


class TokenAccuracy(ContentSchedule):
    """Token ids that the model predicts badly are masked more (AMLM, BabyLM 2025 challenge).

    Every ``every`` steps, for each token id v predicted since: w_v ← keep · w_v + (1 − keep)(1 − acc_v).
    A word's weight is the mean over its tokens.
    """

    needs_classes: ClassVar[bool] = False
    by_token_id: ClassVar[bool] = True

    kind: Literal["token_accuracy"] = "token_accuracy"
    every: Annotated[int, Field(ge=1)] = 200
    """steps between updates of the weights"""
    keep: Decay = 0.2
    """share of the old weight that stays"""

    def begin(self, class_names: Sequence[str], vocab_size: int) -> ContentState:
        return _AccuracyState(self, class_names, vocab_size)


class _AccuracyState(ContentState[TokenAccuracy]):
    tensor_names = ("weight", "correct", "count")

    def __init__(self, config: TokenAccuracy, class_names: Sequence[str], vocab_size: int) -> None:
        super().__init__(config, class_names, vocab_size)
        self.tensors["weight"] += 1.0

    def learn(self, loss: torch.Tensor, count: torch.Tensor, correct: torch.Tensor) -> None:
        import torch

        state, keep = self.tensors, self.config.keep
        state["correct"] += correct
        state["count"] += count
        if self.num_updates % self.config.every:
            return
        accuracy = state["correct"] / state["count"].clamp(min=1)
        new = keep * state["weight"] + (1 - keep) * (1 - accuracy)
        state["weight"].copy_(torch.where(state["count"] > 0, new, state["weight"]))
        state["correct"].zero_()
        state["count"].zero_()

    def weights(self) -> torch.Tensor:
        return self.tensors["weight"]


def _z_scores(loss: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
    """(L − mean) / std over the seen classes, unbiased std; 0 for the others and while std is 0."""
    import torch

    number = seen.sum()
    mean = torch.where(seen, loss, 0.0).sum() / number.clamp(min=1)
    deviation = torch.where(seen, loss - mean, 0.0)
    std = (deviation.square().sum() / (number - 1).clamp(min=1)).sqrt()
    return torch.where(std > 0, deviation / torch.where(std > 0, std, 1.0), 0.0)


def quantise(weights: torch.Tensor) -> torch.Tensor:
    """Weights relative to the largest, on a grid of 2⁻¹⁶ and never below it.

    The grid makes selection independent of the last bits, in which devices may differ; the lower
    bound lets a class of weight 0 fill a budget that nothing else can.
    """
    scaled = weights / weights.max() * 2.0**16
    return scaled.round().clamp(min=1.0) * 2.0**-16
