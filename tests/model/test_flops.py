"""The formula beside torch's own count of what a forward and backward pass does."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForMaskedLM, PreTrainedModel

from chronomask.model.flops import Flops, Pairs, count_flops, lengths_in
from chronomask.model.head import logits_at, token_losses
from chronomask.types import Rows

SIZES = {
    "hidden_size": 64,
    "num_hidden_layers": 6,
    "num_attention_heads": 2,
    "intermediate_size": 256,
    "vocab_size": 400,
    "pad_token_id": 0,
    "max_position_embeddings": 140,
}
OWN = {
    "distilbert": {"dim": 64, "n_layers": 6, "n_heads": 2, "hidden_dim": 256},
    "albert": {"embedding_size": 32},
    "electra": {"embedding_size": 32},
    "modernbert": {"local_attention": 32},
    "eurobert": {"head_dim": 32, "num_key_value_heads": 2},
}


def made(model_type: str, device: str) -> PreTrainedModel:
    sizes = {k: v for k, v in SIZES.items() if model_type != "distilbert" or "_" in k}
    if model_type == "distilbert":
        sizes = {k: SIZES[k] for k in ("vocab_size", "pad_token_id", "max_position_embeddings")}
    config = AutoConfig.for_model(model_type, **(sizes | OWN.get(model_type, {})))
    with torch.device(device):
        return AutoModelForMaskedLM.from_config(config, attn_implementation="eager")


@pytest.mark.parametrize(
    "model_type", ["bert", "modernbert", "roberta", "distilbert", "electra", "albert", "eurobert"]
)
def test_formula_is_near_what_torch_counts(model_type: str) -> None:
    """Eager attention computes all pairs, so local windows are left out of this comparison."""
    model = made(model_type, "cpu").eval()
    rows, length, predicted = 2, 128, 40
    ids = torch.randint(5, 400, (rows, length))
    positions = torch.randperm(rows * length)[:predicted].sort().values
    with FlopCounterMode(display=False) as counter:
        logits = logits_at(model, ids, positions, {})
        token_losses(logits, ids.flatten()[positions])[0].sum().backward()
    flops = count_flops(made(model_type, "meta"))
    everything = Flops(
        flops.per_token,
        flops.per_prediction,
        tuple(Pairs(pairs.layers, pairs.width, None) for pairs in flops.attention),
    )
    counted = counter.get_total_flops()
    assert everything.of(np.array([length] * rows), predicted) == pytest.approx(counted, rel=0.03)


def test_windows_count_the_pairs_that_see_each_other() -> None:
    lengths = np.array([1, 5, 40])
    for window in (0, 3, 16, 100, None):
        wide = 1000 if window is None else window
        pairs = sum(
            int((np.abs(np.subtract.outer(np.arange(n), np.arange(n))) <= wide).sum())
            for n in lengths.tolist()
        )
        assert Pairs(1, 1, window).within(lengths) == pairs
    kinds = {
        pairs.window: pairs.layers for pairs in count_flops(made("modernbert", "meta")).attention
    }
    assert kinds == {None: 2, 16: 4}


def test_bert_base_by_hand() -> None:
    """12 layers of 4·768² + 2·768·3072, a head of 768² and 768·30522; positions are looked up."""
    with torch.device("meta"):
        model = AutoModelForMaskedLM.from_config(AutoConfig.for_model("bert"))
    flops = count_flops(model)
    assert flops.per_token == 6 * 12 * (4 * 768**2 + 2 * 768 * 3072)
    assert flops.per_prediction == 6 * (768**2 + 768 * 30522)
    assert flops.of_attention(np.array([512])) == 12 * 12 * 768 * 512**2


def test_padding_does_no_work_and_documents_see_themselves_alone() -> None:
    ids = np.array([[7, 7, 7, 7], [7, 7, 0, 0]])
    rows = Rows(
        ids, ids, ids, np.arange(2), np.zeros(2, np.int64), np.array([0, 1, 4, 6, 8], np.int32)
    )
    flops = Flops(100, 0, (Pairs(1, 1, None),))
    assert flops.of_attention(lengths_in(rows, 0, "documents")) == 12 * (1 + 9 + 4)
    assert flops.of_attention(lengths_in(rows, 0, "row")) == 12 * (16 + 4)
    assert flops.of(np.array([1, 3, 2]), 2) == 600 + 12 * 14
