"""A classification head on two spans of a row, for tasks about two words; imports torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["Logits", "SpanClassifier"]


class Logits(NamedTuple):
    """What the head gives: float32 [B, classes]."""

    logits: torch.Tensor


class SpanClassifier(nn.Module):
    """One linear layer on the first token's last hidden state and on the means over two spans."""

    def __init__(self, encoder: PreTrainedModel, num_classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.dropout = nn.Dropout(getattr(encoder.config, "hidden_dropout_prob", 0.1))
        self.classifier = nn.Linear(3 * encoder.config.hidden_size, num_classes).to(encoder.device)

    @property
    def device(self) -> torch.device:
        """That of the weights."""
        return self.classifier.weight.device

    def forward(self, spans: torch.Tensor, **inputs: Any) -> Logits:
        """``spans`` int64 [B, 2, 2]: the first token of each span, and the first after it."""
        states = self.encoder(**inputs).last_hidden_state
        place = torch.arange(states.shape[1], device=states.device)
        inside = (place >= spans[..., :1]) & (place < spans[..., 1:])  # [B, 2, T]
        means = inside.to(states.dtype) @ states / inside.sum(-1, keepdim=True).clamp_min(1)
        both = torch.cat((states[:, :1], means), 1).flatten(1).to(self.classifier.weight.dtype)
        return Logits(self.classifier(self.dropout(both)))
