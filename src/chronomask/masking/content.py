"""Which classes of tokens are preferred: content schedules and their running state.

A content schedule is a config (a member of :data:`ContentSchedule`); :class:`ContentState` holds what
training has taught it so far: a few numbers per class, updated once per optimiser step from a
:class:`~chronomask.types.ClassTally` pooled over micro-batches and ranks, and saved in the
checkpoint. Weights used in step s come from steps before s: a delay of exactly one step.

A class is a value of the data's class column (a part of speech, a frequency band, anything a user
brings), or with ``token_accuracy`` a token id. Arrays: C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator

from chronomask.config import Config
from chronomask.errors import DataError, UsageError, nearest
from chronomask.types import NO_CLASS, ClassTally

__all__ = ["ContentSchedule", "ContentState"]

Decay = Annotated[float, Field(ge=0, lt=1)]


class Sigmoid(Config):
    """w = sigmoid(slope · z), z = (L − mean L) / std L: the published map, slope 2."""

    kind: Literal["sigmoid"] = "sigmoid"
    slope: Annotated[float, Field(gt=0)] = 2.0
    """the larger, the more the hard classes are preferred"""

    def weights(self, z: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(self.slope * z)


class Softmax(Config):
    """w ∝ exp(z / temperature), scaled so that the largest weight is 1."""

    kind: Literal["softmax"] = "softmax"
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """the smaller, the more the hard classes are preferred"""

    def weights(self, z: torch.Tensor) -> torch.Tensor:
        return torch.exp((z - z.max()) / self.temperature)


class Clipped(Config):
    """w = ½ + slope · z, kept inside [low, high]: no class is ever shut out or masked alone."""

    kind: Literal["clipped"] = "clipped"
    slope: Annotated[float, Field(gt=0)] = 0.25
    """gain per standard deviation of loss"""
    low: Annotated[float, Field(gt=0, le=1)] = 0.2
    """smallest weight"""
    high: Annotated[float, Field(gt=0, le=1)] = 0.8
    """largest weight"""

    @model_validator(mode="after")
    def _in_order(self) -> Clipped:
        if self.low > self.high:
            raise ValueError(f"low {self.low} is above high {self.high}")
        return self

    def weights(self, z: torch.Tensor) -> torch.Tensor:
        return torch.clamp(0.5 + self.slope * z, self.low, self.high)


WeightMap = Annotated[Sigmoid | Softmax | Clipped, Field(discriminator="kind")]


class NoContent(Config):
    """Every unit is as likely as any other."""

    kind: Literal["none"] = "none"


class Ptw(Config):
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


class PtwFaithful(Config):
    """PTW as published: averages from 0 without correction, and the published walk over words.

    For reproduction. The walk mixes ratio and content and drives multi-piece words out at low
    ratios; see docs/masking.md.
    """

    kind: Literal["ptw_faithful"] = "ptw_faithful"
    ema_decay: Decay = 0.999
    """m of the running averages, per optimiser step"""


class Fixed(Config):
    """Weights given by hand, never changed; a ratio of two weights is a ratio of odds."""

    kind: Literal["fixed"] = "fixed"
    weights: dict[str, Annotated[float, Field(ge=0)]]
    """class name → weight; classes not named get ``other``"""
    other: Annotated[float, Field(ge=0)] = 1.0
    """weight of all other classes"""


class TokenAccuracy(Config):
    """Token ids that the model predicts badly are masked more (AMLM, BabyLM 2025 challenge).

    Every ``every`` steps, for each token id v predicted since: w_v ← keep · w_v + (1 − keep)(1 − acc_v).
    A word's weight is the mean over its tokens.
    """

    kind: Literal["token_accuracy"] = "token_accuracy"
    every: Annotated[int, Field(ge=1)] = 200
    """steps between updates of the weights"""
    keep: Decay = 0.2
    """share of the old weight that stays"""


ContentSchedule = Annotated[
    NoContent | Ptw | PtwFaithful | Fixed | TokenAccuracy, Field(discriminator="kind")
]


class ContentState:
    """The running state of one content schedule.

    ``class_names``: of the data's class column, "none" first; ``vocab_size``: for schedules whose
    classes are token ids. Raises UsageError when the schedule cannot work with these classes.
    """

    def __init__(
        self,
        config: NoContent | Ptw | PtwFaithful | Fixed | TokenAccuracy,
        class_names: Sequence[str],
        vocab_size: int,
    ) -> None:
        self.config = config
        self.class_names = tuple(class_names)
        self.by_token_id = isinstance(config, TokenAccuracy)
        self.num_classes = vocab_size if self.by_token_id else len(self.class_names)
        needs_classes = isinstance(config, Ptw | PtwFaithful | Fixed)
        if needs_classes and len(self.class_names) < 2:
            raise UsageError(
                f"content schedule '{config.kind}' needs token classes, but the data has none: "
                "prepare it with a tagger, or use content kind 'none' or 'token_accuracy'"
            )
        if isinstance(config, Fixed):
            for name in config.weights:
                if name not in self.class_names:
                    raise UsageError(
                        f"content.weights names class '{name}'; {nearest(name, self.class_names)}"
                    )
        self._tensors: dict[str, torch.Tensor] = {}
        if not isinstance(config, NoContent | Fixed):
            zeros = torch.zeros(self.num_classes, dtype=torch.float64)
            names = {
                "ptw": ("loss_average", "count_average"),
                "ptw_faithful": ("loss_average",),
                "token_accuracy": ("weight", "correct", "count"),
            }[config.kind]
            self._tensors = {name: zeros.clone() for name in names}
            if isinstance(config, TokenAccuracy):
                self._tensors["weight"] += 1.0
        self.num_updates = 0
        self.device = torch.device("cpu")

    def update(self, tally: ClassTally) -> None:
        """Take in one optimiser step's pooled sums; ``tally`` has this state's ``num_classes``."""
        state, config = self._tensors, self.config
        self.num_updates += 1
        if isinstance(config, NoContent | Fixed):
            return
        loss = torch.as_tensor(tally.loss_sum, dtype=torch.float64, device=self.device)
        count = torch.as_tensor(tally.count, device=self.device).to(torch.float64)
        if isinstance(config, Ptw):
            m = config.ema_decay
            state["loss_average"].mul_(m).add_(loss * (1 - m))
            state["count_average"].mul_(m).add_(count * (1 - m))
        elif isinstance(config, PtwFaithful):
            m, average = config.ema_decay, state["loss_average"]
            new = m * average + (1 - m) * (loss / count.clamp(min=1))
            average.copy_(torch.where(count > 0, new, average))
        else:
            correct = torch.as_tensor(tally.correct, device=self.device).to(torch.float64)
            state["correct"] += correct
            state["count"] += count
            if self.num_updates % config.every == 0:
                accuracy = state["correct"] / state["count"].clamp(min=1)
                new = config.keep * state["weight"] + (1 - config.keep) * (1 - accuracy)
                state["weight"].copy_(torch.where(state["count"] > 0, new, state["weight"]))
                state["correct"].zero_()
                state["count"].zero_()

    def weights(self) -> torch.Tensor | None:
        """float64 [C] in [0, 1], larger = masked more; None when every class is alike."""
        config, state = self.config, self._tensors
        if isinstance(config, NoContent):
            return None
        if isinstance(config, Fixed):
            values = [config.weights.get(name, config.other) for name in self.class_names]
            top = max(values)
            if top <= 0:
                raise UsageError("content.weights: at least one class needs a weight above 0")
            return torch.tensor([v / top for v in values], dtype=torch.float64, device=self.device)
        if isinstance(config, TokenAccuracy):
            return state["weight"]
        if isinstance(config, PtwFaithful):
            return _sigmoid_of_published_z(state["loss_average"])
        seen = state["count_average"] > 0
        seen[NO_CLASS] = False
        loss = state["loss_average"] / torch.where(seen, state["count_average"], 1.0)
        return config.weight_map.weights(_z_scores(loss, seen))

    def to(self, device: torch.device | str) -> None:
        """Move the state."""
        self.device = torch.device(device)
        self._tensors = {name: tensor.to(device) for name, tensor in self._tensors.items()}

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Copies of all tensors of the state; empty for schedules without state."""
        updates = torch.tensor(self.num_updates, dtype=torch.int64)
        return {"num_updates": updates} | {k: v.clone() for k, v in self._tensors.items()}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Restore what :meth:`state_dict` gave; raises DataError if it is of another schedule."""
        expected = {"num_updates"} | set(self._tensors)
        if set(state) != expected:
            raise DataError(
                f"content state has {sorted(state)}, schedule '{self.config.kind}' "
                f"needs {sorted(expected)}"
            )
        for name, tensor in self._tensors.items():
            if state[name].shape != tensor.shape:
                raise DataError(
                    f"content state '{name}' has shape {tuple(state[name].shape)}, "
                    f"the data's classes need {tuple(tensor.shape)}"
                )
            tensor.copy_(state[name])
        self.num_updates = int(state["num_updates"])


def _z_scores(loss: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
    """(L − mean) / std over the seen classes, unbiased std; 0 for the others and while std is 0."""
    number = seen.sum()
    mean = torch.where(seen, loss, 0.0).sum() / number.clamp(min=1)
    deviation = torch.where(seen, loss - mean, 0.0)
    std = (deviation.square().sum() / (number - 1).clamp(min=1)).sqrt()
    return torch.where(std > 0, deviation / torch.where(std > 0, std, 1.0), 0.0)


def _sigmoid_of_published_z(loss: torch.Tensor) -> torch.Tensor:
    """Weights as published: z over all tags, those never seen included with their average of 0."""
    tags = torch.ones(loss.shape, dtype=torch.bool, device=loss.device)
    tags[NO_CLASS] = False
    return torch.sigmoid(2 * _z_scores(loss, tags))


def quantise(weights: torch.Tensor) -> torch.Tensor:
    """Weights relative to the largest, on a grid of 2⁻¹⁶ and never below it.

    The grid makes selection independent of the last bits, in which devices may differ; the lower
    bound lets a class of weight 0 fill a budget that nothing else can.
    """
    scaled = weights / weights.max() * 2.0**16
    return scaled.round().clamp(min=1.0) * 2.0**-16
