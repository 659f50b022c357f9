"""The statistics against scikit-learn and scipy, against enumeration, and in simulations of known truth."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy import integrate, stats
from sklearn import metrics

from chronomask.errors import DataError, UsageError
from chronomask.study.curves import reach_interval, value_to_reach
from chronomask.study.resample import Examples
from chronomask.study.statistics import (
    Interval,
    Results,
    _half_widths,  # pyright: ignore[reportPrivateUsage]
    compare,
    compare_pairs,
    holm,
    mean_and_spread,
    mean_intervals,
    metric_of,
    metric_over_resamples,
    smallest_difference,
)

ORACLES = {
    "mcc": lambda p, y: metrics.matthews_corrcoef(y, p),
    "accuracy": lambda p, y: metrics.accuracy_score(y, p),
    "f1": lambda p, y: metrics.f1_score(y, p, zero_division=0.0),  # pyright: ignore[reportArgumentType]
    "pearson": lambda p, y: stats.pearsonr(p, y)[0],
    "spearman": lambda p, y: stats.spearmanr(p, y)[0],
}


def interval(results: Results, metric: str, **given: Any) -> Interval:
    """That of one arm by itself."""
    return compare({"": results}, "", metric, **given)[""].own


def paired_difference(a: Results, b: Results, metric: str, **given: Any) -> Interval:
    """``a`` − ``b``, of two arms by themselves."""
    found = compare({"a": a, "b": b}, "b", metric, **given)["a"].difference
    assert found is not None
    return found


def answers(metric: str, classes: int, size: int = 60) -> Examples:
    random = np.random.default_rng(size)
    label = random.integers(0, classes, size)
    if metric in ("pearson", "spearman"):
        return {"prediction": (label + random.normal(0, 1, size)).round(1), "label": label / 2}
    wrong = random.random(size) < 0.4
    return {
        "prediction": np.where(wrong, random.integers(0, classes, size), label),
        "label": label,
    }


@pytest.mark.parametrize(
    ("metric", "classes"),
    [
        ("mcc", 2),
        ("mcc", 4),
        ("accuracy", 3),
        ("f1", 2),
        ("pearson", 6),
        ("spearman", 6),
        ("spearman", 2),
    ],
)
def test_metrics_of_every_resample_are_those_of_the_libraries(metric: str, classes: int) -> None:
    examples = answers(metric, classes)
    index = np.random.default_rng(1).integers(0, 60, (300, 60))
    expected = [
        ORACLES[metric](examples["prediction"][row], examples["label"][row]) for row in index
    ]
    np.testing.assert_allclose(metric_over_resamples(metric, examples, index), expected, atol=1e-12)
    whole = ORACLES[metric](examples["prediction"], examples["label"])
    assert metric_of(metric, examples) == pytest.approx(whole, abs=1e-12)


def test_many_small_blocks_give_the_same_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    results: Results = {(0, 0): answers("spearman", 6), (1, 0): answers("spearman", 6)}
    whole = [interval(results, metric, key=3) for metric in ("spearman", "pearson")]
    monkeypatch.setattr("chronomask.study.resample._BLOCK", 60 * 7)
    parts = [interval(results, metric, key=3) for metric in ("spearman", "pearson")]
    assert [p.low for p in parts] == pytest.approx([w.low for w in whole], abs=1e-12)


def test_columns_are_means_weighted_where_a_weight_is_given() -> None:
    index = np.array([[0, 0, 2], [1, 2, 2]])
    column = np.array([1.0, 2.0, 4.0])
    assert metric_over_resamples("exact_match", {"exact_match": column}, index).tolist() == [
        2.0,
        10 / 3,
    ]
    assert metric_of("accuracy", {"correct": np.array([1, 0, 0.5])}) == 0.5
    weighted = {"loss": column, "weight": np.array([3, 1, 0])}
    assert metric_over_resamples("loss", weighted, index).tolist() == [1.0, 2.0]


@pytest.mark.parametrize("metric", ["mcc", "pearson", "spearman"])
def test_a_constant_answer_has_no_correlation(metric: str) -> None:
    examples = {"prediction": np.ones(5), "label": np.array([0, 1, 1, 0, 1])}
    assert metric_of(metric, examples) == 0.0
    nothing_right = {"prediction": np.zeros(5), "label": examples["label"]}
    assert metric_of("f1", nothing_right) == 0.0


def test_wrong_columns_are_refused_by_name() -> None:
    one = {"correct": np.ones(3)}
    with pytest.raises(DataError, match="did you mean 'correct'"):
        metric_of("corect", one)
    with pytest.raises(DataError, match="3 and 4 examples"):
        interval({(0, 0): one, (1, 0): {"correct": np.ones(4)}}, "correct", key=0)
    a = {"prediction": np.ones(2), "label": np.array([0, 1])}
    with pytest.raises(DataError, match="'label' differs"):
        interval({(0, 0): a, (1, 0): {**a, "label": np.array([1, 0])}}, "mcc", key=0)
    pair = {"prediction": np.ones(3), "label": np.ones(3)}
    for other, columns in (
        (one | {"weight": np.arange(3)}, "correct, weight"),
        (pair, "prediction"),
    ):
        with pytest.raises(DataError, match=f"one .* columns correct and another {columns}"):
            interval({(0, 0): one, (1, 0): other}, "accuracy", key=0)
        with pytest.raises(DataError, match=f"one .* columns {columns}.* and another correct"):
            interval({(0, 0): other, (1, 0): one}, "accuracy", key=0)
    with pytest.raises(DataError, match="no examples"):
        metric_of("correct", {"correct": np.empty(0)})


def normal_results(
    random: np.random.Generator,
    seeds: int,
    finetunings: int,
    size: int,
    effect: float,
    spreads: tuple[float, float] = (0.1, 0.05),
) -> Results:
    """Scores of examples = effect + example + pre-training seed + fine-tuning seed + the rest.

    ``spreads``: of the two seeds' parts.
    """
    of_example = random.normal(0, 0.5, size)
    results = {}
    for seed in range(seeds):
        of_seed = random.normal(0, spreads[0])
        for other in range(finetunings):
            rest = random.normal(0, 0.5, size) + random.normal(0, spreads[1])
            results[seed, other] = {"score": effect + of_example + of_seed + rest}
    return results


@pytest.mark.parametrize(
    ("seeds", "finetunings", "spreads"),
    [(1, 1, (0, 0)), (1, 4, (0, 0.1)), (3, 2, (0.1, 0.05)), (6, 1, (0.1, 0.05))],
)
def test_intervals_hold_the_truth_as_often_as_they_say(
    seeds: int, finetunings: int, spreads: tuple[float, float]
) -> None:
    random = np.random.default_rng(seeds)
    held = 0
    for number in range(300):
        results = normal_results(random, seeds, finetunings, 80, 2.0, spreads)
        found = interval(results, "score", draws=400, level=0.9, key=number)
        held += found.low <= 2.0 <= found.high
    assert 0.86 <= held / 300 <= 0.98


def test_paired_intervals_of_no_difference_hold_zero_as_often_as_they_say() -> None:
    random = np.random.default_rng(5)
    rounds, held, narrower = 200, 0, []
    for number in range(rounds):
        hard = random.normal(0, 2, 80)  # what both arms find hard cancels
        a, b = (
            {
                name: {"score": each["score"] + hard}
                for name, each in normal_results(random, 3, 2, 80, 1.0).items()
            }
            for _ in range(2)
        )
        found = paired_difference(a, b, "score", draws=400, level=0.9, key=number)
        held += found.low <= 0 <= found.high
        alone = interval(a, "score", draws=400, level=0.9, key=number)
        narrower.append(found.high - found.low < alone.high - alone.low)
    assert 0.86 <= held / rounds <= 0.98
    assert np.mean(narrower) > 0.9


def bounds(interval: Interval) -> tuple[float, float, float]:
    return interval.estimate, interval.low, interval.high


def test_same_key_same_interval_alone_or_in_company() -> None:
    random = np.random.default_rng(0)
    arms = {name: normal_results(random, 3, 2, 50, k / 9) for k, name in enumerate("abc")}
    found = compare(arms, "a", "score", key=7)
    own, difference = found["b"].own, found["c"].difference
    assert difference is not None
    # sums of one set or of nine round differently, and no more
    assert bounds(own) == pytest.approx(bounds(interval(arms["b"], "score", key=7)), rel=1e-12)
    alone = paired_difference(arms["c"], arms["a"], "score", key=7)
    assert bounds(difference) == pytest.approx(bounds(alone), rel=1e-12)
    pairs = compare_pairs(arms, "a", [("c", "a")], "score", key=7)[1]
    assert found["c"].p_value == pairs["c", "a"].p_value
    assert found["a"].difference is None
    assert interval(arms["b"], "score", key=8) != found["b"].own
    shuffled = dict(reversed(list(arms["c"].items())))
    assert paired_difference(shuffled, arms["a"], "score", key=7).estimate == pytest.approx(
        paired_difference(arms["c"], arms["a"], "score", key=7).estimate
    )


def test_intervals_say_what_they_cover_and_have_the_estimate_inside() -> None:
    random = np.random.default_rng(2)
    several = normal_results(random, 3, 2, 50, 0.0)
    found = interval(several, "score", key=0)
    assert found.covers == ("pre-training seeds", "examples")
    assert found.low < found.estimate < found.high
    means = [np.mean([several[s, f]["score"].mean() for f in range(2)]) for s in range(3)]
    assert found.estimate == pytest.approx(np.mean(means))
    one = {(0, f): several[0, f] for f in range(2)}
    assert interval(one, "score", key=0).covers == ("fine-tuning seeds", "examples")
    assert interval({(0, 0): several[0, 0]}, "score", key=0).covers == ("examples",)


def test_seeds_that_do_not_pair_are_named() -> None:
    results = normal_results(np.random.default_rng(0), 2, 2, 10, 0.0)
    fewer = {name: each for name, each in results.items() if name != (1, 1)}
    with pytest.raises(DataError, match=r"\(1, 1\)"):
        paired_difference(results, fewer, "score", key=0)
    first = {(0, f): results[0, f] for f in range(2)}
    with pytest.raises(DataError, match=r"only one of them has \(1, 0\), \(1, 1\)"):
        compare_pairs({"a": results, "b": first}, None, [("a", "b")], "score", key=0)
    with pytest.raises(DataError, match=r"unequal .*0: 2, 1: 1"):
        interval(fewer, "score", key=0)
    with pytest.raises(UsageError, match="'x' is none of the arms a"):
        compare({"a": results}, "x", "score", key=0)


def test_two_examples_are_resampled_and_one_is_not() -> None:
    two = interval({(0, 0): {"score": np.array([0.0, 1.0])}}, "score", key=0)
    assert bounds(two) == (0.5, 0.0, 1.0)
    one = interval({(0, 0): {"score": np.array([0.5])}}, "score", key=0)
    assert bounds(one) == (0.5, 0.5, 0.5)


@pytest.mark.parametrize(
    ("level", "draws"), [(0.0, 9), (1.0, 9), (1.5, 9), (-0.5, 9), (95, 9), (0.9, 0)]
)
def test_a_level_or_a_number_of_draws_that_cannot_be_is_refused(level: float, draws: int) -> None:
    results: Results = {(0, 0): {"score": np.array([0.0, 1.0])}}
    with pytest.raises(UsageError, match=r"must lie between 0 and 1, and draws \d above 0"):
        interval(results, "score", level=level, draws=draws, key=0)
    interval(results, "score", level=0.9, draws=1, key=0)


def on_seeds(values: list[float]) -> Results:
    return {(seed, 0): {"score": np.array([value])} for seed, value in enumerate(values)}


def test_of_a_loss_the_test_and_the_interval_are_students() -> None:
    random = np.random.default_rng(0)
    for n in (2, 3, 6, 20):
        a, b = random.normal(0.3, 0.5, n), random.normal(0, 0.5, n)
        (found,) = compare_pairs(
            {"a": on_seeds(list(a)), "b": on_seeds(list(b))}, None, [("a", "b")], "score", key=0
        )[1].values()
        paired = stats.ttest_rel(a, b)
        limits = paired.confidence_interval()  # pyright: ignore[reportAttributeAccessIssue]
        assert found.p_value == pytest.approx(paired.pvalue, rel=1e-9)  # pyright: ignore[reportAttributeAccessIssue]
        assert (found.interval.low, found.interval.high) == pytest.approx(tuple(limits), rel=1e-8)
        assert found.examples_spread == 0  # not rounding either, of resamples that are all alike


@pytest.mark.parametrize(
    ("seeds", "spreads"), [(2, (0.3, 0.0)), (3, (0.1, 0.1)), (6, (0.02, 0.0)), (6, (0.0, 0.0))]
)
@pytest.mark.parametrize("level", [0.5, 0.9, 0.95])
def test_p_is_small_exactly_where_the_interval_excludes_zero(
    seeds: int, spreads: tuple[float, float], level: float
) -> None:
    """Of losses, tasks with examples, seeds that scatter and seeds that do not."""
    random = np.random.default_rng(seeds)
    verdicts = set()
    for number in range(40):
        a = normal_results(random, seeds, 2, 30, float(random.choice([0.0, 0.15])), spreads)
        b = normal_results(random, seeds, 2, 30, 0.0, spreads)
        if number % 3 == 0:  # the same difference in every seed
            gap = random.normal(0.1, 0.3, 30)
            a = {name: {"score": each["score"] + gap} for name, each in b.items()}
        pairs = [("a", "b")]
        (found,) = compare_pairs(
            {"a": a, "b": b}, None, pairs, "score", draws=199, level=level, key=number
        )[1].values()
        assert found.p_value is not None
        excludes = found.interval.low > 0 or found.interval.high < 0
        assert excludes == (found.p_value < 1 - level)
        verdicts.add(excludes)
    assert verdicts == {True, False}


def test_p_becomes_as_small_as_a_correction_over_many_tests_needs() -> None:
    """Six seeds whose differences scatter little: the first of 56 tests is told apart."""
    gaps = [0.29, 0.31, 0.30, 0.30, 0.295, 0.305]
    pairs = {"a": on_seeds(gaps), "b": on_seeds([0.0] * 6)}
    (found,) = compare_pairs(pairs, None, [("a", "b")], "score", key=0)[1].values()
    assert found.p_value is not None
    assert holm([found.p_value, *[1.0] * 55])[0] < 1e-6
    same = compare_pairs({**pairs, "a": on_seeds([0.3] * 6)}, None, [("a", "b")], "score", key=0)
    assert 0 < (same[1]["a", "b"].p_value or 0) < 0.01  # never 0, though its interval has no width


def test_without_scatter_of_seeds_p_counts_resamples() -> None:
    """The same differences of examples in every seed: of R resamples none reaches 0, so p is 2 / (R + 1)."""
    gaps = np.linspace(0.9, 1.1, 20)
    arms = {
        name: {(seed, 0): {"score": scores} for seed in range(3)}
        for name, scores in (("a", gaps), ("b", np.zeros(20)))
    }
    for first, second in (("a", "b"), ("b", "a")):
        _, found = compare_pairs(arms, None, [(first, second)], "score", draws=199, key=1)
        assert found[first, second].p_value == pytest.approx(2 / 200, rel=1e-12)
    alike = {"a": arms["b"], "b": arms["b"]}  # all resamples are 0, which is on neither side
    _, found = compare_pairs(alike, None, [("a", "b")], "score", draws=199, key=1)
    assert found["a", "b"].p_value == 1.0


def test_seeds_that_differ_in_rounding_alone_do_not_scatter() -> None:
    base = np.random.default_rng(0).random(40)
    gaps = {seed: 0.3 * (1 + seed * 2.0**-50) for seed in range(3)}
    arms: dict[str, Results] = {
        "a": {(seed, 0): {"score": base + gap} for seed, gap in gaps.items()},
        "b": {(seed, 0): {"score": base} for seed in gaps},
    }
    _, found = compare_pairs(arms, None, [("a", "b")], "score", draws=999, key=0)
    assert found["a", "b"].p_value == 2 / 1000


def test_one_pre_training_seed_has_no_p() -> None:
    random = np.random.default_rng(0)
    arms = {name: normal_results(random, 1, 4, 50, 0.0) for name in "ab"}
    assert compare(arms, "a", "score", key=0)["b"].p_value is None
    (found,) = compare_pairs(arms, None, [("a", "b")], "score", key=0)[1].values()
    assert found.p_value is None
    assert len(found.units) == 4


def test_fine_tuning_seeds_are_averaged_before_seeds_are_compared() -> None:
    a: Results = {(s, f): {"score": np.array([1.0 + s + f])} for s in range(3) for f in range(5)}
    b: Results = {(s, f): {"score": np.array([0.0])} for s in range(3) for f in range(5)}
    found = compare({"a": a, "b": b}, "b", "score", key=0)["a"].p_value
    assert found == pytest.approx(stats.ttest_1samp([3.0, 4.0, 5.0], 0).pvalue)  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("examples", [1, 40])
def test_corrected_tests_find_nothing_where_nothing_differs(examples: int) -> None:
    """Studies of four arms and six seeds that differ in nothing: Holm's correction over three contrasts lets
    at most 5 % of the studies, and two standard errors of the simulation, find a difference.
    """
    rounds = 500 if examples == 1 else 200
    random = np.random.default_rng(13)
    pairs = [("b", "a"), ("c", "a"), ("d", "b")]
    false, by_itself = 0, 0
    for number in range(rounds):
        of_example = random.normal(0, 0.5, examples)  # what all arms find hard cancels
        arms = {
            name: {
                (seed, 0): {
                    "score": of_example
                    + random.normal(0, 0.05)
                    + random.normal(0, 0.2 * (examples > 1), examples)
                }
                for seed in range(6)
            }
            for name in "abcd"
        }
        found = compare_pairs(arms, None, pairs, "score", draws=100, key=number)[1].values()
        p = [one.p_value for one in found if one.p_value is not None]
        assert len(p) == 3
        false += min(holm(p)) <= 0.05
        by_itself += sum(one <= 0.05 for one in p)
    error = math.sqrt(0.05 * 0.95 / rounds)
    assert false / rounds <= 0.05 + 2 * error
    assert by_itself / (3 * rounds) <= 0.05 + 2 * error
    if examples == 1:  # a paired t test: not less often either
        assert by_itself / (3 * rounds) >= 0.05 - 2 * error


def test_holm_by_hand() -> None:
    # Sorted 0.01 · 4, 0.02 · 3 = 0.06, 0.03 · 2 = 0.06, 0.04 · 1 → 0.06 by monotonicity.
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([1.0, 0.0]) == [1.0, 0.0]
    assert holm([]) == []
    assert holm([0.04, 0.01], 4) == pytest.approx([0.12, 0.04])  # two could not be tested
    with pytest.raises(UsageError, match=r"1\.2"):
        holm([0.1, 1.2])


def test_mean_and_spread() -> None:
    assert mean_and_spread([1.0, 3.0]) == (2.0, pytest.approx(math.sqrt(2)))
    mean, spread = mean_and_spread([4.0])
    assert mean == 4.0
    assert math.isnan(spread)


def test_value_to_reach_by_hand() -> None:
    x, loss = [0, 100, 200, 300], [4.0, 3.0, 3.2, 2.0]
    assert value_to_reach(x, loss, 3.5, higher_is_better=False) == 50
    assert value_to_reach(x, loss, 3.1, higher_is_better=False) == pytest.approx(90)
    assert value_to_reach(x, loss, 2.6, higher_is_better=False) == pytest.approx(250)
    assert value_to_reach(x, loss, 1.9, higher_is_better=False) is None
    assert value_to_reach(x, loss, 5.0, higher_is_better=False) == 0
    assert value_to_reach([1, 2], [0.0, 1.0], 0.25, higher_is_better=True) == 1.25
    with pytest.raises(DataError, match="ascends"):
        value_to_reach([0, 0], [1, 2], 1, higher_is_better=True)


def test_reach_interval_by_hand_and_where_it_is_not_reached() -> None:
    curve = ([0.0, 100.0], [0.0, 1.0])
    found = reach_interval({0: curve, 1: curve}, {0: 0.5, 1: 0.5}, higher_is_better=True)
    assert found is not None
    assert (found.estimate, found.low, found.high) == pytest.approx((50, 0, 100))
    assert reach_interval({0: curve}, {0: 0.5}, higher_is_better=True) is None
    late = reach_interval({0: curve, 1: curve}, {0: 0.9, 1: 1.0}, higher_is_better=True)
    assert late is not None
    assert (late.estimate, late.high) == (pytest.approx(95), math.inf)
    never = reach_interval({0: curve, 1: curve}, {0: 2.0, 1: 2.1}, higher_is_better=True)
    assert never is not None
    assert never.estimate == math.inf
    with pytest.raises(DataError, match="of its own seed"):
        reach_interval({0: curve}, {1: 0.5}, higher_is_better=True)


def test_reach_intervals_hold_the_truth() -> None:
    random = np.random.default_rng(8)
    x = np.linspace(0, 100, 41)
    held = 0
    for _ in range(400):
        curves = {
            seed: (x, 4 - x / 50 + random.normal(0, 0.1) + random.normal(0, 0.03, x.size))
            for seed in range(4)
        }
        targets = {seed: 3.0 + random.normal(0, 0.1) for seed in range(4)}
        found = reach_interval(curves, targets, higher_is_better=False)
        assert found is not None
        held += found.low <= 50 <= found.high
    assert held / 400 >= 0.95


@pytest.mark.parametrize("seeds", [2, 4])
def test_intervals_of_means_are_students(seeds: int) -> None:
    values = np.random.default_rng(1).normal(3, 1, (seeds, 50))
    low, high = mean_intervals(values)
    for k in range(50):
        expected = stats.t.interval(0.95, seeds - 1, values[:, k].mean(), stats.sem(values[:, k]))
        assert (low[k], high[k]) == pytest.approx(expected)
    with pytest.raises(DataError, match="at least two"):
        mean_intervals(values[:1])


@pytest.mark.parametrize("num_seeds", [3, 6])
def test_intervals_of_contrasts_hold_nothing_in_null_studies(num_seeds: int) -> None:
    """500 studies of three arms that differ in nothing: 94 to 97 % of the intervals hold zero."""
    random = np.random.default_rng(11)
    held = 0
    for _ in range(500):
        shared = random.normal(0, 0.05, num_seeds)
        arms = {
            name: {
                (seed, 0): {"loss": np.array([4 + shared[seed] + random.normal(0, 0.02)])}
                for seed in range(num_seeds)
            }
            for name in "ABC"
        }
        _, found = compare_pairs(arms, "A", [("B", "C"), ("A", "C")], "loss", draws=2000, key=3)
        held += sum(one.interval.low <= 0 <= one.interval.high for one in found.values())
    assert 0.94 <= held / 1000 <= 0.97


def test_the_smallest_difference_is_found_as_often_as_it_says() -> None:
    random = np.random.default_rng(5)
    n, spread = 5, 0.3
    shift = smallest_difference(spread, n)
    samples = random.normal(shift, spread, (4000, n))
    t = samples.mean(1) / (samples.std(1, ddof=1) / math.sqrt(n))
    assert (t > stats.t.ppf(0.975, n - 1)).mean() == pytest.approx(0.8, abs=0.025)
    assert smallest_difference(spread, 1) == math.inf
    assert smallest_difference(0.0, 3) == 0
    assert smallest_difference(spread, 12) < shift < smallest_difference(spread, 5, alpha=0.01)
    for seeds in (2, 3, n):
        effect = smallest_difference(spread, seeds) / spread * math.sqrt(seeds)
        found = stats.nct.sf(stats.t.ppf(0.975, seeds - 1), seeds - 1, effect)
        assert found == pytest.approx(0.8, abs=2e-3)
    only_examples = smallest_difference(0.0, n, examples_spread=1.0)
    assert only_examples == pytest.approx(stats.norm.isf(0.025) + stats.norm.isf(0.2), rel=1e-6)


@pytest.mark.parametrize("alpha", [0.05, 0.05 / 8, 0.05 / 24])
@pytest.mark.parametrize("seeds", [2, 3, 5, 12])
@pytest.mark.parametrize("error", [1e-4, 0.01, 0.05, 0.3, 1.0, 10.0, 100.0])
def test_the_width_that_is_planned_with_is_that_of_the_interval(
    error: float, seeds: int, alpha: float
) -> None:
    """The quantile of a normal plus ``error`` times Student's t, by a fine sum over the normal."""
    (width,) = _half_widths(np.array([error]), 1.0, seeds - 1, alpha)
    normal = np.linspace(-9, 9, 200_001)
    tails = stats.t.sf((width - normal) / error, seeds - 1)
    beyond = integrate.trapezoid(stats.norm.pdf(normal) * tails, normal)
    assert beyond == pytest.approx(alpha / 2, rel=1e-4)


