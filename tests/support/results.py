"""Results of tasks as an evaluation makes them, with numbers chosen by the test."""

from __future__ import annotations

from typing import Any

import numpy as np

from chronomask.runs.result import TaskResult


def result(**changes: Any) -> TaskResult:
    """That of a seed of CoLA, with some values changed."""
    values: dict[str, Any] = {
        "task": "cola",
        "family": "glue",
        "seed": 1,
        "model": "runs/a",
        "model_sha256": "ab" * 32,
        "step": 200,
        "metrics": {"mcc": 0.25},
        "primary": "mcc",
        "higher_is_better": True,
        "num_examples": {"train": 8, "dev": 3},
        "recipe": {"epochs": 3},
        "data_sha256": "cd" * 32,
        "versions": {"torch": "2"},
        "seconds": 1.5,
        "examples": {"prediction": np.array([1, 0, 1]), "label": np.array([1, 1, 1])},
    }
    return TaskResult(**(values | changes))
