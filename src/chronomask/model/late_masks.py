"""Masked tokens that enter late: the first layers compute the other tokens alone, in shorter rows.

A [MASK] knows nothing but its place, so the first layers have little to do for it (Liao et al., "Mask more
and mask later", arXiv 2211.04898, who leave it to a decoder of the last layers). Here the layers are the
model's own: after the first N, every masked token joins as its embedding, with its position, and the rest
runs as ever. Letters: B rows, T tokens of a row, E tokens of a shorter row, H width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from chronomask.errors import UsageError
from chronomask.model.config import AttentionScope
from chronomask.model.documents import Documents, documents_between
from chronomask.types import Rows, send_all

__all__ = ["Early", "check_late_masks", "run_layers", "shorten", "widths"]

_WIDTHS = 16
"""Lengths of shorter rows at most, whatever the ratio: that of the fullest row, rounded up to a 16th."""


@dataclass(slots=True)
class Early:
    """The tokens that the first layers compute, left-aligned in rows of E, filled up with rows' first tokens.

    ``places`` int64 [B · E]: where each stands in the flat batch; ``slots`` int64 [B · T]: where each token
    of the batch stands among them; ``shown`` bool [B, T]: whether it does. ``documents`` are theirs, what
    fills a row up being a document of its own.
    """

    layers: int
    places: torch.Tensor
    slots: torch.Tensor
    shown: torch.Tensor
    documents: Documents

    def take(self, whole: torch.Tensor) -> torch.Tensor:
        """The early tokens' part [B, E, …] of something of all tokens [B, T, …]."""
        width = self.documents.max_length
        return whole.flatten(0, 1).index_select(0, self.places).unflatten(0, (-1, width))

    def join(self, early: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
        """``whole`` [B, T, H] with what was computed of its early tokens, [B, E, H], in their places."""
        computed = early.flatten(0, 1).index_select(0, self.slots).view_as(whole)
        return torch.where(self.shown[..., None], computed, whole)


def widths(length: int) -> list[int]:
    """The lengths that shorter rows of ``length`` tokens may have, ascending."""
    unit = -(-length // _WIDTHS)
    return [min(length, unit * k) for k in range(1, -(-length // unit) + 1)]


def shorten(
    rows: Rows,
    late: np.ndarray,
    layers: int,
    scope: AttentionScope,
    device: torch.device | str,
    *,
    room: int | None = None,
) -> tuple[Early, np.ndarray]:
    """Host rows without their ``late`` tokens, bool [B, T], and how many are left of each document, int [D].

    ``room`` as for :func:`~chronomask.model.documents.backbone_inputs`.
    """
    num_rows, length = late.shape
    shown = ~late
    number = shown.sum(1)
    most = int(number.max(initial=0))
    width = next(width for width in widths(length) if width >= most)
    row_slots = width * np.arange(num_rows)
    slots = np.where(shown, np.cumsum(shown, 1) - 1, 0) + row_slots[:, None]
    places = np.repeat(length * np.arange(num_rows), width)
    places[slots[shown]] = np.flatnonzero(shown)

    bounds = length * np.arange(num_rows + 1)
    if scope == "documents":
        bounds = np.union1d(bounds, np.asarray(rows.cu_seqlens, np.int64))
    before = np.concatenate(([0], np.cumsum(shown)))
    row = bounds[:-1] // length
    begins = row_slots[row] + before[bounds[:-1]] - before[length * row]
    ends = np.union1d(begins, np.append(row_slots + number, num_rows * width))
    return Early(
        layers=layers,
        **send_all({"places": places, "slots": slots.ravel(), "shown": shown}, device),
        documents=documents_between(ends, num_rows, width, device, room=room),
    ), np.diff(before[bounds])


def run_layers(
    layers: Sequence[nn.Module],
    hidden: torch.Tensor,
    early: Early | None,
    call: Callable[[Any, torch.Tensor, Early | None], torch.Tensor],
) -> torch.Tensor:
    """``hidden`` [B, T, H] through the layers, the first of them without late tokens.

    ``call``: (layer, its input, ``early`` where that is of early tokens alone) → its output.
    """
    first = 0 if early is None else early.layers
    if early is not None:
        shown = early.take(hidden)
        for layer in layers[:first]:
            shown = call(layer, shown, early)
        hidden = early.join(shown, hidden)
    for layer in layers[first:]:
        hidden = call(layer, hidden, None)
    return hidden


def check_late_masks(model: PreTrainedModel, num_layers: int, highest: int) -> None:
    """Raise UsageError where masks cannot enter at layer ``highest`` of a model.

    ``num_layers``: those that can be run one by one; 0 for an architecture whose layers cannot.
    """
    if not num_layers:
        raise UsageError(
            f"late_masks: the layers of model type '{model.config.model_type}' cannot be run one by one; "
            "leave late_masks out, or choose bert, camembert, electra, modernbert, roberta or xlm-roberta"
        )
    if highest >= num_layers:
        raise UsageError(
            f"late_masks.layer is {highest}; the model has {num_layers} layers, and masks must enter before "
            f"the last: give at most {num_layers - 1}"
        )