@pytest.mark.parametrize(
    ("seeds", "spread"), [(2, 0.01), (2, 1.0), (2, 30.0), (3, 0.05), (12, 1.0)]
)
def test_the_smallest_difference_has_its_power_over_all_spreads_that_may_be_found(
    seeds: int, spread: float
) -> None:
    alpha, free = 0.05 / 24, seeds - 1
    effect = smallest_difference(spread, seeds, examples_spread=1.0, alpha=alpha)
    share = (np.arange(4000) + 0.5) / 4000
    found = spread * np.sqrt(stats.chi2.ppf(share, free) / free / seeds)
    limits = _half_widths(found, 1.0, free, alpha)
    power = stats.norm.cdf((effect - limits) / math.hypot(spread / math.sqrt(seeds), 1)).mean()
    assert power == pytest.approx(0.8, abs=2e-3)


@pytest.mark.parametrize(("of_seeds", "of_examples"), [(0.02, 0.1), (0.2, 0.6), (0.2, 0.0)])
def test_the_planned_difference_of_a_task_is_found_as_often_as_it_says(
    of_seeds: float, of_examples: float
) -> None:
    """By the very test that is made of it: examples that both arms share, and seeds."""
    random = np.random.default_rng(17)
    n, size, alpha = 6, 40, 0.05 / 8
    effect = smallest_difference(
        of_seeds, n, examples_spread=of_examples / math.sqrt(size), alpha=alpha
    )
    hits = 0
    for number in range(200):
        of_example = random.normal(effect, of_examples, size)
        arms = {
            "a": {(s, 0): {"score": of_example + random.normal(0, of_seeds)} for s in range(n)},
            "b": {(s, 0): {"score": np.zeros(size)} for s in range(n)},
        }
        (found,) = compare_pairs(arms, None, [("a", "b")], "score", draws=300, key=number)[
            1
        ].values()
        hits += found.p_value is not None and found.p_value <= alpha
    assert 0.72 <= hits / 200 <= 0.88


