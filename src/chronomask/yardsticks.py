"""The yardsticks of a model: whole words at four fixed ratios, a single mask, and the mean of the five.

A loss at one ratio favours whoever trained near that ratio, so a model is measured at several, and with
one token of every document hidden, which nobody trains for. Here is what they are and what result files say
of them; :mod:`chronomask.masking.yardsticks` hides the tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np

from chronomask.errors import amount

__all__ = [
    "CONTENT", "FEW_PREDICTIONS", "FUNCTION", "GROUPS", "OTHER", "PUNCTUATION", "ROWS_OF_TRAINING",
    "VALIDATION_RATIO", "YARDSTICKS", "Yardstick",
    "expected_predictions", "few_in_words", "group_of", "kept_of", "losses_in_words",
    "results_of", "telling_predictions", "title_of",
]  # fmt: skip

VALIDATION_RATIO = 0.15
"""The ratio of the loss that every validation has beside the yardsticks, of single tokens."""
FEW_PREDICTIONS = 2000
"""A loss of fewer predictions is warned of: its standard error is 0.05 nats or more."""
CONTENT = "content words"
"""Open classes of Universal Dependencies: nouns, verbs, adjectives, adverbs, interjections."""
FUNCTION = "function words"
"""Closed classes, such as determiners and prepositions."""
PUNCTUATION = "punctuation"
"""The class ``PUNCT``."""
GROUPS = (CONTENT, FUNCTION, PUNCTUATION)
"""Those that losses are shown of."""
OTHER = "other"
"""Symbols, words without a class, and classes that are not parts of speech."""

_OPEN = frozenset({"ADJ", "ADV", "INTJ", "NOUN", "PROPN", "VERB"})
_CLOSED = frozenset({"ADP", "AUX", "CCONJ", "DET", "NUM", "PART", "PRON", "SCONJ"})


def group_of(name: str) -> str:
    """The group of a class name (universaldependencies.org/u/pos), ``OTHER`` for what is none of them."""
    if name in _OPEN:
        return CONTENT
    if name in _CLOSED:
        return FUNCTION
    return PUNCTUATION if name == "PUNCT" else OTHER


@dataclass(frozen=True, slots=True)
class Yardstick:
    """One way to hide tokens of held-out rows, the same for every model."""

    name: str
    """in result files: ``words-15``, ``single``"""
    ratio: float | None
    """of whole words; None hides one token of every document"""
    part: int
    """1 / part of the rows are used: the more a row hides, the fewer are needed for as many predictions"""

    def num_rows(self, rows: int) -> int:
        """How many of ``rows`` held-out rows it uses, from the first of them on."""
        return ceil(rows / self.part)


YARDSTICKS = (
    Yardstick("words-5", 0.05, 1),
    Yardstick("words-15", 0.15, 3),
    Yardstick("words-30", 0.30, 6),
    Yardstick("words-50", 0.50, 10),
    Yardstick("single", None, 1),
)
"""All of them, 2.6 passes over the rows; with these parts the four ratios have as many predictions each."""


ROWS_OF_TRAINING = (1 + sum(1 / own.part for own in YARDSTICKS)) / 3
"""What a row costs a validation, counted in rows of training, 1.2: passes over it at the fixed 15 % and for
every yardstick, each a forward pass, which is a third of a step."""


def expected_predictions(tokens: int, documents: int) -> tuple[int, list[int]]:
    """How many predictions a validation of so many tokens makes: at the fixed ratio, and of each yardstick.

    ``documents``: parts of documents that lie in one row, each with a single mask of its own.
    """
    of_yardsticks = [
        (documents if own.ratio is None else own.ratio * tokens) / own.part for own in YARDSTICKS
    ]
    return round(VALIDATION_RATIO * tokens), [round(number) for number in of_yardsticks]


def telling_predictions(at_ratio: int, of_yardsticks: Sequence[int]) -> float:
    """How many predictions the less certain of two losses rests on: the loss at the fixed ratio, and the mean
    of the yardsticks.

    k losses of n₁ … n_k predictions have a mean as certain as one loss of k² / (1/n₁ + … + 1/n_k).
    """
    of_mean = len(of_yardsticks) ** 2 / sum(1 / max(1, number) for number in of_yardsticks)
    return min(at_ratio, of_mean)


def few_in_words(at_ratio: int, of_yardsticks: Sequence[int]) -> str | None:
    """A sentence saying that the losses of a validation rest on so few predictions that they are chance.

    None where they do not.
    """
    if telling_predictions(at_ratio, of_yardsticks) >= FEW_PREDICTIONS:
        return None
    fewest = min(of_yardsticks)
    name = YARDSTICKS[[*of_yardsticks].index(fewest)].name
    return (
        "the losses of a validation are largely chance, with a standard error of 0.05 nats or more: they "
        f"rest on {amount(at_ratio, 'predictions')} at a fixed {100 * VALIDATION_RATIO:.0f} %, and on "
        f"{fewest:,} where they are fewest ({title_of(name)})"
    )


def title_of(name: str) -> str:
    """A yardstick's name for people: ``whole words, 15 %``, ``single mask``."""
    known = {own.name: own.ratio for own in YARDSTICKS}
    ratio = known.get(name)
    if ratio is None:
        return "single mask" if name in known else name
    return f"whole words, {100 * ratio:g} %"


