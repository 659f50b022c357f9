"""Which classes are content words and which are function words, for grouping and colour."""

from __future__ import annotations

import numpy as np

from chronomask.runs.read import Series
from chronomask.yardsticks import CONTENT, FUNCTION, OTHER, PUNCTUATION, group_of

__all__ = [
    "CONTENT", "FUNCTION", "OTHER", "PUNCTUATION", "group_mean", "group_of", "present_classes",
]  # fmt: skip


def present_classes(series: Series, key: str) -> dict[str, np.ndarray]:
    """The per-class columns of ``key`` that hold at least one finite value."""
    columns = series.per_class.get(key, {})
    return {name: values for name, values in columns.items() if np.isfinite(values).any()}


def group_mean(series: Series, key: str, group: str) -> float:
    """Mean over a group's predicted tokens on the last line; NaN if it has none."""
    total = count = 0.0
    for name, values in series.per_class.get(key, {}).items():
        counts = series.per_class.get("class_count", {}).get(name)
        if group_of(name) != group or counts is None:
            continue
        if np.isfinite(values[-1]) and np.isfinite(counts[-1]):
            total += float(values[-1] * counts[-1])
            count += float(counts[-1])
    return total / count if count else float("nan")
