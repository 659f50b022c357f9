"""Weights that no loss of training changes: none, given by hand, or read off scores of positions."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from chronomask.config import kind_of
from chronomask.errors import UsageError, nearest
from chronomask.masking.content.base import (
    LOG_LEVELS,
    ContentSchedule,
    ContentState,
    LookAhead,
    on_grid,
    read_by_class,
)
from chronomask.types import Array, Rows

if TYPE_CHECKING:
    import torch

__all__ = ["Fixed", "ModelScores", "NoContent", "Scores"]


class NoContent(ContentSchedule):
    """Every unit is as likely as any other."""

    learns: ClassVar[bool] = False
    needs_classes: ClassVar[bool] = False

    kind: Literal["none"] = "none"

    @model_validator(mode="after")
    def _check_no_strength(self) -> NoContent:
        if self.strength != 1.0:
            raise ValueError("content 'none' has no weights, so it has no strength")
        return self

    def begin(self, class_names: Sequence[str], vocab_size: int) -> ContentState:
        return ContentState(self, class_names, vocab_size)


class Fixed(ContentSchedule):
    """Weights that never change, given by hand or as another run ended; a ratio of two is one of odds."""

    learns: ClassVar[bool] = False

    kind: Literal["fixed"] = "fixed"
    weights: dict[str, Annotated[float, Field(ge=0)]]
    """class name → weight, and ``other`` for classes not named; or the path of a YAML or JSON file of these,
    or of the folder of a finished run, whose last weights are meant: read once and written out"""
    other: Annotated[float, Field(ge=0)] = 1.0
    """weight of all other classes"""

    @field_validator("weights", mode="before")
    @classmethod
    def _read_weights(cls, value: Any) -> Any:
        """The weights of a file or of a run in place of its path."""
        if not isinstance(value, str | Path):
            return value
        return read_by_class(value, "metrics.jsonl", "class_weight")

    @property
    def log_range(self) -> float:
        """Of the weights above 0: one of 0 is meant to be masked only when nothing else is left."""
        above = [value for value in (*self.weights.values(), self.other) if value > 0]
        return math.log(max(above) / min(above)) if above else 0.0

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


class _ByScore(ContentSchedule):
    """w = sigmoid(slope · (score − reference)); a unit's weight is the mean over its tokens."""

    learns: ClassVar[bool] = False
    needs_classes: ClassVar[bool] = False

    slope: Annotated[float, Field(gt=0)] = 0.4
    """gain per unit of the score, bit or nat"""

    @property
    @abstractmethod
    def half(self) -> float:
        """The score, as rows have it, of which the weight is ½."""

    @property
    def log_range(self) -> float:
        return LOG_LEVELS

    def begin(self, class_names: Sequence[str], vocab_size: int) -> ContentState:
        return _ScoresState(self, class_names, vocab_size)


class Scores(_ByScore):
    """Positions with a higher score in the data are masked more: w = sigmoid(slope · (score − reference)).

    A unit's weight is the mean over its tokens. Scores are numbers that the data brings for every token,
    computed once, higher = harder: pointwise mutual information (Sadeq et al., "InforMask",
    arXiv 2210.11771), or the entropy that another model leaves.
    """

    needs_scores: ClassVar[bool] = True

    kind: Literal["scores"] = "scores"
    slope: Annotated[float, Field(gt=0)] = 0.4
    """gain per unit of the score; the default is meant for bits"""
    reference: float = 8.0
    """the score of which the weight is ½; the default is meant for bits"""

    @property
    def half(self) -> float:
        return self.reference


class ModelScores(_ByScore):
    """Positions that the model itself finds hard, in a pass just before, are masked more.

    Every ``every`` steps the model passes over the rows of as many steps to come, ``passes`` times with
    another part of the words hidden, so that every position is predicted once. After entropy-aware
    masking (arXiv 2605.28526). w = sigmoid(slope · (score − reference)), and a unit's weight is the mean
    over its tokens.
    """

    kind: Literal["model_scores"] = "model_scores"
    measure: Literal["entropy", "loss"] = "entropy"
    """a position's score in nats: the entropy of what is predicted, or the loss of the truth"""
    every: Annotated[int, Field(ge=1)] = 100
    """steps whose rows are scored together, by the model as it is before the first of them"""
    passes: Annotated[int, Field(ge=2, le=16)] = 2
    """parts in which the words of a row are hidden, one a pass; each costs a third of a training step"""
    reference: float | Literal["mean"] = "mean"
    """the score of which the weight is ½; "mean": the mean of those that were made together"""

    @property
    def look_ahead(self) -> LookAhead:
        return LookAhead(self.every, self.passes, self.measure, centred=self.reference == "mean")

    def paid_step_by_step(self) -> ModelScores:
        return self.model_copy(update={"every": 1})

    @property
    def half(self) -> float:
        """0 for the mean, which is taken off where scores are made."""
        return 0.0 if self.reference == "mean" else self.reference


class _ScoresState(ContentState[_ByScore]):
    def weigh_positions(self, rows: Rows) -> Array:
        config = self.config
        if rows.scores is None:
            own = config.look_ahead is not None
            raise UsageError(
                f"content '{kind_of(config)}' weighs positions by their scores, and these rows have none: "
                f"{'chronomask pretrain and cm.StepMasking make them; else ' if own else ''}give them "
                "a column 'scores', or choose another content kind"
            )
        import torch

        scores = torch.as_tensor(rows.scores).double()
        weights = on_grid((config.slope * (scores - config.half)).sigmoid())
        return weights if isinstance(rows.scores, torch.Tensor) else weights.numpy()
