"""Sizes that no model has: of its config, before it is built, and of its weights, before they are there."""

from __future__ import annotations

import re
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from chronomask.errors import UsageError
from chronomask.machine import memory_of_process

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

__all__ = ["check_memory", "fault_of_size", "number_for"]

_COUNT = re.compile(r"^num_|_size$|_heads$|_layers$|_embeddings$")
"""Names of fields that count something of which there must be some."""
_LAYERS = re.compile(r"^(n|(num_)?(hidden_|encoder_|decoder_)?)_?layers$")
"""Names of their numbers; ``global_attn_every_n_layers``, which may be large, is none of them."""
_MOST_LAYERS = 2048
"""Twice the deepest there are; millions would take hours to be made, even without weights."""


def fault_of_size(key: str, value: object, usual: PretrainedConfig) -> str | None:
    """What is wrong with a value of a config's field, as the end of a sentence; None for what may be.

    ``usual``: the architecture's config with its defaults, which may be 0 themselves.
    """
    if not isinstance(value, int) or isinstance(value, bool) or not _COUNT.search(key):
        return None
    if value < 1 and value != getattr(usual, key, None):
        return "it must be at least 1"
    if value > _MOST_LAYERS and _LAYERS.search(key):
        return f"it must be at most {_MOST_LAYERS:,}"
    return None


def number_for(key: str, value: Any, usual: PretrainedConfig) -> Any:
    """A whole number as the float of the same value where the architecture's field takes floats alone."""
    is_whole = isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 53
    takes_floats = any(field.name == key and field.type is float for field in fields(usual))
    return float(value) if is_whole and takes_floats else value


def check_memory(model: PreTrainedModel, name: str = "the model") -> None:
    """Raise UsageError if the host has too little memory for the float32 weights alone.

    The system would end the process without a word. Every process on a machine builds its own model.
    """
    numbers = model.num_parameters()
    if 4 * numbers > (has := memory_of_process()):
        raise UsageError(
            f"{name} has {numbers:,} parameters, which take {4 * numbers / 1e9:,.1f} GB, and this "
            f"machine has {has / 1e9:,.1f} GB for each process: choose a smaller model"
        )
