"""A ratio that responds to the model: the state behind the ``responsive`` schedule."""

from __future__ import annotations

import math

import torch

from chronomask.errors import DataError
from chronomask.masking.ratio import Responsive, ScheduleBase

__all__ = ["RatioResponse"]


class RatioResponse:
    """The level that a :class:`~chronomask.masking.ratio.Responsive` schedule has reached.

    Each observed loss that is not at least ``min_improvement`` (relative) below the best so far
    counts as a stall; after ``patience`` stalls in a row the level is multiplied by ``factor``, never
    below ``end``, and the next observation sets the new best: at another ratio the loss is another.
    """

    def __init__(self, config: Responsive) -> None:
        self.config = config
        self.level = config.start
        self.best = math.inf
        self.stalls = 0
        self._sum = 0.0
        self._number = 0

    @classmethod
    def of(cls, schedule: ScheduleBase) -> RatioResponse | None:
        """A response for the responsive schedule, None for schedules of progress alone."""
        return cls(schedule) if isinstance(schedule, Responsive) else None

    def observe_validation(self, loss: float) -> None:
        """Take in a validation loss (nats per token)."""
        if self.config.watch == "validation":
            self._observe(loss)

    def observe_training(self, loss: float) -> None:
        """Take in one step's training loss; every ``every`` steps their mean is one observation."""
        if self.config.watch != "training":
            return
        self._sum += loss
        self._number += 1
        if self._number == self.config.every:
            self._observe(self._sum / self._number)
            self._sum, self._number = 0.0, 0

    def _observe(self, loss: float) -> None:
        if loss < self.best * (1 - self.config.min_improvement) or math.isinf(self.best):
            self.best, self.stalls = loss, 0
            return
        self.stalls += 1
        if self.stalls >= self.config.patience and self.level > self.config.end:
            self.level = max(self.config.end, self.level * self.config.factor)
            self.best, self.stalls = math.inf, 0

    def state_dict(self) -> dict[str, torch.Tensor]:
        """All state as one float64 tensor."""
        values = [self.level, self.best, float(self.stalls), self._sum, float(self._number)]
        return {"values": torch.tensor(values, dtype=torch.float64)}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Restore :meth:`state_dict`; raises DataError if it is of another schedule."""
        if set(state) != {"values"} or state["values"].shape != (5,):
            raise DataError("the checkpoint holds no state of a responsive masking ratio")
        self.level, self.best, stalls, self._sum, number = state["values"].tolist()
        self.stalls, self._number = int(stalls), int(number)
