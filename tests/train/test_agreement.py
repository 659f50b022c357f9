"""Processes that would do different things are refused, each told what it has."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from chronomask.data.folder import PreparedData
from chronomask.data.scores import add_scores
from chronomask.errors import UsageError
from chronomask.runs.layout import RunFolder
from chronomask.train.agreement import refuse_other_folder, refuse_unlike
from chronomask.train.config import RunConfig
from chronomask.train.distributed import World
from tests.support.tiny_training import Driver


def refused(driver: Driver, first: dict[str, Any], second: dict[str, Any]) -> list[str]:
    """What two processes say that are refused."""
    answer = driver.answer([first, second])
    assert answer["codes"] == [2, 2], answer["errors"]
    return answer["errors"]


@pytest.mark.parametrize(
    ("key", "other", "said"),
    [
        ("seed=5", "seed=0", ["seed 5", "weights", "seed 0"]),
        ("masking.ratio.base=0.2", "masking.ratio.base=0.3", ["masking {", "masking {"]),
        ("micro_batches=1", "micro_batches=2", ["micro_batches 1", "micro_batches 2"]),
    ],
)
def test_other_settings(
    key: str, other: str, said: list[str], config: RunConfig, tmp_path: Path, driver: Driver
) -> None:
    specs: list[dict[str, Any]] = [
        {"config": config.replace([each]).to_dict(), "out": str(tmp_path / "run")}
        for each in (key, other)
    ]
    first, second = refused(driver, *specs)
    assert said[0] in first
    assert said[-1] in second
    assert all(words in first for words in said[:-1])
    assert "process 1 of 2" in second
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_other_data(
    config: RunConfig, tiny_data: PreparedData, tmp_path: Path, driver: Driver
) -> None:
    other = tmp_path / "data"
    shutil.copytree(tiny_data.path, other)
    length = tiny_data.row_length
    names = ("train", "held_out")
    add_scores(other, {name: np.ones((tiny_data.split(name).num_rows, length)) for name in names})
    spec = {"config": config.to_dict(), "out": str(tmp_path / "run")}
    elsewhere = spec | {"config": config.replace([f"data={other}"]).to_dict()}
    first, _ = refused(driver, spec, elsewhere)
    assert f"the data's fingerprint '{tiny_data.fingerprint}'" in first


def test_a_checkpoint_that_one_process_does_not_find(
    config: RunConfig, tmp_path: Path, driver: Driver
) -> None:
    """As where each of two machines has a disk of its own, and the first alone writes."""
    spec = {"config": config.to_dict(), "out": str(tmp_path / "run"), "resume": True}
    assert driver.codes(spec | {"ask_to_stop": [0, 4]}) == [143]
    before = sorted(path.name for path in RunFolder(tmp_path / "run").checkpoints.iterdir())
    first, second = refused(driver, spec, spec | {"out": str(tmp_path / "elsewhere")})
    assert "step 4" in first
    assert "step 0" in second
    assert "a disk that all machines see" in second
    assert sorted(path.name for path in RunFolder(tmp_path / "run").checkpoints.iterdir()) == before


def test_a_folder_with_a_budget_of_hours_that_one_process_does_not_find(
    config: RunConfig, tmp_path: Path, driver: Driver
) -> None:
    """Before one of them tries out how long steps take, and waits for the other."""
    budget = config.to_dict() | {"hours": 0.02}
    spec = {"config": budget, "out": str(tmp_path / "run"), "resume": True}
    assert driver.codes(spec | {"ask_to_stop": [0, 4]}) == [143]
    first, second = refused(driver, spec, spec | {"out": str(tmp_path / "elsewhere")})
    assert "checkpoints ['step-00000004']" in first
    assert "checkpoints []" in second


def test_machines_that_choose_other_precisions(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(0, 2, torch.device("cpu"))
    last = [False] * len(config.to_dict()) + [True]  # as if all but the last value were alike
    monkeypatch.setattr(World, "differ", lambda _, values: last[-len(list(values)) :])
    with pytest.raises(UsageError, match=r"precision in force 'bf16'.*set precision=fp32"):
        refuse_unlike(world, config, "fingerprint", 0, "weights", "bf16")


def numbers_of(patch: pytest.MonkeyPatch, compare: Callable[[World], None]) -> list[int]:
    """What a process would compare with others."""
    seen: list[int] = []

    def alike(_: World, values: Iterable[int]) -> list[bool]:
        seen.extend(values)
        return [False] * len(seen)

    patch.setattr(World, "differ", alike)
    compare(World(0, 2, torch.device("cpu")))
    return seen


def test_a_model_from_a_folder_may_lie_elsewhere_on_each_machine(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def of(*changes: str) -> list[int]:
        own = config.replace(["model={kind: checkpoint, path: here}", *changes])
        return numbers_of(monkeypatch, lambda world: refuse_unlike(world, own, "", 0, "", "fp32"))

    assert of() == of("model.path=/there/too")
    assert of() != of("model.longer_rows=true")


def test_the_order_in_which_settings_are_given_does_not_matter(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def of(**overrides: int) -> list[int]:
        model = {"kind": "config", "model_type": "bert", "overrides": overrides}
        own = RunConfig.parse(config.to_dict() | {"model": model})
        return numbers_of(monkeypatch, lambda world: refuse_unlike(world, own, "", 0, "", "fp32"))

    one = of(hidden_size=32, num_attention_heads=2)
    assert one == of(num_attention_heads=2, hidden_size=32)
    assert one != of(num_attention_heads=4, hidden_size=32)


def test_a_folder_without_checkpoints_is_compared_by_its_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From it a run that is resumed has its number of steps."""
    found = []
    for text in ("steps: 4\n", "steps: 5\n", None):
        folder = RunFolder(tmp_path / str(text)[:8])
        folder.path.mkdir()
        if text is not None:
            folder.config.write_text(text)
        found.append(
            numbers_of(monkeypatch, lambda world, own=folder: refuse_other_folder(world, own))
        )
    assert len({tuple(numbers) for numbers in found}) == 3


def test_places_may_differ(
    config: RunConfig, tiny_data: PreparedData, tmp_path: Path, driver: Driver
) -> None:
    shutil.copytree(tiny_data.path, tmp_path / "data")
    spec = {"config": config.to_dict(), "out": str(tmp_path / "run")}
    elsewhere = config.replace([f"data={tmp_path / 'data'}", "threads=2", "loader_workers=0"])
    answer = driver.answer([spec, spec | {"config": elsewhere.to_dict()}])
    assert answer["codes"] == [0, 0], answer["errors"]
