"""Curves of a comparison: the lines of the data stand beside them where all runs have the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chronomask.data.folder import PreparedData
from chronomask.errors import UsageError
from chronomask.runs.read import read_run
from chronomask.runs.rules import maskable_tokens
from chronomask.study.command import report
from chronomask.study.contrasts import compare_runs
from chronomask.study.curves import Cost
from chronomask.train.config import RunConfig
from chronomask.train.dry_run import dry_run
from tests.support.synthetic_runs import cosine, write_four_arms, write_run
from tests.support.tiny_models import SIZES, save_tiny


@pytest.mark.parametrize("bounds", [[(6.3, 5.6)] * 4, [(6.3, 5.6)] * 3 + [(6.0, 5.0)], [None] * 4])
def test_entropies_are_lines_where_all_runs_have_the_same(
    tmp_path: Path, bounds: list[tuple[float, float] | None]
) -> None:
    folders = write_four_arms(tmp_path)
    for folder, bound in zip(folders, bounds, strict=True):
        path = folder / "validation.jsonl"
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        for line in lines:
            if bound is not None:
                line |= {"unigram_entropy": bound[0], "bigram_bound": bound[1]}
        path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    found, _ = compare_runs([read_run(folder) for folder in folders], "made up")
    expected = (
        {"words’ frequencies": 6.3, "pairs of words": 5.6} if set(bounds) == {(6.3, 5.6)} else {}
    )
    assert found["curves"][0]["references"] == expected
    report(folders, tmp_path / "page")


def test_costs_need_a_models_config_alone(tiny_data: PreparedData, tmp_path: Path) -> None:
    """Its weights may be gone; without its config the folder is named."""
    save_tiny(tmp_path, tiny_data.tokenizer_path)
    config = RunConfig.of({"data": str(tiny_data.path), "steps": 8, "rows_per_step": 4})
    whole = Cost(tmp_path, tiny_data, config)
    (tmp_path / "model.safetensors").unlink()
    without = Cost(tmp_path, tiny_data, config)
    one, other = (each.flops(np.array([8]), np.ones(1), np.ones(1)) for each in (whole, without))
    assert one == other
    (tmp_path / "config.json").unlink()
    with pytest.raises(
        UsageError, match=f"{tmp_path} is not a model folder: it has no config.json"
    ):
        Cost(tmp_path, tiny_data, config)


@pytest.mark.parametrize(
    "change",
    [
        {"late_masks": {"layer": 1}},
        {"objective": {"kind": "hybrid", "causal": 0.5}},
        {"masking": {"content": {"kind": "model_scores", "every": 2}}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_costs_count_what_an_arm_computes_more_or_less(
    tiny_data: PreparedData, tmp_path: Path, change: dict[str, Any]
) -> None:
    """What an arm computes more or less than a plain one, and when; the plain one by its tokens alone."""
    save_tiny(tmp_path, tiny_data.tokenizer_path)
    model = {"kind": "checkpoint", "path": str(tmp_path)}
    half = {"kind": "constant", "base": 0.5}
    plain = RunConfig.of(
        {"data": str(tiny_data.path), "model": model, "steps": 8, "rows_per_step": 4},
        masking={"ratio": half},
        attention="row",
    )
    arm = RunConfig.of([plain, change])
    costs = [Cost(tmp_path, tiny_data, config) for config in (plain, arm)]
    spent = np.array([1000.0, 500.0])
    own, other = (cost.flops(np.array([0, 4, 8]), *spent) for cost in costs)
    assert own[0] == own[1] == own[2] == other[0]
    if (
        arm.objective.has_causal_rows
    ):  # half of the rows predict every word and see half of the pairs
        length = tiny_data.row_length
        pairs = SIZES["num_hidden_layers"] * SIZES["hidden_size"] * length * (length - 1) / 2
        predicted = maskable_tokens(plain, tiny_data)(0) * costs[0]._per_prediction
        expected = 8 * 4 * (predicted - 12 * pairs) / 2
    elif arm.masking.content.look_ahead:  # two forward passes, each over half of the words
        tokens = 8 * 4 * tiny_data.split("train").num_tokens / tiny_data.split("train").num_rows
        expected = 2 / 3 * costs[0].flops(np.zeros(1), np.array(tokens), np.array(tokens / 2))[0]
    else:
        said = [dry_run(config, flops_per_second=1e9).flops for config in (plain, arm)]
        expected = said[1] - said[0]
    assert other[2] - own[2] == pytest.approx(expected, rel=0.05)
    assert other[1] - own[1] == pytest.approx((other[2] - own[2]) / 2)


def test_what_is_not_finished_is_drawn_as_far_as_it_came_and_compared_with_nothing(
    tmp_path: Path,
) -> None:
    folders = [
        write_run(tmp_path / "a0", "a", steps=400, finished=False),
        write_run(tmp_path / "a1", "a", steps=200, finished=False, seed=1),
        write_run(tmp_path / "b0", "b", ratio=cosine),
        write_run(tmp_path / "b1", "b", ratio=cosine, seed=1),
    ]
    for order in (folders, [*folders[2:], *folders[:2]]):
        found, _ = compare_runs([read_run(folder) for folder in order], "made up")
        curve = found["curves"][0]
        assert curve["arms"]["a"]["step"][-1] == 200
        assert curve["arms"]["b"]["step"][-1] == 500
        assert "difference" not in curve["arms"]["a"]
        assert "a" not in found["reach"][0]["arms"]
        report(order, tmp_path / "page")
