"""How much the losses of a row count: weights by its masking ratio, as masked diffusion has them.

With α(u) the share of a row that is shown at time u, a row's masking ratio is p = 1 − α(u), and the bound
on the likelihood weighs its losses by |α′| / (1 − α) (Sahoo et al., "Simple and effective masked diffusion
language models", NeurIPS 2024, arXiv 2406.07524, equation 10). Letters: B rows.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from chronomask.config import Alternative
from chronomask.types import send

__all__ = [
    "DerivativeWeight",
    "EqualWeight",
    "InverseRatio",
    "LossPer",
    "LossWeight",
    "weigh_labels",
]

LossPer = Literal["label", "token", "row"]
"""What a sum of weighted losses is divided by: predicted tokens, tokens that may be masked, or rows."""


class LossWeight(Alternative):
    """What a weight of losses can do; ``of_rows`` is the one thing a new one must define."""

    needs_draws: ClassVar[bool] = False
    """whether rows must draw their ratios from a continuous law: it depends on the law's slope"""

    @abstractmethod
    def of_rows(self, ratio: np.ndarray, slope: np.ndarray) -> np.ndarray:
        """float64 [B]: the weight of each row's losses.

        ``ratio``: each row's masking ratio; ``slope``: how fast it rises with the row's draw,
        |α′|, 0 where rows draw nothing.
        """


class EqualWeight(LossWeight):
    """Every predicted token counts the same."""

    kind: Literal["none"] = "none"

    def of_rows(self, ratio: np.ndarray, slope: np.ndarray) -> np.ndarray:
        return np.ones(ratio.shape)


class _ByRatio(LossWeight):
    least_ratio: Annotated[float, Field(gt=0, le=1)] = 0.001
    """ratios below this count as this one, so that no weight is without bound; ε of masked diffusion"""


class InverseRatio(_ByRatio):
    """1/p: the weight of masked diffusion with a linear schedule, p ~ U(ε, 1).

    Nie et al., "Large language diffusion models" (LLaDA, arXiv 2502.09992), equation 3.
    """

    kind: Literal["inverse_ratio"] = "inverse_ratio"

    def of_rows(self, ratio: np.ndarray, slope: np.ndarray) -> np.ndarray:
        return 1 / np.maximum(ratio, self.least_ratio)


class DerivativeWeight(_ByRatio):
    """|α′|^γ / (1 − α): the bound's own weight at γ = 1; softened below it (0.1: arXiv 2509.05056)."""

    needs_draws: ClassVar[bool] = True

    kind: Literal["derivative"] = "derivative"
    exponent: Annotated[float, Field(ge=0, le=2)] = 1.0
    """γ: the power of the derivative, 0 for the weight of inverse_ratio"""

    def of_rows(self, ratio: np.ndarray, slope: np.ndarray) -> np.ndarray:
        return np.abs(slope) ** self.exponent / np.maximum(ratio, self.least_ratio)


def weigh_labels(
    of_row: np.ndarray, per: LossPer, maskable: Any, positions: Any
) -> tuple[Any, Any]:
    """What each predicted token's loss counts, and what the batch adds to the divisor of their sum.

    ``of_row`` float64 [B]: weights of rows; ``maskable`` bool [B, T] and ``positions`` [N] (row · T +
    token), arrays of one kind. The weights are float32 [N] of that kind; the divisor is None where it is
    the number of predicted tokens.
    """
    import torch

    num_rows, row_length = maskable.shape
    row = torch.as_tensor(positions) // row_length
    weights = send(of_row, row.device)[row]
    if per == "row":
        weights = weights / torch.bincount(row, minlength=num_rows)[row]
    divisor = {"label": None, "token": maskable.sum(), "row": maskable.any(1).sum()}[per]
    weights = weights.float()
    return (weights if isinstance(positions, torch.Tensor) else weights.numpy()), divisor
