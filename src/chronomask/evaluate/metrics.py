"""Metrics of the literature: GLUE's by scikit-learn and scipy, SQuAD's by its own normalisation."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from sklearn import metrics

__all__ = ["classification_metrics", "exact_match", "f1", "normalise", "regression_metrics"]

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def classification_metrics(
    names: Sequence[str], prediction: NDArray[Any], label: NDArray[Any]
) -> dict[str, float]:
    """Shares in [0, 1] (MCC in [−1, 1]) of class numbers [N]; ``names`` of accuracy, f1, mcc.

    ``f1`` is that of class 1. Where one class alone is predicted, MCC is 0 by convention.
    """
    by_name = {
        "accuracy": lambda: metrics.accuracy_score(label, prediction),
        "f1": lambda: _f1(prediction, label),
        "mcc": lambda: metrics.matthews_corrcoef(label, prediction),
    }
    return {name: float(by_name[name]()) for name in names}


def _f1(prediction: NDArray[Any], label: NDArray[Any]) -> float:
    nothing: Any = 0.0  # what f1 is where neither side has class 1; the stubs want a string
    return metrics.f1_score(label, prediction, zero_division=nothing)


def regression_metrics(
    names: Sequence[str], prediction: NDArray[Any], label: NDArray[Any]
) -> dict[str, float]:
    """Correlations of numbers [N]; ``names`` of pearson, spearman. 0 where one side is constant."""
    by_name = {"pearson": stats.pearsonr, "spearman": stats.spearmanr}
    if prediction.size < 2 or np.ptp(prediction) == 0 or np.ptp(label) == 0:
        return dict.fromkeys(names, 0.0)
    return {name: float(by_name[name](prediction, label).statistic) for name in names}


def normalise(answer: str) -> str:
    """An answer as SQuAD compares it: lower case, no ASCII punctuation, no articles, single spaces.

    Rajpurkar et al. (EMNLP 2016), the official evaluation script.
    """
    return " ".join(_ARTICLES.sub(" ", answer.lower().translate(_PUNCTUATION)).split())


def exact_match(prediction: str, answers: Sequence[str]) -> float:
    """100 if the prediction is one of the gold answers after normalisation, else 0."""
    return 100.0 * (normalise(prediction) in {normalise(answer) for answer in answers})


def f1(prediction: str, answers: Sequence[str]) -> float:
    """0 to 100: overlap of words with the nearest gold answer after normalisation.

    Where nothing is left of either side after normalisation, 100 if nothing is left of both: the
    rule of the v2.0 script, which agrees with exact match (that of v1.1 gives 0).
    """
    return 100.0 * max(_overlap(normalise(prediction), normalise(answer)) for answer in answers)


def _overlap(prediction: str, answer: str) -> float:
    ours, theirs = prediction.split(), answer.split()
    if not ours or not theirs:
        return float(ours == theirs)
    shared = (Counter(ours) & Counter(theirs)).total()
    if not shared:
        return 0.0
    precision, recall = shared / len(ours), shared / len(theirs)
    return 2 * precision * recall / (precision + recall)
