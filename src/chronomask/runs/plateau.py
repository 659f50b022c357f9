"""A run whose loss stands where words' frequencies put it: since when, and what helped others.

Training's log and the report's page say both in the same words.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from chronomask.errors import DataError
from chronomask.runs.layout import MODEL
from chronomask.runs.read import Run
from chronomask.storage import read_object

__all__ = ["architecture_of", "still_since", "what_helped"]

_HARDLY = 0.1
"""Nats within which a loss has not moved."""
_POST_NORM = frozenset(
    {
        "albert", "bert", "camembert", "convbert", "deberta", "deberta-v2", "distilbert", "electra", "ernie",
        "mpnet", "roberta", "xlm-roberta",
    }
)  # fmt: skip
"""Types of models that normalise behind each layer, which starts slowly where the rate is high."""
_NARROW = 32
"""Tokens of a window that is narrow already."""


def still_since(steps: Sequence[float], losses: Sequence[float]) -> int | None:
    """The step since which a loss has hardly moved; None where the last validation is the only such one."""
    since = last = steps[-1]
    for step, loss in zip(reversed(steps), reversed(losses), strict=True):
        if abs(loss - losses[-1]) > _HARDLY:
            break
        since = step
    return int(since) if since < last else None


def what_helped(architectures: Iterable[Mapping[str, Any] | None]) -> str:
    """A sentence on what helped others, without what all of these models have.

    ``architectures``: the configs of the models, None where a model was given and is not to be built
    otherwise.
    """
    builds = dict.fromkeys(_other_build(one) for one in architectures)
    of_model = "".join(f"{build}, " for build in builds if build)
    return f"What helped others: a longer warm-up, another peak rate, {of_model}and more steps (docs/loss.md)"


def architecture_of(run: Run) -> dict[str, Any] | None:
    """The config of the model that a run built, of its last checkpoint, or what was asked for where there is
    none; None where its model was given.
    """
    asked = run.config.get("model")
    if not isinstance(asked, dict) or asked.get("kind") != "config":
        return None
    built: dict[str, Any] | None = None
    if run.summary is not None and isinstance(checkpoint := run.summary.get("checkpoint"), str):
        try:
            built = read_object(run.path / checkpoint / MODEL / "config.json")
        except DataError:
            built = None
    return {
        "model_type": asked.get("model_type"),
        **(asked.get("overrides") or {}),
        **(built or {}),
    }


def _other_build(architecture: Mapping[str, Any] | None) -> str:
    """What of a model's build helped others and this one has not; empty where there is nothing."""
    if architecture is None:
        return ""
    if architecture.get("model_type") in _POST_NORM:
        return "a pre-norm model such as modernbert with a window of a few tokens in some layers"
    windowed = [architecture.get(key) for key in ("local_attention", "sliding_window")]
    narrowest = min((size for size in windowed if size), default=None)
    return "" if narrowest is None or narrowest <= _NARROW else "a narrower window in some layers"
