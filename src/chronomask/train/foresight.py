"""Scores of rows to come: what the model itself finds hard in them, before it trains on them.

Every so many steps, before the first of them, the model passes over all their rows without learning. In each
of several passes another part of the words is shown as [MASK], keyed by row, so that every position is
predicted once. What is kept of a position is the entropy of the prediction or the loss of the truth; it is
the row's score (``Rows.scores``) when its step comes, and part of every checkpoint until then.

Each process scores its own rows of every step, and all hold the scores of all, so that any number of
processes can go on from a checkpoint. Letters: B rows, T tokens, N predicted tokens.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import torch

from chronomask.data.loader import RowLoader
from chronomask.masking.config import MaskingConfig
from chronomask.masking.content import LookAhead
from chronomask.masking.masker import Masker, Vocabulary
from chronomask.masking.ratio import Constant
from chronomask.masking.strategy import Explored
from chronomask.train.config import RunConfig
from chronomask.train.distributed import World
from chronomask.train.forward import Forward, Part
from chronomask.types import VISIT_BITS, Rows

__all__ = ["Foresight", "Scorer"]


class Scorer:
    """Scores rows by the model as it is, which learns nothing from it."""

    def __init__(
        self, ahead: LookAhead, forward: Forward, vocabulary: Vocabulary, seed: int
    ) -> None:
        self._ahead = ahead
        self._forward = replace(  # as validation: the plain model, not compiled
            forward, compiled=None, tokens=None, masks_enter=None
        )
        in_turn = MaskingConfig(
            ratio=Constant(base=1 / ahead.passes),
            strategy=Explored(epochs=ahead.passes),
            mask_replace_prob=1.0,
            random_replace_prob=0.0,
        )
        self._masker = Masker(in_turn, vocabulary, seed=seed)

    @torch.no_grad()
    @torch.compiler.set_stance("force_eager")
    def score(self, parts: Iterable[Rows]) -> list[torch.Tensor]:
        """float32 [B, T] of each part of host rows, on the model's device: each position's score, 0 where
        nothing may be masked.
        """
        self._forward.model.eval()
        scores = [self._score(rows) for rows in parts]
        self._forward.model.train()
        return scores

    def _score(self, rows: Rows) -> torch.Tensor:
        out = torch.zeros(rows.input_ids.size, device=self._forward.device)
        first = _first_turn(rows.epoch, self._ahead.passes)
        for turn in range(self._ahead.passes):
            hidden = replace(rows, epoch=first + turn)
            part = self._forward.mask(hidden, self._masker, 0.0)
            out[part.batch.positions] = self._measure(part)
        return out.view(rows.input_ids.shape)

    def _measure(self, part: Part) -> torch.Tensor:
        """float32 [N], in nats: of every predicted token."""
        if self._ahead.measure == "loss":
            return self._forward.losses(part)[0]
        log_p = self._forward.logits(part).log_softmax(-1)
        return -(log_p.exp() * log_p).sum(-1)


def _first_turn(epoch: np.ndarray, passes: int) -> np.ndarray:
    """int64 [B]: the epoch of the first of ``passes`` turns that are one cycle of their strategy.

    Numbers that stand for the epochs of a loop that gives none are so large that multiples wrap around, and
    may end up within a cycle: these go back to its beginning.
    """
    first = epoch * passes
    visit = first % 2**VISIT_BITS  # what a strategy of turns counts cycles in
    return first - visit + np.minimum(visit, 2**VISIT_BITS - passes) // passes * passes


class Foresight(Scorer):
    """Scores rows before their steps, and holds the scores until then."""

    def __init__(
        self,
        config: RunConfig,
        ahead: LookAhead,
        forward: Forward,
        loader: RowLoader,
        vocabulary: Vocabulary,
    ) -> None:
        """``loader``: of this process's rows; nothing is scored yet."""
        super().__init__(ahead, forward, vocabulary, config.seed)
        self._config, self._loader = config, loader
        self._begin = -ahead.every
        self._scores = torch.zeros(0, loader.split.row_length, dtype=torch.float16)

    def attach(self, rows: Rows, step: int, world: World) -> Rows:
        """Host rows of a 0-based step with their scores, whole or cut; where there are none, all of the
        steps to come are scored first. Every process calls it at the same step.
        """
        if not self._begin <= step < self._begin + self._ahead.every:
            self._look_ahead(step, world)
        begin = self._loader.rows_before(self._begin)
        first, last = self._loader.row_range(step)
        scores = self._scores[first - begin : last - begin].float().numpy()
        return replace(rows, scores=scores.reshape(rows.input_ids.shape))

    def _look_ahead(self, step: int, world: World) -> None:
        """Score the rows of ``step`` and of those after it."""
        loader, sizes = self._loader, self._loader.sizes
        end = min(step + self._ahead.every, self._config.steps)
        begin = loader.rows_before(step)
        shape = loader.rows_before(end) - begin, loader.split.row_length
        scores = torch.zeros(shape, device=world.device)
        maskable = 0
        for ahead in range(step, end):
            rows = loader.rows_at(ahead)
            maskable += int(np.count_nonzero(rows.word_id >= 0))
            # As many parts in all processes, for a model that is shared out over them.
            number = min(sizes.parts_at(ahead, self._config.micro_batches), rows.num_rows)
            parts = rows.micro_batches(world.least(number))
            first, last = loader.row_range(ahead)
            scores[first - begin : last - begin] = torch.cat(self.score(parts))
        world.sum(scores)
        if self._ahead.centred:
            total, number = world.totals(
                0.0 if world.rank else float(scores.double().sum()), maskable
            )
            scores -= total / max(number, 1)
        self._begin, self._scores = step, scores.half().cpu()

    def state_dict(self) -> dict[str, torch.Tensor]:
        """All state as tensors, for the checkpoint."""
        return {"foresight.begin": torch.tensor(self._begin), "foresight.scores": self._scores}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Restore :meth:`state_dict`."""
        self._begin = int(state["foresight.begin"])
        self._scores = state["foresight.scores"]
