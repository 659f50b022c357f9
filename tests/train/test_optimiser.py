"""Groups and decay; updates beside plain references; state through a checkpoint, bit for bit."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from chronomask.data.folder import PreparedData
from chronomask.model.build import build_model
from chronomask.model.config import FromConfig
from chronomask.model.open import open_tokenizer
from chronomask.train.config import RunConfig
from chronomask.train.loop import pretrain
from chronomask.train.optimiser import AdamW, Lamb, Muon, Optimiser, StableAdamW
from chronomask.train.updates import group_by_decay, update
from tests.support.tiny_training import assert_same_run

NO_NORM = torch.zeros(())


@pytest.mark.parametrize("config", [AdamW(), StableAdamW(), Lamb(), Muon()])
@pytest.mark.parametrize("clip", [0.5, 100.0, None])
def test_gradients_are_scaled_down_to_the_norm_asked_for(
    config: Optimiser, clip: float | None
) -> None:
    models = [nn.Linear(4, 3), nn.Linear(4, 3)]
    models[1].load_state_dict(models[0].state_dict())
    ours, theirs = (config.build(model) for model in models)
    torch.manual_seed(0)
    for _ in range(3):
        for mine, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
            mine.grad = torch.randn_like(mine)
            other.grad = mine.grad.clone()
        norm = torch.nn.utils.get_total_norm([p.grad for p in models[0].parameters()])  # pyright: ignore
        update(ours, 0.01, norm, clip)
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(models[1].parameters(), clip)
        for group in theirs.param_groups:
            group["lr"] = 0.01
        theirs.step()
    for mine, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-6, atol=1e-8)


class NotFused(AdamW):
    """An optimiser from elsewhere: nothing in it knows of steps that are left out."""

    kind: Literal["not_fused"] = "not_fused"  # pyright: ignore[reportIncompatibleVariableOverride]

    def build(self, model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.AdamW(model.parameters(), lr=0.0, amsgrad=True)


@pytest.mark.parametrize("config", [AdamW(), StableAdamW(), Lamb(), Muon(), NotFused()])
@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e3])
@pytest.mark.parametrize("when", [0, 2])
def test_a_step_that_the_device_leaves_out_is_no_step(
    config: Optimiser, bad: float, when: int
) -> None:
    """Weights and state are those before it, and what follows is what follows without it."""
    torch.manual_seed(0)
    with_it = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 6), nn.LayerNorm(6))
    without = copy.deepcopy(with_it)
    optimisers = [config.build(model) for model in (with_it, without)]

    def step(model: nn.Module, optimiser: Any, seed: int, value: float | None = None) -> None:
        torch.manual_seed(seed)
        for parameter in model.parameters():
            drawn = torch.randn_like(parameter)
            parameter.grad = drawn if value is None else torch.full_like(parameter, value)
        norm = torch.tensor(1.0 if value is None else value)
        update(optimiser, 0.01, norm, 1.0, leave_out=torch.tensor(value is not None))

    for number in range(4):
        if number == when:
            before = copy.deepcopy(optimisers[0].state_dict()["state"])
            step(with_it, optimisers[0], 0, bad)
            for key, slots in optimisers[0].state_dict()["state"].items():
                for name, value in slots.items():
                    assert torch.equal(
                        value, before.get(key, {}).get(name, torch.zeros_like(value))
                    )
        step(with_it, optimisers[0], number)
        step(without, optimisers[1], number)
        for mine, other in zip(with_it.parameters(), without.parameters(), strict=True):
            assert torch.equal(mine, other)
            assert mine.isfinite().all()
    states = [optimiser.state_dict()["state"] for optimiser in optimisers]
    for key, slots in states[1].items():
        assert all(torch.equal(value, states[0][key][name]) for name, value in slots.items())


@pytest.mark.parametrize("clip", [1.0, None])
def test_adamw_has_the_bits_of_torchs(clip: float | None) -> None:
    """Also of a parameter whose gradients begin later, and around a step that the device leaves out."""
    torch.manual_seed(0)
    ours = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 6), nn.LayerNorm(6))
    theirs = copy.deepcopy(ours)
    optimisers = [
        AdamW(weight_decay=0.1).build(ours),
        torch.optim.AdamW(
            group_by_decay(list(theirs.parameters()), 0.1), 0.0, (0.9, 0.98), 1e-6, fused=True
        ),
    ]
    for step in range(5):
        pairs = zip(ours.named_parameters(), theirs.parameters(), strict=True)
        for (name, mine), other in pairs:
            if step > 1 or name != "1.bias":
                mine.grad = torch.randn_like(mine)
                other.grad = mine.grad.clone()
        for optimiser in optimisers:
            norm, left_out = torch.tensor(3.0), torch.tensor(step == 3)
            update(optimiser, 0.01 * (step + 1), norm, clip, left_out if step > 0 else None)
    mine, other = (optimiser.state_dict() for optimiser in optimisers)
    for key, slots in other["state"].items():
        assert all(torch.equal(value, mine["state"][key][name]) for name, value in slots.items())
    for one, another in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(one, another)
    assert optimisers[0].state[ours[1].bias]["step"] == 2  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("beta", [0.9, 0.95, 0.98, 0.999])
def test_steps_counted_on_the_device_give_the_shares_that_the_host_gave(beta: float) -> None:
    """To the bit in float32, so that a run goes on as earlier versions would have continued it."""
    numbers = torch.arange(1, 20_001, dtype=torch.float64)
    shares = ((1 - beta) / (1 - beta**numbers)).float()
    assert (
        shares.tolist()
        == torch.tensor([(1 - beta) / (1 - beta**t) for t in range(1, 20_001)]).tolist()
    )


def test_biases_and_norms_have_no_decay() -> None:
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 4), nn.LayerNorm(4))
    model[1].bias.requires_grad_(False)
    for config in (AdamW(weight_decay=0.1), StableAdamW(weight_decay=0.1), Muon(weight_decay=0.1)):
        optimiser = config.build(model)
        decay = {id(p): g["weight_decay"] for g in optimiser.param_groups for p in g["params"]}
        assert decay == {
            id(model[0].weight): 0.1,
            id(model[1].weight): 0.1,
            id(model[2].weight): 0.0,
            id(model[2].bias): 0.0,
        }
        update(optimiser, 0.5, NO_NORM, clip=None)
        assert {group["lr"] for group in optimiser.param_groups} == {0.5}


def plain_stable_adamw(
    theta: list[torch.Tensor], gradients: list[torch.Tensor], config: StableAdamW, rate: float
) -> torch.Tensor:
    """Algorithm 2 of arXiv 2304.13013 for one tensor: its values after every gradient."""
    now, m, v = theta[0].clone(), torch.zeros_like(theta[0]), torch.zeros_like(theta[0])
    for t, g in enumerate(gradients, start=1):
        b1 = config.beta1 * (1 - config.beta1 ** (t - 1)) / (1 - config.beta1**t)
        b2 = config.beta2 * (1 - config.beta2 ** (t - 1)) / (1 - config.beta2**t)
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g * g
        rms = (g * g / torch.maximum(v, torch.tensor(config.epsilon**2).to(v))).mean().sqrt()
        eta = rate / max(1.0, float(rms))
        decay = config.weight_decay if now.ndim >= 2 else 0.0
        now = now - eta * decay * now - eta * m / (v.sqrt() + config.epsilon)
    return now


def test_stable_adamw_is_the_paper_s() -> None:
    """Gradients grow a hundredfold on the way, so that clipping is at work in some steps."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 3), nn.Linear(3, 2)).double()
    config = StableAdamW(weight_decay=0.1)
    optimiser = config.build(model)
    before = [p.detach().clone() for p in model.parameters()]
    sizes = (1, 1, 100, 1, 0.01)
    drawn = [[torch.randn_like(p) * size for size in sizes] for p in model.parameters()]
    for number in range(len(sizes)):
        for parameter, gradients in zip(model.parameters(), drawn, strict=True):
            parameter.grad = gradients[number]
        update(optimiser, 0.01, NO_NORM, clip=None)
    for parameter, start, gradients in zip(model.parameters(), before, drawn, strict=True):
        expected = plain_stable_adamw([start], gradients, config, 0.01)
        torch.testing.assert_close(parameter.detach(), expected, rtol=1e-12, atol=1e-14)


