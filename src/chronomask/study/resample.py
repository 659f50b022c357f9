"""Metrics over many resamples of the examples at once.

A resample says how often each example counts, [R, N]. Every metric here is a function of weighted sums
(of a column, of indicators, of products), so R resamples of G result sets are one matrix product and
a formula; only Spearman, which needs the ranks within each resample, goes from example to example.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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

Counts = NDArray[np.float32]
"""How often each example counts in each resample, [R, N]."""

Metric = Callable[[Counts], Floats]
"""The metric [R, G] of G result sets in R resamples."""

_BLOCK = 1 << 22
"""Counts held at a time: 16 MB."""

_IN_CACHE = 1 << 16
"""Sums that are kept while walking over the examples: what stays in the processor's cache."""

_COUNTED = ("right", "given", "there")
"""Columns of an F1 over things that an example has any number of: found rightly, found, there to find."""

_EXACT = 1 << 24
"""Whole numbers up to here, and so their sums, are exact in float32."""


def metric_over_resamples(metric: str, examples: Examples, index: NDArray[np.integer]) -> Floats:
    """The metric [R] of each resample ``index`` int [R, N], whose rows name the examples drawn.

    ``mcc``, ``accuracy``, ``f1`` (of class 1), ``pearson`` and ``spearman`` come from ``prediction`` and
    ``label``, ``f1`` also from ``right``, ``given`` and ``there``; any other name, and these without such
    columns, is the mean of the column of that name (``accuracy`` also of ``correct``), weighted by the
    column ``weight`` if there is one. Where a metric is undefined (a constant side) it is 0. Raises
    DataError for columns that are missing, of unequal lengths, or empty.
    """
    found, size = _metric(metric, [examples])
    out = [found(_counts(index[rows], size))[:, 0] for rows in _blocks(len(index), size)]
    return np.concatenate(out) if out else np.empty(0)


def metric_of(metric: str, examples: Examples) -> float:
    """The metric of the examples as they are."""
    found, size = _metric(metric, [examples])
    return float(found(np.ones((1, size), np.float32))[0, 0])


def metric_over_counts(metric: str, sets: Sequence[Examples], counts: Iterable[Counts]) -> Floats:
    """The metric [R, G] of ``sets`` (G results on the same N examples) under blocks of ``counts``
    [r, N], how often each example counts; raises DataError as :func:`metric_over_resamples`, and if
    the sets are not on the same examples or have other columns.
    """
    found, _ = _metric(metric, sets)
    return np.concatenate([found(block) for block in counts])


def resamples(size: int, draws: int, key: int) -> Iterator[Counts]:
    """Blocks [r, N] of ``draws`` resamples of N = ``size`` examples with replacement, as counts.

    A function of the three numbers alone: whatever is compared meets the same resamples.
    """
    random = np.random.Generator(np.random.Philox(key=key % 2**64))
    for rows in _blocks(draws, size):
        yield _counts([random.integers(0, size, size) for _ in range(rows.start, rows.stop)], size)


