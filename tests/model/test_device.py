"""One vocabulary for device and precision; what ``auto`` means depends on the device."""

from __future__ import annotations

import pytest
import torch

from chronomask.errors import UsageError
from chronomask.model.device import autocast, choose_device, precision_on


def test_auto_is_bf16_where_a_cuda_device_computes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    for able in (True, False):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, a=able: a)
        assert precision_on(cuda, "auto") == ("bf16" if able else "fp32")
        assert precision_on(cpu, "auto") == "fp32"
        assert precision_on(cuda, "fp32") == "fp32"
        assert precision_on(cpu, "bf16") == "bf16"


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [("fp32", torch.float32), ("auto", torch.float32), ("bf16", torch.bfloat16)],
)
def test_products_are_computed_in_it(precision: str, dtype: torch.dtype) -> None:
    matrix = torch.ones(4, 4)
    with autocast(torch.device("cpu"), precision):  # pyright: ignore[reportArgumentType]
        assert (matrix @ matrix).dtype == dtype


def test_a_cuda_device_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == choose_device("cpu") == torch.device("cpu")
    with pytest.raises(UsageError, match="set device=cpu or auto"):
        choose_device("cuda")
