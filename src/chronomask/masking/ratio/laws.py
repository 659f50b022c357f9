"""Ratios that every row draws for itself, from a law whose parameters follow progress.

A law is known by its quantile function: ``of_rows(progress, u)`` is the ratio of a row that has drawn u,
uniform in (0, 1). Masked diffusion calls u the time, and the ratio 1 − α(u). Letters: B rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Annotated, ClassVar, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from chronomask.config import Config
from chronomask.masking.ratio.base import (
    Course,
    NumberOrCourse,
    PureSchedule,
    Ratio,
    Share,
    refuse_laws,
    value_at,
)
from chronomask.masking.ratio.courses import Constant
from chronomask.types import Rows

__all__ = [
    "BetaRows",
    "CosineRows",
    "LawShare",
    "MixtureRows",
    "NormalRows",
    "RowLaw",
    "UniformRows",
    "check_shares",
]


_FAR = 1e6
"""Standard deviations beyond which nothing is left of a normal law, and whose square is a number."""


class RowLaw(PureSchedule):
    """What laws of row ratios share; ``at`` is the mean of the law, ``of_rows`` its quantile function."""

    antithetic: bool = True
    """spread the draws of consecutive rows evenly instead of independently"""

    @property
    def draws_rows(self) -> bool:
        return True

    @property
    def has_density(self) -> bool:
        return True

    def uniform(self, rows: Rows, seed: int) -> np.ndarray:
        return _spread_evenly(rows, seed) if self.antithetic else super().uniform(rows, seed)


class _Between(RowLaw):
    """A law between two ratios, low and high."""

    ratio_fields: ClassVar[tuple[str, ...]] = ("low", "high")

    low: Course = Constant(base=0.0)
    """lower end, itself a schedule"""
    high: Course = Constant(base=0.3)
    """upper end, itself a schedule"""

    @model_validator(mode="after")
    def _check_one_for_all(self) -> Self:
        refuse_laws(self, "low", "high")
        return self


class UniformRows(_Between):
    """Each row draws its ratio from U(low(t), high(t)); masked diffusion models draw U(ε, 1).

    Sahoo et al., "Simple and effective masked diffusion language models" (NeurIPS 2024).
    """

    kind: Literal["uniform_rows"] = "uniform_rows"

    def at(self, progress: float) -> float:
        return (self.low.at(progress) + self.high.at(progress)) / 2

    def of_rows(self, progress: float, uniform: np.ndarray) -> np.ndarray:
        low, high = self.low.at(progress), self.high.at(progress)
        return low + (high - low) * uniform


class CosineRows(_Between):
    """r = low + (high − low) · cos(πu/2), u ~ U(0, 1): most rows near the upper end; mean at 2/π.

    Chang et al., "MaskGIT" (CVPR 2022, arXiv 2202.04200); the cosine schedule of masked diffusion.
    """

    kind: Literal["cosine_rows"] = "cosine_rows"

    def at(self, progress: float) -> float:
        low, high = self.low.at(progress), self.high.at(progress)
        return low + (high - low) * 2 / math.pi

    def of_rows(self, progress: float, uniform: np.ndarray) -> np.ndarray:
        low, high = self.low.at(progress), self.high.at(progress)
        return low + (high - low) * np.cos(math.pi / 2 * uniform)


class NormalRows(RowLaw):
    """r ~ N(mean(t), std), cut off outside [low, high]: what lies outside is drawn again.

    The mean of what is left is the ratio asked, and differs from ``mean`` where one side is cut more.
    """

    ratio_fields: ClassVar[tuple[str, ...]] = ("mean", "std", "low", "high")

    kind: Literal["normal_rows"] = "normal_rows"
    mean: Annotated[Ratio | PureSchedule, NumberOrCourse] = 0.15
    """mean ratio before anything is cut off; a number, or a schedule"""
    std: Share = 0.05
    """standard deviation of the ratio before anything is cut off"""
    low: Ratio = 0.0
    """no row has a lower ratio"""
    high: Ratio = 1.0
    """no row has a higher ratio"""

    @model_validator(mode="after")
    def _check_range(self) -> NormalRows:
        refuse_laws(self, "mean")
        if self.low >= self.high:
            raise ValueError(f"low ({self.low:g}) must be below high ({self.high:g})")
        for progress in (step / 100 for step in range(101)):
            mean = value_at(self.mean, progress)
            if not self.low <= mean <= self.high:
                raise ValueError(
                    f"mean is {mean:g} at progress {progress:g}, outside low to high, "
                    f"{self.low:g} to {self.high:g}"
                )
        return self

    def _ends(self, progress: float) -> tuple[float, float, float]:
        """The mean, and the ends in standard deviations from it."""
        mean = value_at(self.mean, progress)
        below, above = (self.low - mean) / self.std, (self.high - mean) / self.std
        return mean, max(below, -_FAR), min(above, _FAR)

    def at(self, progress: float) -> float:
        mean, below, above = self._ends(progress)
        density = math.exp(-(below**2) / 2) - math.exp(-(above**2) / 2)
        share = math.erf(above / math.sqrt(2)) - math.erf(below / math.sqrt(2))
        return mean + self.std * math.sqrt(2 / math.pi) * density / share

    def of_rows(self, progress: float, uniform: np.ndarray) -> np.ndarray:
        from scipy.special import ndtr, ndtri

        mean, below, above = self._ends(progress)
        first, last = ndtr(below), ndtr(above)
        drawn = mean + self.std * ndtri(first + (last - first) * uniform)
        return np.clip(drawn, self.low, self.high)


class BetaRows(RowLaw):
    """Each row draws its ratio from a beta distribution around a scheduled mean."""

    ratio_fields: ClassVar[tuple[str, ...]] = ("mean",)

    kind: Literal["beta_rows"] = "beta_rows"
    mean: Course = Constant(base=0.15)
    """mean ratio, itself a schedule"""
    concentration: Annotated[float, Field(gt=0)] = 10.0
    """α + β: the larger, the closer rows stay to the mean"""

    @model_validator(mode="after")
    def _check_one_for_all(self) -> BetaRows:
        refuse_laws(self, "mean")
        return self

    def at(self, progress: float) -> float:
        return self.mean.at(progress)

    def of_rows(self, progress: float, uniform: np.ndarray) -> np.ndarray:
        from scipy.special import betaincinv

        mean = self.mean.at(progress)
        if mean <= 0 or mean >= 1:
            return np.full(uniform.shape, mean)
        return betaincinv(mean * self.concentration, (1 - mean) * self.concentration, uniform)


class LawShare(Config):
    """One part of :class:`MixtureRows`."""

    share: Annotated[Ratio | PureSchedule, NumberOrCourse]
    """share of the rows that draw from this law; a number, or a schedule"""
    law: Course
    """what they draw from: a law, or a schedule that gives all of them one ratio"""

    @model_validator(mode="after")
    def _check_one_for_all(self) -> LawShare:
        refuse_laws(self, "share")
        return self

    def times(self, factor: float) -> LawShare:
        """The part with its law's ratios multiplied; raises UsageError where it cannot be."""
        return LawShare(share=self.share, law=self.law.times(factor))


