"""Steps whose loss or gradient norm stands out: taken like any other, or left out of training.

A step stands out by the mean and standard deviation of the last steps, those left out included: where
the level really changed, the window comes to know it and steps are taken again. Only values that are
above the mean stand out. Non-finite values are no outliers; they stop the run (see
:func:`chronomask.train.step.read`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from chronomask.config import Alternative
from chronomask.errors import DataError

if TYPE_CHECKING:
    import torch

__all__ = ["KeepAll", "OutlierState", "Outliers", "SkipOutliers"]

_TENSOR = "outliers.last_values"


class Outliers(Alternative):
    """The family of outlier rules, distinguished by ``kind``."""

    @property
    def judges(self) -> bool:
        """Whether a step may be left out."""
        return True

    def begin(self) -> OutlierState:
        """What the rule remembers during one training."""
        return OutlierState()


class KeepAll(Outliers):
    """Every step is taken."""

    kind: Literal["none"] = "none"

    @property
    def judges(self) -> bool:
        """No step is ever left out."""
        return False


class SkipOutliers(Outliers):
    """A step that stands out makes no update and teaches the content schedule nothing."""

    kind: Literal["skip"] = "skip"
    watch: Literal["loss", "gradient_norm", "either"] = "either"
    """what a step is judged by"""
    deviations: Annotated[float, Field(gt=0)] = 6.0
    """how many standard deviations above the mean a value stands out"""
    window: Annotated[int, Field(ge=2)] = 128
    """how many of the last steps give mean and deviation"""
    after: Annotated[int, Field(ge=2)] = 64
    """how many steps must have been seen before one can stand out; at most ``window``"""

    @model_validator(mode="after")
    def _check_window(self) -> SkipOutliers:
        if self.after > self.window:
            raise ValueError(f"after ({self.after}) must not exceed window ({self.window})")
        return self

    def begin(self) -> OutlierState:
        """The values of the last steps, none yet."""
        return _LastValues(self)


class OutlierState:
    """What a rule remembers of the steps before; here nothing, and every step is taken."""

    def stands_out(self, loss: torch.Tensor, gradient_norm: torch.Tensor) -> torch.Tensor | None:
        """Whether a step is to be left out, by the steps before: bool, 0-d, where the two float64 [] are.

        Nothing waits for them. None: it is not.
        """
        return None

    def remember(self, loss: float, gradient_norm: float) -> str:
        """Take up the values of a step; why it stood out among those before it, else nothing."""
        return ""

    def state_dict(self) -> dict[str, torch.Tensor]:
        """All state as tensors, for the checkpoint; empty where nothing is remembered."""
        return {}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Restore :meth:`state_dict` from among other tensors; raises DataError if it is not there."""


class _LastValues(OutlierState):
    """float64 [2, n]: losses and gradient norms of the last steps, oldest first."""

    def __init__(self, rule: SkipOutliers) -> None:
        import torch

        self._rule = rule
        self._values = torch.zeros(2, 0, dtype=torch.float64)

    def _limits(self) -> dict[str, float]:
        """Above what each value that is watched stands out; nothing while too few steps are known."""
        rule = self._rule
        if self._values.shape[1] < rule.after:
            return {}
        limits = self._values.mean(1) + rule.deviations * self._values.std(1)
        named = zip(("loss", "gradient_norm"), limits.tolist(), strict=True)
        return {name: limit for name, limit in named if rule.watch in (name, "either")}

    def stands_out(self, loss: torch.Tensor, gradient_norm: torch.Tensor) -> torch.Tensor | None:
        """As in :class:`OutlierState`, by mean and deviation of what came before."""
        values, found = {"loss": loss, "gradient_norm": gradient_norm}, None
        for name, limit in self._limits().items():
            above = values[name] > limit
            found = above if found is None else found | above
        return found

    def remember(self, loss: float, gradient_norm: float) -> str:
        """As in :class:`OutlierState`."""
        import torch

        values = {"loss": loss, "gradient_norm": gradient_norm}
        why = ", ".join(
            f"{name} {values[name]:.4g} is above {limit:.4g}"
            for name, limit in self._limits().items()
            if values[name] > limit
        )
        new = torch.tensor([[loss], [gradient_norm]], dtype=torch.float64)
        self._values = torch.cat((self._values, new), 1)[:, -self._rule.window :].contiguous()
        return why

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The values remembered."""
        return {_TENSOR: self._values}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """As in :class:`OutlierState`."""
        if _TENSOR not in state:
            raise DataError(
                f"the checkpoint has no '{_TENSOR}', which outliers 'skip' needs: it was trained without"
            )
        # A branch may have a shorter window than the run before it.
        self._values = state[_TENSOR][:, -self._rule.window :].contiguous()
