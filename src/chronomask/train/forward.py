"""One micro-batch: rows are masked, or read as they are, and run through the model to their losses."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from chronomask.data.folder import PreparedSplit
from chronomask.data.mixture import MixedSplit
from chronomask.masking.masker import Masker
from chronomask.masking.objective import LateMasks, Objective, next_tokens
from chronomask.masking.tally import class_sums, weighted_sum
from chronomask.model.config import AttentionScope
from chronomask.model.device import autocast
from chronomask.model.documents import attends_by_documents, backbone_inputs, position_offset
from chronomask.model.head import logits_at, losses_at, token_losses
from chronomask.model.last_layer import ending_of
from chronomask.model.late_masks import check_late_masks, shorten
from chronomask.types import MaskedBatch, Precision, Rows

__all__ = [
    "Forward",
    "Part",
    "Predictions",
    "entering",
    "parts_of",
    "room_for_documents",
    "rows_at_fault",
    "tally_losses",
]

LogitsAt = Callable[
    [PreTrainedModel, torch.Tensor, torch.Tensor, Mapping[str, Any], str | None], torch.Tensor
]
"""What :func:`~chronomask.model.head.logits_at` is."""


@dataclass(frozen=True, slots=True)
class Part:
    """One micro-batch, masked and on the device; ``rows`` stay on the host.

    ``causal``: nothing is masked, and each next token is predicted.
    """

    rows: Rows
    batch: MaskedBatch
    inputs: dict[str, Any]
    causal: bool = False
    early_lengths: np.ndarray | None = None
    """int [D]: tokens of each document that are computed before masks enter; None where they enter at once"""


@dataclass(frozen=True, slots=True)
class Predictions:
    """What a step predicts, over all micro-batches and processes.

    Masked tokens and next tokens each have a mean loss of their own; the step minimises the sum of both,
    each times the share of the rows that it is of (as GPT-BERT does, arXiv 2410.24159).
    """

    masked: float
    """masked tokens"""
    divisor: float
    """what the weighted losses of masked tokens are divided by"""
    causal: float
    """next tokens"""
    masked_rows: float
    causal_rows: float

    @classmethod
    def of(cls, parts: Sequence[Part]) -> Predictions:
        """Those of some micro-batches alone."""
        masked = [part for part in parts if not part.causal]
        causal = [part for part in parts if part.causal]
        return cls(
            masked=sum(part.batch.num_predicted for part in masked),
            divisor=sum(part.batch.loss_divisor for part in masked),
            causal=sum(part.batch.num_predicted for part in causal),
            masked_rows=sum(part.rows.num_rows for part in masked),
            causal_rows=sum(part.rows.num_rows for part in causal),
        )

    @property
    def any(self) -> bool:
        return bool(self.masked or self.causal)

    @property
    def causal_share(self) -> float:
        """The share of the rows that are causal."""
        return self.causal_rows / (self.masked_rows + self.causal_rows)

    def share_of(self, part: Part) -> float:
        """The share of the rows that are of the same kind as those of a micro-batch."""
        return self.causal_share if part.causal else 1.0 - self.causal_share

    def contribution(
        self, part: Part, losses: torch.Tensor, log_z: torch.Tensor, z_loss: float
    ) -> torch.Tensor:
        """What a micro-batch adds to what its step minimises: 0-d, with its graph.

        The weighted sum of its ``losses`` [N] over the step's divisor and, with a coefficient ``z_loss``,
        that times the sum of log² Z [N] over the step's predictions (PaLM, arXiv 2204.02311, section 5);
        where rows are of two kinds, each over those of its kind, times their share. It does not matter how
        the step is cut. Loss weights do not weigh log² Z.
        """
        divisor = (self.causal if part.causal else self.divisor) or 1  # or nothing is predicted
        total = weighted_sum(losses, part.batch) / (divisor / self.share_of(part))
        return total + z_loss * self.mean_square(part, log_z) if z_loss else total

    def mean_square(self, part: Part, log_z: torch.Tensor) -> torch.Tensor:
        """What a micro-batch adds to the mean of log² Z over the step's predictions."""
        number = (self.causal if part.causal else self.masked) or 1
        return log_z.square().sum() / (number / self.share_of(part))

    def mean_loss(self, masked: Any, causal: Any) -> tuple[Any, Any]:
        """The mean loss of masked tokens, None where there is none, and what the step minimises.

        ``masked``, ``causal``: sums of the losses of masked and of next tokens, as numbers or 0-d tensors.
        Without weights, so for losses that are weighed the second is what would be minimised without.
        """
        own = masked / self.masked if self.masked else None
        other = causal / self.causal if self.causal else 0.0
        share = self.causal_share
        return own, (1.0 - share) * (0.0 if own is None else own) + share * other