def test_lamb_is_the_paper_s() -> None:
    """By hand, in float64; a matrix that is 0 moves by its update alone."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 3), nn.Linear(3, 2)).double()
    with torch.no_grad():
        model[1].weight.zero_()  # pyright: ignore
    config = Lamb(weight_decay=0.1)
    optimiser = config.build(model)
    before = [p.detach().clone() for p in model.parameters()]
    drawn = [[torch.randn_like(p) for _ in range(3)] for p in model.parameters()]
    for number in range(3):
        for parameter, gradients in zip(model.parameters(), drawn, strict=True):
            parameter.grad = gradients[number]
        update(optimiser, 0.01, NO_NORM, clip=None)
    for parameter, now, gradients in zip(model.parameters(), before, drawn, strict=True):
        m = v = torch.zeros_like(now)
        for t, g in enumerate(gradients, start=1):
            m = config.beta1 * m + (1 - config.beta1) * g
            v = config.beta2 * v + (1 - config.beta2) * g * g
            u = m / (1 - config.beta1**t) / ((v / (1 - config.beta2**t)).sqrt() + config.epsilon)
            trust = 1.0
            if now.ndim >= 2:
                u = u + config.weight_decay * now
                trust = float(now.norm() / u.norm()) or 1.0
            now = now - 0.01 * trust * u
        torch.testing.assert_close(parameter.detach(), now, rtol=1e-12, atol=1e-14)


def test_stable_adamw_without_clipping_is_adamw() -> None:
    """Gradients that shrink keep the clip factor at 1."""
    torch.manual_seed(0)
    ours, theirs = (nn.Linear(4, 4) for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    pair = [
        (ours, StableAdamW().build(ours)),
        (theirs, AdamW().build(theirs)),
    ]
    for number in range(4):
        torch.manual_seed(number)
        noise = torch.ones(4, 4) * 0.5**number
        for model, optimiser in pair:
            model.weight.grad, model.bias.grad = noise.clone(), noise[0].clone()
            update(optimiser, 0.01, NO_NORM, clip=None)
    torch.testing.assert_close(ours.weight, theirs.weight, rtol=1e-5, atol=1e-7)


@pytest.fixture(scope="module")
def tokenizer(tiny_data: PreparedData) -> PreTrainedTokenizerBase:
    return open_tokenizer(tiny_data.tokenizer_path)


@pytest.mark.parametrize("model_type", ["bert", "modernbert"])
def test_muon_takes_hidden_matrices_alone(
    model_type: str, tokenizer: PreTrainedTokenizerBase
) -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = FromConfig(model_type=model_type, overrides=sizes | {"intermediate_size": 48})
    model = build_model(config, tokenizer, row_length=32, seed=0, attention="row")
    optimiser = Muon().build(model)
    by_id = {id(p): name for name, p in model.named_parameters()}
    hidden, *rest = ({by_id[id(p)] for p in g["params"]} for g in optimiser.param_groups)
    assert set().union(*rest) | hidden == set(by_id.values())
    assert not any("embeddings" in name or name.endswith("bias") for name in hidden)
    assert any("layers.1" in name or "layer.1" in name for name in hidden)
    matrices = {n for n, p in model.named_parameters() if p.ndim == 2 and "embeddings" not in n}
    assert hidden == matrices - {"decoder.weight"}


def test_muon_is_torch_s_and_adamw_s_each_on_its_own() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 6))
    embedding, matrix = copy.deepcopy(model[0]), copy.deepcopy(model[1])
    optimiser = Muon(weight_decay=0.1).build(model)
    alone = [
        torch.optim.Muon(
            [matrix.weight], lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"
        ),
        torch.optim.AdamW(
            [embedding.weight, matrix.bias], lr=0.02, betas=(0.9, 0.98), eps=1e-6, fused=True
        ),
    ]
    alone[1].param_groups[0]["weight_decay"] = 0.0
    optimiser.param_groups[1]["weight_decay"] = 0.0
    for _ in range(3):
        pairs = zip(model.parameters(), [embedding.weight, *matrix.parameters()], strict=True)
        for mine, theirs in pairs:
            mine.grad = torch.randn_like(mine)
            theirs.grad = mine.grad.clone()
        update(optimiser, 0.02, NO_NORM, clip=None)
        for each in alone:
            each.step()
    assert torch.equal(model[1].weight, matrix.weight)
    assert torch.equal(model[0].weight, embedding.weight)
    again = Muon(weight_decay=0.1).build(model)
    again.load_state_dict(optimiser.state_dict())
    assert torch.equal(
        again.members[0].state[model[1].weight]["momentum_buffer"],  # pyright: ignore
        alone[0].state[matrix.weight]["momentum_buffer"],
    )


@pytest.mark.parametrize("kind", ["stable_adamw", "muon"])
def test_a_resumed_run_is_the_run(config: RunConfig, tmp_path: Path, kind: str) -> None:
    config = config.replace([f"optimiser.kind={kind}", "steps=7", "checkpoint.keep=9"])
    pretrain(config, tmp_path / "whole", progress=False)
    short = config.replace(["checkpoint.every=3"])
    pretrain(short, tmp_path / "cut", progress=False)
    for name in ("step-00000007", "step-00000006"):
        for path in sorted((tmp_path / "cut" / "checkpoints" / name).rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        (tmp_path / "cut" / "checkpoints" / name).rmdir()
    (tmp_path / "cut" / "summary.json").unlink()
    pretrain(config, tmp_path / "cut", resume=True, progress=False)
    assert_same_run(tmp_path / "whole", tmp_path / "cut")
