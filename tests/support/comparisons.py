"""Comparisons as a study writes them, with numbers chosen by the test."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from chronomask.report.comparison import P_VALUES

AXES = ("step", "tokens_seen", "masked_tokens", "flops", "seconds")


def task(
    name: str, limits: Mapping[str, tuple[float, float] | None], *, seeds: int = 3
) -> dict[str, Any]:
    """A task on which arms have these intervals of their difference; None: one seed, no interval."""
    loss = name == "validation_loss"
    arms: dict[str, Any] = {
        "base": {
            "mean": 0.5, "spread": 0.01, "low": 0.4, "high": 0.6,
            "covers": ["pre-training seeds"], "by_seed": {str(seed): [0.5] for seed in range(seeds)},
        }
    }  # fmt: skip
    for arm, limit in limits.items():
        low, high = limit if limit is not None else (None, None)
        middle = 0.02 if limit is None else sum(limit) / 2
        arms[arm] = {
            **arms["base"],
            "mean": 0.5 + middle,
            "difference": middle,
            "difference_low": low,
            "difference_high": high,
            "p": None if limit is None else 0.25,
            "p_holm": None if limit is None else 1.0,
        }
    return {
        "task": name,
        "family": "intrinsic" if loss else "glue",
        "metric": "loss" if loss else "accuracy",
        "higher_is_better": not loss,
        "seeds": list(range(seeds)),
        "task_seeds": [] if loss else [0, 1],
        "num_examples": {"dev": 100},
        "arms": arms,
    }


def curve(arms: list[str], seeds: int) -> dict[str, Any]:
    """Two validations of every arm."""
    line = {axis: [1.0, 2.0] for axis in AXES}
    by_seed = {str(seed): {**line, "value": [5.0 + seed, 4.0 + seed]} for seed in range(seeds)}
    numbers = {
        **line,
        "mean": [5.5, 4.5],
        "low": [5.0, 4.0],
        "high": [6.0, 5.0],
        "by_seed": by_seed,
    }
    return {
        "quantity": "validation_loss",
        "metric": "loss",
        "higher_is_better": False,
        "arms": dict.fromkeys(arms, numbers),
    }


def reach(shares: dict[str, tuple[float | None, float | None, float | None]]) -> dict[str, Any]:
    """Arms that need this share of the baseline's spending, with its limits."""
    arms = {}
    for arm, (share, low, high) in {"base": (1.0, 1.0, 1.0), **shares}.items():
        numbers = {"share": share, "share_low": low, "share_high": high, "baseline": 100.0}
        numbers |= {"estimate": share, "low": low, "high": high}
        arms[arm] = {"seeds": 3, **dict.fromkeys(AXES, numbers)}
    return {"quantity": "validation_loss", "metric": "loss", "arms": arms}


def comparison(
    tasks: list[dict[str, Any]], reached: list[dict[str, Any]] | None = None, *, seeds: int = 3
) -> dict[str, Any]:
    """A whole file, of the arms that its tasks have."""
    names = list(tasks[0]["arms"])
    masking = {
        "ratio": {"kind": "constant", "base": 0.15},
        "content": {"kind": "none"},
        "strategy": {"kind": "token"},
    }
    return {
        "schema_version": 1,
        "name": "Made <up>",
        "baseline": "base",
        "seeds": list(range(seeds)),
        "task_seeds": [0, 1],
        "notices": [],
        "arms": [
            {
                "name": name,
                "differs": {} if name == "base" else {"masking.ratio.base": [0.15, 0.3]},
                "equal_labels": None,
                "masking": masking,
                "runs": [
                    {"seed": seed, "folder": f"runs/{name}/seed-{seed}"} for seed in range(seeds)
                ],
                "masked_tokens": 100.0 if name == "base" else 200.0,
                "steps": 10.0,
                "flops": 1.5e10,
            }
            for name in names
        ],
        "tasks": tasks,
        "p_values": P_VALUES,
        "reach": reached or [],
        "curves": [curve(names, seeds)],
        "data": {"fingerprint": "f" * 64, "row_length": 32, "rows": 5, "statistics": {}},
        "versions": {"torch": "2"},
    }
