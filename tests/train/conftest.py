"""A run small enough to be repeated many times, and processes to repeat it in."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from chronomask.data.folder import PreparedData
from chronomask.train.config import RunConfig
from tests.support.tiny_training import Driver, run_values


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)  # small tensors gain nothing from more


@pytest.fixture
def values(tiny_data: PreparedData) -> dict[str, Any]:
    """What :func:`run_values` gives."""
    return run_values(tiny_data)


@pytest.fixture
def config(values: dict[str, Any]) -> RunConfig:
    """The run of :func:`values`."""
    return RunConfig.parse(values)


@pytest.fixture(scope="session")
def driver(tiny_data: PreparedData, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Driver]:
    """One for all tests: its import takes longer than most of what it runs."""
    config = run_values(tiny_data) | {"steps": 2}
    started = Driver({"config": config, "out": str(tmp_path_factory.mktemp("driver") / "run")})
    yield started
    started.close()
