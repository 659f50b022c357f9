"""One vocabulary for device and precision; what ``auto`` means depends on the device."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import llvmlite.binding
import pytest
import torch

from chronomask.errors import UsageError
from chronomask.model import device as device_module
from chronomask.model.device import (
    DATA_SHEET_FLOPS,
    Facts,
    _on_data_sheet,
    autocast,
    choose_device,
    data_sheet_flops,
    gpu_out_of_reach,
    peak_memory,
    precision_on,
    slow_on_host,
    slow_paths,
)


def test_auto_is_bf16_where_a_cuda_device_or_a_processor_has_units_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    for able, other in ((True, False), (False, True)):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, a=able: a)
        monkeypatch.setattr(device_module, "_host_is_faster_in_bf16", lambda a=other: a)
        assert precision_on(cuda, "auto") == ("bf16" if able else "fp32")
        assert precision_on(cpu, "auto") == ("bf16" if other else "fp32")
        assert precision_on(torch.device("meta"), "auto") == "fp32"
        for device in (cpu, cuda):
            assert precision_on(device, "fp32") == "fp32"
            assert precision_on(device, "bf16") == "bf16"
        assert bool(slow_on_host("fp32")) == other
        assert bool(slow_on_host("bf16")) != other


@pytest.mark.parametrize(
    ("name", "features", "faster"),
    [
        ("sapphirerapids", {"amx-bf16": True, "avx512bf16": True}, True),
        ("cooperlake", {"amx-bf16": False, "avx512bf16": True}, False),
        ("znver4", {"amx-bf16": False, "avx512bf16": True}, True),
        ("znver5", {"avx512bf16": True}, True),
        ("znver4", {"avx512bf16": False}, False),
        ("znver3", {}, False),
        ("apple-m2", None, False),
    ],
)
def test_it_is_known_of_which_kinds_of_processors_bfloat16_is_faster(
    name: str, features: dict[str, bool] | None, faster: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def asked() -> dict[str, bool]:
        if features is None:
            raise RuntimeError("host features not known")
        return features

    monkeypatch.setattr(llvmlite.binding, "get_host_cpu_features", asked)
    monkeypatch.setattr(llvmlite.binding, "get_host_cpu_name", lambda: name)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    assert device_module._host_is_faster_in_bf16.__wrapped__() == faster
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert not device_module._host_is_faster_in_bf16.__wrapped__()


@pytest.mark.parametrize(
    ("precision", "faster", "dtype"),
    [
        ("fp32", True, torch.float32),
        ("auto", False, torch.float32),
        ("auto", True, torch.bfloat16),
        ("bf16", False, torch.bfloat16),
    ],
)
def test_products_are_computed_in_it(
    precision: str, faster: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_module, "_host_is_faster_in_bf16", lambda: faster)
    matrix = torch.ones(4, 4)
    with autocast(torch.device("cpu"), precision):  # pyright: ignore[reportArgumentType]
        assert (matrix @ matrix).dtype == dtype


def test_a_cuda_device_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == choose_device("cpu") == torch.device("cpu")
    with pytest.raises(UsageError, match="set device=cpu or auto"):
        choose_device("cuda")


@pytest.mark.parametrize(
    ("driver", "available", "visible", "cuda", "said"),
    [
        (True, False, None, None, "a build without CUDA"),
        (True, False, "0", "13.0", "too old for CUDA 13.0"),
        (True, False, "", None, None),
        (True, False, "-1", "13.0", None),
        (True, True, None, "13.0", None),
        (False, False, None, None, None),
    ],
)
def test_a_gpu_that_torch_cannot_use_is_told(
    driver: bool, available: bool, visible: str | None, cuda: str | None, said: str | None,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    if driver:
        (tmp_path / "version").touch()
    monkeypatch.setattr("chronomask.model.device._NVIDIA_DRIVER", tmp_path / "version")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    found = gpu_out_of_reach()
    assert (found is None) == (said is None)
    assert (said or "") in (found or "")


FAST = Facts("bert", "bf16", True, True, 0.0, "model.overrides.dropout", True, 64, 30528, True)


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        (FAST, []),
        (replace(FAST, precision="fp32"), ["set precision=bf16"]),
        (replace(FAST, precision="fp32", computes_bf16=False), []),
        (replace(FAST, attention_dropout=0.1), ["0.1 .*set model.overrides.dropout=0.0"]),
        (replace(FAST, attention_dropout=0.1, dropout_key=None), ["config.json of the checkpoint"]),
        (replace(FAST, compiled=False), ["set compile=auto"]),
        (replace(FAST, head_width=20), ["20 wide, .*set model.overrides.num_attention_heads"]),
        (replace(FAST, head_width=264, sets_sizes=False), ["264 wide, .*choose a checkpoint"]),
        (replace(FAST, head_width=20, precision="fp32", computes_bf16=False), []),
        (replace(FAST, head_width=None), []),
        (replace(FAST, named_attention=False, attention_dropout=0.1), ["'bert' .*dense mask"]),
        (
            replace(FAST, vocab_size=30522),
            ["30,522 are slower .*set model.overrides.vocab_size=30528"],
        ),
        (replace(FAST, vocab_size=30522, sets_sizes=False), []),
        (replace(FAST, vocab_size=30522, precision="fp32", computes_bf16=False), []),
        (replace(FAST, devices=8), ["one of 8 devices .*--nproc-per-node 8 "]),
        (replace(FAST, precision="fp32", compiled=False), ["precision=bf16", "compile=auto"]),
    ],
)
def test_a_slow_path_is_told_with_the_setting_that_mends_it(facts: Facts, words: list[str]) -> None:
    found = slow_paths(facts)
    assert len(found) == len(words)
    for sentence, pattern in zip(found, words, strict=True):
        assert re.search(pattern, sentence)


@pytest.mark.parametrize(
    ("name", "card"),
    [
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H100 PCIe", "H100 PCIe"),
        ("NVIDIA H200", "H200"),
        ("NVIDIA H200 NVL", "H200 NVL"),
        ("NVIDIA GH200 480GB", "GH200"),
        ("NVIDIA A100-SXM4-80GB", "A100"),
        ("NVIDIA L40S", "L40S"),
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
        ("NVIDIA GeForce RTX 4090 D", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA A10G", None),
        ("Tesla V100-SXM2-16GB", None),
    ],
)
def test_a_card_is_found_by_its_name(name: str, card: str | None) -> None:
    assert _on_data_sheet(name) == (DATA_SHEET_FLOPS[card] if card else None)


def test_a_data_sheets_rate_is_for_bfloat16_on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    assert data_sheet_flops(torch.device("cuda"), "bf16") == 989e12
    assert data_sheet_flops(torch.device("cuda"), "fp32") is None
    assert data_sheet_flops(torch.device("cpu"), "bf16") is None


def test_peak_memory_is_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Statistics as torch has them of a device stand for a device."""
    peak: Any = {"all": {"current": 3, "peak": 7}, "small_pool": {"current": 1, "peak": 2}}
    monkeypatch.setattr(
        torch.cuda.memory,
        "memory_stats_as_nested_dict",
        lambda device: {"allocated_bytes": peak, "reserved_bytes": {"all": {"peak": 9}}},
    )
    monkeypatch.setattr(
        torch.cuda, "memory_stats_as_nested_dict", torch.cuda.memory.memory_stats_as_nested_dict
    )
    cuda = torch.device("cuda", 0)
    assert peak_memory(cuda) == torch.cuda.max_memory_allocated(cuda) == 7


@pytest.mark.gpu
def test_peak_memory_of_a_device_is_torchs() -> None:
    cuda = torch.device("cuda", 0)
    torch.empty(1000, device=cuda)
    assert peak_memory(cuda) == torch.cuda.max_memory_allocated(cuda) > 0
