"""What every ratio schedule can do, and the state that one which responds to training begins.

``at(progress)`` is the mean masking ratio asked at that point of training. A schedule that gives each row
a ratio of its own also has ``of_rows``, one that responds to training also begins a :class:`RatioState`.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

import numpy as np
from pydantic import Field
from pydantic_core import PydanticCustomError

from chronomask.config import Alternative, Config, kind_of
from chronomask.config_layers import Shorthand
from chronomask.errors import UsageError
from chronomask.types import Rows

if TYPE_CHECKING:
    import torch

__all__ = [
    "AsCourse",
    "Course",
    "NumberOrCourse",
    "PureSchedule",
    "Ratio",
    "RatioState",
    "Schedule",
    "Share",
    "Watched",
    "course_group",
    "refuse_laws",
    "value_at",
]

Ratio = Annotated[float, Field(ge=0, le=1)]
"""A masking ratio, or another share of tokens."""
Share = Annotated[float, Field(gt=0, le=1)]
"""A share of training that is not nothing, or the progress at which one ends."""
Watched = Literal["validation", "training"]
"""Which loss a ratio responds to."""

_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_LINE = re.compile(rf"({_NUMBER}):({_NUMBER})")


def course_group(value: Any) -> Any:
    """A number as the constant ratio and "0.30:0.15" as the straight line for which it stands; all else as
    it is.
    """
    if isinstance(value, int | float) and not isinstance(value, bool):
        return {"kind": "constant", "base": value}
    if isinstance(value, str) and (line := _LINE.fullmatch(value)):
        return {"kind": "linear", "start": float(line[1]), "end": float(line[2])}
    return value


def _course_of(value: Any) -> Any:
    """As :func:`course_group`; any other text that begins as a number does is refused."""
    group = course_group(value)
    if isinstance(group, str) and re.match(r"[-+.]*\d", group):
        raise PydanticCustomError(
            "no_ratio",
            "expected a number from 0 to 1, such as 0.3, two of them for a straight line, such as 0.30:0.15, "
            "or the name of a kind, such as cosine_decay",
        )
    return group


def _number_or_course(value: Any) -> Any:
    """A number as it is, "0:0.1" as the straight line for which it stands, a group as it is; all else is
    refused with what may be given.
    """
    if value is None or isinstance(value, int | float | Mapping | Schedule):
        return value
    if isinstance(value, str):
        if re.fullmatch(_NUMBER, value):
            return value
        line = course_group(value)
        if line != value and all(0 <= line[end] <= 1 for end in ("start", "end")):
            return line
    raise PydanticCustomError(
        "no_course",
        "expected a number, two from 0 to 1 for a straight line over training, such as 0:0.1, or another "
        "schedule, such as {kind: cosine_decay, base: 0.05}",
    )


AsCourse = Shorthand(_course_of, group=course_group)
"""For a field that takes a schedule: a number is the constant one, 0.30:0.15 a straight line."""
NumberOrCourse = Shorthand(_number_or_course, group=course_group)
"""For a field that takes a number or a schedule: 0:0.1 is a straight line."""


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

    def highest_at(self, progress: float) -> float:
        """The highest ratio that any row has at ``progress``."""
        if not self.draws_rows:
            return self.at(progress)
        return float(self.of_rows(progress, np.array([2.0**-33, 1 - 2.0**-33])).max())

    def quantiles(self, progress: float, shares: Sequence[float]) -> list[float]:
        """The ratios below which these shares of the rows lie at ``progress``."""
        drawn = self.of_rows(progress, (np.arange(256) + 0.5) / 256)
        return np.quantile(drawn, shares).tolist()

    @property
    def has_density(self) -> bool:
        """Whether every row draws its ratio from a continuous law, so that :meth:`slope` is above 0."""
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

    def slope(self, progress: float, uniform: np.ndarray) -> np.ndarray:
        """float64 [B]: how fast :meth:`of_rows` rises with the uniform number; 0 for one ratio for all.

        By central differences, over 2⁻²⁰ at most, inside (0, 1). A law with jumps has its own.
        """
        step = np.minimum(2.0**-20, np.minimum(uniform, 1 - uniform) / 2)
        above, below = (self.of_rows(progress, uniform + side * step) for side in (1, -1))
        return (above - below) / (2 * step)

    def slopes(self, progress: float, rows: Rows, seed: int) -> np.ndarray:
        """float64 [B]: :meth:`slope` where each row has drawn; 0 for one ratio for all rows."""
        if not self.draws_rows:
            return np.zeros(rows.num_rows)
        return self.slope(progress, self.uniform(rows, seed))

    @property
    def watches(self) -> Watched | None:
        """Which loss the ratio responds to; None for one that follows progress alone."""
        return None

    @property
    def known_before(self) -> bool:
        """Whether ``at`` tells, before training, what ratio will be asked."""
        return self.watches is None

    @property
    def responds_after(self) -> int:
        """The losses of the watched kind (of steps, or of validations) before which it cannot have responded;
        0 where it responds to none.
        """
        return 0 if self.watches is None else 1

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
            raise UsageError(f"{problem}: they are not values of the config")
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

    def slopes(self, progress: float, rows: Rows, seed: int) -> np.ndarray:
        """float64 [B]: how fast each row's ratio rises with what it has drawn, see :meth:`Schedule.slope`."""
        return self.schedule.slopes(progress, rows, seed)

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


Course = Annotated[PureSchedule, AsCourse]
"""A schedule of progress, which a number or two of them stand for too."""


def refuse_laws(config: Config, *names: str) -> None:
    """Raise ValueError where a field that is one number for all rows has a schedule with one for each."""
    for name in names:
        value = getattr(config, name)
        if isinstance(value, PureSchedule) and value.draws_rows:
            raise ValueError(
                f"{name} is one number for all rows of a step, and '{kind_of(value)}' draws one for each "
                "row: give a number, or a schedule such as {kind: linear, start: 0, end: 1}"
            )


def value_at(value: float | PureSchedule, progress: float) -> float:
    """A number that may follow progress: itself, or the schedule's at ``progress``."""
    return value.at(progress) if isinstance(value, PureSchedule) else float(value)
