"""What fine-tuning is done on: the examples of a quick look, and a chosen learning rate.

The rate is chosen on a held-out slice of the training data, never on the dev set.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Protocol, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from chronomask.errors import DataError
from chronomask.evaluate.finetune import FineTuning
from chronomask.keyed import Stream, permute, row_keys

__all__ = ["Prepared", "at_most", "choose_rate", "slices"]

Score = Callable[[float, NDArray[np.int64], NDArray[np.int64]], float]
"""(learning rate, indices to train on, indices to score on) → score, the higher the better"""


class _Examples(Protocol):
    def __len__(self) -> int: ...

    def take(self, index: NDArray[np.int64]) -> Self: ...


Train = TypeVar("Train")
Dev = TypeVar("Dev")
Several = TypeVar("Several", bound=_Examples)


@dataclass(frozen=True, slots=True)
class Prepared(Generic[Train, Dev]):
    """What all seeds of a task share."""

    train: Train
    dev: Dev
    data_sha256: str
    rate: float
    choice: dict[str, float]
    """how the rate was chosen"""


def at_most(limit: int | None, examples: Several) -> Several:
    """Examples, or ``limit`` of them, spread over the file, in its order."""
    size = len(examples)
    if limit is None or limit >= size:
        return examples
    key = int(row_keys(0, Stream.SELECT, 0, 1)) >> 2
    return examples.take(np.sort(permute(np.arange(limit), size, key)))


def choose_rate(
    recipe: FineTuning, groups: NDArray[np.int64], score: Score
) -> tuple[float, dict[str, float]]:
    """The best of the recipe's rates (the lower of equal ones), and the score of each by name.

    ``groups`` [N]: examples of one group are never on both sides. The slice is the same for every
    seed and model. Without rates to choose from it is the recipe's own, and nothing is trained.
    """
    if not recipe.learning_rates:
        return recipe.learning_rate, {}
    train, held_out = slices(groups, recipe.held_out_share)
    scores = {rate: score(rate, train, held_out) for rate in sorted(set(recipe.learning_rates))}
    best = max(scores, key=lambda rate: (scores[rate], -rate))
    details = {f"held_out_score_at_{rate:g}": value for rate, value in scores.items()}
    return best, {"learning_rate": best, **details}


def slices(
    groups: NDArray[np.int64], held_out_share: float
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Indices to train on and to score on, ascending; raises DataError where a side would be empty."""
    names = np.unique(groups)
    count = round(held_out_share * names.size)
    if not 0 < count < names.size:
        raise DataError(
            f"{names.size} groups of training examples are too few to hold out "
            f"{held_out_share:.0%} of them: set learning_rates=[] or another held_out_share"
        )
    key = int(row_keys(0, Stream.SELECT, 0, 0)) >> 2
    chosen = names[permute(np.arange(names.size), names.size, key) < count]
    held_out = np.isin(groups, chosen)
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)
