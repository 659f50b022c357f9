"""Metrics over many resamples of the examples at once.

A resample says how often each example counts, [R, N]. Every metric here is a function of weighted sums
(of a column, of indicators, of products), so R resamples of G result sets are one matrix product and
a formula; only Spearman, which needs the ranks within each resample, goes set by set.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chronomask.errors import DataError, nearest

__all__ = [
    "PAIR_METRICS",
    "Examples",
    "metric_of",
    "metric_over_counts",
    "metric_over_resamples",
    "resamples",
]

Examples = Mapping[str, NDArray[Any]]
"""Arrays [N] over the examples of one result: ``TaskResult.examples``."""

Floats = NDArray[np.float64]

_BLOCK = 1 << 22
"""Counts held at a time: 32 MB of float64."""


def metric_over_resamples(metric: str, examples: Examples, index: NDArray[np.integer]) -> Floats:
    """The metric [R] of each resample ``index`` int [R, N], whose rows name the examples drawn.

    ``mcc``, ``accuracy``, ``f1`` (of class 1), ``pearson`` and ``spearman`` come from ``prediction`` and
    ``label``; any other name, and these without such a pair, is the mean of the column of that name
    (``accuracy`` also of ``correct``), weighted by the column ``weight`` if there is one. Where a
    metric is undefined (a constant side) it is 0. Raises DataError for columns that are missing,
    of unequal lengths, or empty.
    """
    columns = _checked(metric, [examples])
    size = len(next(iter(columns[0].values())))
    out = [
        _over_counts(metric, columns, _counts(index[rows], size))[:, 0]
        for rows in _blocks(len(index), size)
    ]
    return np.concatenate(out) if out else np.empty(0)


def metric_of(metric: str, examples: Examples) -> float:
    """The metric of the examples as they are."""
    columns = _checked(metric, [examples])
    size = len(next(iter(columns[0].values())))
    return float(_over_counts(metric, columns, np.ones((1, size)))[0, 0])


def metric_over_counts(metric: str, sets: Sequence[Examples], counts: Iterator[Floats]) -> Floats:
    """The metric [R, G] of ``sets`` (G results on the same N examples) under blocks of ``counts``
    [r, N], how often each example counts; raises DataError as :func:`metric_over_resamples`, and if
    the sets are not on the same examples.
    """
    columns = _checked(metric, sets)
    return np.concatenate([_over_counts(metric, columns, block) for block in counts])


def resamples(size: int, draws: int, key: int) -> Iterator[Floats]:
    """Blocks [r, N] of ``draws`` resamples of N = ``size`` examples with replacement, as counts.

    A function of the three numbers alone: whatever is compared meets the same resamples.
    """
    random = np.random.Generator(np.random.Philox(key=key % 2**64))
    for rows in _blocks(draws, size):
        yield _counts(random.integers(0, size, (rows.stop - rows.start, size)), size)


def _blocks(draws: int, size: int) -> Iterator[slice]:
    step = max(1, _BLOCK // max(size, 1))
    for start in range(0, draws, step):
        yield slice(start, min(start + step, draws))


def _counts(index: NDArray[np.integer], size: int) -> Floats:
    """How often each of ``size`` examples is named in each row of ``index``, float64 [R, N]."""
    flat = index + np.arange(len(index))[:, None] * size
    return np.bincount(flat.ravel(), minlength=len(index) * size).reshape(-1, size).astype(float)


def _checked(metric: str, sets: Sequence[Examples]) -> list[Examples]:
    """The columns that the metric needs of each set; raises DataError, see above."""
    needed = [_columns_of(metric, examples) for examples in sets]
    lengths = {len(column) for columns in needed for column in columns.values()}
    if len(lengths) > 1:
        raise DataError(
            f"'{metric}': {' and '.join(map(str, sorted(lengths)))} examples are compared; results of "
            "one task must be on the same examples in the same order: evaluate them on the same files"
        )
    if lengths == {0}:
        raise DataError(f"'{metric}' has no examples to be computed from")
    for name in ("label", "weight"):
        present = [columns[name] for columns in needed if name in columns]
        if any(not np.array_equal(present[0], other) for other in present[1:]):
            raise DataError(
                f"'{metric}': the column '{name}' differs between results, so they are not on the "
                "same examples: evaluate them on the same files"
            )
    return needed


def _columns_of(metric: str, examples: Examples) -> Examples:
    if metric in PAIR_METRICS and {"prediction", "label"} <= examples.keys():
        return {name: examples[name] for name in ("prediction", "label")}
    column = metric
    if metric == "accuracy" and metric not in examples:
        column = "correct"
    if column not in examples:
        known = [*PAIR_METRICS, *(name for name in examples if name != "weight")]
        raise DataError(
            f"no metric '{metric}' in examples with the columns {', '.join(examples) or '(none)'}: "
            f"{nearest(metric, known)}"
        )
    chosen = {"value": examples[column]}
    return {**chosen, "weight": examples["weight"]} if "weight" in examples else chosen


def _over_counts(metric: str, columns: Sequence[Examples], counts: Floats) -> Floats:
    """float64 [R, G]."""
    if "value" in columns[0]:
        return _mean(columns, counts)
    return PAIR_METRICS[metric](columns, counts)


def _stack(columns: Sequence[Examples], name: str) -> Floats:
    """float64 [N, G]."""
    return np.stack([np.asarray(each[name], dtype=float) for each in columns], axis=1)


def _mean(columns: Sequence[Examples], counts: Floats) -> Floats:
    values = _stack(columns, "value")
    weight = columns[0].get("weight")
    if weight is None:
        return counts @ values / counts.sum(1, keepdims=True)
    weighted = counts * np.asarray(weight, dtype=float)
    return _ratio(weighted @ values, weighted.sum(1, keepdims=True))


def _accuracy(columns: Sequence[Examples], counts: Floats) -> Floats:
    right = _stack(columns, "prediction") == _stack(columns, "label")
    return counts @ right.astype(float) / counts.sum(1, keepdims=True)


def _f1(columns: Sequence[Examples], counts: Floats) -> Floats:
    """2·TP / (predicted + true) of class 1."""
    predicted, true = _stack(columns, "prediction") == 1, _stack(columns, "label") == 1
    both = counts @ (predicted & true).astype(float)
    return _ratio(2 * both, counts @ (predicted.astype(float) + true))


def _mcc(columns: Sequence[Examples], counts: Floats) -> Floats:
    """Matthews' coefficient of any number of classes (Gorodkin 2004, R_K)."""
    predicted, true = _stack(columns, "prediction"), _stack(columns, "label")
    total = counts.sum(1, keepdims=True)
    right = counts @ (predicted == true).astype(float)
    dot, predicted_square, true_square = np.zeros((3, *right.shape))
    for label in np.union1d(predicted, true):
        of_predicted = counts @ (predicted == label).astype(float)
        of_true = counts @ (true == label).astype(float)
        dot += of_predicted * of_true
        predicted_square += of_predicted**2
        true_square += of_true**2
    spread = (total**2 - predicted_square) * (total**2 - true_square)
    return _ratio(right * total - dot, np.sqrt(np.maximum(spread, 0)))


