"""Ratios that follow progress alone: the courses of the paper, and courses made of others.

Formulas: Yang, Zhang and Zhao (ACL 2023, arXiv 2208.10806) with p = ``base`` and t = progress, unless a
docstring names another source.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from chronomask.config import Config
from chronomask.masking.ratio.base import Course, PureSchedule, Ratio, Share
from chronomask.types import Rows

__all__ = [
    "Ascending",
    "ConcaveDecay",
    "Constant",
    "ConvexDecay",
    "CosineDecay",
    "CosineThenQuadratic",
    "DownThenUp",
    "Linear",
    "LinearDecay",
    "Phase",
    "Phases",
    "Sequence",
    "Stretch",
    "UpThenDown",
    "WarmupDecay",
    "check_ends",
]


class _FromBase(PureSchedule):
    ratio_fields: ClassVar[tuple[str, ...]] = ("base",)

    base: Ratio = 0.15
    """p: the constant ratio the schedule is compared with"""

    @abstractmethod
    def _formula(self, progress: float) -> float:
        """The ratio before it is kept within [0, 1]."""

    def at(self, progress: float) -> float:
        return min(1.0, max(0.0, self._formula(progress)))


class Constant(_FromBase):
    """r(t) = p: the usual constant ratio (BERT 0.15; Wettig et al., arXiv 2202.08005: 0.40)."""

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

    ratio_fields: ClassVar[tuple[str, ...]] = ("base", "floor")

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

    ratio_fields: ClassVar[tuple[str, ...]] = ("base", "floor")

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

    ratio_fields: ClassVar[tuple[str, ...]] = ("base", "floor")

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


class CosineThenQuadratic(PureSchedule):
    """0.2 + 0.1 cos(πt/0.4) for t < 0.4, then 0.1 − 0.25 (t − 0.4)².

    The public code of the paper falls back to this for any schedule name that it does not know.
    """

    kind: Literal["cosine_then_quadratic"] = "cosine_then_quadratic"

    def at(self, progress: float) -> float:
        if progress < 0.4:
            return 0.2 + 0.1 * math.cos(math.pi * progress / 0.4)
        return 0.1 - 0.25 * (progress - 0.4) ** 2


class Linear(PureSchedule):
    """r(t) = a + (b − a)t; Ankner et al. (arXiv 2305.15096): 0.30→0.15 (base), 0.40→0.25 (large)."""

    ratio_fields: ClassVar[tuple[str, ...]] = ("start", "end")

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

    def times(self, factor: float) -> Phase:
        """The stretch with its ratio multiplied; raises UsageError for one above 1."""
        values = {"until": self.until, "ratio": self.ratio * factor}
        return Phase.parse(values, where=f"a phase of ratio {self.ratio:g}, scaled by {factor:.4g}")


class Phases(PureSchedule):
    """Piecewise constant: Ettin 0.30/0.30/0.15; mmBERT 0.30/0.15/0.05; EuroBERT 0.50→0.10."""

    ratio_fields: ClassVar[tuple[str, ...]] = ("phases",)

    kind: Literal["phases"] = "phases"
    phases: tuple[Phase, ...] = Field(min_length=1)
    """in order; the last one must reach 1"""

    @model_validator(mode="after")
    def _check_coverage(self) -> Phases:
        check_ends([phase.until for phase in self.phases])
        return self

    def at(self, progress: float) -> float:
        return next((p.ratio for p in self.phases if progress < p.until), self.phases[-1].ratio)


class Stretch(Config):
    """One part of :class:`Sequence`."""

    until: Share
    """progress at which the part ends (exclusive)"""
    schedule: Course
    """run over its own progress from 0 to 1"""

    def times(self, factor: float) -> Stretch:
        """The part with its schedule's ratios multiplied; raises UsageError where it cannot be."""
        return Stretch(until=self.until, schedule=self.schedule.times(factor))


class Sequence(PureSchedule):
    """Schedules one after another, each over its own stretch of training."""

    ratio_fields: ClassVar[tuple[str, ...]] = ("parts",)

    kind: Literal["sequence"] = "sequence"
    parts: tuple[Stretch, ...] = Field(min_length=1)
    """in order; the last one must reach 1"""

    @model_validator(mode="after")
    def _check_coverage(self) -> Sequence:
        check_ends([part.until for part in self.parts])
        return self

    @property
    def draws_rows(self) -> bool:
        return any(part.schedule.draws_rows for part in self.parts)

    @property
    def has_density(self) -> bool:
        return all(part.schedule.has_density for part in self.parts)

    def highest_at(self, progress: float) -> float:
        schedule, own = self._part(progress)
        return schedule.highest_at(own)

    def _part(self, progress: float) -> tuple[PureSchedule, float]:
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

    def ratios(self, progress: float, rows: Rows, seed: int) -> np.ndarray:
        schedule, own = self._part(progress)
        return schedule.ratios(own, rows, seed)

    def slopes(self, progress: float, rows: Rows, seed: int) -> np.ndarray:
        schedule, own = self._part(progress)
        return schedule.slopes(own, rows, seed)


def check_ends(ends: list[float]) -> None:
    """Raise ValueError unless the ends of stretches of training rise and the last is 1."""
    if ends != sorted(set(ends)):
        raise ValueError(f"the 'until' values must increase; they are {ends}")
    if ends[-1] != 1:
        raise ValueError(f"the last 'until' must be 1; it is {ends[-1]}")
