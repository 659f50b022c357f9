"""Longer rows than a checkpoint was trained on: more positions, made of those that it has.

Learned positions are tiled (Beltagy et al., arXiv 2004.05150, §5): a token sees its near neighbours at
distances that it knows. Rotary positions keep their fastest turns and slow down the others: the base grows by
s^(D/(D−2)) for rows s times as long and heads of width D (Peng et al., arXiv 2309.00071, §3.1). Windows see
no further than before and keep their base.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from chronomask.model.attention import head_width

__all__ = ["lengthen", "way_to_lengthen"]

_LEARNED = (
    "albert", "bert", "camembert", "distilbert", "electra", "ernie", "roberta",
    "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl",
)  # fmt: skip
_ROTARY = ("modernbert", "eurobert")


def way_to_lengthen(model: PreTrainedModel) -> str | None:
    """The kind of positions, "learned" or "rotary", if there can be more of them; else None."""
    model_type = model.config.model_type
    if model_type in _LEARNED and isinstance(_table(model), nn.Embedding):
        return "learned"
    return "rotary" if model_type in _ROTARY else None


def lengthen(model: PreTrainedModel, positions: int) -> None:
    """Give the model ``positions`` positions, more than it has, in place; its config says so afterwards."""
    if way_to_lengthen(model) == "learned":
        _tile(model, positions)
    else:
        _turn_slower(model, positions)
    model.config.max_position_embeddings = positions


def _table(model: PreTrainedModel) -> Any:
    embeddings = getattr(model.base_model, "embeddings", None)
    return getattr(embeddings, "position_embeddings", None)


@torch.no_grad()
def _tile(model: PreTrainedModel, positions: int) -> None:
    table: nn.Embedding = _table(model)
    # RoBERTa and its kin count from the padding id + 1: what stands before is no position.
    first = 0 if table.padding_idx is None else table.padding_idx + 1
    known = table.num_embeddings - first
    source = torch.arange(positions)
    source[first:] = first + (source[first:] - first) % known
    table.weight = nn.Parameter(table.weight[source.to(table.weight.device)])
    table.num_embeddings = positions
    embeddings: Any = model.base_model.embeddings
    for name, values in (
        ("position_ids", torch.arange(positions)[None]),
        ("token_type_ids", torch.zeros(1, positions, dtype=torch.int64)),
    ):
        if isinstance(getattr(embeddings, name, None), torch.Tensor):
            embeddings.register_buffer(name, values.to(table.weight.device), persistent=False)


def _turn_slower(model: PreTrainedModel, positions: int) -> None:
    config: Any = model.config
    width = head_width(config)
    assert width is not None  # rotary positions turn its halves
    longer = positions / config.max_position_embeddings
    parameters = config.rope_parameters
    by_layer = parameters.get("full_attention", parameters)
    by_layer["rope_theta"] = by_layer["rope_theta"] * longer ** (width / (width - 2))
    config.max_position_embeddings = positions
    base: Any = model.base_model
    base.rotary_emb = type(base.rotary_emb)(config=config)
