"""The last layer where something is predicted: its queries, its feed-forward, and nothing elsewhere.

After the last attention no token reads another one. So its queries and what follows it (output projection,
feed-forward layer, norms and the head) are needed at predicted positions alone; keys and values are needed
everywhere. That is five sixths of a layer's products and its whole attention, for some 15 to 30 % of the
tokens. Losses and gradients are the same to rounding; dropout is drawn for fewer numbers.

An architecture is one entry of :data:`ENDINGS`: how its backbone runs up to the last attention, and what
follows. All others run whole.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.masking_utils import (
    create_bidirectional_mask,
    create_bidirectional_sliding_window_mask,
)

from chronomask.model import host
from chronomask.model.attention import attention_at, varlen_fits
from chronomask.model.device import autocast_dtype
from chronomask.model.documents import DOCUMENTS_ATTENTION, Documents
from chronomask.model.flash import queries_agree
from chronomask.model.late_masks import Early, run_layers
from chronomask.model.modernbert import context_of, rotate

__all__ = ["Ending", "Read", "asks_alone", "ending_of", "entries_at_predictions"]


class Read(NamedTuple):
    """What the last attention needs of all tokens, so that some of them can ask."""

    states: tuple[torch.Tensor, ...]
    """[B, T, …] each, or [1, T, …]: the layer's input first, then what else a query is made of"""
    key: torch.Tensor
    """[B, heads, T, width], as the value"""
    value: torch.Tensor
    mask: torch.Tensor | None
    """[B, 1, T, T], made of a caller's padding; None where there is none"""

    def states_at(self, positions: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The states at flat positions int64 [N], all of tokens, [N, …] each."""
        length = self.states[0].shape[1]
        return tuple(
            state.flatten(0, 1).index_select(0, positions)
            if state.shape[0] > 1
            else state[0].index_select(0, positions % length)
            for state in self.states
        )


@dataclass(frozen=True, slots=True)
class Ending:
    """How an architecture is run up to its last attention and on from there."""

    whole: Callable[[Any, torch.Tensor, Mapping[str, Any]], tuple[torch.Tensor, torch.Tensor]]
    """(model, input_ids [B, T], inputs) → what the last layer reads, and its attention's output, [B, T, H]"""
    read: Callable[[Any, torch.Tensor, Mapping[str, Any]], Read]
    """the same arguments → what the last attention needs of all tokens"""
    query: Callable[..., torch.Tensor]
    """(model, what was read at some positions) → their queries, [N, heads, width]"""
    rest: Callable[[Any, torch.Tensor, torch.Tensor], torch.Tensor]
    """(model, the layer's input and the attention's output at some positions, [N, H] each) → the backbone's
    output there, [N, H]"""
    layers: Callable[[Any], Sequence[nn.Module]]
    """the model's layers, which run one by one"""
    attention: Callable[[Any], LastAttention]
    """of the last layer"""
    entries: Callable[[Any], int]
    """of the last layer's weights, how many multiply at predicted positions alone"""

    def ask(
        self,
        model: Any,
        states: Sequence[torch.Tensor],
        read: Read,
        positions: torch.Tensor,
        documents: Documents | None,
    ) -> torch.Tensor:
        """The backbone's output [N, H] at flat ``positions``, whose ``states`` were picked from ``read``.

        Positions as :func:`~chronomask.model.attention.attention_at` takes them.
        """
        how = self.attention(model)
        context = attention_at(
            self.query(model, *states),
            read.key,
            read.value,
            positions,
            read.mask,
            dropout=how.dropout,
            scaling=how.scaling,
            sliding_window=how.window,
            documents=documents,
        )
        return self.rest(model, states[0], context.flatten(1))


class LastAttention(NamedTuple):
    """How the last layer attends: the share of weights dropped now, the scale of scores, and its window."""

    dropout: float
    scaling: float
    window: int | None


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


def asks_alone(
    model: PreTrainedModel, ending: Ending, inputs: Mapping[str, Any], *, compiled: bool
) -> bool:
    """Whether the last layer's queries can be computed at predicted positions alone.

    On the host rows are regrouped, which no compiled graph can. On a device, the kernel for documents of any
    lengths takes fewer queries than keys, but counts windows and what comes before from the end of both; it
    is tried once against float32. Elsewhere all tokens ask, and the rest is computed where it is needed.
    """
    documents: Documents | None = inputs.get("documents")
    if documents is not None and documents.causal:
        return False
    device = next(model.parameters()).device
    if device.type == "cpu":
        return not compiled
    how = ending.attention(model)
    masked = documents is None and inputs.get("attention_mask") is not None
    if how.window is not None or masked:
        return False
    dtype = autocast_dtype(device) or model.dtype
    config: Any = model.config
    heads = config.num_attention_heads
    width = config.hidden_size // heads
    query = torch.empty(0, heads, width, dtype=dtype, device=device)
    return varlen_fits(query, how.dropout) and queries_agree(heads, width, device, dtype, documents)


def entries_at_predictions(model: PreTrainedModel) -> int:
    """How many entries of the backbone's weights multiply at predicted positions alone."""
    ending = ending_of(model)
    return 0 if ending is None else ending.entries(model)


def _entries(*parts: nn.Module) -> int:
    """Entries of the linear layers in some modules."""
    inside = (m for part in parts for m in part.modules() if isinstance(m, nn.Linear))
    return sum(m.weight.numel() for m in inside)


def _padding_in(inputs: dict[str, Any]) -> torch.Tensor | None:
    """Take the caller's mask of padding out of ``inputs``; None where documents say it as well.

    To make a mask of it, transformers asks the device whether all is seen, and waits for the answer.
    """
    padding = inputs.pop("attention_mask", None)
    return padding if inputs.get("documents") is None else None


def _bert_before(
    model: Any, input_ids: torch.Tensor, inputs: Mapping[str, Any]
) -> tuple[torch.Tensor, torch.Tensor | None, dict[str, Any]]:
    """What goes into the last layer, [B, T, H], the mask, and what else its attention is called with."""
    base = model.base_model
    more = dict(inputs)
    padding, early = _padding_in(more), more.pop("early", None)
    embedded = {name: more.pop(name, None) for name in ("position_ids", "token_type_ids")}
    hidden = base.embeddings(input_ids=input_ids, **embedded)
    if hasattr(base, "embeddings_project"):  # ELECTRA's embeddings may be narrower than its layers
        hidden = base.embeddings_project(hidden)
    mask = create_bidirectional_mask(
        config=base.config, inputs_embeds=hidden, attention_mask=padding
    )
    layers = list(base.encoder.layer)[:-1]

    def call(layer: nn.Module, hidden: torch.Tensor, early: Early | None) -> torch.Tensor:
        if early is None:
            return layer(hidden, mask, **more)
        return layer(hidden, None, documents=early.documents)

    hidden = run_layers(layers, hidden, early, call)
    return hidden, mask, more


def _bert_whole(
    model: Any, input_ids: torch.Tensor, inputs: Mapping[str, Any]
) -> tuple[torch.Tensor, torch.Tensor]:
    hidden, mask, more = _bert_before(model, input_ids, inputs)
    last = model.base_model.encoder.layer[-1]
    context, _ = last.attention.self(hidden, attention_mask=mask, **more)
    return hidden, context


def _bert_read(model: Any, input_ids: torch.Tensor, inputs: Mapping[str, Any]) -> Read:
    hidden, mask, _ = _bert_before(model, input_ids, inputs)
    attention = model.base_model.encoder.layer[-1].attention.self
    key, value = (
        project(hidden).unflatten(-1, (-1, attention.attention_head_size)).transpose(1, 2)
        for project in (attention.key, attention.value)
    )
    return Read((hidden,), key, value, mask)


def _bert_query(model: Any, hidden: torch.Tensor) -> torch.Tensor:
    attention = model.base_model.encoder.layer[-1].attention.self
    return attention.query(hidden).unflatten(-1, (-1, attention.attention_head_size))


def _bert_attention(model: Any) -> LastAttention:
    attention = model.base_model.encoder.layer[-1].attention.self
    dropout = attention.dropout.p if attention.training else 0.0
    return LastAttention(dropout, attention.scaling, None)


def _bert_rest(model: Any, hidden: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
    last = model.base_model.encoder.layer[-1]
    return last.feed_forward_chunk(last.attention.output(context, hidden))


def _bert_entries(model: Any) -> int:
    last = model.base_model.encoder.layer[-1]
    return _entries(
        last.attention.self.query, last.attention.output, last.intermediate, last.output
    )


def _modernbert_before(
    model: Any, input_ids: torch.Tensor, inputs: Mapping[str, Any]
) -> tuple[torch.Tensor, torch.Tensor | None, tuple[torch.Tensor, torch.Tensor], dict[str, Any]]:
    """What goes into the last layer, [B, T, H], and its attention's mask, angles and further keywords."""
    base = model.base_model
    more = dict(inputs)
    padding, positions = _padding_in(more), more.pop("position_ids", None)
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
    return hidden, masks[kind], angles[kind], more


def _modernbert_whole(
    model: Any, input_ids: torch.Tensor, inputs: Mapping[str, Any]
) -> tuple[torch.Tensor, torch.Tensor]:
    hidden, mask, angles, more = _modernbert_before(model, input_ids, inputs)
    last = model.base_model.layers[-1]
    return hidden, context_of(last.attn, last.attn_norm(hidden), angles, mask, **more)


def _modernbert_read(model: Any, input_ids: torch.Tensor, inputs: Mapping[str, Any]) -> Read:
    hidden, mask, angles, _ = _modernbert_before(model, input_ids, inputs)
    last = model.base_model.layers[-1]
    both = _part_of(last.attn.Wqkv, last.attn_norm(hidden), slice(last.attn.Wqkv.in_features, None))
    key, value = both.unflatten(-1, (2, -1, last.attn.head_dim)).transpose(1, 3).unbind(2)
    cos, sin = angles
    return Read((hidden, cos, sin), rotate(key, cos.unsqueeze(1), sin.unsqueeze(1)), value, mask)


def _modernbert_query(
    model: Any, hidden: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
) -> torch.Tensor:
    last = model.base_model.layers[-1]
    query = _part_of(last.attn.Wqkv, last.attn_norm(hidden), slice(last.attn.Wqkv.in_features))
    query = query.unflatten(-1, (-1, last.attn.head_dim))
    return rotate(query, cos.unsqueeze(1), sin.unsqueeze(1))


def _part_of(linear: nn.Linear, x: torch.Tensor, outputs: slice) -> torch.Tensor:
    """Some of the numbers that a linear layer gives."""
    bias = None if linear.bias is None else linear.bias[outputs]
    return host.linear(x, linear.weight[outputs], bias)


def _modernbert_attention(model: Any) -> LastAttention:
    attention = model.base_model.layers[-1].attn
    dropout = attention.attention_dropout if attention.training else 0.0
    return LastAttention(dropout, attention.head_dim**-0.5, attention.sliding_window)


def _modernbert_rest(model: Any, hidden: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
    base = model.base_model
    last = base.layers[-1]
    hidden = hidden + last.attn.out_drop(last.attn.Wo(context))
    return base.final_norm(hidden + last.mlp(last.mlp_norm(hidden)))


def _modernbert_entries(model: Any) -> int:
    last = model.base_model.layers[-1]
    return _entries(last.attn.Wo, last.mlp) + last.attn.Wqkv.weight.numel() // 3


def _bert_layers(model: Any) -> Sequence[nn.Module]:
    return model.base_model.encoder.layer


def _modernbert_layers(model: Any) -> Sequence[nn.Module]:
    return model.base_model.layers


_BERT = Ending(
    whole=_bert_whole,
    read=_bert_read,
    query=_bert_query,
    rest=_bert_rest,
    layers=_bert_layers,
    attention=_bert_attention,
    entries=_bert_entries,
)
ENDINGS: dict[str, Ending] = {
    "bert": _BERT,
    "camembert": _BERT,
    "electra": _BERT,
    "modernbert": Ending(
        whole=_modernbert_whole,
        read=_modernbert_read,
        query=_modernbert_query,
        rest=_modernbert_rest,
        layers=_modernbert_layers,
        attention=_modernbert_attention,
        entries=_modernbert_entries,
    ),
    "roberta": _BERT,
    "xlm-roberta": _BERT,
}
"""By ``model_type``."""
