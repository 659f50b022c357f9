"""What training changes beside model, optimiser and masker: counters, the last validation, sums for the log.

It lives in the checkpoint, so that a run that is resumed goes on as if it had never stopped.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from chronomask.runs.rules import progress
from chronomask.train.config import RunConfig

__all__ = ["State", "Window"]

_WINDOW_TENSOR = "window.by_class"


@dataclass(slots=True)
class Window:
    """Sums since the last logged line. ``by_class`` float64 [3, C] as in ``tally.class_sums``."""

    by_class: torch.Tensor
    tokens: int = 0
    idle_tokens: int = 0
    """of steps that predicted nothing, and so computed nothing"""
    masked_tokens: int = 0
    causal_tokens: int = 0
    causal_loss_sum: float = 0.0
    seconds: float = 0.0
    seconds_waiting: float = 0.0
    flops_of_attention: float = 0.0
    skipped: list[int] = field(default_factory=list)
    """steps (1-based) left out as outliers"""


@dataclass(slots=True)
class State:
    """Everything that training changes outside of model, optimiser and masker."""

    window: Window
    step: int = 0
    tokens_seen: int = 0
    """tokens that are not padding"""
    maskable_tokens: int | None = 0
    """tokens that could have been predicted; None in a run that began before they were counted"""
    masked_tokens: int = 0
    """tokens predicted from both sides"""
    causal_tokens: int = 0
    """tokens of causal rows predicted from those before them"""
    rows_seen: int = 0
    first_row: int = 0
    """rows of the order that the run took from which this one branched"""
    first_step: int = 0
    """steps that it had done then, over all that it branched from itself: dropout goes on from there"""
    seconds: float = 0.0
    """time in training steps, without validation and saving"""
    validation_loss: float | None = None
    validation_accuracy: float | None = None
    yardsticks: dict[str, Any] | None = None
    """of the last validation, as :func:`~chronomask.yardsticks.kept_of` gives them"""
    raw: dict[str, Any] | None = None
    """of the last validation, where those above are of averaged weights: ``loss``, ``accuracy`` and
    yardsticks of the weights as trained"""
    unpredicted: float = 0.0
    """labels asked for, at most 10 a step, since something was predicted last"""
    predicted_step: int = 0
    """the last step (1-based) that predicted something, or asked for nothing"""

    @classmethod
    def start(cls, num_classes: int) -> State:
        """Before the first step."""
        return cls(Window(torch.zeros(3, num_classes, dtype=torch.float64)))

    def progress(self, config: RunConfig) -> float:
        """Training progress in [0, 1] of the step to come, counted as the config says."""
        return progress(config, self.step, self.masked_tokens)

    def count(
        self,
        *,
        rows: int,
        tokens: int,
        maskable_tokens: int,
        masked_tokens: int,
        causal_tokens: int = 0,
    ) -> None:
        """Count one step over all processes."""
        self.step += 1
        self.rows_seen += rows
        self.tokens_seen += tokens
        if self.maskable_tokens is not None:
            self.maskable_tokens += maskable_tokens
        self.masked_tokens += masked_tokens
        self.causal_tokens += causal_tokens
        self.window.tokens += tokens
        self.window.causal_tokens += causal_tokens
        self.window.masked_tokens += masked_tokens

    def add_time(self, seconds: float, waiting: float) -> None:
        """Count the time of a step, ``waiting`` of it spent on rows."""
        self.seconds += seconds
        self.window.seconds += seconds
        self.window.seconds_waiting += waiting

    def begin_window(self) -> None:
        """Forget the sums since the last logged line."""
        self.window = Window(torch.zeros_like(self.window.by_class))

    def to_json(self, config: RunConfig, data_fingerprint: str) -> dict[str, Any]:
        """What ``state.json`` holds; :meth:`from_checkpoint` reads it back."""
        own = {name: getattr(self, name) for name in _COUNTERS}
        window = {k: v for k, v in asdict(self.window).items() if k != "by_class"}
        return {
            **own,
            "window": window,
            "data_fingerprint": data_fingerprint,
            "config": config.to_dict(),
        }

    def tensors(self) -> dict[str, torch.Tensor]:
        """The rest of the state, for ``content.safetensors``."""
        return {_WINDOW_TENSOR: self.window.by_class}

    @classmethod
    def from_checkpoint(cls, saved: dict[str, Any], tensors: dict[str, torch.Tensor]) -> State:
        """The state that :meth:`to_json` and :meth:`tensors` gave."""
        window = Window(tensors[_WINDOW_TENSOR], **saved["window"])
        zero: dict[str, Any] = dict.fromkeys(
            ("unpredicted", "first_row", "first_step", "causal_tokens"), 0
        )
        zero["predicted_step"] = saved["step"]
        known: dict[str, Any] = dict.fromkeys(_LATER) | zero | saved
        return cls(window, **{name: known[name] for name in _COUNTERS})


_LATER = ("maskable_tokens", "yardsticks", "raw")
"""Counters that checkpoints of older versions do not have."""
_COUNTERS = (
    "step", "tokens_seen", "masked_tokens", "causal_tokens", "rows_seen", "seconds",
    "validation_loss", "validation_accuracy", "unpredicted", "predicted_step", "first_row", "first_step",
    *_LATER,
)  # fmt: skip
