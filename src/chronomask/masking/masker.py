"""Joins the rooms: unmasked rows + progress → a masked batch.

The masker runs in the training process on the rows of the step, with the step's own ratio and the
current class weights; what it draws is keyed by (seed, epoch, row, position). So prefetching, worker
counts, micro-batches, ranks and resume cannot change a mask.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch

from chronomask import keyed
from chronomask.errors import DataError, UsageError
from chronomask.masking import replacement
from chronomask.masking.arguments import (
    check_progress,
    refuse_masked,
    refuse_without_epoch,
    refuse_wrong_types,
)
from chronomask.masking.config import MaskingConfig
from chronomask.masking.content import quantise
from chronomask.masking.loss_weight import weigh_labels
from chronomask.masking.ratio import Constant
from chronomask.masking.rows import RowCollator, as_rows
from chronomask.masking.select import dense, exact, published
from chronomask.masking.strategy import Strategy, Token
from chronomask.masking.tally import StepTally
from chronomask.types import ClassTally, MaskedBatch, Rows, send
from chronomask.vocabulary import Vocabulary, check_padding
from chronomask.yardsticks import VALIDATION_RATIO

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Masker", "Vocabulary", "fixed_masker"]

logger = logging.getLogger(__name__)


class Masker:
    """Masks rows; holds what the schedules learn from training and nothing else that changes.

    ``config``: a :class:`MaskingConfig`, or a dict of its fields; ``class_names``: names of the data's
    class column, "none" first; ``seed``: keys every random number. Raises UsageError for an invalid
    value.

    One training step: mask every micro-batch, :meth:`observe` its losses, and :meth:`end_step` once.
    """

    def __init__(
        self,
        config: MaskingConfig | Mapping[str, Any],
        vocabulary: Vocabulary,
        class_names: Sequence[str] = ("none",),
        seed: int = 0,
    ) -> None:
        """Raises UsageError for values of other types, more classes than fit, or unsuited content."""
        refuse_wrong_types(config, vocabulary, class_names, seed)
        if not isinstance(config, MaskingConfig):
            config = MaskingConfig.parse(config, where="the masking config")
        self.config = config
        self.vocabulary = vocabulary
        self.class_names = tuple(class_names)
        self.seed = seed
        self.content = config.content.begin(self.class_names, vocabulary.size)
        self.ratio = config.ratio.begin()
        self._tally = StepTally(self.content.num_classes)
        self._has_told = False  # of a loss that is not finite
        self._tokenizer: PreTrainedTokenizerBase | None = None
        self._held_weights: torch.Tensor | None = None
        self._refresh_weights()

    @classmethod
    def for_tokenizer(
        cls,
        tokenizer: PreTrainedTokenizerBase,
        masking: MaskingConfig | Mapping[str, Any] | str | Path | None = None,
        *,
        class_names: Sequence[str] = ("none",),
        seed: int = 0,
        **fields: Any,
    ) -> Self:
        """A masker for a tokenizer's vocabulary.

        ``masking``: a config, a dict of its fields, or the path of one as YAML; ``fields`` of
        :class:`MaskingConfig` change it: ``ratio``, ``content``, ``strategy``, ``budget`` and so on, each a
        typed value, a dict such as ``{"kind": "linear", "start": 0.3}``, or a kind with its defaults such as
        ``"ptw"``; 0.15 is a constant ratio, "0.30:0.15" a line. Those given nowhere have their defaults.
        ``class_names``: of the classes in the rows' ``token_class``, "none" first. Raises UsageError for an
        unknown field, an invalid value or an unsuitable tokenizer.
        """
        if not hasattr(tokenizer, "mask_token_id"):
            what = f"tokenizer is {tokenizer!r}, of type {type(tokenizer).__name__}"
            way = "give a tokenizer of transformers, such as AutoTokenizer.from_pretrained(...)"
            raise UsageError(f"{what}; {way}")
        check_padding(tokenizer)
        if "classes" in fields:
            raise UsageError("classes: the names of the classes are given as class_names")
        config = MaskingConfig.of({} if masking is None else masking, **fields)
        masker = cls(config, Vocabulary.from_tokenizer(tokenizer), class_names, seed)
        masker._tokenizer = tokenizer
        return masker

    def __call__(self, rows: Any, progress: float) -> MaskedBatch:
        """The rows masked at ``progress`` in [0, 1]; arrays of the kind and device of the rows.

        ``rows``: :class:`~chronomask.types.Rows` of a loader, or, for a masker that knows its tokenizer,
        a collated batch, a tensor or array of token ids [B, T] or a list of lists of them, as
        :func:`~chronomask.masking.rows.as_rows` reads them. There, a row without a ``row_id`` is known
        by its tokens and an ``epoch`` that is not given by the progress: the same rows get the same
        masks at the same progress.

        Raises UsageError for a ``progress`` that is no number from 0 to 1, for what are no rows, and for rows
        without what the config needs: their classes, or the epoch that a strategy of turns counts. Raises
        DataError for token ids that the tokenizer does not have.
        """
        progress = check_progress(progress)
        if not isinstance(rows, Rows):
            rows = self.rows_of(rows, progress)
        if not isinstance(rows.input_ids, torch.Tensor):
            return self._mask_on_host(rows, progress)
        device = rows.input_ids.device
        if device.type != "cpu" and self._has_dense_form(progress):
            return self.mask_dense(rows, progress)
        return self._mask_on_host(rows.on_host(), progress).to(device)

    @cached_property
    def _collate(self) -> RowCollator | None:
        """What reads words, specials and padding; None for a masker that knows no tokenizer."""
        return None if self._tokenizer is None else RowCollator(self._tokenizer)

    def rows_of(
        self,
        given: Any,
        progress: float,
        epoch: int | Sequence[int] | None = None,
        *,
        uniform: bool = False,
    ) -> Rows:
        """Rows of a batch, of tensors or of lists; raises UsageError where they cannot be masked.

        ``epoch``: which visit of the data this is, where the rows do not know it. ``uniform``: they are to be
        masked whatever their classes, as an evaluation does.
        """
        refuse_without_epoch(given, epoch, self.config.strategy)
        content = self.config.content
        by_class = not (uniform or content.by_token_id)
        rows = as_rows(
            given,
            epoch=epoch,
            progress=progress,
            collate=self._collate,
            classes=by_class and content.needs_classes,
        )
        refuse_masked(given, rows, self.vocabulary.mask_token_id)
        by_class = by_class and (content.needs_classes or self._weights is not None)
        if by_class and (largest := int(rows.token_class.max())) >= len(self.class_names):
            raise UsageError(
                f"the batch has token class {largest}, this masker knows 0 to {len(self.class_names) - 1} "
                f"({', '.join(self.class_names)}): give the names of the data's classes as class_names, that "
                "of class 0, 'none', first"
            )
        return rows

    @property
    def needs_feedback(self) -> bool:
        """Whether masking learns from the training loss, and losses must be observed."""
        return self.config.content.learns or self.config.ratio.watches == "training"

    @property
    def watches_validation(self) -> bool:
        """Whether the ratio responds to the validation loss."""
        return self.config.ratio.watches == "validation"

    def observe(self, batch: MaskedBatch, losses: torch.Tensor, correct: torch.Tensor) -> None:
        """Take in the losses of one micro-batch, once its masks need not be drawn again.

        ``losses`` [N] in nats and ``correct`` bool [N], one per predicted token, as
        :func:`~chronomask.masking.tally.score` gives them. Sums stay on the device of the losses, and
        nothing waits for them. Does nothing where masking learns nothing. Raises UsageError for
        another number of losses.
        """
        if not self.needs_feedback:
            return
        expected = (batch.num_predicted,)
        if tuple(losses.shape) != expected or tuple(correct.shape) != expected:
            raise UsageError(
                f"losses have shape {tuple(losses.shape)} and correct {tuple(correct.shape)}; the "
                f"batch has {batch.num_predicted} predicted tokens, and each needs one of both: "
                "losses, correct = score(logits, batch)"
            )
        self._tally.add(self.feedback_class(batch), losses, correct)

    def end_step(self) -> None:
        """Learn from the step's observed losses; in force from the next step on.

        Call it once per optimiser step, on every rank of torch.distributed: the ranks' sums are
        pooled. Raises UsageError when no losses were observed though masking learns from them. A step that
        predicted no masked token, or has a loss that is not finite, teaches nothing.
        """
        if not self.needs_feedback:
            return
        tally = self._tally.close()
        if tally.count.any() and self._teaches(float(tally.loss_sum.sum())):
            self.update(tally)

    def observe_validation(self, loss: float) -> None:
        """Let a ratio that responds to the validation loss take one in (nats per token), if it is finite."""
        if self.watches_validation and self._teaches(loss):
            self.ratio.observe(loss)

    def _teaches(self, loss: float) -> bool:
        """Whether a loss is finite, as all that is learnt must be; the first that is not is told."""
        if not math.isfinite(loss) and not self._has_told:
            logger.warning("masking learns nothing from a loss that is not finite, here %s", loss)
            self._has_told = True
        return math.isfinite(loss)

    def update(self, tally: ClassTally) -> None:
        """Feed back one optimiser step's sums per class; in force from the next step on.

        What :meth:`end_step` calls; for loops that pool the sums of :attr:`num_feedback_classes`
        classes themselves.
        """
        self.content.update(tally)
        self._refresh_weights()
        if self.config.ratio.watches == "training":
            count = float(tally.count.sum())
            if count:  # a step that predicted nothing has no loss
                self.ratio.observe(float(tally.loss_sum.sum()) / count)

    def to(self, device: torch.device | str) -> Masker:
        """Keep the content state on ``device``, where the losses are."""
        self.content.to(device)
        self._refresh_weights()
        return self

    @property
    def num_feedback_classes(self) -> int:
        """C of the tally that :meth:`update` takes."""
        return self.content.num_classes

    def feedback_class(self, batch: MaskedBatch) -> Any:
        """Integer [N]: the class under which each predicted token's loss is to be tallied; "none" for one
        whose name was not given, which content that learns by class has refused.
        """
        if self.config.content.by_token_id:
            return batch.targets
        return batch.target_class * (batch.target_class < len(self.class_names))

    def class_weights(self, progress: float | None = None) -> dict[str, float] | None:
        """Weight of each class as learnt for the next step; None without class weights.

        With ``progress``: raised to the strength that is in force then.
        """
        weights = None if self.config.content.by_token_id else self._weights
        if weights is None:
            return None
        if progress is not None:
            weights = weights ** self.config.content.strength_at(progress)
        return dict(zip(self.class_names, weights.tolist(), strict=True))

    def ratio_at(self, progress: float) -> float:
        """The mean ratio asked at ``progress``, the response to the loss so far included."""
        return self.ratio.at(progress)

    def hold(
        self, *, ratio: float | None = None, class_weights: Sequence[float] | None = None
    ) -> None:
        """Keep a ratio, or a weight per class, as a run has logged it, whatever the schedules would give.

        For pictures of a run; what is None is left to its schedule. Not part of :meth:`state_dict`.
        """
        if ratio is not None:
            self.ratio = Constant(base=ratio).begin()
        if class_weights is not None:
            self._held_weights = torch.tensor(class_weights, dtype=torch.float64)
            self._refresh_weights()

    def state_dict(self) -> dict[str, torch.Tensor]:
        """All state as tensors, for the checkpoint."""
        state = {f"content.{k}": v for k, v in self.content.state_dict().items()}
        return state | {f"response.{k}": v for k, v in self.ratio.state_dict().items()}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Restore :meth:`state_dict`, as a new step begins; raises DataError if it is of another schedule."""
        self._tally.discard()
        self.content.load_state_dict(_entries_of(state, "content."))
        self.ratio.load_state_dict(_entries_of(state, "response."))
        self._refresh_weights()

    def continue_from(self, state: dict[str, torch.Tensor]) -> dict[str, DataError]:
        """Restore what the schedules learned in training that may have had others, each by itself.

        Gives the schedules that begin anew instead, "content" or "ratio", and why.
        """
        self._tally.discard()
        anew: dict[str, DataError] = {}
        named = (("content", "content.", self.content), ("ratio", "response.", self.ratio))
        for name, prefix, schedule in named:
            try:
                schedule.load_state_dict(_entries_of(state, prefix))
            except DataError as error:
                anew[name] = error
        self._refresh_weights()
        return anew

    def _refresh_weights(self) -> None:
        held = self._held_weights
        self._weights = self.content.weights() if held is None else held
        self._in_force: dict[float, torch.Tensor] = {}

    def _weights_at(self, progress: float, by_level: bool) -> torch.Tensor | None:
        """float64 [C]: weights of classes as units are chosen by them at ``progress``; None for none.

        Where a unit's weight is the mean over its tokens (``by_level``), they are those of its tokens:
        the power is taken of the mean. Kept until the next update, for a step has many micro-batches.
        """
        content = self.config.content
        if self._weights is None:
            return None
        strength = 1.0 if by_level else content.strength_at(progress)
        if strength not in self._in_force:
            weights = self._weights if strength == 1.0 else self._weights**strength
            if content.selection == "exact":
                weights = quantise(weights)
            self._in_force = {strength: weights}
        return self._in_force[strength]

    def _by_level(self, strategy: Strategy) -> bool:
        """Whether tokens of a unit may differ in weight: the unit's then is one of a few levels."""
        return self.config.content.by_token_id or strategy.mixes_classes

    def _weigh(
        self, rows: Rows, units: Any, strategy: Strategy, progress: float
    ) -> tuple[Any, Any]:
        """The class of each token, [B, T], and the weight of each class, [C], where the rows are.

        Classes are those of the data, or levels of the units' weights; weights are None where all units
        are alike.
        """
        content = self.config.content
        on_device = isinstance(rows.input_ids, torch.Tensor)
        per_token = self.content.weigh_positions(rows)
        by_level = per_token is not None or self._by_level(strategy)
        weights: Any = self._weights_at(progress, by_level)
        if weights is not None:
            weights = weights.to(rows.input_ids.device) if on_device else weights.cpu().numpy()
        if per_token is None:
            if weights is None or not by_level:
                return rows.token_class, weights
            looked_up = rows.input_ids if content.by_token_id else rows.token_class
            per_token = weights[looked_up.long() if on_device else looked_up]
        levels = exact.level_weights(content.strength_at(progress))
        if on_device:
            classes = dense.levels(units, per_token, strategy.each_token)
            return classes, send(levels, rows.input_ids.device)
        return exact.levels(units, per_token, strategy.each_token), levels

    def _by_unit(self, strategy: Strategy) -> bool:
        """Whether one draw says what is shown in place of all tokens of a unit."""
        return self.config.replace_unit == "unit" and not strategy.each_token

    def _mask_on_host(self, rows: Rows, progress: float) -> MaskedBatch:
        """Rows of numpy arrays, masked by compiled loops."""
        strategy = self.config.strategy.at(progress)
        ratio = self.ratio.ratios(progress, rows, self.seed)
        units = strategy.units(rows, self.seed)
        keys = keyed.keys_by_stream(self.seed, rows.epoch, rows.row_id)
        classes, weights = self._weigh(rows, units, strategy, progress)
        if self.config.content.selection == "published" and weights is not None:
            positions = published.walk(
                units,
                classes,
                weights,
                ratio,
                keys[keyed.Stream.SELECT],
                keys[keyed.Stream.ACCEPT],
                self._own_length(rows),
            )
        else:
            random = exact.RowRandomness.of(self.seed, keys, rows.place)
            # Of the units whose turn it is, so many times the ratio is masked.
            turns = strategy.turns
            among = ratio if turns == 1 else np.minimum(1.0, ratio * turns)
            positions = exact.select(
                units, classes, weights, among, random, strategy.each_token, self.config.budget
            )

        input_ids, labels = np.empty_like(rows.input_ids), np.empty(units.shape, np.int64)
        targets = np.empty(positions.size, np.int64)
        target_class = np.empty(positions.size, np.uint8)
        mask_below, random_below = self._replace_bounds(progress)
        replacement.replace(
            rows.input_ids,
            rows.token_class,
            positions,
            units,
            self._by_unit(strategy),
            keys[keyed.Stream.REPLACE],
            keys[keyed.Stream.TOKEN],
            keyed.spread_of_range(rows.row_length),
            mask_below,
            random_below,
            self.vocabulary.mask_token_id,
            self.vocabulary.ordinary_ids,
            input_ids,
            labels,
            targets,
            target_class,
        )
        return MaskedBatch(
            input_ids=input_ids,
            labels=labels,
            positions=positions,
            targets=targets,
            target_class=target_class,
            num_maskable=exact.count_maskable(rows.word_id),
            masking_ratio=float(ratio.sum()) / rows.num_rows,
            cu_seqlens=rows.cu_seqlens,
            attention_mask=rows.attention_mask,
            token_type_ids=rows.token_type_ids,
            **self._weigh_losses(rows, ratio, positions, progress),
        )

    def _own_length(self, rows: Rows) -> np.ndarray:
        """int64 [B]: tokens of each host row that are not padding."""
        there = (rows.input_ids != self.vocabulary.pad_token_id) | (rows.word_id >= 0)
        return np.count_nonzero(there, axis=1)

    def _weigh_losses(
        self, rows: Rows, ratio: np.ndarray, positions: Any, progress: float
    ) -> dict[str, Any]:
        """``loss_weights`` and ``divisor`` of a batch; nothing where every label counts the same.

        ``ratio`` float64 [B]; ``positions`` [N] where the rows are.
        """
        config = self.config
        if not config.weighs_losses:
            return {}
        of_row = config.loss_weight.of_rows(ratio, self.ratio.slopes(progress, rows, self.seed))
        weights, divisor = weigh_labels(of_row, config.loss_per, rows.word_id >= 0, positions)
        return {"loss_weights": weights, "divisor": divisor}

    def _replace_bounds(self, progress: float) -> tuple[int, int]:
        """Bounds, out of 2³², below which a token is masked, or else shown as a random one."""
        mask, random = self.config.replace_probs(progress)
        return round(mask * 2**32), min(2**32, round((mask + random) * 2**32))

    def _has_dense_form(self, progress: float) -> bool:
        """Whether both selection and units can be computed where the rows are; else on the host."""
        strategy = self.config.strategy.at(progress)
        return self.config.content.selection == "exact" and strategy.has_dense_form

    def mask_dense(self, rows: Rows, progress: float) -> MaskedBatch:
        """What a call gives, bit for bit, by dense torch operations on the rows' own device.

        One host synchronisation: the number of predicted tokens.
        """
        strategy = self.config.strategy.at(progress)
        ratio = self.ratio.ratios(progress, rows, self.seed)
        device = rows.input_ids.device
        units = strategy.units(rows, self.seed)
        classes, weights = self._weigh(rows, units, strategy, progress)
        keys = keyed.keys_by_stream(self.seed, rows.epoch, rows.row_id)
        random = exact.RowRandomness.of(self.seed, keys, rows.place)
        selected = dense.select(
            units, classes, weights, ratio, random, strategy.each_token, self.config.budget
        )
        input_ids = dense.replace(
            rows.input_ids,
            selected,
            units if self._by_unit(strategy) else None,
            keys[keyed.Stream.REPLACE],
            keys[keyed.Stream.TOKEN],
            self._replace_bounds(progress),
            self.vocabulary.mask_token_id,
            send(self.vocabulary.ordinary_ids, device),
        )
        positions = selected.flatten().nonzero()[:, 0]
        return MaskedBatch(
            input_ids=input_ids,
            labels=torch.where(selected, rows.input_ids, -100),
            positions=positions,
            targets=rows.input_ids.flatten()[positions],
            target_class=rows.token_class.flatten()[positions],
            num_maskable=(rows.word_id >= 0).sum(),
            masking_ratio=float(ratio.sum()) / rows.num_rows,
            cu_seqlens=rows.cu_seqlens,
            attention_mask=rows.attention_mask,
            token_type_ids=rows.token_type_ids,
            **self._weigh_losses(rows, ratio, positions, progress),
        )


def _entries_of(state: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """The entries whose names begin with ``prefix``, without it."""
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


def fixed_masker(vocabulary: Vocabulary, ratio: float = VALIDATION_RATIO) -> Masker:
    """The masker of validation: a fixed ratio, uniform over tokens, the same for every arm."""
    config = MaskingConfig(ratio=Constant(base=ratio), strategy=Token())
    return Masker(config, vocabulary, seed=0)
