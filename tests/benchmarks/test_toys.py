"""Benchmarks of the host run to their end at toy size, and say what their text promises."""

from __future__ import annotations

import math
import re

from benchmarks import attention, late_masks, processor_bf16


def promised(text: str | None) -> set[str]:
    """The names that the list of a benchmark's text begins its entries with."""
    entries = re.findall(r"^- ((?:``\w+``(?:, )?)+)", text or "", re.MULTILINE)
    return {name for entry in entries for name in re.findall(r"``(\w+)``", entry)}


def test_attention() -> None:
    figures = attention.benchmark_attention(rounds=1, threads=1, toy=True)
    assert set(figures) == promised(attention.__doc__)
    assert all(math.isfinite(figure) for figure in figures.values())


def test_late_masks() -> None:
    figures = late_masks.benchmark_late_masks(steps=1, threads=1, toy=True)
    assert set(figures) == {
        f"{where}_{round(100 * ratio)}" for where in ("half", "last") for ratio in late_masks.RATIOS
    }
    assert all(figure > 0 for figure in figures.values())


def test_bfloat16_on_a_processor() -> None:
    figures = {}
    for found in processor_bf16.measure(steps=1, rounds=1, threads=1, toy=True):
        figures |= found
    rates = {name for name in figures if name.endswith("_tokens_per_second")}
    assert set(figures) - rates == promised(processor_bf16.__doc__)
    assert all(figure > 0 for figure in figures.values())
