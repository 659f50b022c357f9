"""What a masker is made of and called with, refused where it is something else."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import numpy as np

from chronomask.config import kind_of
from chronomask.errors import UsageError
from chronomask.masking.config import MaskingConfig
from chronomask.masking.select import exact
from chronomask.masking.strategy import Strategy
from chronomask.types import Rows
from chronomask.vocabulary import Vocabulary

__all__ = ["check_progress", "refuse_masked", "refuse_without_epoch", "refuse_wrong_types"]


def check_progress(progress: Any) -> float:
    """Progress as a number; raises UsageError for what is none from 0 to 1."""
    number = math.nan
    if hasattr(progress, "__float__"):  # text has none
        with suppress(TypeError, ValueError, RuntimeError):  # of several numbers
            number = float(progress)
    if not 0 <= number <= 1:
        raise UsageError(
            f"progress is {progress!r}; give a number between 0 and 1, such as step / num_steps"
        )
    return number


def refuse_wrong_types(config: Any, vocabulary: Any, class_names: Any, seed: Any) -> None:
    """Raise UsageError, one sentence for each argument of :class:`Masker` that is something else."""
    if not isinstance(config, MaskingConfig | Mapping):
        raise UsageError(
            f"config is of type {type(config).__name__}; give a MaskingConfig or a dict of its fields"
        )
    if not isinstance(vocabulary, Vocabulary):
        raise UsageError(
            f"vocabulary is of type {type(vocabulary).__name__}; give Vocabulary.from_tokenizer(...), or "
            "make the masker with Masker.for_tokenizer(...)"
        )
    if isinstance(class_names, str) or not all(isinstance(name, str) for name in class_names):
        raise UsageError(
            f"the names of the classes are {class_names!r}; give a sequence of names, such as "
            "('none', 'NOUN', 'VERB')"
        )
    if len(class_names) > exact.MAX_CLASSES:
        raise UsageError(
            f"there are {len(class_names)} token classes; masking supports at most {exact.MAX_CLASSES}"
        )
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer):
        raise UsageError(f"seed is {seed!r}; give a whole number")


def refuse_without_epoch(given: Any, epoch: Any, strategy: Strategy) -> None:
    """Raise UsageError for rows that do not say which visit they are, where a strategy counts visits."""
    known = epoch is not None or isinstance(given, Rows)
    if strategy.turns > 1 and not known and not (isinstance(given, Mapping) and "epoch" in given):
        raise UsageError(
            f"strategy '{kind_of(strategy)}' masks a row in turns over {strategy.turns} epochs, and the rows "
            "bring no epoch: read them with chronomask.KeyedLoader, or collate them and give it as {**batch, "
            "'epoch': number}"
        )


def refuse_masked(given: Any, rows: Rows, mask_token_id: int) -> None:
    """Raise UsageError for a batch with labels whose ``rows`` are masked already."""
    labelled = isinstance(given, Mapping) and "labels" in given
    if labelled and (rows.input_ids == mask_token_id).any():
        raise UsageError(
            "the batch is masked already: it has labels, and [MASK] among its tokens; collate "
            "with chronomask.RowCollator instead"
        )
