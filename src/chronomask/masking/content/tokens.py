"""Weights by token id: the tokens that the model predicts badly, in any language, without a tagger."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from chronomask.masking.content.base import LOG_LEVELS, ContentSchedule, ContentState, Decay

if TYPE_CHECKING:
    import torch

__all__ = ["TokenAccuracy", "TokenProbability"]


class _ByToken(ContentSchedule):
    """Every ``every`` steps, for each token id v predicted since: w_v ← keep · w_v + (1 − keep)(1 − p_v).

    A word's weight is the mean over its tokens. What p_v is, a member says.
    """

    needs_classes: ClassVar[bool] = False
    by_token_id: ClassVar[bool] = True

    every: Annotated[int, Field(ge=1)] = 200
    """steps between updates of the weights"""
    keep: Decay = 0.2
    """share of the old weight that stays"""

    @property
    def log_range(self) -> float:
        return LOG_LEVELS


class TokenAccuracy(_ByToken):
    """Token ids that the model predicts badly are masked more (AMLM, BabyLM 2025 challenge).

    p_v is the share of right predictions.
    """

    kind: Literal["token_accuracy"] = "token_accuracy"

    def begin(self, class_names: Sequence[str], vocab_size: int) -> ContentState:
        return _AccuracyState(self, class_names, vocab_size)


class TokenProbability(_ByToken):
    """Token ids to which the model gives little probability are masked more: AMLM, softly.

    p_v is the geometric mean of the probabilities of the truth, exp(−mean loss): it moves before a
    prediction becomes right, and goes on moving after.
    """

    kind: Literal["token_probability"] = "token_probability"

    def begin(self, class_names: Sequence[str], vocab_size: int) -> ContentState:
        return _ProbabilityState(self, class_names, vocab_size)


class _TokenState(ContentState[_ByToken]):
    """Weights by token id, and what was counted since their last update."""

    sums: ClassVar[str]
    """the tensor in which a member adds up what :meth:`easiness` is the mean of"""

    def __init__(self, config: _ByToken, class_names: Sequence[str], vocab_size: int) -> None:
        super().__init__(config, class_names, vocab_size)
        self.tensors["weight"] += 1.0

    @abstractmethod
    def easiness(self, mean: torch.Tensor) -> torch.Tensor:
        """p_v in [0, 1], float64 [V], of the mean of what was added up."""

    def learn(self, loss: torch.Tensor, count: torch.Tensor, correct: torch.Tensor) -> None:
        import torch

        state, keep = self.tensors, self.config.keep
        state[self.sums] += {"correct": correct, "loss": loss}[self.sums]
        state["count"] += count
        if self.num_updates % self.config.every:
            return
        easy = self.easiness(state[self.sums] / state["count"].clamp(min=1))
        new = keep * state["weight"] + (1 - keep) * (1 - easy)
        state["weight"].copy_(torch.where(state["count"] > 0, new, state["weight"]))
        state[self.sums].zero_()
        state["count"].zero_()

    def weights(self) -> torch.Tensor:
        return self.tensors["weight"]


class _AccuracyState(_TokenState):
    tensor_names = ("weight", "correct", "count")
    sums = "correct"

    def easiness(self, mean: torch.Tensor) -> torch.Tensor:
        return mean


class _ProbabilityState(_TokenState):
    tensor_names = ("weight", "loss", "count")
    sums = "loss"

    def easiness(self, mean: torch.Tensor) -> torch.Tensor:
        return (-mean).exp()