def _pearson(columns: Sequence[Examples], counts: Floats) -> Floats:
    x, y = _stack(columns, "prediction"), _stack(columns, "label")
    return _correlation(x, y, counts)


def _correlation(x: Floats, y: Floats, counts: Floats) -> Floats:
    """Pearson's r [R, G] of columns [N, G]; centred first, so that sums lose no digits."""
    x, y = x - x.mean(0), y - y.mean(0)
    total = counts.sum(1, keepdims=True)
    mean_x, mean_y = counts @ x / total, counts @ y / total
    cov = counts @ (x * y) / total - mean_x * mean_y
    var_x, var_y = counts @ x**2 / total - mean_x**2, counts @ y**2 / total - mean_y**2
    # Rounding leaves a variance of 1e-17 or so where there is none.
    floor_x, floor_y = 1e-14 * x.var(0), 1e-14 * y.var(0)
    defined = (var_x > floor_x) & (var_y > floor_y)
    return _ratio(np.where(defined, cov, 0), np.sqrt(np.maximum(var_x * var_y, 0)))


def _spearman(columns: Sequence[Examples], counts: Floats) -> Floats:
    """Pearson's r of the mid-ranks within each resample."""
    out = np.empty((len(counts), len(columns)))
    orders = [_order(each["prediction"]) for each in columns]
    of_label = _order(columns[0]["label"])  # the same label in every set
    sizes = np.diff(of_label[1], append=counts.shape[1])
    for rows in _blocks(len(counts), 64 * counts.shape[1]):  # what stays in the processor's cache
        by_example = np.ascontiguousarray(counts[rows].T)
        ranks, label_square = _centred_ranks(_group_sums(of_label, by_example))
        label_sums = np.empty_like(by_example)
        label_sums[of_label[0]] = np.repeat(ranks, sizes, axis=0)
        label_sums *= by_example
        for number, order in enumerate(orders):
            ranks, square = _centred_ranks(_group_sums(order, by_example))
            product = np.einsum("kr,kr->r", ranks, _group_sums(order, label_sums))
            out[rows, number] = _ratio(product, np.sqrt(square * label_square))
    return out


_Order = tuple[NDArray[np.intp], NDArray[np.intp]]
"""The examples [N] by ascending value, and where in them each of the K values begins [K]."""


def _order(values: NDArray[Any]) -> _Order:
    order = np.argsort(values, kind="stable")
    ascending = np.asarray(values)[order]
    return order, np.flatnonzero(np.append(True, ascending[1:] != ascending[:-1]))


def _group_sums(order: _Order, values: Floats) -> Floats:
    """Sums [K, R] of ``values`` [N, R] over the examples of each value."""
    taken = values.take(order[0], axis=0)
    if len(order[1]) == len(order[0]):
        return taken
    return np.add.reduceat(taken, order[1], axis=0)


def _centred_ranks(equal: Floats) -> tuple[Floats, Floats]:
    """Mid-rank of each value in each resample, minus the mean rank [K, R], and the sum over the
    resample of their squares [R]; ``equal`` [K, R]: how often each value, ascending, is drawn.

    Of m examples in a resample, b lower and e equal in value (itself among them), the rank is
    b + (e + 1) / 2 and the mean (m + 1) / 2. Multiples of ½: the sums of squares are exact.
    """
    ranks = equal.cumsum(0)
    middle = ranks[-1] / 2
    ranks -= equal / 2
    ranks -= middle
    return ranks, np.einsum("kr,kr->r", equal * ranks, ranks)


def _ratio(numerator: Floats, denominator: Floats) -> Floats:
    """Their quotient; 0 where the denominator is 0."""
    zero = np.zeros(np.broadcast_shapes(numerator.shape, denominator.shape))
    return np.divide(numerator, denominator, out=zero, where=denominator != 0)


PAIR_METRICS: dict[str, Callable[[Sequence[Examples], Floats], Floats]] = {
    "mcc": _mcc,
    "accuracy": _accuracy,
    "f1": _f1,
    "pearson": _pearson,
    "spearman": _spearman,
}
"""Metrics of ``prediction`` and ``label``."""
