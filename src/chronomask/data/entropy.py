"""What a loss is worth: the entropy of words' frequencies, and what a table of pairs of neighbours reaches.

A model that has learnt how often each token is, and nothing else, has the unigram entropy for its loss. One
that does worse than the bigram bound uses less than the token to the left.
"""

from __future__ import annotations

import logging
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from chronomask.data.folder import PreparedData
from chronomask.data.mixture import MixedData
from chronomask.errors import ChronomaskError
from chronomask.storage import read_object, write_json

__all__ = ["Entropy", "measure_entropy"]

logger = logging.getLogger(__name__)

_MOST_TOKENS = 4_000_000
"""Tokens of each split that are counted, of rows evenly spread over it."""
_STRENGTHS = (4, 16, 64, 256, 1024, 4096)
"""How many counts of words' frequencies a left neighbour's own counts are mixed with; the best is taken."""


@dataclass(frozen=True, slots=True)
class Entropy:
    """Nats per token that may be masked, of held-out rows under counts of the rows to train on."""

    unigram: float
    """by words' frequencies alone"""
    bigram: float
    """by the token to the left: pair counts smoothed with words' frequencies"""


def measure_entropy(data: PreparedData | MixedData) -> Entropy | None:
    """That of prepared data; None without held-out rows. Kept by the data's fingerprint, so computed once.

    ``$XDG_CACHE_HOME/chronomask``, or ``~/.cache/chronomask``, keeps it where it can be written.
    """
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    path = home / "chronomask" / "entropy-1" / f"{data.fingerprint}.json"
    try:
        if (kept := read_object(path)) is not None:
            return Entropy(float(kept["unigram"]), float(kept["bigram"]))
    except (ChronomaskError, OSError, KeyError, TypeError, ValueError):
        logger.debug("%s is damaged and is made again", path)
    found = _count(data)
    if found is not None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, asdict(found))
        except (ChronomaskError, OSError) as error:
            logger.debug("%s is not kept: %s", path, error)
    return found


def _count(data: PreparedData | MixedData) -> Entropy | None:
    """The two entropies of the held-out tokens, by counts of the training tokens.

    None where a split is empty.
    """
    left, token = _pairs(data, "train")
    held_left, held_token = _pairs(data, "held_out")
    if not held_token.size or not token.size:
        return None
    size = data.manifest.vocab_size
    frequency = np.bincount(token, minlength=size) + 0.5  # Krichevsky and Trofimov's half count
    unigram = (frequency / frequency.sum())[held_token]
    pairs, counts = np.unique(left * size + token, return_counts=True)
    asked = held_left * size + held_token
    at = np.minimum(np.searchsorted(pairs, asked), pairs.size - 1)
    seen = np.where(pairs[at] == asked, counts[at], 0)
    follows = np.bincount(left, minlength=size)[held_left]
    bigram = min(
        float(-np.log((seen + strength * unigram) / (follows + strength)).mean())
        for strength in _STRENGTHS
    )
    return Entropy(float(-np.log(unigram).mean()), bigram)


def _pairs(data: PreparedData | MixedData, name: str) -> tuple[np.ndarray, np.ndarray]:
    """int64 [N] each: the tokens that may be masked, but for a row's first, and what stands left of them."""
    split = data.split(name)
    total = min(split.num_rows, max(1, _MOST_TOKENS // data.row_length))
    if not total:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    if isinstance(data, MixedData):
        rows = split.read(split.first_rows(total))  # pyright: ignore[reportAttributeAccessIssue]
    else:
        rows = split.read(np.linspace(0, split.num_rows - 1, total).astype(np.int64))
    chosen = rows.word_id[:, 1:] >= 0
    ids = rows.input_ids.astype(np.int64)
    return ids[:, :-1][chosen], ids[:, 1:][chosen]
