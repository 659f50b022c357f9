"""The last layer's feed-forward where something is predicted, and nowhere else.

After the last attention no token reads another one, so what follows it (its output projection, the
feed-forward layer, norms and the head) is needed at predicted positions alone. That is three quarters of a
layer's products, for some 15 to 30 % of the tokens. Losses and gradients are the same to rounding; dropout
is drawn for fewer numbers.

An architecture is one entry of :data:`ENDINGS`: how its backbone runs up to the last attention, and what
follows. All others run whole.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.masking_utils import (
    create_bidirectional_mask,
    create_bidirectional_sliding_window_mask,
)

from chronomask.model.attention import DOCUMENTS_ATTENTION
from chronomask.model.late_masks import Early, run_layers
from chronomask.model.rotary import context_of

__all__ = ["Ending", "ending_of", "matrices_after_attention"]

Trunk = Callable[[Any, torch.Tensor, Mapping[str, Any]], tuple[torch.Tensor, torch.Tensor]]
"""(model, input_ids [B, T], inputs) → what the last layer reads, and its attention's output, [B, T, H]"""


@dataclass(frozen=True, slots=True)
class Ending:
    """How an architecture is run up to its last attention and on from there."""

    trunk: Trunk
    rest: Callable[[Any, torch.Tensor, torch.Tensor], torch.Tensor]
    """(model, both of the trunk's at some positions, [N, H] each) → the backbone's output there, [N, H]"""
    layers: Callable[[Any], Sequence[nn.Module]]
    """the model's layers, which the trunk runs one by one"""
    after_attention: Callable[[Any], tuple[nn.Module, ...]]
    """the model's modules that run at predicted positions alone, beside the head"""


def ending_of(model: PreTrainedModel) -> Ending | None:
    """How to end this model at predicted positions; None where its layers run whole."""
    ending = ENDINGS.get(model.config.model_type)
    config: Any = model.config
    whole = (
        ending is None
        or config._attn_implementation != DOCUMENTS_ATTENTION
        or getattr(config, "is_decoder", False)
        or getattr(config, "chunk_size_feed_forward", 0)
    )
    return None if whole else ending


def matrices_after_attention(model: PreTrainedModel) -> set[nn.Module]:
    """The linear layers of the backbone that run at predicted positions alone."""
    ending = ending_of(model)
    inside = () if ending is None else ending.after_attention(model)
    return {m for part in inside for m in part.modules() if isinstance(m, nn.Linear)}


def _bert_trunk(
    model: Any, input_ids: torch.Tensor, inputs: Mapping[str, Any]
) -> tuple[torch.Tensor, torch.Tensor]:
    """What goes into the last layer, and what its attention gives, both [B, T, H]."""
    base = model.base_model
    more = dict(inputs)
    padding, early = more.pop("attention_mask", None), more.pop("early", None)
    embedded = {name: more.pop(name, None) for name in ("position_ids", "token_type_ids")}
    hidden = base.embeddings(input_ids=input_ids, **embedded)
    if hasattr(base, "embeddings_project"):  # ELECTRA's embeddings may be narrower than its layers
        hidden = base.embeddings_project(hidden)
    mask = create_bidirectional_mask(
        config=base.config, inputs_embeds=hidden, attention_mask=padding
    )
    *layers, last = base.encoder.layer

    def call(layer: nn.Module, hidden: torch.Tensor, early: Early | None) -> torch.Tensor:
        if early is None:
            return layer(hidden, mask, **more)
        return layer(hidden, None, documents=early.documents)

    hidden = run_layers(layers, hidden, early, call)
    context, _ = last.attention.self(hidden, attention_mask=mask, **more)
    return hidden, context


def _bert_rest(model: Any, hidden: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
    last = model.base_model.encoder.layer[-1]
    return last.feed_forward_chunk(last.attention.output(context, hidden))


def _bert_after_attention(model: Any) -> tuple[nn.Module, ...]:
    last = model.base_model.encoder.layer[-1]
    return last.attention.output, last.intermediate, last.output


def _modernbert_trunk(
    model: Any, input_ids: torch.Tensor, inputs: Mapping[str, Any]
) -> tuple[torch.Tensor, torch.Tensor]:
    """What goes into the last layer, and what its attention reads, both [B, T, H]."""
    base = model.base_model
    more = dict(inputs)
    padding, positions = more.pop("attention_mask", None), more.pop("position_ids", None)
    early = more.pop("early", None)
    if positions is None:
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)[None]
    hidden = base.embeddings(input_ids=input_ids)
    how = {"config": base.config, "inputs_embeds": hidden, "attention_mask": padding}
    masks = {
        "full_attention": create_bidirectional_mask(**how),
        "sliding_attention": create_bidirectional_sliding_window_mask(**how),
    }
    kinds = dict.fromkeys(base.config.layer_types)
    angles = {kind: base.rotary_emb(hidden, positions, kind) for kind in kinds}
    early_angles = angles
    if early is not None:  # they keep the positions that they have in their documents
        own = early.take(positions.expand_as(input_ids))
        early_angles = {kind: base.rotary_emb(hidden, own, kind) for kind in kinds}
    *layers, last = base.layers

    def call(layer: Any, hidden: torch.Tensor, early: Early | None) -> torch.Tensor:
        kind = layer.attention_type
        if early is None:
            how = {"attention_mask": masks[kind], "position_embeddings": angles[kind], **more}
        else:
            how = {"position_embeddings": early_angles[kind], "documents": early.documents}
        return layer(hidden, **how)

    hidden = run_layers(layers, hidden, early, call)
    kind = last.attention_type
    context = context_of(last.attn, last.attn_norm(hidden), angles[kind], masks[kind], **more)
    return hidden, context


def _modernbert_rest(model: Any, hidden: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
    base = model.base_model
    last = base.layers[-1]
    hidden = hidden + last.attn.out_drop(last.attn.Wo(context))
    return base.final_norm(hidden + last.mlp(last.mlp_norm(hidden)))


def _modernbert_after_attention(model: Any) -> tuple[nn.Module, ...]:
    last = model.base_model.layers[-1]
    return last.attn.Wo, last.mlp


def _bert_layers(model: Any) -> Sequence[nn.Module]:
    return model.base_model.encoder.layer


def _modernbert_layers(model: Any) -> Sequence[nn.Module]:
    return model.base_model.layers


_BERT = Ending(_bert_trunk, _bert_rest, _bert_layers, _bert_after_attention)
ENDINGS: dict[str, Ending] = {
    "bert": _BERT,
    "camembert": _BERT,
    "electra": _BERT,
    "modernbert": Ending(
        _modernbert_trunk, _modernbert_rest, _modernbert_layers, _modernbert_after_attention
    ),
    "roberta": _BERT,
    "xlm-roberta": _BERT,
}
"""By ``model_type``."""
