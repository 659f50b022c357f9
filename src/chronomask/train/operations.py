"""What the steps of a run compute, as its config alone decides it: operations, before anything is trained.

Beside what every token and every prediction costs (:mod:`chronomask.model.flops`), a plan decides how many
rows are causal, which predict nearly every token and attend to half the pairs; which layers masked tokens
skip; and how often the model passes over rows to score them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from transformers import PreTrainedModel

from chronomask.model.flops import Flops, count_layers
from chronomask.runs.rules import Stretch, stretches
from chronomask.train.config import RunConfig
from chronomask.train.forward import entering

__all__ = ["Operations"]

_MOST_STRETCHES = 256
"""Parts of a run that are looked at: ratios and layers hardly move within one."""


class Operations:
    """Operations of a run on rows whose documents have the lengths of a sample, int [D].

    ``flops`` of ``model``, which may lie on the ``meta`` device; ``tokens_per_row`` without padding. Raises
    UsageError where masks cannot enter the model late.
    """

    def __init__(
        self,
        config: RunConfig,
        model: PreTrainedModel,
        flops: Flops,
        lengths: np.ndarray,
        tokens_per_row: float,
    ) -> None:
        self._config, self._flops = config, flops
        self._enter = entering(config.late_masks, model)
        self._layers: Sequence[Flops] = () if self._enter is None else count_layers(model)
        self._lengths, self._tokens_per_row = lengths, tokens_per_row
        self._tokens = max(1, int(lengths.sum()))

    def stretches(self, maskable_at: Callable[[int], float]) -> Iterator[Stretch]:
        """The run in parts whose :meth:`per_token` hardly moves; ``maskable_at`` as for ``stretches``."""
        return stretches(self._config, maskable_at, _MOST_STRETCHES)

    def total(self, maskable_at: Callable[[int], float]) -> float:
        """Of the whole run."""
        found = self.stretches(maskable_at)
        return sum(now.rows * self._tokens_per_row * self.per_token(now) for now in found)

    def per_token(self, now: Stretch) -> float:
        """Of a token in the mean, forwards and backwards, predictions and attention shared out over all."""
        whole = now.maskable / self._tokens_per_row
        masked = self.plain(now.ratio * whole) - self._skipped_by_late_masks(
            now.ratio * whole, now.progress
        )
        causal = self._flops.of(self._lengths, whole * self._tokens, causal=True) / self._tokens
        own = (1 - now.causal_share) * masked + now.causal_share * causal
        return own + self._looking_ahead()

    def plain(self, predicted: float) -> float:
        """Of a token of masked rows of which a share is ``predicted``, where masks enter at once."""
        return self._flops.of(self._lengths, predicted * self._tokens) / self._tokens

    def _skipped_by_late_masks(self, predicted: float, progress: float) -> float:
        """What late masks leave out of :meth:`plain`: the first layers of what is shown as [MASK]."""
        if self._enter is None:
            return 0.0
        shown = self._config.masking.replace_probs(progress)[0]
        left = np.rint(self._lengths * (1 - predicted * shown)).astype(np.int64)
        layers = self._layers[: self._enter(progress)]
        return (
            sum(layer.of(self._lengths, 0) - layer.of(left, 0) for layer in layers) / self._tokens
        )

    def _looking_ahead(self) -> float:
        """Forward passes over rows to come: alone, a third of a step each."""
        ahead = self._config.masking.content.look_ahead
        return 0.0 if ahead is None else ahead.passes * self.plain(1 / ahead.passes) / 3
