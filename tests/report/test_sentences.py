"""The sentences of a page claim what intervals carry, and no more."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chronomask.report.answer import answer
from chronomask.report.comparison import FREQUENCIES, PAIRS, gap_text, interval_text, verdict
from chronomask.report.sentences import difference_sentences, findings, reach_sentences
from chronomask.runs.read import Run, Series
from tests.support.comparisons import comparison, reach, task


def test_an_interval_that_excludes_zero() -> None:
    (better,) = difference_sentences([task("cola", {"a": (0.01, 0.03)})], "base")
    assert "the one comparison with “base” has an interval that excludes zero" in better
    assert "the arm better: “a” +2.0 (+1.0 to +3.0; accuracy, %)" in better
    (worse,) = difference_sentences([task("validation_loss", {"a": (0.01, 0.03)})], "base")
    assert "the arm worse: “a” +0.020 (+0.010 to +0.030; nats)" in worse


def test_an_interval_that_includes_zero() -> None:
    (one,) = difference_sentences([task("cola", {"a": (-0.01, 0.03)})], "base")
    assert "neither a difference nor that there is none" in one
    (many,) = difference_sentences([task("cola", {"a": (-0.01, 0.03), "b": (0.0, 0.1)})], "base")
    assert "none of 2 comparisons" in many
    assert "do not show that any arm is better or worse, nor that they are equal" in many
    for text in (one, many):
        assert "excludes zero with" not in text


def test_some_of_each() -> None:
    limits = {"a": (0.01, 0.03), "b": (-0.1, 0.1), "c": (-0.3, -0.1), "d": (0.1, 0.2)}
    found = difference_sentences([task("cola", limits), task("rte", {"a": (-1.0, 1.0)})], "base")
    assert "2 of 5 comparisons" in found[0]
    assert "intervals that exclude zero with the arm better" in found[0]
    assert "“d” on CoLA" in found[0]
    assert "the arm worse: “c”" in found[1]
    assert found[2].startswith("The intervals of the other 2 include zero")


def test_one_seed_claims_nothing() -> None:
    (text,) = difference_sentences([task("validation_loss", {"a": None}, seeds=1)], "base")
    assert "no claim is made" in text
    *_, last = difference_sentences([task("cola", {"a": (0.01, 0.02)}, seeds=1)], "base")
    assert "another seed may reverse them" in last
    assert verdict(*_pair(None)) == "unknown"
    assert verdict(*_pair((0.0, 1.0))) == "open"


def _pair(limits: tuple[float, float] | None) -> tuple[dict, dict]:
    made = task("cola", {"a": limits})
    return made, made["arms"]["a"]


@pytest.mark.parametrize(
    ("numbers", "says", "not_says"),
    [
        ((0.7, 0.6, 0.8), "with 95 % interval, by “a” after 70 % (60 to 80 %).", "do not show"),
        ((0.5, None, 0.6), "by “a” after 50 %.", "do not show"),
        ((1.2, 1.0, 1.4), "do not show", "not reached"),
        ((0.5, 0.4, 1.1), "do not show", "earlier"),
        ((0.5, 0.4, 1.0), "do not show", "earlier"),
        ((0.5, 0.4, None), "do not show", "earlier"),
        ((None, None, None), "not reached within training", "earlier"),
        ((None, 0.9, None), "do not show", "not reached"),
        ((1.5, 1.4, 1.6), "was reached later, in share of its steps", "not reached"),
        ((1.5, 1.4, 1.6), "by “a” after 150 % (140 to 160 %).", "not reached"),
        ((1.5, 1.4, None), "by “a” after 150 % (140 % or more).", "not reached"),
        ((None, 1.4, None), "by “a” after 140 % at the earliest, if at all.", "not reached"),
    ],
)
def test_speed_is_claimed_with_its_interval(
    numbers: tuple[float | None, float | None, float | None], says: str, not_says: str
) -> None:
    made = comparison([task("cola", {"a": (0.0, 1.0)})], [reach({"a": numbers})])
    text = " ".join(reach_sentences(made))
    assert says in text
    assert not_says not in text


def test_arms_whose_speed_is_open_are_the_others_where_one_is_decided() -> None:
    shown, is_open = (0.7, 0.6, 0.8), (0.5, 0.4, 1.1)
    made = comparison([task("cola", dict.fromkeys("ab", (0.0, 1.0)))])
    said = reach_sentences(made | {"reach": [reach({"a": shown, "b": is_open})]})
    assert said[-1] == "These runs do not show whether the other arms are faster."
    assert not any("whether any arm" in text for text in said)
    (alone,) = reach_sentences(made | {"reach": [reach({"a": is_open, "b": is_open})]})
    assert alone.startswith("These runs do not show whether any arm reaches the final validation")


def test_of_the_baseline_alone_no_difference_is_told() -> None:
    assert difference_sentences([task("cola", {}), task("rte", {})], "base") == []


def test_the_summary_says_how_far_it_carries() -> None:
    text = " ".join(findings(comparison([task("cola", {"a": (0.1, 0.2)})]), {}))
    assert "On CoLA, of the one comparison, no difference remains at 5 %." in text
    assert "“a” predicts 2.00 times as many masked tokens" in text


@pytest.mark.parametrize(
    ("limits", "seeds", "says"),
    [
        (
            {"a": (-0.3, -0.1), "b": (-0.5, 0.1)},
            3,
            "“a” ended best: its validation loss of 0.300 nats per predicted token is 0.200 lower than "
            "that of “base” (95 % interval of the difference 0.100 to 0.300).",
        ),
        (
            {"a": (-0.1, 0.08)},
            3,
            "No arm is shown to be better than “base”: “a” has the lowest validation loss, 0.490 nats per "
            "predicted token, and the 95 % interval of its difference (−0.100 to +0.080) includes zero.",
        ),
        (
            {"a": (0.1, 0.3), "b": (-0.1, 0.3)},
            3,
            "No arm ended better than “base”, whose validation loss is 0.500 nats per predicted token; of 2 "
            "intervals of the differences, 1 excludes zero.",
        ),
        (
            {"a": (0.1, 0.3), "b": (0.1, 0.4), "c": (-0.1, 0.3)},
            3,
            "; of 3 intervals of the differences, 2 exclude zero.",
        ),
        (
            {"a": (0.1, 0.3)},
            3,
            "No arm ended better than “base”, whose validation loss is 0.500 nats per predicted token; the "
            "interval of the one difference excludes zero.",
        ),
        ({"a": None}, 1, "with one seed each this is no evidence"),
        (
            {},
            3,
            "“base” ended with a validation loss of 0.500 nats per predicted token on average over 3",
        ),
    ],
)
def test_the_answer_comes_first(
    limits: dict[str, tuple[float, float] | None], seeds: int, says: str
) -> None:
    made = comparison([task("validation_loss", limits, seeds=seeds)], seeds=seeds)
    assert says in answer(made)


@pytest.mark.parametrize(
    ("times", "said"),
    [
        (2.0, " 2.00 times as"),
        (1.03, " 1.03 times as"),
        (0.5, " 0.50 times as"),
        (1.01, ""),
        (None, ""),
    ],
)
def test_the_better_arm_says_whether_it_predicted_as_much(times: float | None, said: str) -> None:
    made = comparison([task("validation_loss", {"a": (-0.3, -0.1)})])
    base, own = (arm for arm in made["arms"] if arm["name"] in ("base", "a"))
    base["masked_tokens"], own["masked_tokens"] = 200.0, times and 200.0 * times
    told = answer(made)
    assert told.startswith("“a” ended best")
    assert told.endswith(f"It predicted{said} many masked tokens." if said else "0.100 to 0.300).")


def test_a_single_arm_has_an_interval_from_two_seeds_on() -> None:
    loss = "“base” ended with a validation loss of 0.500 nats per predicted token"
    for seeds, over in (
        (1, "."),
        (2, " on average over 2 seeds (95 % interval 0.400 to 0.600)."),
    ):
        assert answer(comparison([task("validation_loss", {}, seeds=seeds)], seeds=seeds)) == (
            loss + over
        )


def test_a_single_arm_says_how_many_tokens_are_right() -> None:
    made = comparison([task("validation_loss", {})])
    for share, said in ((0.125, "; 12.5 % of the tokens are right."), (math.nan, "0.600).")):
        made["arms"][0]["validation_accuracy"] = share
        assert answer(made).endswith(said)


def test_without_a_validation_there_is_no_answer() -> None:
    made = comparison([task("cola", {"a": (0.1, 0.2)})]) | {"tasks": [], "curves": []}
    assert answer(made) == "No validation has been made yet."


def test_of_a_run_that_is_not_finished_the_last_validation_is_told() -> None:
    arms = {"a": {"step": [100.0, 200.0, 1300.0], "mean": [7.0, 6.25, 6.125]}}
    curves = [{"quantity": "validation_loss", "arms": arms}]
    made = comparison([task("cola", {"a": (0.1, 0.2)})]) | {"tasks": [], "curves": curves}
    assert answer(made) == (
        "“a” is not finished: its last validation, after step 1,300, has a loss of 6.125 nats per predicted "
        "token."
    )
    arms["b"] = {"step": [100.0], "mean": [5.0]}
    assert answer(made).startswith("The baseline is not finished")


@pytest.mark.parametrize("higher", [False, True])
def test_the_best_mean_is_named_though_another_arm_is_shown_to_be_better(higher: bool) -> None:
    name, sign = ("cola", 1) if higher else ("validation_loss", -1)
    limits = {"a": (-0.1, 0.3), "c": (0.04, 0.06), "d": (0.01, 0.03)}
    made = comparison([task(name, {arm: _turned(own, sign) for arm, own in limits.items()})])
    said = answer(made)
    if higher:
        assert "“a” has the highest result on CoLA, 60.0 (accuracy, %), but the 95 %" in said
        assert "(−10.0 to +30.0) includes zero. “c” is shown to be better: its 55.0 is 5.0" in said
        assert "higher than that of “base” (95 % interval of the difference 4.0 to 6.0)" in said
    else:
        assert "“a” has the lowest validation loss, 0.400 nats per predicted token, but" in said
        assert "“c” is shown to be better: its 0.450 is 0.050 lower than that of “base”" in said
    assert "ended best" not in said


def _turned(limits: tuple[float, float], sign: int) -> tuple[float, float]:
    low, high = sorted(sign * end for end in limits)
    return low, high


def test_arms_of_two_seeds_and_none_in_common() -> None:
    made = comparison([task("validation_loss", {"a": None}, seeds=2)], seeds=2)
    assert "one seed" not in answer(made)
    assert "“base” ended with the lowest validation loss, 0.500 nats" in answer(made)
    assert "0.020 below “a”, the next; as the arms share too few seeds for an interval" in answer(
        made
    )


def test_without_a_validation_the_first_task_is_the_answer() -> None:
    cola = task("cola", {"a": (0.1, 0.2)})
    made = comparison([cola, task("rte", {"a": (-0.2, -0.1)})]) | {"curves": []}
    said = "“a” ended best: its result on CoLA of 65.0 (accuracy, %) is 15.0 higher than that of “base”"
    assert said in answer(made)
    cola["contrasts"] = [_contrast(0.1, 0.2, 0.01)]
    assert answer(made).startswith("On CoLA “a” is better than “base” by 15.0 (accuracy, %) (95 %")
    cola["contrasts"] = [_contrast(-0.2, -0.1, 0.01)]
    assert "“base” is better than “a” by 15.0" in answer(made)
    cola["contrasts"] = [_contrast(-0.2, 0.1, 0.5) | {"detectable": None}]
    assert answer(made).endswith("(−20.0 to +10.0) includes zero.")
    alone = comparison([task("cola", {})]) | {"curves": []}
    assert answer(alone) == (
        "“base” ended with a result on CoLA of 50.0 (accuracy, %) on average over 3 seeds (95 % interval "
        "40.0 to 60.0)."
    )


def test_what_was_not_declared_is_called_exploratory() -> None:
    losses = task("validation_loss", {"a": (-0.3, -0.1), "b": (-0.5, -0.1)})
    made = comparison([losses], [reach({"a": (0.5, 0.4, 0.6)})])
    assert "exploratory" not in " ".join(findings(made, {}))
    losses["contrasts"] = [_contrast(-0.3, -0.1, 0.01)]
    said = " ".join(findings(made | {"contrasts": [["a", "base"]]}, {}))
    assert "“a” −0.200 (−0.300 to −0.100; nats) and “b” −0.300 (−0.500 to −0.100; nats; exp" in said
    assert "No such share was declared to be tested: this is exploratory." in said
    said = " ".join(findings(made | {"contrasts": [["b", "a"]]}, {}))
    assert said.count("nats; exploratory") == 2


def test_measures_of_the_model_are_no_downstream_tasks() -> None:
    limits = {"a": (0.1, 0.2)}
    tasks: list[dict[str, Any]] = [task(name, limits) for name in ("cola", "rte")]
    tasks += [
        task(name, limits) | {"family": family}
        for name, family in (
            ("pseudo_perplexity", "intrinsic"), ("upos_probe", "probe"), ("blimp", "blimp"),
        )
    ]  # fmt: skip
    text = " ".join(findings(comparison(tasks), {}))
    assert "On the 2 downstream tasks" in text
    assert (
        "On the 3 measures of the models themselves (pseudo-perplexity, UPOS probe and BLiMP)"
        in text
    )
    own = {"title": "my test", "trains_model": False}  # as comparisons state it by now
    told = " ".join(findings(comparison([*tasks, task("mine", limits) | own]), {}))
    assert "On the 2 downstream tasks" in told
    assert "(pseudo-perplexity, UPOS probe, BLiMP and my test)" in told
    (*_, blimp) = tasks
    assert "On BLiMP, the one comparison with “base”" in " ".join(findings(comparison([blimp]), {}))


@pytest.mark.parametrize(
    ("counts", "kind", "span"),
    [
        ((150.0, 120.0), "more", "1.20 to 1.50"),
        ((50.0, 80.0), "fewer", "0.50 to 0.80"),
        ((50.0, 120.0), "more or fewer", "0.50 to 1.20"),
        ((150.0, 150.1), "more", "1.50"),
    ],
)
def test_ranges_speak_of_the_arms_they_count(
    counts: tuple[float, float], kind: str, span: str
) -> None:
    made = comparison([task("cola", dict.fromkeys("abc", (0.1, 0.2)))])
    for arm, tokens in zip(made["arms"], (100.0, 100.0, *counts), strict=True):
        arm["masked_tokens"] = tokens
    said = f"2 arms predict {kind} masked tokens than the baseline ({span} times as many), so"
    assert said in " ".join(findings(made, {}))


def test_the_range_of_losses_is_that_of_two_arms_or_more() -> None:
    made = comparison([task("validation_loss", {"a": (-0.3, -0.1)})])
    assert findings(made, {})[1] == (
        "Validation losses lie between 0.300 nats per predicted token (“a”) and 0.500 (“base”), 0.200 apart."
    )
    alone = comparison([task("validation_loss", {})])
    assert "lie between" not in " ".join(findings(alone, {}))


def _contrast(low: float, high: float, p: float) -> dict[str, Any]:
    """A declared contrast with its interval."""
    return {
        "arm": "a", "other": "base", "difference": (low + high) / 2, "difference_low": low,
        "difference_high": high, "p": p, "p_holm": p, "by_unit": [], "detectable": 0.05,
    }  # fmt: skip


def test_an_interval_that_excludes_zero_is_not_written_as_ending_at_it() -> None:
    probe: dict[str, Any] = task("upos_probe", {"a": (-0.019, -0.0004)})
    probe["unit"] = "fraction"
    assert gap_text(probe, probe["arms"]["a"]) == "−1.9 to −0.04"
    assert interval_text(probe, 0.00002, 0.5, sign=True) == "+0.002 to +50.0"
    assert interval_text(probe, -0.0004, 0.5, sign=True) == "0.0 to +50.0"  # includes zero
    assert interval_text(probe, 0.0, 0.0, sign=True) == "0.0 to 0.0"
    probe["contrasts"] = [_contrast(0.0004, 0.03, 0.04)]
    assert "(95 % interval 0.04 to 3.0;" in answer(comparison([probe]))


def test_declared_contrasts_are_the_answer() -> None:
    loss = task("validation_loss", {"a": (-0.3, -0.1)})
    made = comparison([loss | {"contrasts": [_contrast(-0.3, -0.1, 0.01)]}])
    made |= {"contrasts": [["a", "base"]]}
    assert answer(made) == (
        "On the validation loss “a” is better than “base” by 0.200 nats (95 % interval 0.100 to 0.300; "
        "p 0.010 after Holm’s correction)."
    )
    made["tasks"][0]["contrasts"] = [_contrast(-0.1, 0.2, 0.5), _contrast(0.1, 0.2, 1e-9)]
    assert "“base” is better than “a” by 0.150 nats" in answer(made)
    assert "p < 0.001" in answer(made)
    assert answer(made).endswith("1 of the 2 declared pairs is not told apart.")
    made["tasks"][0]["contrasts"] = [_contrast(-0.1, 0.2, 0.5)]
    assert "“a” and “base” are not told apart: they are 0.050 nats apart" in answer(made)
    assert "(−0.100 to +0.200) includes zero" in answer(made)
    assert "would have shown a difference of 0.050 nats" in answer(made)
    made["tasks"][0]["contrasts"][0]["detectable_holm"] = 0.05  # of one contrast, the same
    assert answer(made).endswith(" would have shown a difference of 0.050 nats.")
    made["tasks"][0]["contrasts"] = [_contrast(-0.1, 0.2, 0.5)] * 2
    assert answer(made).endswith(
        "none of the 2 declared pairs of arms is told apart. Four such studies of five would have shown a "
        "difference of 0.050 nats."
    )
    for one in made["tasks"][0]["contrasts"]:
        one["detectable_holm"] = 0.07
    assert "0.050 nats (0.070 after Holm’s correction)." in answer(made)


def test_what_lies_beside_five_per_cent_is_written_on_its_side() -> None:
    made = comparison([task("validation_loss", {"a": (-0.3, -0.1)})])
    values = {
        0.0496: "0.0496",
        0.0504: "0.0504",
        0.04999: "0.04999",
        0.0001: "< 0.001",
        0.05: "0.050",
    }
    for p, said in values.items():
        made["tasks"][0]["contrasts"] = [_contrast(-0.3, -0.1, p)]
        assert f"p {said} after Holm’s correction)" in answer(made)
        assert ("By its own interval alone" in answer(made)) == (p > 0.05)


def test_contrasts_of_losses_that_do_not_compare_are_no_answer() -> None:
    """A comparison of before, which has them."""
    made = comparison([task("validation_loss", {"a": (-0.3, -0.1)})])
    made["tasks"][0]["contrasts"] = [_contrast(-0.3, -0.1, 0.01)]
    made |= {"contrasts": [["a", "base"]], "losses_compare": False}
    assert answer(made).startswith("No loss says here which arm is better")


def test_an_arm_that_is_better_than_several_is_named_once() -> None:
    better = [_contrast(-0.3, -0.1, 0.01) | {"other": other} for other in ("base", "b", "c")]
    worse = _contrast(0.1, 0.3, 0.02) | {"other": "d"}
    made = comparison([task("validation_loss", {"a": (-0.3, -0.1)}) | {"contrasts": better}])
    size = "0.200 nats (95 % interval 0.100 to 0.300; p 0.010 after Holm’s correction)"
    assert answer(made) == (
        f"On the validation loss “a” is better than “base” by {size}, than “b” by {size} "
        f"and than “c” by {size}."
    )
    made["tasks"][0]["contrasts"] = [better[0], worse, better[1]]
    assert f"than “b” by {size} and “d” is better than “a” by 0.200" in answer(made)
    made["tasks"][0]["contrasts"] = [better[0], worse, *better[1:], *better]
    assert answer(made).endswith("and 3 more in the table.")


def test_what_the_correction_does_not_bear_out_is_not_called_better() -> None:
    loss = task("validation_loss", {"a": (-0.3, -0.1)})
    alone = _contrast(-0.3, -0.1, 0.3)
    made = comparison([loss | {"contrasts": [alone, _contrast(-0.1, 0.2, 0.5)]}])
    made |= {"contrasts": [["a", "base"]]}
    assert answer(made).startswith(
        "On the validation loss no declared pair is told apart after Holm’s correction. By its own "
        "interval alone, “a” is better than “base” by 0.200 nats"
    )
    made["tasks"][0]["contrasts"].append(_contrast(0.2, 0.3, 0.001))
    assert answer(made).startswith("On the validation loss “base” is better than “a” by 0.250")
    assert "By its own interval alone, “a” is better" in answer(made)
    assert answer(made).endswith(". 1 of the 3 declared pairs is not told apart.")


def test_the_headline_and_the_other_measures_are_corrected_apart() -> None:
    tasks = [task(name, {"a": (-0.3, -0.1)}) for name in ("validation_loss", "cola", "rte")]
    for one, p in zip(tasks, (0.01, 0.2, 0.03), strict=True):
        one["contrasts"] = [
            _contrast(-0.3, -0.1, p),
            _contrast(-0.3, 0.1, 0.9) | {"other": "b"},
        ]
    made = comparison(tasks) | {"contrasts": [["a", "base"], ["a", "b"]]}
    assert "p 0.010 after Holm’s correction" in answer(made)
    (said,) = [sentence for sentence in findings(made, {}) if "Holm" in sentence]
    assert said.startswith(
        "On 2 other measures, after Holm’s correction over 4 tests (the 2 declared contrasts on each), "
        "1 remains at 5 %: “a − base” on RTE −20.0"
    )


@pytest.mark.parametrize(
    ("measures", "pairs", "untested", "said"),
    [
        (3, 1, 0, "over 2 tests (the one declared contrast on each)"),
        (2, 2, 0, "On CoLA, after Holm’s correction over the 2 declared contrasts"),
        (2, 1, 0, "On CoLA, of the one declared contrast, 1 remains at 5 %: “a − base” −20.0"),
        (3, 2, 1, "over 4 tests (the 2 declared contrasts on each)"),
    ],
)
def test_contrasts_are_counted_once_whatever_they_are_tested_on(
    measures: int, pairs: int, untested: int, said: str
) -> None:
    names = ("validation_loss", "cola", "rte")[:measures]
    tasks = [task(name, {"a": (-0.3, -0.1)}) for name in names]
    others = ("base", "b")[:pairs]
    for one in tasks:
        one["contrasts"] = [_contrast(-0.3, -0.1, 0.01) | {"other": other} for other in others]
    for one in tasks[-1]["contrasts"][:untested]:
        one["p_holm"] = None
    made = comparison(tasks) | {"contrasts": [["a", other] for other in others]}
    assert said in " ".join(findings(made, {}))


def test_what_the_answer_says_is_not_said_again_below_it() -> None:
    names = ("validation_loss", "mean_loss", "single_mask_loss")
    tasks = [
        task(name, {"a": (-0.3, -0.1)}) | {"contrasts": [_contrast(-0.3, -0.1, 0.01)]}
        for name in names
    ]
    made = comparison(tasks) | {"contrasts": [["a", "base"]]}
    said = " ".join(findings(made, {}))
    assert "On mean loss" not in said
    assert "On validation loss, " in said
    assert "On single-mask loss, " in said
    made["contrasts"] = [["a", "c"]]  # the difference from the baseline was not declared
    assert "On mean loss of five yardsticks, " in " ".join(findings(made, {}))


@pytest.mark.parametrize("limits", [(math.nan, math.nan), (-0.1, math.nan)])
def test_what_is_no_number_decides_nothing(limits: tuple[float, float]) -> None:
    assert verdict(*_pair(limits)) == "unknown"


def test_the_headline_is_the_mean_of_the_yardsticks() -> None:
    losses = [
        task("validation_loss", {"a": (0.1, 0.2)}),
        task("validation_loss", {"a": (-0.2, -0.1)}),
    ]
    losses[1]["task"] = "mean_loss"
    made = comparison(losses)
    assert "“a” ended best: its mean loss of five yardsticks" in answer(made)
    assert answer(made).endswith("It predicted 2.00 times as many masked tokens.")


def test_an_arm_that_ends_far_from_the_yardstick_is_pointed_out() -> None:
    made = comparison([task("validation_loss", {"a": (-0.3, -0.1)})])

    def said_of(made: dict[str, Any], **ratios: float | None) -> str:
        arms = [
            {**arm, "last_ratio": ratios[arm["name"]], "validated_ratio": 0.15}
            for arm in made["arms"]
        ]
        return " ".join(findings({**made, "arms": arms}, {}))

    assert "“a” (0.0 %) ended at another ratio" in said_of(made, base=0.15, a=0.0)
    said = said_of(made, base=0.15, a=0.02)
    assert "“a” (2.0 %) ended at another ratio" in said
    assert "“base” (15.0 %)" not in said
    assert "compare it with another measure" in said
    mean = made | {"tasks": [*made["tasks"], {**made["tasks"][0], "task": "mean_loss"}]}
    said = said_of(mean, base=0.15, a=0.02)
    assert "ratios from 5 to 50 % and a single mask, depends less on it" in said
    for near in (0.17, None):  # None: nothing is logged of it
        assert "ended at another ratio" not in said_of(made, base=0.15, a=near)
    assert "ended at another ratio" not in " ".join(findings(made, {}))  # of an earlier version


@pytest.mark.parametrize(
    ("ends", "said"),
    [
        ({"base": 4.5}, None),
        ({"base": 6.1}, "The model ends with a validation loss of 6.10 nats, above the 5.70 of"),
        ({"base": 4.5, "a": 6.1}, "“a” ends with a validation loss of 6.10 nats"),
        ({"base": 5.9, "a": 6.1}, "Both arms end with a validation loss of 5.90 to 6.10 nats"),
        ({"base": 5.9, "a": 6.1, "b": 6}, "All 3 arms end with a validation loss of 5.90 to 6.10"),
        ({"base": 5.9, "a": 6.1, "b": 5}, "“base” and “a” end with a validation loss of 5.90 to"),
    ],
)
def test_a_loss_above_what_pairs_of_words_give_is_pointed_out(
    ends: dict[str, float], said: str | None
) -> None:
    made = comparison([task("validation_loss", dict.fromkeys(ends, (-0.1, 0.1)))])
    (curve,) = (one for one in made["curves"] if one["quantity"] == "validation_loss")
    for name, loss in ends.items():
        curve["arms"][name] = {**curve["arms"]["base"], "mean": [6.5, loss]}
    for name in set(curve["arms"]) - set(ends):
        del curve["arms"][name]
    assert "pairs" not in " ".join(findings(made, {}))  # of another data set, or an older run
    curve["references"] = {FREQUENCIES: 6.3, PAIRS: 5.7}
    found = [text for text in findings(made, {}) if "neighbouring pairs" in text]
    assert [text.startswith(said or "") for text in found] == [True] * bool(said)
    they = "it makes" if sum(loss > 5.7 for loss in ends.values()) == 1 else "they make"
    assert all(f"words’ frequencies alone: 6.30): so far {they} less" in text for text in found)


def test_what_ran_is_said_in_numbers() -> None:
    made = comparison([task("validation_loss", {"a": (-0.1, 0.1)})])
    assert findings(made, {})[0].startswith(
        "2 ways to mask were trained with 3 seeds each for 10 steps, on the same data in the same order"
    )
    made |= {"shared_start": False, "other_weights": ["a"]}
    said = "on the same data in the same order, “a” from other initial weights than “base”; “base” is the"
    assert said in findings(made, {})[0]
    made["other_weights"] = []
    assert "on the same data" not in findings(made, {})[0]
    made["shared_start"] = True
    first, second = made["arms"]
    second["steps"], second["runs"] = 1500.0, second["runs"][:1]
    assert "were trained with 1 to 3 seeds for 10 to 1,500 steps, on" in findings(made, {})[0]
    made["arms"] = [first]
    assert findings(made, {})[0].startswith("“base” was trained with 3 seeds for 10 steps")
    assert "One run" not in " ".join(findings(made, {}))
    first["runs"] = first["runs"][:1]
    alone = findings(made, {})
    assert alone[0].startswith("“base” was trained for 10 steps")
    assert "One run shows how training went; it compares nothing." in alone


def test_arms_of_one_run_each_are_no_evidence() -> None:
    made = comparison([task("validation_loss", {"a": None}, seeds=1)], seeds=1)
    said = findings(made, {})
    assert said[0].startswith("2 ways to mask were trained with one seed each for 10 steps")
    assert said[-1].startswith("Every arm was run once, all with seed 0: another seed would move")
    made["arms"][1]["runs"][0]["seed"] = 1
    made["reach"] = [reach({"a": (0.5, 0.4, 0.6)})]
    said = findings(made, {})
    assert said[-1].startswith("Every arm was run once: another seed would move")
    assert "was reached earlier" not in " ".join(said)
    several = comparison([task("validation_loss", {"a": (-0.1, 0.1)})], made["reach"])
    text = " ".join(findings(several, {}))
    assert "was reached earlier" in text
    assert "Every arm was run once" not in text


def test_content_words_are_compared_with_function_words() -> None:
    def run(name: str, classes: dict[str, tuple[float, float]]) -> Run:
        own = {
            key: {word: np.array([math.nan, pair[k]]) for word, pair in classes.items()}
            for k, key in enumerate(("class_loss", "class_count"))
        }
        lines = Series({"step": np.arange(2.0)}, own)
        return Run(Path("away"), name, {}, lines, lines, None, {}, ())

    def said(*runs: Run) -> str:
        made = comparison([task("validation_loss", {"a": (-0.1, 0.1)})])
        return " ".join(findings(made, dict(enumerate(runs))))

    hard = run("base", {"NOUN": (5.0, 3.0), "VERB": (3.0, 1.0), "DET": (2.0, 4.0)})
    easy = run("a", {"NOUN": (1.0, 1.0), "ADP": (3.0, 1.0)})
    words = "than function words: {} against {} nats"
    assert f"end up harder to predict {words.format('4.50', '2.00')}." in said(hard)
    assert f"easier to predict {words.format('1.00', '3.00')}." in said(easy)
    both = f"harder to predict {words.format('2.75', '2.50')}, averaged over the arms."
    assert both in said(hard, easy)
    assert both in said(hard, easy, run("b", {"NOUN": (9.0, 1.0)}))
    assert "Content words" not in said(run("b", {"NOUN": (9.0, 1.0)}))


def test_a_page_says_since_when_a_loss_stands_still_and_what_helped_others() -> None:
    made = comparison([task("validation_loss", {"a": (-0.1, 0.1)})])
    (curve,) = (one for one in made["curves"] if one["quantity"] == "validation_loss")
    curve["references"] = {FREQUENCIES: 6.3, PAIRS: 5.7}
    steps = {"step": [100.0, 200.0, 1300.0, 1400.0]}
    for name, losses in (("base", [7.0, 6.3, 6.25, 6.24]), ("a", [7.0, 6.6, 6.25, 6.24])):
        curve["arms"][name] = {**curve["arms"][name], **steps, "mean": losses}
    nothing = Series({"step": np.empty(0)}, {})

    def said(**models: object) -> str:
        runs = {
            k: Run(Path("away"), name, {"model": model}, nothing, nothing, None, {}, ())
            for k, (name, model) in enumerate(models.items())
        }
        (found,) = [text for text in findings(made, runs) if "neighbouring pairs" in text]
        return found

    bert = {"kind": "config", "model_type": "bert"}
    wide, narrow = (
        {"kind": "config", "model_type": "modernbert", "overrides": {"local_attention": size}}
        for size in (128, 16)
    )
    both = said(base=bert, a=wide)
    assert "would. Their losses have hardly moved since step 1,300. What helped others" in both
    assert "such as modernbert with a window of a few tokens in some layers, a narrower" in both
    assert both.endswith("in some layers, and more steps (docs/loss.md).")
    assert "modernbert" not in said(base={"kind": "checkpoint"}, a=narrow)
    del curve["arms"]["a"]
    assert "Its loss has hardly moved since step 200." in said(base=bert)
    curve["arms"]["base"]["mean"] = [7.0, 6.9, 6.5, 6.2]
    assert "hardly moved" not in said(base=bert)


def test_of_a_baseline_that_is_missing_or_no_number_it_is_told() -> None:
    """And no arm that is finished is called unfinished."""
    curves = [{"quantity": "validation_loss", "arms": {"a": {"step": [9.0], "mean": [7.0]}}}]
    made = comparison([task("cola", {"a": (0.1, 0.2)})]) | {"tasks": [], "curves": curves}
    base, other = made["arms"]
    made["arms"] = [{**base, "runs": []}, {**other, "complete": True}]
    assert answer(made) == (
        "No run of the baseline “base” is complete, so there is nothing to compare yet."
    )
    made["arms"] = [{**base, "complete": True}, {**other, "complete": True}]
    assert answer(made) == (
        "No loss of the baseline “base” is left to compare the others with: “Before you read on” says why."
    )
    made["arms"] = made["arms"][:1]
    assert answer(made) == "“base” ended with a loss that is no number: it diverged."


def test_the_baselines_share_of_right_tokens_is_its_own() -> None:
    made = comparison([task("validation_loss", {})])
    made["arms"] = [
        {"name": "diverged", "validation_accuracy": 0.01},
        {**made["arms"][0], "validation_accuracy": 0.42},
    ]
    assert answer(made).endswith("; 42.0 % of the tokens are right.")
