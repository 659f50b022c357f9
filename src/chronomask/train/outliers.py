"""Steps whose loss or gradient norm stands out: kept, or left out of training.

A step stands out by the mean and standard deviation of the last steps, those left out included: where
the level really changed, the window comes to know it and steps are taken again. Only values that are
above the mean stand out. Non-finite values are no outliers; they stop the run (see ``loop``).
"""

from __future__ import annotations

import torch

from chronomask.errors import DataError
from chronomask.train.config import KeepAll, SkipOutliers

__all__ = ["OutlierState"]

_TENSOR = "outliers.last_values"


class OutlierState:
    """The values that the rule remembers: float64 [2, n], losses and gradient norms, oldest first."""

    def __init__(self, rule: KeepAll | SkipOutliers) -> None:
        self.rule = rule
        self._values = torch.zeros(2, 0, dtype=torch.float64)

    def judge(self, loss: float, gradient_norm: float) -> str | None:
        """Remember a step's values; why it stands out, or None if it is to be taken."""
        rule = self.rule
        if isinstance(rule, KeepAll):
            return None
        why = None
        if self._values.shape[1] >= rule.after:
            limits = self._values.mean(1) + rule.deviations * self._values.std(1)
            named = (("loss", loss), ("gradient_norm", gradient_norm))
            why = ", ".join(
                f"{name} {value:.4g} is above {limit:.4g}"
                for (name, value), limit in zip(named, limits.tolist(), strict=True)
                if rule.watch in (name, "either") and value > limit
            )
        new = torch.tensor([[loss], [gradient_norm]], dtype=torch.float64)
        self._values = torch.cat((self._values, new), 1)[:, -rule.window :].contiguous()
        return why or None

    def state_dict(self) -> dict[str, torch.Tensor]:
        """All state as tensors, for the checkpoint; empty where nothing is remembered."""
        return {} if isinstance(self.rule, KeepAll) else {_TENSOR: self._values}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Restore :meth:`state_dict` from among other tensors; raises DataError if it is not there."""
        if isinstance(self.rule, KeepAll):
            return
        if _TENSOR not in state:
            raise DataError(
                f"the checkpoint has no '{_TENSOR}', which outliers 'skip' needs: it was trained without"
            )
        self._values = state[_TENSOR]