class MixtureRows(RowLaw):
    """Each row draws from one of several laws, whose shares and parameters follow progress.

    The BabyLM 2025 entry of arXiv 2509.05056: 0.6 · N(.12, .02) + 0.4 · N(m, .08), m from .40 to .85.
    """

    ratio_fields: ClassVar[tuple[str, ...]] = ("parts",)

    kind: Literal["mixture_rows"] = "mixture_rows"
    parts: tuple[LawShare, ...] = Field(min_length=1)
    """the laws; at every progress their shares must add up to 1"""

    @model_validator(mode="after")
    def _check_shares(self) -> MixtureRows:
        check_shares([part.share for part in self.parts])
        return self

    @property
    def has_density(self) -> bool:
        return all(part.law.has_density for part in self.parts)

    def highest_at(self, progress: float) -> float:
        drawn = (part for part in self.parts if value_at(part.share, progress) > 0)
        return max(part.law.highest_at(progress) for part in drawn)

    def at(self, progress: float) -> float:
        return sum(value_at(part.share, progress) * part.law.at(progress) for part in self.parts)

    def of_rows(self, progress: float, uniform: np.ndarray) -> np.ndarray:
        return self._by_part(progress, uniform)[0]

    def slope(self, progress: float, uniform: np.ndarray) -> np.ndarray:
        """Within the law that a row draws from: the mixture may jump from one law to the next."""
        return self._by_part(progress, uniform)[1]

    def _by_part(self, progress: float, uniform: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Ratios and slopes, float64 [B] each: the law whose stretch of (0, 1) holds a row's number."""
        ratio, slope = np.empty(uniform.shape), np.empty(uniform.shape)
        begin = 0.0
        for part in self.parts:
            share = value_at(part.share, progress)
            # What rounding leaves above the last stretch belongs to it.
            end = 2.0 if part is self.parts[-1] else begin + share
            own = (uniform >= begin) & (uniform < end)
            if own.any():
                least = 2.0**-33
                inside = np.clip((uniform[own] - begin) / max(share, least), least, 1 - least)
                ratio[own] = part.law.of_rows(progress, inside)
                slope[own] = part.law.slope(progress, inside) / max(share, least)
            begin = end
        return ratio, slope


def check_shares(shares: Iterable[float | PureSchedule]) -> None:
    """Raise ValueError unless shares, numbers or schedules, add up to 1 at every progress."""
    shares = list(shares)
    for progress in (step / 100 for step in range(101)):
        total = sum(value_at(share, progress) for share in shares)
        if abs(total - 1) > 1e-6:
            raise ValueError(
                f"the shares must add up to 1; at progress {progress:g} they are {total:g}"
            )


def _spread_evenly(rows: Rows, seed: int) -> np.ndarray:
    """float64 [B] in (0, 1): one number per row, such that those of consecutive rows lie evenly."""
    from chronomask import keyed

    return keyed.unit_interval(keyed.weyl(seed, keyed.Stream.RATIO, rows.place))