@pytest.mark.parametrize("spacing", [50, 250])
def test_reach_intervals_hold_the_truth_between_far_validations(spacing: int) -> None:
    """A bent curve read on straight lines between few validations: no interval is below its claim."""
    random = np.random.default_rng(2)
    steps = np.arange(spacing, 1001, spacing)
    truth = 800.0  # 3 exp(−x / 200) is there what 3 exp(−x / 250) is at 1000
    held = 0
    for _ in range(300):
        shared = random.normal(0, 0.01, 6)
        curves = {
            k: (
                steps,
                4 + 3 * np.exp(-steps / 200) + shared[k] + random.normal(0, 0.004, steps.size),
            )
            for k in range(6)
        }
        targets = {k: 4 + 3 * math.exp(-4) + shared[k] + random.normal(0, 0.004) for k in range(6)}
        found = reach_interval(curves, targets, higher_is_better=False)
        assert found is not None
        held += found.low <= truth <= found.high
    assert held / 300 >= 0.95


def test_of_numbers_that_are_none_nothing_is_said() -> None:
    results = {
        name: {(seed, 0): {"score": np.array([seed + 0.5, 1.0])} for seed in range(3)}
        for name in ("a", "b")
    }
    results["b"][1, 0]["score"][0] = np.nan
    for wanted in (None, "a"):
        with pytest.raises(DataError, match=r"arm 'b' has numbers with seeds \(1, 0\)"):
            compare(results, wanted, "score", key=1)


@pytest.mark.slow
def test_intervals_hold_the_truth_of_other_rows_too() -> None:
    """Two arms that differ by nothing but what single rows favour: of one loss a study, too few hold it."""
    held = {"rows": 0, "seeds alone": 0}
    for number in range(200):
        random = np.random.default_rng(number)
        favour = random.normal(0, 0.4, 200)
        rows: dict[str, dict[tuple[int, int], dict[str, np.ndarray]]] = {"base": {}, "a": {}}
        for seed in range(6):
            text = random.normal(4, 0.8, 200)
            for arm, own in (("base", 0.0), ("a", favour)):
                loss = text + own + random.normal(0, 0.005) + random.normal(0, 0.2, 200)
                rows[arm][seed, 0] = {"loss": loss}
        alone = {
            arm: {pair: {"loss": own["loss"].mean(keepdims=True)} for pair, own in by.items()}
            for arm, by in rows.items()
        }
        for name, results in (("rows", rows), ("seeds alone", alone)):
            found = compare_pairs(
                results, "base", [("a", "base")], "loss", key=number, draws=400
            )[1]["a", "base"].interval  # fmt: skip
            held[name] += found.low <= 0 <= found.high
    assert held["rows"] >= 186
    assert held["seeds alone"] < 150
