"""What a caller has set in torch changes no number of ours, and is as it was afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from chronomask.data.folder import PreparedData
from chronomask.errors import UsageError
from chronomask.model.isolation import isolation
from chronomask.train.config import RunConfig
from chronomask.train.loop import pretrain
from tests.support.tiny_training import run_values, weights_of

BACKENDS: Any = torch.backends  # its attributes are made when torch is imported


@contextmanager
def doubles() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextmanager
def elsewhere() -> Iterator[None]:
    torch.set_default_device("meta")
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextmanager
def coarse() -> Iterator[None]:
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision("highest")
        for backend in (BACKENDS.cuda.matmul, BACKENDS.mkldnn.matmul):
            backend.fp32_precision = "none"


@contextmanager
def coarse_everywhere() -> Iterator[None]:
    """The newer way, which transformers takes; asked in the old one torch raises."""
    BACKENDS.fp32_precision = "tf32"
    BACKENDS.mkldnn.matmul.fp32_precision = "bf16"
    try:
        yield
    finally:
        BACKENDS.mkldnn.matmul.fp32_precision = "none"
        BACKENDS.fp32_precision = "none"


SETTINGS: list[Callable[[], AbstractContextManager[object]]] = [
    torch.no_grad,
    torch.inference_mode,
    lambda: torch.autocast("cpu", torch.bfloat16),
    doubles,
    elsewhere,
    lambda: torch.device("meta"),
    coarse,
    coarse_everywhere,
]


@pytest.fixture(scope="module")
def weights(
    tiny_data: PreparedData, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, torch.Tensor]:
    """Of a run of a few steps."""
    out = tmp_path_factory.mktemp("plain") / "run"
    pretrain(short(tiny_data), out, progress=False)
    return weights_of(out)


def short(data: PreparedData) -> RunConfig:
    return RunConfig.parse(run_values(data) | {"steps": 2, "threads": 1})


@pytest.mark.parametrize(
    "setting",
    SETTINGS,
    ids=[
        "grad",
        "inference",
        "autocast",
        "dtype",
        "device",
        "with device",
        "products",
        "products of all",
    ],
)
def test_training_is_the_same_and_leaves_it(
    setting: Callable[[], AbstractContextManager[object]],
    weights: dict[str, torch.Tensor],
    tiny_data: PreparedData,
    tmp_path: Path,
) -> None:
    def now() -> tuple[object, ...]:
        return (
            torch.get_default_dtype(), torch.get_default_device(), torch.is_grad_enabled(),
            torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu"), torch.get_num_threads(),
            BACKENDS.fp32_precision, *products(),
        )  # fmt: skip

    with setting():
        before = now()
        pretrain(short(tiny_data), tmp_path / "run", progress=False)
        assert now() == before
    found = weights_of(tmp_path / "run")
    assert all(torch.equal(found[name], own) for name, own in weights.items())


def products() -> tuple[str, str]:
    return BACKENDS.cuda.matmul.fp32_precision, BACKENDS.mkldnn.matmul.fp32_precision


def test_products_follow_later_settings_as_if_nothing_had_been() -> None:
    """What follows all backends goes on to follow them, and what was set in the old way is asked so again."""
    for setting, later in ((nullcontext, "tf32"), (coarse_everywhere, "ieee")):
        with setting():
            BACKENDS.mkldnn.matmul.fp32_precision = "none"
            with isolation():
                assert {*products()} <= {"none", "ieee"}
            BACKENDS.fp32_precision = later
            assert products() == (later, later)
            BACKENDS.fp32_precision = "none"
    with coarse():
        with isolation():
            assert torch.get_float32_matmul_precision() == "highest"
        assert torch.get_float32_matmul_precision() == "medium"


def test_random_numbers_and_threads_go_on_as_if_nothing_had_been() -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    threads = torch.get_num_threads()
    with isolation():
        torch.manual_seed(8)
        torch.rand(100)
        torch.set_num_threads(threads + 1)
    assert torch.equal(torch.rand(4), expected)
    assert torch.get_num_threads() == threads


def test_it_is_put_back_after_an_error() -> None:
    with doubles():
        with pytest.raises(ZeroDivisionError), isolation():
            _ = 1 / 0
        assert torch.get_default_dtype() == torch.float64


def test_one_thread_has_it_at_a_time() -> None:
    """Nested in that thread it may be, as where an adaptation evaluates."""

    def use() -> str:
        try:
            with isolation(), isolation():
                return "used"
        except UsageError as error:
            return str(error)

    with ThreadPoolExecutor(1) as pool:
        with isolation():
            assert "in a process of its own" in pool.submit(use).result()
        assert pool.submit(use).result() == "used"
