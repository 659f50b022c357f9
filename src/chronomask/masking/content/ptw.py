"""PTW masking: weights by the running loss of each class, corrected and as published."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from chronomask.masking.content.base import (
    RUNNING_LOSS,
    ContentSchedule,
    ContentState,
    Decay,
    Strength,
    running_means,
    take_in,
)
from chronomask.masking.content.maps import Sigmoid, WeightMap, z_scores
from chronomask.masking.ratio import NumberOrCourse, PureSchedule
from chronomask.types import NO_CLASS

if TYPE_CHECKING:
    import torch

__all__ = ["Ptw", "PtwFaithful"]


class Ptw(ContentSchedule):
    """POS-Tagging Weighted masking, corrected: classes with a higher running loss are masked more.

    Yang, Zhang and Zhao (ACL 2023) §4, with the running loss of a class taken as the ratio of two
    averages, of loss sums and of token counts. Both start at 0 and their ratio is unbiased from the
    first step on, so rare classes do not look easy; every token counts once, whatever the step.
    The default ``strength`` is milder than published, which is 1: at a quarter, content words kept most of
    what they gained in a study, and function words lost little (docs/choosing.md).
    """

    kind: Literal["ptw"] = "ptw"
    ema_decay: Decay = 0.999
    """m of the running averages, per optimiser step"""
    weight_map: WeightMap = Sigmoid()
    """from z-scored losses to weights"""
    strength: Annotated[Strength | PureSchedule, NumberOrCourse] = 0.25
    """the power to which weights are raised: 1 as published, 0 none at all; a number, or a schedule of
    progress"""

    @property
    def log_range(self) -> float:
        return self.weight_map.log_range

    def begin(self, class_names: Sequence[str], vocab_size: int) -> ContentState:
        return _PtwState(self, class_names, vocab_size)


class _PtwState(ContentState[Ptw]):
    tensor_names = RUNNING_LOSS

    def learn(self, loss: torch.Tensor, count: torch.Tensor, correct: torch.Tensor) -> None:
        take_in(self.tensors, loss, count, self.config.ema_decay)

    def weights(self) -> torch.Tensor:
        return self.config.weight_map.of_losses(*running_means(self.tensors))


class PtwFaithful(ContentSchedule):
    """PTW as published: averages from 0 without correction, and the published walk over words.

    For reproduction. The walk mixes ratio and content and drives multi-piece words out at low
    ratios; see docs/masking.md.
    """

    selection: ClassVar[Literal["exact", "published"]] = "published"

    kind: Literal["ptw_faithful"] = "ptw_faithful"
    ema_decay: Decay = 0.999
    """m of the running averages, per optimiser step"""

    def begin(self, class_names: Sequence[str], vocab_size: int) -> ContentState:
        return _PublishedState(self, class_names, vocab_size)


class _PublishedState(ContentState[PtwFaithful]):
    tensor_names = ("loss_average",)

    def learn(self, loss: torch.Tensor, count: torch.Tensor, correct: torch.Tensor) -> None:
        import torch

        m, average = self.config.ema_decay, self.tensors["loss_average"]
        new = m * average + (1 - m) * (loss / count.clamp(min=1))
        average.copy_(torch.where(count > 0, new, average))

    def weights(self) -> torch.Tensor:
        """As published: z over all tags, those never seen included with their average of 0."""
        import torch

        loss = self.tensors["loss_average"]
        tags = torch.ones(loss.shape, dtype=torch.bool, device=loss.device)
        tags[NO_CLASS] = False
        return torch.sigmoid(2 * z_scores(loss, tags))
