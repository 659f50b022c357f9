"""How much is masked: ratio schedules over training progress in [0, 1].

A schedule is one class: ``at(progress)`` is the mean masking ratio asked at that point of training. One
that gives each row a ratio of its own also has ``of_rows``, one that responds to training also begins a
:class:`RatioState`. A new schedule is one more class, here or anywhere (see
:class:`~chronomask.config.Alternative`). Formulas: Yang, Zhang and Zhao (ACL 2023, arXiv 2208.10806)
with p = ``base`` and t = progress, unless a docstring names another source.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from chronomask.config import Alternative, Config, kind_of
from chronomask.errors import DataError, UsageError
from chronomask.types import Rows

if TYPE_CHECKING:
    import torch

__all__ = ["PureSchedule", "RatioState", "Schedule", "spread_evenly", "value_at"]

Ratio = Annotated[float, Field(ge=0, le=1)]
Share = Annotated[float, Field(gt=0, le=1)]
Watched = Literal["validation", "training"]


class Schedule(Alternative):
    """What every ratio schedule can do; ``at`` is the one thing a new one must define."""

    ratio_fields: ClassVar[tuple[str, ...]] = ()
    """names of the fields that hold ratios: what :meth:`times` multiplies"""

    @abstractmethod
    def at(self, progress: float) -> float:
        """The mean ratio asked at ``progress`` in [0, 1]; itself in [0, 1]."""

    @property
    def draws_rows(self) -> bool:
        """Whether rows get ratios of their own, and ``of_rows`` needs random numbers."""
        return False

    def of_rows(self, progress: float, uniform: np.ndarray) -> np.ndarray:
        """float64 [B]: each row's ratio, given a uniform number in (0, 1) per row."""
        return np.full(uniform.shape, self.at(progress))

    def uniform(self, rows: Rows, seed: int) -> np.ndarray:
        """float64 [B] in (0, 1): the numbers that :meth:`of_rows` is given, independent of each other."""
        from chronomask import keyed

        keys = keyed.row_keys(seed, keyed.Stream.RATIO, rows.epoch, rows.row_id)
        return keyed.unit_interval(keys >> np.uint64(32))

    def ratios(self, progress: float, rows: Rows, seed: int) -> np.ndarray:
        """float64 [B]: the ratio of each row at ``progress``."""
        if not self.draws_rows:
            return np.full(rows.num_rows, self.at(progress))
        return self.of_rows(progress, self.uniform(rows, seed))

    @property
    def watches(self) -> Watched | None:
        """Which loss the ratio responds to; None for one that follows progress alone."""
        return None

    @property
    def known_before(self) -> bool:
        """Whether ``at`` tells, before training, what ratio will be asked."""
        return self.watches is None

    def begin(self) -> RatioState:
        """What the ratio in force depends on during one training."""
        return RatioState(self)

    def times(self, factor: float) -> Self:
        """The same course with every ratio multiplied by ``factor``.

        Raises UsageError for a course that cannot be multiplied as a whole: one whose ratios are no
        values of the config, or would leave [0, 1].
        """
        problem = f"the ratios of '{kind_of(self)}' cannot be scaled by {factor:.4g}"
        if not self.ratio_fields:
            raise UsageError(f"{problem}: they are no values of the config")
        own = {name: getattr(self, name) for name in type(self).model_fields}
        changed = {name: _multiply(own[name], factor) for name in self.ratio_fields}
        scaled = type(self).parse(own | changed, where=problem)
        for progress in (step / 100 for step in range(101)):
            wanted, given = factor * self.at(progress), scaled.at(progress)
            if abs(given - wanted) > 1e-9:
                raise UsageError(
                    f"{problem} as one: ratios are kept within [0, 1], so at progress {progress:g} it would "
                    f"be {given:.4g} instead of {wanted:.4g}"
                )
        return scaled


def _multiply(value: Any, factor: float) -> Any:
    """A field's ratios multiplied: a number, a schedule, a part of one, or several parts."""
    if isinstance(value, tuple):
        return tuple(_multiply(item, factor) for item in value)
    return value * factor if isinstance(value, int | float) else value.times(factor)


