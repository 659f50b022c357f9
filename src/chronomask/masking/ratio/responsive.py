"""A ratio that answers the loss: the level it has reached is state, and lies in the checkpoint."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from chronomask.errors import DataError
from chronomask.masking.ratio.base import Ratio, RatioState, Schedule, Watched
from chronomask.types import Rows

if TYPE_CHECKING:
    import torch

__all__ = ["Responsive"]


class Responsive(Schedule):
    """Lowers the ratio when the watched loss stops falling; the ratio in force is state.

    Each observed loss that is not at least ``min_improvement`` (relative) below the best so far counts
    as a stall; after ``patience`` stalls in a row the ratio is multiplied by ``factor``, never below
    ``end``, and the next observation sets the new best: at another ratio the loss is another. ``at``
    gives the ratio before any response.
    """

    ratio_fields: ClassVar[tuple[str, ...]] = ("start", "end")

    kind: Literal["responsive"] = "responsive"
    start: Ratio = 0.30
    """the ratio at the beginning"""
    end: Ratio = 0.15
    """never lower than this"""
    factor: Annotated[float, Field(gt=0, lt=1)] = 0.8
    """the ratio is multiplied by this when the loss stalls"""
    patience: Annotated[int, Field(ge=1)] = 3
    """observations without improvement before the ratio is lowered"""
    min_improvement: Annotated[float, Field(ge=0)] = 0.01
    """relative fall of the loss that counts as improvement"""
    watch: Watched = "validation"
    """which loss is observed"""
    every: Annotated[int, Field(ge=1)] = 100
    """steps whose mean makes one observation of the training loss"""

    @model_validator(mode="after")
    def _check_falls(self) -> Responsive:
        if self.start < self.end:
            raise ValueError(
                f"start ({self.start:g}) must not be below end ({self.end:g}): the ratio only falls, and "
                "would stay where it is"
            )
        return self

    def at(self, progress: float) -> float:
        return self.start

    @property
    def watches(self) -> Watched:
        return self.watch

    @property
    def responds_after(self) -> int:
        # The first observation is the best so far; from then on stalls are counted.
        return (self.patience + 1) * (self.every if self.watch == "training" else 1)

    def begin(self) -> RatioState:
        return _Response(self)


class _Response(RatioState):
    """The level that a :class:`Responsive` schedule has reached."""

    def __init__(self, schedule: Responsive) -> None:
        super().__init__(schedule)
        self.config = schedule
        self.level = schedule.start
        self.best = math.inf
        self.stalls = 0
        # Each validation is an observation by itself; of training losses, the mean of several steps.
        self._every = schedule.every if schedule.watch == "training" else 1
        self._sum = 0.0
        self._number = 0

    def at(self, progress: float) -> float:
        return self.level

    def ratios(self, progress: float, rows: Rows, seed: int) -> np.ndarray:
        return np.full(rows.num_rows, self.level)

    def observe(self, loss: float) -> None:
        self._sum += loss
        self._number += 1
        if self._number == self._every:
            self._respond(self._sum / self._number)
            self._sum, self._number = 0.0, 0

    def _respond(self, loss: float) -> None:
        if loss < self.best * (1 - self.config.min_improvement) or math.isinf(self.best):
            self.best, self.stalls = loss, 0
            return
        self.stalls += 1
        if self.stalls >= self.config.patience and self.level > self.config.end:
            self.level = max(self.config.end, self.level * self.config.factor)
            self.best, self.stalls = math.inf, 0

    def state_dict(self) -> dict[str, torch.Tensor]:
        """All state as one float64 tensor."""
        import torch

        values = [self.level, self.best, float(self.stalls), self._sum, float(self._number)]
        return {"values": torch.tensor(values, dtype=torch.float64)}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        if set(state) != {"values"} or state["values"].shape != (5,):
            raise DataError(
                "the checkpoint holds no state of a responsive masking ratio: resume with the ratio it was "
                "trained with"
            )
        self.level, self.best, stalls, self._sum, number = state["values"].tolist()
        self.stalls, self._number = int(stalls), int(number)