@dataclass(frozen=True, slots=True)
class Forward:
    """How this run turns rows into losses: what stays the same from batch to batch."""

    model: PreTrainedModel
    device: torch.device
    precision: Precision
    attention: AttentionScope
    pad_token_id: int
    compiled: str | None = None
    """backend of ``torch.compile`` for the head; the backbone is compiled in place"""
    tokens: int | None = None
    """tokens of a full micro-batch where the model is compiled: rows of padding bring smaller ones to a
    quarter, a half, three quarters or all of it, so that a warm-up compiles four sizes at most; None: no
    padding"""
    documents: int | None = None
    """documents, padding after one being another, of which a micro-batch has hardly ever more, where the
    model is compiled"""
    logits_at: LogitsAt = logits_at
    """how logits are computed: by a whole model, or by one shared out over processes"""
    masks_enter: Callable[[float], int] | None = None
    """the layer at which masked tokens enter in training, by progress; None: always the first"""

    def mask(self, rows: Rows, masker: Masker, progress: float) -> Part:
        """Mask host rows at ``progress`` and send them to the run's device.

        Masking on the host knows how many tokens are predicted without asking the device.
        """
        batch = masker(rows, progress)
        layer = 0 if self.masks_enter is None else self.masks_enter(progress)
        if not layer:
            return self.place(rows, batch)
        late = rows.input_ids == self.pad_token_id
        ids, positions = batch.input_ids.ravel(), batch.positions
        late.ravel()[positions] = ids[positions] == masker.vocabulary.mask_token_id
        return self.place(rows, batch, late=late, layer=layer)

    def place(
        self,
        rows: Rows,
        batch: MaskedBatch,
        *,
        causal: bool = False,
        late: np.ndarray | None = None,
        layer: int = 0,
    ) -> Part:
        """Host rows, masked already or ``causal``, on the run's device.

        ``late`` bool [B, T]: tokens that enter at ``layer`` and are not computed before.
        """
        shaped, more = rows, ((0, 0), (0, 0))
        if self.tokens is not None and (room := self._room_for(rows)) > rows.num_rows:
            shaped = rows.pad_to(room, self.pad_token_id)
            more = ((0, room - rows.num_rows), (0, 0))
            ids = np.pad(batch.input_ids, more, constant_values=self.pad_token_id)
            batch = replace(batch, input_ids=ids)
        inputs = backbone_inputs(
            shaped,
            self.attention,
            self.pad_token_id,
            position_offset(self.model),
            self.device,
            room=self.documents,
            causal=causal,
            ours=attends_by_documents(self.model),
        )
        lengths = None
        if late is not None:
            inputs["early"], lengths = shorten(
                shaped,
                np.pad(late, more, constant_values=True),
                layer,
                self.attention,
                self.device,
                room=self.documents,
            )
        return Part(rows, batch.to(self.device), inputs, causal, lengths)

    def _room_for(self, rows: Rows) -> int:
        """The number of rows a batch is padded to: a quarter, half, three quarters or all of a full batch.

        A batch that has more rows keeps its own number.
        """
        assert self.tokens is not None
        full = self.tokens // rows.row_length
        quarter = -(-full // 4)
        return max(rows.num_rows, min(full, -(-rows.num_rows // quarter) * quarter))

    def losses(self, part: Part) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """What :func:`~chronomask.model.head.token_losses` says of every predicted token.

        Where the model is compiled they may stand in memory that the next call writes to again.
        """
        batch = part.batch
        if self.compiled is None:
            return token_losses(self.logits(part), batch.targets)
        with self._casting():
            return losses_at(
                self.model, batch.input_ids, batch.positions, batch.targets, part.inputs, self.compiled
            )  # fmt: skip

    def logits(self, part: Part) -> torch.Tensor:
        """float32 [N, V]: the logits of every predicted token."""
        batch = part.batch
        with self._casting():
            logits = self.logits_at(
                self.model, batch.input_ids, batch.positions, part.inputs, self.compiled
            )
        return logits.float()

    def _casting(self) -> torch.autocast:
        """Autocast as the run has it; weights that are bfloat16 themselves need no casts, and norms are to
        give bfloat16 as well.
        """
        whole = self.model.dtype is torch.bfloat16
        return autocast(self.device, "fp32" if whole else self.precision)


def room_for_documents(split: PreparedSplit | MixedSplit, num_rows: int, pad_token_id: int) -> int:
    """Documents of which so many rows, drawn at random, hardly ever hold more; padding counts as another.

    Eight standard deviations above the mean, both from rows all over the split. More would do no harm, but
    would be another shape to compile.
    """
    sample = np.linspace(0, split.num_rows - 1, min(split.num_rows, _SAMPLED_ROWS)).astype(np.int64)
    rows = split.read(sample)
    of_row = np.bincount(rows.cu_seqlens[:-1] // split.row_length, minlength=sample.size)
    of_row += (rows.input_ids == pad_token_id).any(1)
    return math.ceil(num_rows * of_row.mean() + 8 * of_row.std() * num_rows**0.5)


_SAMPLED_ROWS = 4096


def entering(late_masks: LateMasks | None, model: PreTrainedModel) -> Callable[[float], int] | None:
    """The layer of ``model`` at which masked tokens enter, by progress; None where it is always the first.

    Raises UsageError for an architecture that cannot, or a layer that it does not have.
    """
    if late_masks is None:
        return None
    ending, layer = ending_of(model), late_masks.layer
    num_layers = 0 if ending is None else len(ending.layers(model))
    check_late_masks(model, num_layers, layer if isinstance(layer, int) else 0)
    return partial(late_masks.layer_at, num_layers=num_layers)


def parts_of(
    forward: Forward,
    rows: Rows,
    masker: Masker,
    objective: Objective,
    progress: float,
    number: int,
) -> list[Part]:
    """Host rows as some ``number`` micro-batches: those whose rows are masked, then those of causal rows.

    Each holds rows of one kind, so where there are both there may be one micro-batch more.
    """
    causal = objective.is_causal(rows, masker.seed, progress)
    return [
        *(forward.mask(micro, masker, progress) for micro in _cut_alike(rows, ~causal, number)),
        *(
            forward.place(micro, next_tokens(micro), causal=True)
            for micro in _cut_alike(rows, causal, number)
        ),
    ]


def tally_losses(
    sums: torch.Tensor, part: Part, losses: torch.Tensor, correct: torch.Tensor
) -> None:
    """Add a micro-batch to ``sums`` float64 [3, C + 1]: masked tokens by class, then next tokens.

    The three are as in :func:`~chronomask.masking.tally.class_sums`.
    """
    num_classes = sums.shape[1] - 1
    if part.causal:
        alike = torch.zeros_like(part.batch.targets)
        sums[:, num_classes:] += class_sums(alike, losses, correct, 1)
    else:
        classes = part.batch.target_class
        sums[:, :num_classes] += class_sums(classes, losses, correct, num_classes)


def _cut_alike(rows: Rows, which: np.ndarray, number: int) -> Iterator[Rows]:
    """Micro-batches of the rows where ``which`` bool [B], as large as ``number`` of all of them are."""
    if which.any():
        part = rows.select(which)
        yield from part.micro_batches(-(-part.num_rows * number // rows.num_rows))


def rows_at_fault(parts: Sequence[Part], losses: Sequence[torch.Tensor]) -> list[int]:
    """Row ids with a loss that is not finite; ``losses`` are those of ``parts``, in order."""
    found: list[int] = []
    for part, values in zip(parts, losses, strict=True):
        positions = part.batch.positions[~values.isfinite()].cpu().numpy()
        found += part.rows.row_id[np.unique(positions // part.rows.row_length)].tolist()
    return found
