"""Metrics beside other people's implementations, and beside arithmetic."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchmetrics.functional.text import squad

from chronomask.evaluate.tasks.glue import classification_metrics, regression_metrics
from chronomask.evaluate.tasks.squad import exact_match, f1, normalise

ADVERSARIAL = [
    ("the Eiffel Tower", ["Eiffel Tower"]),
    ("An apple, a pear and the plum!", ["apple pear and plum", "apple"]),
    ("", [""]),
    ("", ["the"]),
    ("the", ["a"]),
    ("...", ["!"]),
    ("the", ["the end"]),
    ("$1,000", ["1000", "$1000"]),
    ("U.S.", ["US", "United States"]),
    ("Bücher, über", ["bücher über"]),
    ("İstanbul", ["istanbul"]),
    ("ﬁne", ["fine"]),
    ("a\u00a0b", ["a b"]),
    ("“quoted”", ["quoted"]),
    ("theatre", ["atre"]),
    ("a-the-b", ["athe b", "atheb"]),
    ("one two two", ["two two three", "one"]),
    ("東京 タワー", ["東京", "タワー 東京"]),
    ("\tnew\nline ", ["new line"]),
    ("x", ["y", "z"]),
]


@pytest.mark.parametrize(("prediction", "answers"), ADVERSARIAL)
def test_squad_scores_equal_torchmetrics(prediction: str, answers: list[str]) -> None:
    expect_torchmetrics(prediction, answers)


WORDS = st.sampled_from(
    ["the", "a", "an", "An", "cat", "Cat.", "dog", "…", "-", "é", "", "A,", "\u00a0"]
)


@given(st.lists(WORDS, max_size=6), st.lists(st.lists(WORDS, max_size=6), min_size=1, max_size=3))
def test_squad_scores_equal_torchmetrics_on_any_words(
    prediction: list[str], answers: list[list[str]]
) -> None:
    expect_torchmetrics(" ".join(prediction), [" ".join(answer) for answer in answers])


def expect_torchmetrics(prediction: str, answers: list[str]) -> None:
    target = {"answers": {"answer_start": [0] * len(answers), "text": answers}, "id": "q"}
    theirs = squad([{"prediction_text": prediction, "id": "q"}], [target])
    assert exact_match(prediction, answers) == pytest.approx(float(theirs["exact_match"]))
    assert f1(prediction, answers) == pytest.approx(float(theirs["f1"]), abs=1e-4)


def test_squad_normalisation_by_hand() -> None:
    assert normalise("The  “Cat's” a-hat, an END.") == "“cats” ahat end"
    assert f1("in the old town", ["old town hall"]) == pytest.approx(100 * 2 / 3)
    assert exact_match("The Cat", ["dog", "cat!"]) == 100
    assert (exact_match("", ["the"]), f1("", ["the"])) == (100, 100)


def test_classification_metrics_by_hand() -> None:
    label = np.array([1, 1, 1, 0, 0, 1, 0, 1])
    prediction = np.array([1, 0, 1, 0, 1, 1, 0, 1])
    tp, tn, fp, fn = 4, 2, 1, 1
    scores = classification_metrics(("accuracy", "f1", "mcc"), prediction, label)
    assert scores["accuracy"] == pytest.approx((tp + tn) / 8)
    assert scores["f1"] == pytest.approx(2 * tp / (2 * tp + fp + fn))
    under = math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    assert scores["mcc"] == pytest.approx((tp * tn - fp * fn) / under)


def test_majority_class_scores_what_arithmetic_says() -> None:
    label = np.array([1] * 7 + [0] * 3)
    scores = classification_metrics(("accuracy", "f1", "mcc"), np.ones(10, np.int64), label)
    assert scores == pytest.approx({"accuracy": 0.7, "f1": 2 * 0.7 / 1.7, "mcc": 0.0})
    scores = classification_metrics(("f1", "mcc"), np.zeros(10, np.int64), label)
    assert scores == {"f1": 0.0, "mcc": 0.0}


def test_correlations_by_hand() -> None:
    label = np.array([0.0, 1.0, 2.0, 3.0, 5.0])
    prediction = np.array([0.1, 0.4, 0.5, 4.0, 3.0])
    centred = [x - x.mean() for x in (label, prediction)]
    pearson = (centred[0] @ centred[1]) / math.sqrt(math.prod(float(x @ x) for x in centred))
    ranks = [x.argsort().argsort() for x in (label, prediction)]
    spearman = 1 - 6 * sum((ranks[0] - ranks[1]) ** 2) / (5 * 24)
    scores = regression_metrics(("pearson", "spearman"), prediction, label)
    assert scores == pytest.approx({"pearson": pearson, "spearman": spearman})
    constant = regression_metrics(("pearson",), np.full(5, 2.5), label)
    assert constant == {"pearson": 0.0}
    assert not torch.tensor(list(scores.values())).isnan().any()
