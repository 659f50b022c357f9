"""The arms in numbers: one row per run, for the page, its CSV and the terminal."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from chronomask.runs.read import Run, read_runs

__all__ = [
    "ABSENT",
    "ArmRow",
    "arm_row",
    "arms_table",
    "config_differences",
    "duration",
    "flatten",
    "number",
    "thousands",
]

ABSENT = "–"


@dataclass(frozen=True, slots=True)
class ArmRow:
    """What one run came to; NaN where its files do not say.

    ``validation_loss`` in nats per predicted token at the fixed ratio; ``validation_accuracy``,
    ``mean_ratio_asked`` and ``mean_ratio_achieved`` as fractions, the last two over the logged
    steps; ``tokens_per_second`` is the median of the logged; ``seconds`` is wall time.
    """

    arm: str
    seed: int | None
    complete: bool
    steps: int
    validation_loss: float
    validation_accuracy: float
    masked_tokens: float
    tokens_seen: float
    tokens_per_second: float
    mean_ratio_asked: float
    mean_ratio_achieved: float
    seconds: float


def arm_row(run: Run) -> ArmRow:
    """The run's row: from its summary where it is finished, else from its last lines."""
    seed = run.config.get("seed")
    return ArmRow(
        arm=run.name,
        seed=seed if isinstance(seed, int) else None,
        complete=run.summary is not None,
        steps=int(run.total("step") if run.summary is None else run.total("steps", "step")),
        validation_loss=run.total("validation_loss", "loss"),
        validation_accuracy=run.total("validation_accuracy", "accuracy"),
        masked_tokens=run.total("masked_tokens"),
        tokens_seen=run.total("tokens_seen"),
        tokens_per_second=_speed(run),
        mean_ratio_asked=_mean(run.metrics["masking_ratio"]),
        mean_ratio_achieved=_mean(run.metrics["masking_ratio_achieved"]),
        seconds=run.total("seconds"),
    )


def arms_table(runs: Sequence[str | Path]) -> str:
    """The arms as aligned plain text for a terminal, one line each under a heading.

    ``runs`` are run folders; raises as :func:`chronomask.runs.read.read_runs` does.
    """
    heading = ("arm", "validation loss", "masked tokens predicted", "tokens/s")
    lines: list[tuple[str, ...]] = [heading]
    for row in map(arm_row, read_runs(runs)):
        name = row.arm if row.complete else f"{row.arm} (unfinished)"
        loss = ABSENT if math.isnan(row.validation_loss) else f"{row.validation_loss:.4f}"
        lines.append((name, loss, thousands(row.masked_tokens), thousands(row.tokens_per_second)))
    widths = [max(len(line[k]) for line in lines) for k in range(len(heading))]
    return "\n".join(
        "  ".join(
            text.ljust(width) if k == 0 else text.rjust(width)
            for k, (text, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def thousands(value: float) -> str:
    """A whole number with commas, a dash for NaN."""
    return ABSENT if math.isnan(value) else f"{value:,.0f}"


def number(value: float, pattern: str) -> str:
    """A number in a pattern such as ``{:.1f} %``, a dash for NaN."""
    return ABSENT if math.isnan(value) else pattern.format(value)


def duration(seconds: float) -> str:
    """Wall time as people say it: ``48 s``, ``3 min 20 s``, ``5 h 07 min``."""
    if math.isnan(seconds):
        return ABSENT
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def config_differences(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """Dotted config keys that differ between the runs, each with its value in every run as text.

    The name is left out: it always differs. A key that a run lacks reads as a dash.
    """
    flat = [dict(flatten(run.config)) for run in runs]
    keys = sorted({key for values in flat for key in values} - {"name"})
    differing = []
    for key in keys:
        texts = [values.get(key, ABSENT) for values in flat]
        if len(set(texts)) > 1:
            differing.append((key, texts))
    return differing


def flatten(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Dotted key and value as text for every leaf of nested mappings, in their order."""
    leaves = []
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            leaves.extend(flatten(value, f"{prefix}{key}."))
        else:
            text = value if isinstance(value, str) else json.dumps(value, default=str)
            leaves.append((f"{prefix}{key}", text))
    return leaves


def _speed(run: Run) -> float:
    if run.summary is not None and isinstance(run.summary.get("tokens_per_second"), int | float):
        return float(run.summary["tokens_per_second"])
    logged = run.metrics["tokens_per_second"]
    return float(np.nanmedian(logged)) if np.isfinite(logged).any() else float("nan")


def _mean(values: np.ndarray) -> float:
    return float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")