class RatioState:
    """The ratio in force during one training: that of the schedule, which here remembers nothing.

    A schedule that responds to training begins a subclass of its own, which overrides what follows.
    """

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule

    def at(self, progress: float) -> float:
        """The mean ratio asked at ``progress``, all that was observed included."""
        return self.schedule.at(progress)

    def ratios(self, progress: float, rows: Rows, seed: int) -> np.ndarray:
        """float64 [B]: the ratio of each row at ``progress``."""
        return self.schedule.ratios(progress, rows, seed)

    def observe(self, loss: float) -> None:
        """Take in a loss (nats per token) of the kind that the schedule watches: one step's or one
        validation's.
        """

    def state_dict(self) -> dict[str, torch.Tensor]:
        """All state as tensors, for the checkpoint."""
        return {}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Restore :meth:`state_dict`; raises DataError if it is of another schedule."""


class PureSchedule(Schedule):
    """A schedule that is a function of progress alone."""


def value_at(value: float | PureSchedule, progress: float) -> float:
    """A number that may follow progress: itself, or the schedule's at ``progress``."""
    return value.at(progress) if isinstance(value, PureSchedule) else float(value)


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
        _check_ends([part.until for part in self.parts])
        return self

    @property
    def draws_rows(self) -> bool:
        return any(part.schedule.draws_rows for part in self.parts)

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


class UniformRows(PureSchedule):
    """Each row draws its ratio from U(low(t), high(t)); masked diffusion models draw U(ε, 1).

    Sahoo et al., "Simple and effective masked diffusion language models" (NeurIPS 2024).
    """

    ratio_fields: ClassVar[tuple[str, ...]] = ("low", "high")

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

    def uniform(self, rows: Rows, seed: int) -> np.ndarray:
        return spread_evenly(rows, seed) if self.antithetic else super().uniform(rows, seed)


class BetaRows(PureSchedule):
    """Each row draws its ratio from a beta distribution around a scheduled mean."""

    ratio_fields: ClassVar[tuple[str, ...]] = ("mean",)

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

    def uniform(self, rows: Rows, seed: int) -> np.ndarray:
        return spread_evenly(rows, seed) if self.antithetic else super().uniform(rows, seed)


class Responsive(Schedule):
    """Lowers the ratio when the watched loss stops falling; the ratio in force is state.

    Each observed loss that is not at least ``min_improvement`` (relative) below the best so far counts
    as a stall; after ``patience`` stalls in a row the ratio is multiplied by ``factor``, never below
    ``end``, and the next observation sets the new best: at another ratio the loss is another. ``at``
    gives the ratio before any response.
    """

    ratio_fields: ClassVar[tuple[str, ...]] = ("start", "end")

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
    watch: Watched = "validation"
    """which loss is observed"""
    every: Annotated[int, Field(ge=1)] = 100
    """steps whose mean makes one observation of the training loss"""

    def at(self, progress: float) -> float:
        return self.start

    @property
    def watches(self) -> Watched:
        return self.watch

    def begin(self) -> RatioState:
        return _Response(self)


class _Response(RatioState):
    """The level that a :class:`Responsive` schedule has reached."""

    def __init__(self, schedule: Responsive) -> None:
        super().__init__(schedule)
        self.config = schedule
        self.level = schedule.start
        self.best = math.inf
        self.stalls = 0
        # Each validation is an observation by itself; of training losses, the mean of several steps.
        self._every = schedule.every if schedule.watch == "training" else 1
        self._sum = 0.0
        self._number = 0

    def at(self, progress: float) -> float:
        return self.level

    def ratios(self, progress: float, rows: Rows, seed: int) -> np.ndarray:
        return np.full(rows.num_rows, self.level)

    def observe(self, loss: float) -> None:
        self._sum += loss
        self._number += 1
        if self._number == self._every:
            self._respond(self._sum / self._number)
            self._sum, self._number = 0.0, 0

    def _respond(self, loss: float) -> None:
        if loss < self.best * (1 - self.config.min_improvement) or math.isinf(self.best):
            self.best, self.stalls = loss, 0
            return
        self.stalls += 1
        if self.stalls >= self.config.patience and self.level > self.config.end:
            self.level = max(self.config.end, self.level * self.config.factor)
            self.best, self.stalls = math.inf, 0

    def state_dict(self) -> dict[str, torch.Tensor]:
        """All state as one float64 tensor."""
        import torch

        values = [self.level, self.best, float(self.stalls), self._sum, float(self._number)]
        return {"values": torch.tensor(values, dtype=torch.float64)}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        if set(state) != {"values"} or state["values"].shape != (5,):
            raise DataError(
                "the checkpoint holds no state of a responsive masking ratio: resume with the ratio it was "
                "trained with"
            )
        self.level, self.best, stalls, self._sum, number = state["values"].tolist()
        self.stalls, self._number = int(stalls), int(number)


def spread_evenly(rows: Rows, seed: int) -> np.ndarray:
    """float64 [B] in (0, 1): one number per row, such that those of consecutive rows lie evenly."""
    from chronomask import keyed

    return keyed.unit_interval(keyed.weyl(seed, keyed.Stream.RATIO, rows.place))


def _check_ends(ends: list[float]) -> None:
    if ends != sorted(set(ends)):
        raise ValueError(f"the 'until' values must increase; they are {ends}")
    if ends[-1] != 1:
        raise ValueError(f"the last 'until' must be 1; it is {ends[-1]}")
