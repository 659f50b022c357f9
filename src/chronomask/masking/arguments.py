"""What a masker is made of and called with, refused where it is something else."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import numpy as np

from chronomask.errors import UsageError
from chronomask.masking.config import MaskingConfig
from chronomask.masking.select import exact
from chronomask.vocabulary import Vocabulary

__all__ = ["check_progress", "refuse_wrong_types"]


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
