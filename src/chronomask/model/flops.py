"""Floating-point operations of a training step, by formula.

A weight matrix that multiplies a token's vector costs two operations per entry forwards and four
backwards: 6 × entries (Kaplan et al., arXiv 2001.08361, §2.1). Embedding tables are looked up and cost
nothing; the head, and the last layer's queries and all that follows them, cost only where something is
predicted. Attention over pairs of tokens that see each other adds, per layer and pair, two products of the
layer's width (scores and sums): 4 × width forwards, 12 × width with the backward pass. Norms, activations,
softmax and the optimiser are left out, as is usual: they are under two percent.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import nn
from transformers import PreTrainedModel

from chronomask.model.attention import head_width
from chronomask.model.config import AttentionScope
from chronomask.model.head import HEADS
from chronomask.model.last_layer import ending_of, entries_at_predictions
from chronomask.types import Rows

__all__ = ["Flops", "Pairs", "count_flops", "count_layers", "lengths_in"]


@dataclass(frozen=True, slots=True)
class Pairs:
    """Layers that attend in the same way: ``window`` is the largest distance seen, None for any."""

    layers: int
    width: int
    window: int | None
    predicted: bool = False
    """whether predicted tokens alone see others: the last layer of a model that ``ENDINGS`` knows"""

    def within(self, lengths: np.ndarray) -> int:
        """Pairs of tokens that see each other in documents of these lengths, self included."""
        lengths = lengths.astype(np.int64)
        if self.window is None:
            return int((lengths * lengths).sum())
        reach = np.minimum(self.window, lengths - 1)
        return int((lengths * (2 * reach + 1) - reach * (reach + 1)).sum())


@dataclass(frozen=True, slots=True)
class Flops:
    """Operations of a forward and backward pass, in parts that add up."""

    per_token: int
    """of the matrices that every token goes through"""
    per_prediction: int
    """of the matrices that only predicted tokens go through"""
    attention: tuple[Pairs, ...]

    def of_attention(
        self, lengths: np.ndarray, predicted: float | None = None, *, causal: bool = False
    ) -> int:
        """Of attention within documents of these lengths (int [D]), of ``causal`` ones to what is before.

        ``predicted``: tokens that are predicted, as if each document had its share of them; None: all.
        """
        pairs = [p.within(lengths) for p in self.attention]
        tokens = int(lengths.sum())
        if causal:  # every pair once, and each token with itself
            pairs = [(number + tokens) // 2 for number in pairs]
        share = 1.0 if predicted is None or not tokens else min(1.0, predicted / tokens)
        return round(
            sum(
                12 * p.layers * p.width * n * (share if p.predicted else 1.0)
                for p, n in zip(self.attention, pairs, strict=True)
            )
        )

    def of(self, lengths: np.ndarray, predicted: float, *, causal: bool = False) -> float:
        """Of documents of these lengths, ``causal`` or not, of which ``predicted`` tokens are predicted."""
        dense = self.per_token * int(lengths.sum()) + self.per_prediction * predicted
        return dense + self.of_attention(lengths, predicted, causal=causal)


def lengths_in(rows: Rows, pad_token_id: int, scope: AttentionScope) -> np.ndarray:
    """int64 [D]: tokens that see each other in host rows, without padding: of documents, or of whole rows."""
    bounds = np.asarray(rows.cu_seqlens, np.int64)
    if scope == "row":
        bounds = np.arange(rows.num_rows + 1) * rows.row_length
    kept = np.concatenate(([0], np.cumsum(rows.input_ids.ravel() != pad_token_id)))
    return np.diff(kept[bounds])


def count_flops(model: PreTrainedModel) -> Flops:
    """The operations of a model; it may lie on the ``meta`` device. Convolutions are not counted."""
    inside = Counter[nn.Module](m for m in model.base_model.modules() if isinstance(m, nn.Linear))
    config = model.config
    shared = getattr(config, "num_hidden_groups", None)
    if shared is not None:  # ALBERT: one group of layers is run through again and again
        encoder: Any = model.base_model.encoder.albert_layer_groups  # pyright: ignore
        again = config.num_hidden_layers // shared
        for module in encoder.modules():
            if module in inside:
                inside[module] = again
    everywhere = sum(m.weight.numel() * times for m, times in inside.items())  # pyright: ignore
    head = sum(
        m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear) and m not in inside
    )
    late = entries_at_predictions(model)
    everywhere, head = everywhere - late, head + late
    if config.model_type not in HEADS:  # all logits are computed, and some are kept
        everywhere, head = everywhere + head, 0
    return Flops(6 * everywhere, 6 * head, _attention(model))


def count_layers(model: PreTrainedModel) -> list[Flops]:
    """The operations of each layer but the last, from the first on, for a model that ``ENDINGS`` knows."""
    ending = ending_of(model)
    if ending is None:
        return []
    layers = list(ending.layers(model))[:-1]
    numel = [
        sum(m.weight.numel() for m in layer.modules() if isinstance(m, nn.Linear))
        for layer in layers
    ]
    return [
        Flops(6 * number, 0, (pairs,))
        for number, pairs in zip(numel, _by_layer(model), strict=False)
    ]


def _attention(model: PreTrainedModel) -> tuple[Pairs, ...]:
    """Layers by how they attend; none where the config tells of no attention heads, as FNet's."""
    layers = _by_layer(model)
    if ending_of(model) is not None:
        layers[-1] = replace(layers[-1], predicted=True)
    counts = Counter(layers)
    return tuple(replace(pairs, layers=number) for pairs, number in counts.items())


def _by_layer(model: PreTrainedModel) -> list[Pairs]:
    """How each layer attends, from the first on."""
    config: Any = model.config.get_text_config()
    of_one = head_width(config)
    if of_one is None:
        return []
    width = config.num_attention_heads * of_one
    kinds = getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers
    local = getattr(config, "local_attention", None)
    return [
        Pairs(1, width, local // 2 if kind == "sliding_attention" and local else None)
        for kind in kinds
    ]
