"""A run: what stays the same while it trains. What changes is its :class:`~chronomask.train.state.State`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from chronomask.data.folder import PreparedData
from chronomask.data.loader import RowLoader
from chronomask.data.mixture import MixedData
from chronomask.errors import amount
from chronomask.masking.masker import Masker
from chronomask.model.export import model_card
from chronomask.model.flops import Flops, count_flops, count_layers
from chronomask.runs.layout import AVERAGED, MODEL, RunFolder
from chronomask.train.averaging import Average
from chronomask.train.config import RunConfig
from chronomask.train.foresight import Foresight
from chronomask.train.forward import Forward
from chronomask.train.low_precision import WorkingCopy
from chronomask.train.outliers import OutlierState
from chronomask.train.saving import Saver, Snapshot, take
from chronomask.train.sharding import Sharded
from chronomask.train.state import State
from chronomask.yardsticks import losses_in_words

__all__ = ["Run", "is_due"]


@dataclass(slots=True)
class Run:
    """The parts of a run. ``finished``: the summary of a run that is complete already."""

    config: RunConfig
    folder: RunFolder
    data: PreparedData | MixedData
    tokenizer: PreTrainedTokenizerBase
    model: PreTrainedModel
    """whose weights are updated and saved"""
    forward: Forward
    """how losses are computed: with the model, or with its bfloat16 copy"""
    optimiser: torch.optim.Optimizer
    masker: Masker
    validation_masker: Masker
    loader: RowLoader
    """this process's rows of every step from the state's on"""
    saver: Saver
    outliers: OutlierState
    average: Average | None = None
    """the mean of the weights; None where none is kept"""
    working_copy: WorkingCopy | None = None
    """the bfloat16 weights that losses are computed with; None where they are the model's own"""
    mean_labels: float | None = None
    """of a step; None where the learning rate does not follow labels"""
    sharded: Sharded | None = None
    """how the model is shared out; None where every process has all of it"""
    foresight: Foresight | None = None
    """what scores rows before their steps; None where content does not ask for it"""
    finished: dict[str, Any] | None = None
    initial_weights_sha256: str | None = None
    """of a run that starts now; None on resume"""
    first_step: int = 0
    """steps of the runs that this one goes on from"""
    logged_every: int | None = None
    """steps between logged lines before a resume; None for a run that starts now"""
    peak_flops: float = 0.0
    """of one device, the fastest that was measured or reached; known to the first process alone"""
    data_sheet_flops: float | None = None
    """of one device, as its maker states it; None where that is not known"""
    parameters: list[torch.nn.Parameter] = field(init=False)
    flops: Flops = field(init=False)
    layers: list[Flops] = field(init=False)
    """of the layers that late masks may skip"""

    def __post_init__(self) -> None:
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.flops = count_flops(self.model)
        self.layers = count_layers(self.model)

    @property
    def begins(self) -> bool:
        """Whether the run starts now, and does not go on from a checkpoint of its own."""
        return self.logged_every is None

    @property
    def num_parameters(self) -> int:
        """Trainable parameters, shared ones counted once."""
        return sum(p.numel() for p in self.parameters)

    def round_weights(self) -> None:
        """Let losses be computed with the weights that the model has now."""
        if self.working_copy is not None:
            self.working_copy.refresh()

    def content(self, state: State) -> dict[str, torch.Tensor]:
        """What ``content.safetensors`` holds: state beside weights and optimiser."""
        mean = {} if self.average is None else self.average.state_dict()
        ahead = {} if self.foresight is None else self.foresight.state_dict()
        parts = (self.masker.state_dict(), self.outliers.state_dict(), mean, ahead)
        return {k: v for part in parts for k, v in part.items()} | state.tensors()

    def snapshot(self, state: State, *, copied: bool, kept: bool) -> Snapshot | None:
        """All that a checkpoint holds; ``copied`` and ``kept`` as in :func:`take`. Every process calls it."""
        return take(
            state.to_json(self.config, self.data.fingerprint),
            self.cards(state),
            self.model,
            self.optimiser,
            self.content(state),
            averaged={} if self.average is None else self.average.by_parameter(),
            copied=copied,
            kept=kept,
        )

    def cards(self, state: State) -> dict[str, str]:
        """The model cards of a checkpoint, by the folders of its models."""
        measured = {"loss": state.validation_loss, **(state.yardsticks or {})}
        if self.average is None or not self.average.number:
            return {MODEL: self._card(state, measured)}
        assert self.config.averaging is not None
        how = ", ".join(f"{k} {v}" for k, v in self.config.averaging.to_dict().items())
        mean = f"a mean of those after {amount(self.average.number, 'steps')} ({how})"
        trained = f"as trained; a mean of them lies in ../{AVERAGED}"
        return {
            MODEL: self._card(state, state.raw or {"loss": None}, trained),
            AVERAGED: self._card(state, measured, mean),
        }

    def _card(self, state: State, measured: dict[str, Any], weights: str | None = None) -> str:
        """A model card; ``weights``: which they are, where there are two kinds."""
        config = self.config
        beside: dict[str, Any] = {}
        if config.objective.has_causal_rows:
            beside["objective"] = config.objective.to_dict()
        if config.late_masks is not None:
            beside["late_masks"] = config.late_masks.to_dict()
        masking = config.masking.to_dict()
        following = {"causal_tokens": state.causal_tokens} if "objective" in beside else {}
        number = measured.get("num_predicted")
        mean = measured.get("mean_loss")
        resting = "" if number is None else f" ({amount(number, 'predictions')})"
        return model_card(
            name=str(self.config.name),
            model_type=self.model.config.model_type,
            num_parameters=self.num_parameters,
            data_fingerprint=self.data.fingerprint,
            masking={"masking": masking, **beside} if beside else masking,
            counters={
                "step": state.step,
                "steps": self.config.steps,
                "tokens_seen": state.tokens_seen,
                "masked_tokens": state.masked_tokens,
                **following,
            },
            losses={
                f"held-out rows, 15 % of tokens masked{resting}": measured["loss"],
                **({"mean of the five yardsticks below": mean} if mean is not None else {}),
            },
            yardsticks=losses_in_words(
                *(measured.get(f"yardstick_{kind}", {}) for kind in ("loss", "count"))
            ),
            weights=weights,
        )


def is_due(step: int, every: int) -> bool:
    """Whether something done every so many steps falls on ``step``; 0 means never."""
    return every > 0 and step % every == 0
