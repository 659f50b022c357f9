"""How much is masked: ratio schedules, pure functions of training progress in [0, 1].

Every member of :data:`RatioSchedule` has ``at(progress)``, the mean masking ratio asked at that point
of training. Schedules that give each row its own ratio also have ``of_rows``. A new schedule is one
class here and one line in the union at the end. Formulas: Yang, Zhang and Zhao (ACL 2023, arXiv
2208.10806) with p = ``base`` and t = progress, unless a docstring names another source.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, model_validator

from chronomask.config import Config

__all__ = ["PureSchedule", "RatioSchedule", "ScheduleBase"]

Ratio = Annotated[float, Field(ge=0, le=1)]
Share = Annotated[float, Field(gt=0, le=1)]


class ScheduleBase(Config):
    """What every schedule can do; ``at`` is the one thing a new one must define."""

    @property
    def draws_rows(self) -> bool:
        """Whether rows get ratios of their own, and ``of_rows`` needs random numbers."""
        return False

    @abstractmethod
    def at(self, progress: float) -> float:
        """The mean ratio asked at ``progress`` in [0, 1]; itself in [0, 1]."""

    def of_rows(self, progress: float, uniform: np.ndarray) -> np.ndarray:
        """float64 [B]: each row's ratio, given a uniform number in (0, 1) per row."""
        return np.full(uniform.shape, self.at(progress))


class _FromBase(ScheduleBase):
    base: Ratio = 0.15
    """p: the constant ratio the schedule is compared with"""

    @abstractmethod
    def _formula(self, progress: float) -> float:
        """The ratio before it is kept within [0, 1]."""

    def at(self, progress: float) -> float:
        return min(1.0, max(0.0, self._formula(progress)))


class Constant(_FromBase):
    """r(t) = p: what everybody does (BERT 0.15; Wettig et al., arXiv 2202.08005: 0.40)."""

    kind: Literal["constant"] = "constant"

    def _formula(self, progress: float) -> float:
        return self.base


class LinearDecay(_FromBase):
    """r(t) = 2p(1 − t): MRD with a linear course; the mean over training is p."""

    kind: Literal["linear_decay"] = "linear_decay"

    def _formula(self, progress: float) -> float:
        return 2 * self.base * (1 - progress)


class CosineDecay(_FromBase):
    """r(t) = p(1 + cos πt) + 0.02: MRD with a cosine course; the mean is p + ``floor``."""

    kind: Literal["cosine_decay"] = "cosine_decay"
    floor: Ratio = 0.02
    """the ratio at the end"""

    def _formula(self, progress: float) -> float:
        return self.base * (1 + math.cos(math.pi * progress)) + self.floor


class Ascending(_FromBase):
    """r(t) = 2pt: the reverse of linear decay, an ablation."""

    kind: Literal["ascending"] = "ascending"

    def _formula(self, progress: float) -> float:
        return 2 * self.base * progress


class ConcaveDecay(_FromBase):
    """r(t) = 2p(1 − t²) + 0.01: stays high for long, an ablation."""

    kind: Literal["concave_decay"] = "concave_decay"
    floor: Ratio = 0.01
    """the ratio at the end"""

    def _formula(self, progress: float) -> float:
        return 2 * self.base * (1 - progress**2) + self.floor


class ConvexDecay(_FromBase):
    """r(t) = 2p(1 − t)²: falls early, an ablation; the mean is 2p/3."""

    kind: Literal["convex_decay"] = "convex_decay"

    def _formula(self, progress: float) -> float:
        return 2 * self.base * (1 - progress) ** 2


class UpThenDown(_FromBase):
    """r(t) = 4pt, then 4p(1 − t) from t = ½: an ablation."""

    kind: Literal["up_then_down"] = "up_then_down"

    def _formula(self, progress: float) -> float:
        return 4 * self.base * min(progress, 1 - progress)


class DownThenUp(_FromBase):
    """r(t) = 2p·|1 − 2t| + 0.01: an ablation."""

    kind: Literal["down_then_up"] = "down_then_up"
    floor: Ratio = 0.01
    """the ratio in the middle"""

    def _formula(self, progress: float) -> float:
        return 2 * self.base * abs(1 - 2 * progress) + self.floor


class WarmupDecay(_FromBase):
    """Linear from 0 to 2p over the ``warmup`` share of training, then linear to 0: an ablation."""

    kind: Literal["warmup_decay"] = "warmup_decay"
    warmup: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """share of training spent rising"""

    def _formula(self, progress: float) -> float:
        rising = progress / self.warmup
        falling = (1 - progress) / (1 - self.warmup)
        return 2 * self.base * min(rising, falling)


class CosineThenQuadratic(ScheduleBase):
    """0.2 + 0.1 cos(πt/0.4) for t < 0.4, then 0.1 − 0.25 (t − 0.4)².

    What the public code of the paper runs for any schedule name it does not know.
    """

    kind: Literal["cosine_then_quadratic"] = "cosine_then_quadratic"

    def at(self, progress: float) -> float:
        if progress < 0.4:
            return 0.2 + 0.1 * math.cos(math.pi * progress / 0.4)
        return 0.1 - 0.25 * (progress - 0.4) ** 2


class Linear(ScheduleBase):
    """r(t) = a + (b − a)t; Ankner et al. (arXiv 2305.15096): 0.30→0.15 (base), 0.40→0.25 (large)."""

    kind: Literal["linear"] = "linear"
    start: Ratio = 0.30
    """a: the ratio at the beginning"""
    end: Ratio = 0.15
    """b: the ratio at the end"""

    def at(self, progress: float) -> float:
        return self.start + (self.end - self.start) * progress


