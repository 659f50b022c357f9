"""What rows are trained for: their masked tokens, or each next token; and where masks enter. Both may follow
training.

A causal row is shown as it is, its tokens see those before them alone, and the head predicts at every token
the one after it. Weights and head are those of masked rows, which predict at the masked token's own place, so
that the model stays an ordinary masked language model. (GPT-BERT reads masked tokens one place earlier too,
and its checkpoints need code of their own for it.)

An objective is one class: ``causal_share`` is the one thing a new one must define (see
:class:`~chronomask.config.Alternative`). Letters: B rows, T tokens of a row, N predicted tokens.
"""

from __future__ import annotations

from abc import abstractmethod
from functools import cached_property
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, model_validator

from chronomask.config import Alternative, Config
from chronomask.masking.ratio.base import (
    NumberOrCourse,
    PureSchedule,
    Ratio,
    Share,
    refuse_laws,
    value_at,
)
from chronomask.types import MaskedBatch, Rows

__all__ = ["CausalFirst", "Hybrid", "LateMasks", "MaskedOnly", "Objective", "next_tokens"]

_LOOKED_AT = 1000
"""Moments of training at which shares are looked at."""


class Objective(Alternative):
    """What every objective can do."""

    @abstractmethod
    def causal_share(self, progress: float) -> float:
        """The share of a step's rows that predict each next token, in [0, 1], at ``progress``."""

    @property
    def shares(self) -> set[float]:
        """The shares that occur in training."""
        return {self.causal_share(step / _LOOKED_AT) for step in range(_LOOKED_AT)}

    @cached_property
    def has_causal_rows(self) -> bool:
        """Whether any row is causal at any time; worked out once, for every logged line asks."""
        return self.shares != {0.0}

    def is_causal(self, rows: Rows, seed: int, progress: float) -> np.ndarray:
        """Bool [B]: which rows are causal; the same for a row wherever and however often it is asked.

        Rows that follow each other in training are spread evenly over [0, 1), so that every step has its
        share to within a row or two.
        """
        from chronomask import keyed

        if not 0.0 < (share := self.causal_share(progress)) < 1.0:
            return np.full(rows.num_rows, share == 1.0)
        drawn = keyed.weyl(seed, keyed.Stream.OBJECTIVE, rows.place, keyed.SILVER)
        return drawn < round(share * 2**32)


class MaskedOnly(Objective):
    """Masked language modelling alone."""

    kind: Literal["mlm"] = "mlm"

    def causal_share(self, progress: float) -> float:
        return 0.0


class CausalFirst(Objective):
    """Next tokens for the first part of training, masked tokens for the rest.

    Gisserot-Boukhlef et al., "Should we still pretrain encoders with masked language modeling?" (arXiv
    2507.00994), who find 25 to 50 % of the steps best.
    """

    kind: Literal["causal_first"] = "causal_first"
    until: Share = 0.25
    """progress at which masked tokens take over"""

    def causal_share(self, progress: float) -> float:
        return float(progress < self.until)


class Hybrid(Objective):
    """Both in every step: a share of the rows predicts next tokens, the others their masked tokens.

    Charpentier and Samuel, "GPT or BERT: why not both?" (arXiv 2410.24159), with one causal row among 16.
    """

    kind: Literal["hybrid"] = "hybrid"
    causal: Annotated[Ratio | PureSchedule, NumberOrCourse] = 0.0625
    """share of causal rows; a number, or a schedule of progress"""

    @model_validator(mode="after")
    def _check_one_for_all(self) -> Hybrid:
        refuse_laws(self, "causal")
        return self

    def causal_share(self, progress: float) -> float:
        return value_at(self.causal, progress)


class LateMasks(Config):
    """Tokens shown as [MASK] skip the first layers, which compute the others alone.

    Liao et al., "Mask more and mask later" (arXiv 2211.04898). In training alone: a model that is to read
    masks as any other does ends with a stretch of layer 0.
    """

    layer: Annotated[Annotated[int, Field(ge=0, le=10_000)] | PureSchedule, NumberOrCourse]
    """the layer, from 0, at which masked tokens enter; or a schedule of progress for the share of the model's
    layers that they skip"""

    @model_validator(mode="after")
    def _check_one_for_all(self) -> LateMasks:
        refuse_laws(self, "layer")
        return self

    def describe_at(self, progress: float) -> str:
        """What they skip, for people who are shown no model."""
        if isinstance(self.layer, int):
            return f"{self.layer} layers"
        return f"{100 * self.layer.at(progress):.0f} % of the layers"

    def layer_at(self, progress: float, num_layers: int) -> int:
        """The layer at which they enter a model of so many layers, at the latest its last one."""
        if isinstance(self.layer, int):
            return self.layer
        return min(round(self.layer.at(progress) * num_layers), num_layers - 1)


def next_tokens(rows: Rows) -> MaskedBatch:
    """Host rows shown as they are, and at each token the one after it to predict.

    Predicted are the tokens that may be masked (words, neither specials nor padding), all but the first of
    a document, which nothing precedes. ``positions`` are those of the tokens before them; ``labels`` stand
    there too.
    """
    shape = rows.input_ids.shape
    ids, maskable = rows.input_ids.ravel(), rows.word_id.ravel() >= 0
    predicted = maskable.copy()
    bounds = np.asarray(rows.cu_seqlens, np.int64)
    predicted[bounds[:-1][np.diff(bounds) > 0]] = False
    following = np.flatnonzero(predicted)
    labels = np.full(ids.size, -100, np.int64)
    labels[following - 1] = ids[following]
    return MaskedBatch(
        input_ids=rows.input_ids,
        labels=labels.reshape(shape),
        positions=following - 1,
        targets=ids[following].astype(np.int64),
        target_class=rows.token_class.ravel()[following],
        num_maskable=int(np.count_nonzero(maskable)),
        masking_ratio=0.0,
        cu_seqlens=rows.cu_seqlens,
        attention_mask=rows.attention_mask,
        token_type_ids=rows.token_type_ids,
    )
