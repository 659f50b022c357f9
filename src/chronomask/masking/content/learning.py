"""Weights by what is being learnt now: by the fall of a class's loss, and by how much it can still fall."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import field_validator, model_validator

from chronomask.errors import UsageError, nearest
from chronomask.masking.content.base import (
    RUNNING_LOSS,
    ContentSchedule,
    ContentState,
    Decay,
    read_by_class,
    running_means,
    take_in,
)
from chronomask.masking.content.maps import Nats, Sigmoid, WeightMap
from chronomask.types import NO_CLASS

if TYPE_CHECKING:
    import torch

__all__ = ["LearningProgress", "ReducibleLoss"]

_FAST = ("fast_loss_average", "fast_count_average")
_ROUNDING = 1e-9
"""Nats below which two running losses do not differ."""


class _TwoAverages(ContentSchedule):
    """A schedule that keeps a fast and a slow running loss of each class."""

    ema_decay: Decay = 0.999
    """m of the slow averages, per optimiser step"""
    fast_decay: Decay = 0.99
    """m of the fast averages, per optimiser step"""

    @model_validator(mode="after")
    def _check_speeds(self) -> _TwoAverages:
        if self.fast_decay >= self.ema_decay:
            raise ValueError(
                f"fast_decay ({self.fast_decay:g}) must be below ema_decay ({self.ema_decay:g}): the fast "
                "average forgets sooner"
            )
        return self


class LearningProgress(_TwoAverages):
    """Classes whose loss is falling now are masked more: weights of L_slow − L_fast, in nats.

    Where the hard prefers what cannot be learnt as well, this prefers what is being learnt. Both averages
    are unbiased from the first step on, so that a fall is a fall and not an average that warms up.
    """

    kind: Literal["learning_progress"] = "learning_progress"
    weight_map: WeightMap = Sigmoid()
    """from the falls of the classes' losses to weights"""

    @property
    def log_range(self) -> float:
        return self.weight_map.log_range

    def begin(self, class_names: Sequence[str], vocab_size: int) -> ContentState:
        return _ProgressState(self, class_names, vocab_size)


class _ProgressState(ContentState[LearningProgress]):
    tensor_names = (*RUNNING_LOSS, *_FAST)

    def learn(self, loss: torch.Tensor, count: torch.Tensor, correct: torch.Tensor) -> None:
        take_in(self.tensors, loss, count, self.config.ema_decay)
        take_in(self.tensors, loss, count, self.config.fast_decay, _FAST)

    def weights(self) -> torch.Tensor:
        import torch

        slow, seen = running_means(self.tensors)
        fast, _ = running_means(self.tensors, _FAST)
        # The fast counts of a class that is not seen for long fade to nothing, and with them its mean.
        known = self.tensors[_FAST[1]] > 1e-30
        fall = torch.where(known, slow - fast, 0.0)
        # After one step both are the same loss; the map would take their rounding for what is learnt.
        fall = torch.where(fall.abs() > _ROUNDING, fall, 0.0)
        return self.config.weight_map.of_losses(fall, seen)


class ReducibleLoss(_TwoAverages):
    """Classes whose loss lies above what it can come to are masked more: weights of L − R, in nats.

    After Mindermann et al. (ICML 2022, arXiv 2206.07137), who subtract from a sample's loss that of a
    model that has learnt all there is. R is given for every class, or the class's own floor: the lowest
    that its fast average has been, so that what it has lost again counts as reducible.
    """

    kind: Literal["reducible_loss"] = "reducible_loss"
    reference: Literal["minimum"] | dict[str, float] = "minimum"
    """R, a loss in nats: "minimum" for the class's own floor; or that of every class by its name, as keys
    and values or as the path of a YAML or JSON file, or of the folder of a finished run, whose last
    validation is meant: read once and written out"""
    weight_map: WeightMap = Nats(slope=1.0, reference=0.0)
    """from reducible losses to weights"""

    @field_validator("reference", mode="before")
    @classmethod
    def _read_reference(cls, value: Any) -> Any:
        """The values of a file or of a run in place of its path."""
        if not isinstance(value, str | Path) or value == "minimum":
            return value
        given = read_by_class(value, "validation.jsonl", "class_loss")
        return {name: loss for name, loss in given.items() if name != "none"}

    @property
    def log_range(self) -> float:
        return self.weight_map.log_range

    def begin(self, class_names: Sequence[str], vocab_size: int) -> ContentState:
        if isinstance(self.reference, Mapping):
            return _AboveReference(self, class_names, vocab_size)
        return _AboveFloor(self, class_names, vocab_size)


class _AboveReference(ContentState[ReducibleLoss]):
    """What lies above losses that are given."""

    tensor_names = RUNNING_LOSS

    def __init__(self, config: ReducibleLoss, class_names: Sequence[str], vocab_size: int) -> None:
        super().__init__(config, class_names, vocab_size)
        assert isinstance(config.reference, Mapping)
        known = self.class_names[NO_CLASS + 1 :]
        for name in config.reference:
            if name not in known:
                raise UsageError(
                    f"masking.content.reference names class '{name}'; {nearest(name, known)}"
                )
        missing = [name for name in known if name not in config.reference]
        if missing:
            raise UsageError(
                f"masking.content.reference has no loss for {', '.join(missing)}, classes of the data: give "
                "the nats of every class, or 'minimum'"
            )
        self.reference = [0.0, *(config.reference[name] for name in known)]

    def learn(self, loss: torch.Tensor, count: torch.Tensor, correct: torch.Tensor) -> None:
        take_in(self.tensors, loss, count, self.config.ema_decay)

    def weights(self) -> torch.Tensor:
        loss, seen = running_means(self.tensors)
        above = loss - loss.new_tensor(self.reference)
        return self.config.weight_map.of_losses(above, seen)


class _AboveFloor(ContentState[ReducibleLoss]):
    """What lies above the lowest that the fast average has been."""

    tensor_names = (*RUNNING_LOSS, *_FAST, "floor")

    def __init__(self, config: ReducibleLoss, class_names: Sequence[str], vocab_size: int) -> None:
        super().__init__(config, class_names, vocab_size)
        self.tensors["floor"] += math.inf

    def learn(self, loss: torch.Tensor, count: torch.Tensor, correct: torch.Tensor) -> None:
        import torch

        take_in(self.tensors, loss, count, self.config.ema_decay)
        take_in(self.tensors, loss, count, self.config.fast_decay, _FAST)
        fast, _ = running_means(self.tensors, _FAST)
        floor = self.tensors["floor"]
        # Only what this step has seen can have fallen: other means move by rounding alone.
        floor.copy_(torch.where(count > 0, torch.minimum(floor, fast), floor))

    def weights(self) -> torch.Tensor:
        import torch

        loss, seen = running_means(self.tensors)
        above = torch.where(seen, loss - self.tensors["floor"], 0.0)
        return self.config.weight_map.of_losses(above, seen)