class Phase(Config):
    """One constant stretch of :class:`Phases`."""

    until: Share
    """progress at which the stretch ends (exclusive)"""
    ratio: Ratio
    """the ratio during it"""


class Phases(ScheduleBase):
    """Piecewise constant: Ettin 0.30/0.30/0.15; mmBERT 0.30/0.15/0.05; EuroBERT 0.50→0.10."""

    kind: Literal["phases"] = "phases"
    phases: tuple[Phase, ...] = Field(min_length=1)
    """in order; the last one must reach 1"""

    @model_validator(mode="after")
    def _covers_training(self) -> Phases:
        _check_ends([phase.until for phase in self.phases])
        return self

    def at(self, progress: float) -> float:
        return next((p.ratio for p in self.phases if progress < p.until), self.phases[-1].ratio)


class Stretch(Config):
    """One part of :class:`Sequence`."""

    until: Share
    """progress at which the part ends (exclusive)"""
    schedule: PureSchedule
    """run over its own progress from 0 to 1"""


class Sequence(ScheduleBase):
    """Schedules one after another, each over its own stretch of training."""

    kind: Literal["sequence"] = "sequence"
    parts: tuple[Stretch, ...] = Field(min_length=1)
    """in order; the last one must reach 1"""

    @model_validator(mode="after")
    def _covers_training(self) -> Sequence:
        _check_ends([part.until for part in self.parts])
        return self

    @property
    def draws_rows(self) -> bool:
        return any(part.schedule.draws_rows for part in self.parts)

    def _part(self, progress: float) -> tuple[ScheduleBase, float]:
        start = 0.0
        for part in self.parts[:-1]:
            if progress < part.until:
                return part.schedule, (progress - start) / (part.until - start)
            start = part.until
        last = self.parts[-1]
        return last.schedule, (progress - start) / (last.until - start)

    def at(self, progress: float) -> float:
        schedule, own = self._part(progress)
        return schedule.at(own)

    def of_rows(self, progress: float, uniform: np.ndarray) -> np.ndarray:
        schedule, own = self._part(progress)
        return schedule.of_rows(own, uniform)


class UniformRows(ScheduleBase):
    """Each row draws its ratio from U(low(t), high(t)); masked diffusion models draw U(ε, 1).

    Sahoo et al., "Simple and effective masked diffusion language models" (NeurIPS 2024).
    """

    kind: Literal["uniform_rows"] = "uniform_rows"
    low: PureSchedule = Constant(base=0.0)
    """lower end, itself a schedule"""
    high: PureSchedule = Constant(base=0.3)
    """upper end, itself a schedule"""
    antithetic: bool = True
    """spread the draws of consecutive rows evenly instead of independently"""

    @property
    def draws_rows(self) -> bool:
        return True

    def at(self, progress: float) -> float:
        return (self.low.at(progress) + self.high.at(progress)) / 2

    def of_rows(self, progress: float, uniform: np.ndarray) -> np.ndarray:
        low, high = self.low.at(progress), self.high.at(progress)
        return low + (high - low) * uniform


class BetaRows(ScheduleBase):
    """Each row draws its ratio from a beta distribution around a scheduled mean."""

    kind: Literal["beta_rows"] = "beta_rows"
    mean: PureSchedule = Constant(base=0.15)
    """mean ratio, itself a schedule"""
    concentration: Annotated[float, Field(gt=0)] = 10.0
    """α + β: the larger, the closer rows stay to the mean"""
    antithetic: bool = True
    """spread the draws of consecutive rows evenly instead of independently"""

    @property
    def draws_rows(self) -> bool:
        return True

    def at(self, progress: float) -> float:
        return self.mean.at(progress)

    def of_rows(self, progress: float, uniform: np.ndarray) -> np.ndarray:
        from scipy.special import betaincinv

        mean = self.mean.at(progress)
        if mean <= 0 or mean >= 1:
            return np.full(uniform.shape, mean)
        return betaincinv(mean * self.concentration, (1 - mean) * self.concentration, uniform)


class Responsive(ScheduleBase):
    """Lowers the ratio when the watched loss stops falling; the ratio in force is state.

    ``at`` gives the ratio before any response; :class:`chronomask.masking.response.RatioResponse`
    holds the level reached and belongs to the checkpoint.
    """

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
    watch: Literal["validation", "training"] = "validation"
    """which loss is observed"""
    every: Annotated[int, Field(ge=1)] = 100
    """steps whose mean makes one observation of the training loss"""

    def at(self, progress: float) -> float:
        return self.start


def _check_ends(ends: list[float]) -> None:
    if ends != sorted(set(ends)):
        raise ValueError(f"the 'until' values must rise, got {ends}")
    if ends[-1] != 1:
        raise ValueError(f"the last 'until' must be 1, got {ends[-1]}")


PureSchedule = Annotated[
    Constant
    | LinearDecay
    | CosineDecay
    | Ascending
    | ConcaveDecay
    | ConvexDecay
    | UpThenDown
    | DownThenUp
    | WarmupDecay
    | CosineThenQuadratic
    | Linear
    | Phases
    | Sequence
    | UniformRows
    | BetaRows,
    Field(discriminator="kind"),
]
"""Schedules that are functions of progress alone."""

RatioSchedule = Annotated[PureSchedule | Responsive, Field(discriminator="kind")]

for _model in (Stretch, Sequence, UniformRows, BetaRows):
    _model.model_rebuild()
