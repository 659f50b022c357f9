"""Weight decay falls on matrices and embeddings alone; every parameter is in exactly one group."""

from __future__ import annotations

from torch import nn

from chronomask.train.optimiser import AdamW, build_optimiser, set_learning_rate


def test_biases_and_norms_have_no_decay() -> None:
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 4), nn.LayerNorm(4))
    model[1].bias.requires_grad_(False)
    optimiser = build_optimiser(AdamW(weight_decay=0.1), model)
    decay = {id(p): g["weight_decay"] for g in optimiser.param_groups for p in g["params"]}
    assert decay == {
        id(model[0].weight): 0.1,
        id(model[1].weight): 0.1,
        id(model[2].weight): 0.0,
        id(model[2].bias): 0.0,
    }
    set_learning_rate(optimiser, 0.5)
    assert [group["lr"] for group in optimiser.param_groups] == [0.5, 0.5]
