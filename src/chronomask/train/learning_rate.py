"""Learning-rate schedules: pure functions of the optimiser step. Nothing counts.

All begin with a linear warm-up from ``peak / warmup_steps`` at the first step to ``peak``. Steps are
0-based: ``at(step, steps)`` is the rate of the update that turns step into step + 1.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Annotated, Literal

from pydantic import Field

from chronomask.config import Alternative
from chronomask.errors import UsageError

__all__ = [
    "Constant",
    "Cosine",
    "DampedCosine",
    "LearningRate",
    "Linear",
    "OneMinusSqrt",
    "Wsd",
]

Fraction = Annotated[float, Field(ge=0, le=1)]


class LearningRate(Alternative):
    """The family of learning-rate schedules, distinguished by ``kind``: a linear warm-up, then the course
    that a member defines.
    """

    peak: Annotated[float, Field(gt=0)] = 5e-4
    """highest learning rate"""
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    """steps of linear warm-up"""
    follow_labels: Literal["sqrt", "linear"] | None = None
    """whether the rate of a step is multiplied by its number of labels over the run's mean number, or by the
    root of that; none follows the steps alone"""

    def at(self, step: int, steps: int) -> float:
        """The learning rate of 0-based ``step`` in a run of ``steps``."""
        if step < self.warmup_steps:
            return self.peak * (step + 1) / self.warmup_steps
        progress = (step - self.warmup_steps) / max(1, steps - self.warmup_steps)
        return self.peak * self._share(min(1.0, progress))

    def refuse_no_labels(self, labels: float) -> None:
        """Raise UsageError where the rate follows the labels of a run that asks for none."""
        if self.follow_labels is not None and not labels:
            raise UsageError(
                f"learning_rate.follow_labels is '{self.follow_labels}', and no labels are asked for: set it "
                "to null, or raise masking.ratio"
            )

    def factor(self, labels: float, mean_labels: float) -> float:
        """What :meth:`at` is multiplied by at a step of ``labels``; 1 where the rate does not follow them.

        A gradient is a mean over labels. Linear is the rule of Goyal et al. (arXiv 1706.02677), the root
        that of Malladi et al. (arXiv 2205.10287) for Adam.
        """
        if self.follow_labels is None:
            return 1.0
        ratio = labels / mean_labels
        return ratio if self.follow_labels == "linear" else math.sqrt(ratio)

    @abstractmethod
    def _share(self, progress: float) -> float:
        """Share of the peak at ``progress`` in [0, 1] of the time after the warm-up."""


class Constant(LearningRate):
    """The peak to the end."""

    kind: Literal["constant"] = "constant"

    def _share(self, progress: float) -> float:
        return 1.0


class Linear(LearningRate):
    """A straight line from the peak to ``final``: BERT's."""

    kind: Literal["linear"] = "linear"
    final: Fraction = 0.0
    """share of the peak at the end"""

    def _share(self, progress: float) -> float:
        return 1 + (self.final - 1) * progress


class Cosine(LearningRate):
    """Half a cosine from the peak to ``final`` (Loshchilov and Hutter, ICLR 2017)."""

    kind: Literal["cosine"] = "cosine"
    final: Fraction = 0.0
    """share of the peak at the end"""

    def _share(self, progress: float) -> float:
        return self.final + (1 - self.final) * (1 + math.cos(math.pi * progress)) / 2


class Wsd(LearningRate):
    """Warm-up, stable, decay (a trapezoid): the peak until the last part of training, then down.

    Hu et al., "MiniCPM" (2024); ModernBERT decays as 1 − sqrt.
    """

    kind: Literal["wsd"] = "wsd"
    decay_share: Fraction = 0.1
    """share of the time after the warm-up that decays"""
    shape: Literal["linear", "one_minus_sqrt"] = "linear"
    """course of the decay"""
    final: Fraction = 0.0
    """share of the peak at the end"""

    def _share(self, progress: float) -> float:
        begin = 1 - self.decay_share
        if progress <= begin:
            return 1.0
        done = (progress - begin) / self.decay_share
        return 1 + (self.final - 1) * (done if self.shape == "linear" else math.sqrt(done))


class OneMinusSqrt(LearningRate):
    """1 − sqrt of the time after the warm-up, from the peak to ``final``: falls fast, then slowly.

    The shape of cooldowns in Hägele et al. (NeurIPS 2024, arXiv 2405.18392), here from the start; with a
    stretch at the peak before it, it is ``wsd`` with ``shape: one_minus_sqrt``.
    """

    kind: Literal["one_minus_sqrt"] = "one_minus_sqrt"
    final: Fraction = 0.0
    """share of the peak at the end"""

    def _share(self, progress: float) -> float:
        return 1 + (self.final - 1) * math.sqrt(progress)


class DampedCosine(LearningRate):
    """A cosine of several waves whose height falls in a straight line: warm restarts without jumps.

    With p the progress after the warm-up and c = ``waves``, the share of the peak is
    final + (1 − final) · (1 − p) · (1 + cos(2πcp)) / 2 (after Loshchilov and Hutter, ICLR 2017).
    """

    kind: Literal["damped_cosine"] = "damped_cosine"
    waves: Annotated[int, Field(ge=1, le=1000)] = 3
    """number of waves, each from a peak down to ``final`` and up again"""
    final: Fraction = 0.0
    """share of the peak in the valleys and at the end"""

    def _share(self, progress: float) -> float:
        wave = (1 + math.cos(2 * math.pi * self.waves * progress)) / 2
        return self.final + (1 - self.final) * (1 - progress) * wave
