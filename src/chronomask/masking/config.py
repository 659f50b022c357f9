"""How much, what and how: the configuration of masking, without what carries it out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import model_validator

from chronomask.config import Config, is_reading_stored, kind_of
from chronomask.config_layers import Layer
from chronomask.errors import UsageError
from chronomask.masking.content import ContentSchedule, NoContent
from chronomask.masking.loss_weight import EqualWeight, LossPer, LossWeight
from chronomask.masking.ratio import (
    AsCourse,
    Linear,
    NumberOrCourse,
    PureSchedule,
    Ratio,
    Schedule,
    refuse_laws,
    value_at,
)
from chronomask.masking.strategy import Strategy, WholeWord

__all__ = ["Budget", "MaskingConfig"]

Budget = Literal["row", "batch", "none"]
"""What meets the ratio: every row, all rows of a micro-batch together, or no one."""


class MaskingConfig(Config):
    """Everything about masking: how much is masked, what, and how it is replaced."""

    ratio: Annotated[Schedule, AsCourse] = Linear(start=0.30, end=0.15)
    """how much is masked at each moment of training: a number for a constant ratio, 0.30:0.15 for a straight
    line; the published course is cosine_decay"""
    content: ContentSchedule = NoContent()
    """which classes of tokens are preferred"""
    strategy: Strategy = WholeWord()
    """which tokens are masked together"""
    budget: Budget = "row"
    """what meets the ratio: every row, all rows of a micro-batch together (the same number of targets
    for every batch of a shape), or none (each unit on its own, Bernoulli: numbers vary)"""
    mask_replace_prob: Annotated[Ratio | PureSchedule, NumberOrCourse] = 0.8
    """probability that a predicted token is shown as [MASK]; a number, 0.5:0.9 for a straight line, or a
    schedule of progress"""
    random_replace_prob: Annotated[Ratio | PureSchedule, NumberOrCourse] = 0.1
    """probability that it is shown as a random ordinary token; the rest stays as it is"""
    replace_unit: Literal["token", "unit"] = "token"
    """whether tokens of a unit are replaced each on its own or all the same way"""
    loss_weight: LossWeight = EqualWeight()
    """how much the losses of a row count, by its masking ratio"""
    loss_per: LossPer = "label"
    """what the weighted losses of a step are divided by: predicted tokens, maskable tokens, or rows, where
    each row counts with the mean over its predicted tokens"""
    progress: Literal["steps", "tokens", "masked_tokens"] = "steps"
    """what training progress is counted in"""

    @classmethod
    def _layer_of(cls, value: Any) -> Layer:
        """The values of a masking config, or of an arm that has nothing beside ``masking``."""
        layer = super()._layer_of(value)
        if not isinstance(layer.values, Mapping) or "masking" not in layer.values:
            return layer
        if more := [str(key) for key in layer.values if key != "masking"]:
            raise UsageError(
                f"{layer.origin} has {', '.join(more)} beside masking, which is more than a masker carries: "
                "give it to cm.StepMasking, or leave out what is beside masking"
            )
        return replace(layer, values=layer.values["masking"])

    @model_validator(mode="after")
    def _check_probabilities(self) -> MaskingConfig:
        refuse_laws(self, "mask_replace_prob", "random_replace_prob")
        for progress in (step / 100 for step in range(101)):
            total = sum(self.replace_probs(progress))
            if total > 1 + 1e-9:
                raise ValueError(
                    "mask_replace_prob + random_replace_prob must not exceed 1; at progress "
                    f"{progress:g} their sum is {total:g}"
                )
        return self

    @model_validator(mode="after")
    def _check_draws(self) -> MaskingConfig:
        if self.loss_weight.needs_draws and not self.ratio.has_density:
            raise ValueError(
                f"loss_weight '{kind_of(self.loss_weight)}' needs rows that draw their ratios from a "
                f"continuous law, and ratio '{kind_of(self.ratio)}' is none: choose a law such as "
                "'uniform_rows', or loss_weight 'inverse_ratio'"
            )
        if self.budget == "batch" and self.ratio.draws_rows and not is_reading_stored():
            raise ValueError(
                "budget 'batch' gives all rows of a micro-batch their mean ratio, and ratio "
                f"'{kind_of(self.ratio)}' draws one for each: set budget 'row', or one ratio for all rows"
            )
        return self

    @model_validator(mode="after")
    def _check_walk(self) -> MaskingConfig:
        if self.content.selection != "published":
            return self
        content, strategy = kind_of(self.content), kind_of(self.strategy)
        if self.budget != "row":
            raise ValueError(
                f"content '{content}' selects row by row: budget must be 'row', not '{self.budget}'"
            )
        if self.strategy.each_token or self.strategy.mixes_classes:
            raise ValueError(
                f"content '{content}' selects whole words: strategy must be 'whole_word', not '{strategy}'"
            )
        return self

    @model_validator(mode="after")
    def _check_turns(self) -> MaskingConfig:
        turns, kind = self.strategy.turns, kind_of(self.strategy)
        if turns == 1:
            return self
        if self.budget == "batch":
            raise ValueError(
                f"strategy '{kind}' leaves each row a part of its units: budget must be 'row' or 'none', "
                "not 'batch'"
            )
        highest = max(self.ratio.highest_at(step / 100) for step in range(101))
        if highest * turns > 1 + 1e-9:
            fewer = int((1 + 1e-9) / highest)  # of one epoch there is nothing to explore
            raise ValueError(
                f"strategy '{kind}' with epochs {turns} masks at most 1/{turns} of a row in an epoch, and "
                f"ratio reaches {highest:.3g}: lower the ratio to {1000 // turns / 1000:g} or less"
                + (f", or epochs to {fewer}" if fewer > 1 else "")
            )
        return self

    @property
    def weighs_losses(self) -> bool:
        """Whether the loss to minimise is another than the mean over predicted tokens."""
        return not isinstance(self.loss_weight, EqualWeight) or self.loss_per != "label"

    def in_force(self, progress: float) -> dict[str, Any]:
        """What a log says of masking at ``progress`` beside ratio and weights: ``content_strength``,
        ``strategy_share`` and ``row_ratio``, each where it is not the same for all rows and all the time.
        """
        said: dict[str, Any] = {}
        if self.content.strength != 1.0:
            said["content_strength"] = self.content.strength_at(progress)
        if self.strategy.inner:
            said["strategy_share"] = self.strategy.shares_at(progress)
        if self.ratio.draws_rows:
            shares = (0.05, 0.25, 0.5, 0.75, 0.95)
            values = self.ratio.quantiles(progress, shares)
            said["row_ratio"] = {f"{q:g}": v for q, v in zip(shares, values, strict=True)}
        return said

    def replace_probs(self, progress: float) -> tuple[float, float]:
        """Probabilities of [MASK] and of a random token at ``progress``."""
        return (
            value_at(self.mask_replace_prob, progress),
            value_at(self.random_replace_prob, progress),
        )
