"""Runs of one arm that differ in their seed, as one run: the mean of what they logged at the same steps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from chronomask.runs.read import Run, Series

__all__ = ["mean_run"]


def mean_run(runs: Sequence[Run], name: str) -> Run:
    """The mean of complete runs, for the figures that draw one line an arm."""
    first = runs[0]
    return Run(
        path=first.path,
        name=name,
        config=first.config,
        metrics=_mean([run.metrics for run in runs]),
        validation=_mean([run.validation for run in runs]),
        summary=first.summary,
        environment=first.environment,
        notices=(),
    )


def _mean(all_series: Sequence[Series]) -> Series:
    """Column by column, at the steps that all have; a value that one lacks is left out of the mean."""
    steps = all_series[0]["step"]
    for series in all_series[1:]:
        steps = np.intersect1d(steps, series["step"])
    rows = [np.searchsorted(series["step"], steps) for series in all_series]
    keys = dict.fromkeys(key for series in all_series for key in series.columns)
    columns = {
        key: _over([s[key][at] for s, at in zip(all_series, rows, strict=True)]) for key in keys
    }
    per_class: dict[str, dict[str, np.ndarray]] = {}
    for series in all_series:
        for key, classes in series.per_class.items():
            per_class.setdefault(key, {}).update(dict.fromkeys(classes, np.empty(0)))
    nothing = np.full(len(steps), np.nan)
    for key, classes in per_class.items():
        for name in classes:
            found = [s.per_class.get(key, {}).get(name) for s in all_series]
            classes[name] = _over(
                [nothing if v is None else v[at] for v, at in zip(found, rows, strict=True)]
            )
    return Series(columns, per_class)


def _over(values: Sequence[np.ndarray]) -> np.ndarray:
    stacked = np.stack(values)
    there = np.isfinite(stacked)
    count = there.sum(0)
    total = np.where(there, stacked, 0.0).sum(0)
    return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)
