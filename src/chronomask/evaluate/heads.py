"""Classification heads, and models run for what their heads read; imports torch.

A head that classifies a text by its first token needs the last layer there alone. After the last attention
no token reads another one, so queries, output projection and feed-forward of that layer, five sixths of its
products, need not be computed elsewhere. Logits and gradients are the same to rounding; dropout is drawn
for fewer numbers. :mod:`chronomask.model.last_layer` does the same for pre-training.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

from chronomask.model.last_layer import ENDINGS, asks_alone, ending_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["FIRST_TOKEN_HEADS", "Logits", "SpanClassifier", "run_headed", "without_unread_mask"]


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
        states = self.encoder(**without_unread_mask(self.encoder, inputs)).last_hidden_state
        place = torch.arange(states.shape[1], device=states.device)
        inside = (place >= spans[..., :1]) & (place < spans[..., 1:])  # [B, 2, T]
        means = inside.to(states.dtype) @ states / inside.sum(-1, keepdim=True).clamp_min(1)
        both = torch.cat((states[:, :1], means), 1).flatten(1).to(self.classifier.weight.dtype)
        return Logits(self.classifier(self.dropout(both)))


def _bert(model: Any, states: torch.Tensor) -> torch.Tensor:
    return model.classifier(model.dropout(model.bert.pooler(states[:, None])))


def _first_of_row(model: Any, states: torch.Tensor) -> torch.Tensor:
    return model.classifier(states[:, None])


def _modernbert(model: Any, states: torch.Tensor) -> torch.Tensor:
    return model.classifier(model.drop(model.head(states)))


FIRST_TOKEN_HEADS: dict[str, Callable[[Any, torch.Tensor], torch.Tensor]] = {
    "bert": _bert,
    "camembert": _first_of_row,
    "electra": _first_of_row,
    "modernbert": _modernbert,
    "roberta": _first_of_row,
    "xlm-roberta": _first_of_row,
}
"""By ``model_type``: (model, backbone's output at the first tokens [B, H]) → logits [B, classes]."""


def run_headed(model: Any, inputs: Mapping[str, Any]) -> Any:
    """The model's output, an object with ``logits``; by the shorter way where its head allows one."""
    head = _first_token_head(model)
    ending = None if head is None else ending_of(model)
    more = dict(inputs)
    if head is None or ending is None:
        return model(**without_unread_mask(model, more))
    input_ids = more.pop("input_ids")
    first = torch.arange(0, input_ids.numel(), input_ids.shape[1], device=input_ids.device)
    if asks_alone(model, ending, more, compiled=False):
        read = ending.read(model, input_ids, more)
        states = ending.ask(model, read.states_at(first), read, first, more.get("documents"))
    else:
        hidden, context = ending.whole(model, input_ids, more)
        states = ending.rest(model, hidden[:, 0], context[:, 0])
    return Logits(head(model, states))


def without_unread_mask(model: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """``inputs`` without ``attention_mask`` [B, T] where documents say all that the model asks of it.

    transformers would ask the device whether it hides anything, and make a mask [B, 1, T, T] of it.
    """
    unread = "documents" in inputs and not _reads_padding(model)
    return {name: each for name, each in inputs.items() if not unread or name != "attention_mask"}


def _reads_padding(model: Any) -> bool:
    """Whether more than attention may ask which tokens are padding, as a head on the mean of tokens does."""
    config: Any = getattr(model, "config", None)  # which a head of ours does not have
    if config is None or config.model_type not in ENDINGS:
        return True
    has_head = model.base_model is not model
    return has_head and getattr(config, "classifier_pooling", "cls") != "cls"


def _first_token_head(model: Any) -> Callable[[Any, torch.Tensor], torch.Tensor] | None:
    if not type(model).__name__.endswith("ForSequenceClassification"):
        return None
    pools_first = getattr(model.config, "classifier_pooling", "cls") == "cls"
    return FIRST_TOKEN_HEADS.get(model.config.model_type) if pools_first else None