def _blocks(draws: int, size: int) -> Iterator[slice]:
    step = max(1, _BLOCK // max(size, 1))
    for start in range(0, draws, step):
        yield slice(start, min(start + step, draws))


def _counts(index: Sequence[NDArray[np.integer]] | NDArray[np.integer], size: int) -> Counts:
    """How often each of ``size`` examples is named in each row of ``index``."""
    out = np.empty((len(index), size), np.float32)
    for row, drawn in zip(out, index, strict=True):
        row[:] = np.bincount(drawn, minlength=size)
    return out


def _metric(metric: str, sets: Sequence[Examples]) -> tuple[Metric, int]:
    """The metric of ``sets``, all that no resample changes being done, and their number of examples."""
    columns = _check_columns(metric, sets)
    size = len(next(iter(columns[0].values())))
    if "value" in columns[0]:
        return _mean(columns), size
    if "right" in columns[0]:
        return _f1_of_counts(columns), size
    return PAIR_METRICS[metric](columns), size


def _check_columns(metric: str, sets: Sequence[Examples]) -> list[Examples]:
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
    for examples, columns in zip(sets, needed, strict=True):
        if columns.keys() != needed[0].keys():
            raise DataError(
                f"'{metric}': one result has the columns {', '.join(sets[0])} and another "
                f"{', '.join(examples)}: evaluate them with the same version of chronomask"
            )
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
    if metric == "f1" and examples.keys() >= set(_COUNTED):
        return {name: examples[name] for name in _COUNTED}
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


def _stack(columns: Sequence[Examples], name: str) -> Floats:
    """float64 [G, N]."""
    return np.stack([np.asarray(each[name], dtype=float) for each in columns])


def _sum_over(values: NDArray[Any]) -> Callable[[Counts], tuple[Floats, Floats]]:
    """Counts [R, N] → the sums [R, G] of ``values`` [G, N], bool or float64, over each resample, and the
    number of examples [R, 1] in it. Where whole numbers allow it float32 does it, exactly, in half the time.
    """
    largest = float(np.abs(values).max(initial=0))
    narrow = None
    if largest <= _EXACT and all(np.array_equal(row, np.rint(row)) for row in values):
        narrow = values.astype(np.float32)

    def sums(counts: Counts) -> tuple[Floats, Floats]:
        total = counts.sum(1, keepdims=True).astype(float)
        if narrow is not None and total.max() * largest <= _EXACT:
            return (counts @ narrow.T).astype(float), total
        return counts.astype(float) @ values.T.astype(float, copy=False), total

    return sums


def _mean(columns: Sequence[Examples]) -> Metric:
    values = _stack(columns, "value")
    weight = columns[0].get("weight")
    if weight is None:
        sums = _sum_over(values)
        return lambda counts: np.divide(*sums(counts))
    weights = np.asarray(weight, dtype=float)
    weighted = _sum_over(np.vstack([values * weights, weights]))

    def mean(counts: Counts) -> Floats:
        found, _ = weighted(counts)
        return _ratio(found[:, :-1], found[:, -1:])

    return mean


def _accuracy(columns: Sequence[Examples]) -> Metric:
    sums = _sum_over(_stack(columns, "prediction") == _label(columns))
    return lambda counts: np.divide(*sums(counts))


def _f1(columns: Sequence[Examples]) -> Metric:
    """2·TP / (predicted + true) of class 1."""
    predicted, true = _stack(columns, "prediction") == 1, _label(columns) == 1
    sums = _sum_over(np.vstack([predicted & true, predicted, true]))

    def f1(counts: Counts) -> Floats:
        found, _ = sums(counts)
        both, of_predicted = np.split(found[:, :-1], 2, axis=1)
        return _ratio(2 * both, of_predicted + found[:, -1:])

    return f1


def _f1_of_counts(columns: Sequence[Examples]) -> Metric:
    """2·Σ right / (Σ given + Σ there): of entities, counted in each sentence."""
    right, given, there = (_stack(columns, name) for name in _COUNTED)
    sums = _sum_over(np.vstack([right, given + there]))

    def f1(counts: Counts) -> Floats:
        both, all_of_them = np.split(sums(counts)[0], 2, axis=1)
        return _ratio(2 * both, all_of_them)

    return f1


def _mcc(columns: Sequence[Examples]) -> Metric:
    """Matthews' coefficient of any number of classes (Gorodkin 2004, R_K)."""
    predicted, true = _stack(columns, "prediction"), _label(columns)
    right_sums = _sum_over(predicted == true)
    class_sums = [
        _sum_over(np.vstack([predicted == label, true == label]))
        for label in np.union1d(predicted, true)
    ]

    def mcc(counts: Counts) -> Floats:
        right, total = right_sums(counts)
        dot, predicted_square, true_square = np.zeros((3, *right.shape))
        for sums in class_sums:
            found, _ = sums(counts)
            of_predicted, of_true = found[:, :-1], found[:, -1:]
            dot += of_predicted * of_true
            predicted_square += of_predicted**2
            true_square += of_true**2
        spread = (total**2 - predicted_square) * (total**2 - true_square)
        return _ratio(right * total - dot, np.sqrt(np.maximum(spread, 0)))

    return mcc


def _pearson(columns: Sequence[Examples]) -> Metric:
    """Centred first, so that sums lose no digits."""
    x, y = _stack(columns, "prediction"), _label(columns)
    x, y = x - x.mean(1, keepdims=True), y - y.mean()
    # Rounding leaves a variance of 1e-17 or so where there is none.
    floor_x, floor_y = 1e-14 * x.var(1), 1e-14 * y.var()
    sums = _sum_over(np.vstack([x, x * y, x**2, y, y**2]))

    def pearson(counts: Counts) -> Floats:
        found, total = sums(counts)
        mean_y, mean_yy = found[:, -2:-1] / total, found[:, -1:] / total
        mean_x, mean_xy, mean_xx = np.split(found[:, :-2] / total, 3, axis=1)
        var_x, var_y = mean_xx - mean_x**2, mean_yy - mean_y**2
        defined = (var_x > floor_x) & (var_y > floor_y)
        cov = np.where(defined, mean_xy - mean_x * mean_y, 0)
        return _ratio(cov, np.sqrt(np.maximum(var_x * var_y, 0)))

    return pearson


def _label(columns: Sequence[Examples]) -> Floats:
    """float64 [N]: the label is the same in every set."""
    return np.asarray(columns[0]["label"], dtype=float)


def _spearman(columns: Sequence[Examples]) -> Metric:
    """Pearson's r of the mid-ranks within each resample.

    Example i is drawn c times, its value e times, lower values b times, any m times. Minus the mean,
    its rank is b + e/2 - m/2; over the resample these ranks' squares sum to (m³ - Σ e³) / 12, and their
    products with the labels' ranks q (minus the mean) to Σ c·q·(b + e/2). Walking up the predictions
    with s, the sum of the c so far, gives Σ c·q·s. With no equal predictions s = b + c and e = c; with
    some, the mean of s over two walks that meet the equal ones in opposite order is b + (e + c)/2. So
    Σ c·q·c/2 is too much.
    """
    label, *predictions = _order(columns[0]["label"]), *(_order(c["prediction"]) for c in columns)
    tied = [number for number, each in enumerate(predictions) if len(each[1]) < len(each[0])]
    walks = [each[0] for each in predictions] + [_ties_reversed(predictions[k]) for k in tied]
    steps = np.stack(walks, axis=1)
    label_sizes = np.diff(label[1], append=len(steps))

    def spearman(counts: Counts) -> Floats:
        drawn = counts.astype(float)
        total = drawn.sum(1, keepdims=True)
        equal = _group_sums(label, drawn)
        weighted = np.empty_like(drawn)  # 2·c·q, whole numbers
        weighted[:, label[0]] = np.repeat(2 * equal.cumsum(1) - equal - total, label_sizes, axis=1)
        weighted *= drawn
        walked = _walk(steps, drawn, weighted)
        products = walked[:, : len(columns)]
        products[:, tied] = (products[:, tied] + walked[:, len(columns) :]) / 2
        products -= np.einsum("rn,rn->r", drawn, weighted)[:, None] / 2
        cubes = np.repeat(_cubes(drawn), len(columns), axis=1)
        for number in tied:
            cubes[:, number] = _cubes(_group_sums(predictions[number], drawn))[:, 0]
        squares = (total**3 - cubes) * (total**3 - _cubes(equal))
        return _ratio(6 * products, np.sqrt(squares))

    return spearman


_Order = tuple[NDArray[np.intp], NDArray[np.intp]]
"""The examples [N] by ascending value, and where in them each of the K values begins [K]."""


def _order(values: NDArray[Any]) -> _Order:
    order = np.argsort(values, kind="stable")
    ascending = np.asarray(values)[order]
    return order, np.flatnonzero(np.append(True, ascending[1:] != ascending[:-1]))


def _ties_reversed(order: _Order) -> NDArray[np.intp]:
    """The examples [N] by ascending value, those of equal value in opposite order."""
    examples, starts = order
    ends = np.append(starts[1:], len(examples))
    return examples[np.repeat(starts + ends - 1, ends - starts) - np.arange(len(examples))]


def _group_sums(order: _Order, values: Floats) -> Floats:
    """Sums [R, K] of ``values`` [R, N] over the examples of each value."""
    return np.add.reduceat(values.take(order[0], axis=1), order[1], axis=1)


def _cubes(values: Floats) -> Floats:
    """Sum [R, 1] of the cubes of ``values`` [R, K]."""
    return np.einsum("rk,rk->r", values * values, values)[:, None]


def _walk(steps: NDArray[np.intp], drawn: Floats, weighted: Floats) -> Floats:
    """Σ ``weighted``·s [R, W] of W walks over the examples, ``steps`` [N, W]; s: the sum of ``drawn`` so far.

    Of m examples each, sums are below m³/2. While int32 holds that, it is exact even where
    it overflows on the way, and twice as fast; float64 is exact up to 2⁵³.
    """
    fits = float(drawn.sum(1).max()) ** 3 < 2**32
    dtype = np.int32 if fits else np.float64
    out = np.empty((len(drawn), steps.shape[1]))
    width = max(1, _IN_CACHE // steps.shape[1])
    for start in range(0, len(drawn), width):
        rows = slice(start, start + width)
        c, w = (np.ascontiguousarray(each[rows].T, dtype=dtype) for each in (drawn, weighted))
        so_far, products, taken = np.zeros((3, steps.shape[1], c.shape[1]), dtype=dtype)
        for examples in steps:
            so_far += c.take(examples, axis=0, out=taken, mode="clip")
            w.take(examples, axis=0, out=taken, mode="clip")
            taken *= so_far
            products += taken
        out[rows] = products.T
    return out


def _ratio(numerator: Floats, denominator: Floats) -> Floats:
    """Their quotient; 0 where the denominator is 0."""
    zero = np.zeros(np.broadcast_shapes(numerator.shape, denominator.shape))
    return np.divide(numerator, denominator, out=zero, where=denominator != 0)


PAIR_METRICS: dict[str, Callable[[Sequence[Examples]], Metric]] = {
    "mcc": _mcc,
    "accuracy": _accuracy,
    "f1": _f1,
    "pearson": _pearson,
    "spearman": _spearman,
}
"""Metrics of ``prediction`` and ``label``."""
