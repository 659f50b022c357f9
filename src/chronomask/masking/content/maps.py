"""From the losses of classes to weights: maps that standardise the losses, and one that keeps their scale."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from chronomask.config import Alternative

if TYPE_CHECKING:
    import torch

__all__ = ["Clipped", "Nats", "Sigmoid", "Softmax", "WeightMap", "z_scores"]


class WeightMap(Alternative):
    """From losses to weights; a map of standardised losses need only define :meth:`weights`."""

    @abstractmethod
    def weights(self, z: torch.Tensor) -> torch.Tensor:
        """float64 [C] in [0, 1], larger = masked more, of z = (L − mean L) / std L."""

    def of_losses(self, loss: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
        """float64 [C]: :meth:`weights` of losses L, float64 [C] in nats; a class that bool [C] ``seen``
        does not name counts as an average one.
        """
        return self.weights(z_scores(loss, seen))

    @property
    def log_range(self) -> float:
        """Logarithm of the weight two standard deviations above the mean over that two below it."""
        return 0.0


class Sigmoid(WeightMap):
    """w = sigmoid(slope · z), z = (L − mean L) / std L: the published map, slope 2."""

    kind: Literal["sigmoid"] = "sigmoid"
    slope: Annotated[float, Field(gt=0)] = 2.0
    """the larger, the more the hard classes are preferred"""

    @property
    def log_range(self) -> float:
        return 2 * self.slope

    def weights(self, z: torch.Tensor) -> torch.Tensor:
        return (self.slope * z).sigmoid()


class Softmax(WeightMap):
    """w ∝ exp(z / temperature), scaled so that the largest weight is 1."""

    kind: Literal["softmax"] = "softmax"
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """the smaller, the more the hard classes are preferred"""

    @property
    def log_range(self) -> float:
        return 4 / self.temperature

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

    @property
    def log_range(self) -> float:
        return math.log(self.high / self.low)

    def weights(self, z: torch.Tensor) -> torch.Tensor:
        return (0.5 + self.slope * z).clamp(self.low, self.high)


_FAR_BELOW = 30.0
"""Below minus this the logistic function is e^x to the precision of its numbers."""


class Nats(WeightMap):
    """w = sigmoid(slope · (L − reference)), L in nats: losses keep their scale.

    Standardised losses forget how far apart classes lie: with z-scores the easiest class has the same
    weight when it is 4 nats below the others and when it is 0.4. Here weights draw together as losses do.
    """

    kind: Literal["nats"] = "nats"
    slope: Annotated[float, Field(gt=0)] = 0.4
    """gain per nat: the logarithm of the odds of two classes is this times the distance of their losses"""
    reference: float | Literal["mean"] = "mean"
    """the loss in nats of which the weight is ½; "mean": the mean loss of the classes seen so far"""

    @property
    def log_range(self) -> float:
        return 4 * self.slope

    def weights(self, z: torch.Tensor) -> torch.Tensor:
        odds = self.slope * z
        # Far below the reference weights are powers of e. Moved up together they keep their ratios, and do
        # not all become 0.
        return (odds - (odds.max() + _FAR_BELOW).clamp(max=0)).sigmoid()

    def of_losses(self, loss: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
        import torch

        mean = torch.where(seen, loss, 0.0).sum() / seen.sum().clamp(min=1)
        reference = mean if self.reference == "mean" else self.reference
        return self.weights(torch.where(seen, loss, mean) - reference)


def z_scores(loss: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
    """(L − mean) / std over the seen classes, unbiased std; 0 for the others and while std is 0."""
    import torch

    number = seen.sum()
    mean = torch.where(seen, loss, 0.0).sum() / number.clamp(min=1)
    deviation = torch.where(seen, loss - mean, 0.0)
    std = (deviation.square().sum() / (number - 1).clamp(min=1)).sqrt()
    return torch.where(std > 0, deviation / torch.where(std > 0, std, 1.0), 0.0)
