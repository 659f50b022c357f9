"""Damaged configs are refused in one sentence or mean what they say; never a traceback, never NaN."""

from __future__ import annotations

from pathlib import Path

import pytest

from chronomask.errors import UsageError
from chronomask.train.config import RunConfig
from tests.support.fuzz_configs import FAMILIES, check_config, check_refusal, fuzz

NUMBER = 400


@pytest.mark.slow
def test_four_hundred_damaged_configs(tmp_path: Path) -> None:
    """Run, masking, preparation and study in turn; ``python -m tests.support.fuzz_configs`` does more."""
    counts, failures = fuzz(NUMBER, 20, tmp_path)
    assert failures == []
    assert sum(found.total() for found in counts.values()) == NUMBER
    for name in FAMILIES:  # both ends of the check are reached
        assert counts[name]["accepted"] > 0, name
        assert counts[name]["refused"] > NUMBER / 8, name


@pytest.mark.parametrize("check", ["check_config", "check_refusal"])
def test_what_ends_in_another_error_is_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, check: str
) -> None:
    monkeypatch.setattr(f"tests.support.fuzz_configs.{check}", lambda became: 1 / 0)
    counts, failures = fuzz(40, 20, tmp_path)
    failed = sum(found["failed"] for found in counts.values())
    assert failed > 0
    assert len(failures) == failed
    assert "ZeroDivisionError" in failures[0]


def test_an_infinity_that_is_let_through_is_noticed() -> None:
    let_through = RunConfig(data="data").model_copy(update={"gradient_clip": float("inf")})
    with pytest.raises(AssertionError, match="not finite"):
        check_config(let_through)
    with pytest.raises(AssertionError, match="what is inside"):
        check_refusal(UsageError("steps: Input should be a valid tuple"))
