"""An estimate with its interval, and the plainest description of a sample."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

__all__ = ["Interval", "mean_and_spread"]


@dataclass(frozen=True)
class Interval:
    """An estimate and where the true value lies with confidence ``level``."""

    estimate: float
    low: float
    high: float
    level: float
    covers: tuple[str, ...] = ("pre-training seeds", "examples")
    """what the interval allows to have been otherwise: ``pre-training seeds`` or ``fine-tuning seeds``,
    and ``examples``; what is not named is taken as it is"""


def mean_and_spread(values: Iterable[float]) -> tuple[float, float]:
    """Mean and standard deviation (n − 1 in the denominator); nan where there are too few values."""
    found = np.array(list(values), dtype=float)
    mean = float(found.mean()) if found.size else math.nan
    return mean, float(found.std(ddof=1)) if found.size > 1 else math.nan