def results_of(sums: Any, class_names: Sequence[str]) -> dict[str, Any]:
    """What result files say of the yardsticks.

    ``sums``: float64 [yardsticks, 3, classes], of each the loss sum, the number of predictions and of right
    ones. ``mean_loss``: the mean of the five losses in nats, the headline; left out where one has no
    prediction. ``yardstick_loss``, ``yardstick_accuracy`` and ``yardstick_count`` map ``words-15`` to its
    number, ``words-15/content words`` to that of a group, and ``words-15/NOUN`` to that of a class.
    """
    parts: dict[str, np.ndarray] = {}
    groups = [group_of(name) for name in class_names]
    several = {*groups} != {OTHER}  # classes that are no parts of speech make no groups
    for yardstick, by_class in zip(YARDSTICKS, np.asarray(sums), strict=True):
        parts[yardstick.name] = by_class.sum(1)
        for group in GROUPS if several else ():
            own = [k for k, name in enumerate(groups) if name == group]
            parts[f"{yardstick.name}/{group}"] = by_class[:, own].sum(1)
        for k, name in enumerate(class_names):
            parts[f"{yardstick.name}/{name}"] = by_class[:, k]
    seen = {name: own.tolist() for name, own in parts.items() if own[1]}
    loss = {name: total / count for name, (total, count, _) in seen.items()}
    values: dict[str, Any] = {
        "yardstick_loss": loss,
        "yardstick_accuracy": {name: right / count for name, (_, count, right) in seen.items()},
        "yardstick_count": {name: int(count) for name, (_, count, _) in seen.items()},
    }
    if all(yardstick.name in loss for yardstick in YARDSTICKS):
        mean = sum(loss[yardstick.name] for yardstick in YARDSTICKS) / len(YARDSTICKS)
        return {"mean_loss": mean, **values}
    return values


def kept_of(values: Mapping[str, Any]) -> dict[str, Any]:
    """What a checkpoint, its card and the summary keep of a validation: its yardsticks, as :func:`results_of`
    gives them, and the number of predictions at the fixed ratio.
    """
    names = (
        "num_predicted",
        "mean_loss",
        "yardstick_loss",
        "yardstick_accuracy",
        "yardstick_count",
    )
    return {key: values.get(key) for key in names}


def losses_in_words(loss: Mapping[str, float], count: Mapping[str, float]) -> list[list[str]]:
    """A table for people of losses in nats with their numbers of predictions, its headings first: a column
    for the mean of the yardsticks and for each of them, a row for all words, every group and every class.

    ``loss``, ``count``: as :func:`measure` has them under ``yardstick_loss`` and ``yardstick_count``; empty
    where they are.
    """
    there = dict.fromkeys(name.partition("/")[2] for name in loss if name in count)
    if "" not in there:
        return []
    groups = [part for part in ("", *GROUPS) if part in there]
    classes = sorted(there.keys() - {"", *GROUPS}, key=str.casefold)
    titles = (title_of(own.name) for own in YARDSTICKS)
    rows = [["nats (predictions)", "mean of the five", *titles]]
    for part in (*groups, *classes):
        names = [f"{own.name}/{part}".rstrip("/") for own in YARDSTICKS]
        found = {
            name: (loss[name], count[name]) for name in names if name in loss and name in count
        }
        mean = None
        if len(found) == len(names):
            losses, counts = zip(*found.values(), strict=True)
            mean = sum(losses) / len(losses), sum(counts)
        cells = (mean, *(found.get(name) for name in names))
        shown = ("–" if cell is None else f"{cell[0]:.3f} ({cell[1]:,.0f})" for cell in cells)
        rows.append([part or "all words", *shown])
    return rows
