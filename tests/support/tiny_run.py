"""A finished pre-training run with several checkpoints, in seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from chronomask.data.folder import PreparedData
from chronomask.train.config import RunConfig
from chronomask.train.loop import pretrain
from tests.support.tiny_models import tiny_bert


def tiny_run(folder: Path, data: PreparedData, **values: Any) -> Path:
    """Six steps with a checkpoint at each second, all kept, and a validation of 8 rows at the end.

    ``values``: keys of the run beside these.
    """
    config = RunConfig.parse(
        {
            "data": str(data.path),
            "model": tiny_bert(32),
            "steps": 6,
            "rows_per_step": 4,
            "learning_rate": {"kind": "linear", "peak": 3e-3, "warmup_steps": 1},
            "device": "cpu",
            "threads": 1,
            "validation": {"every": 0, "rows": 8, "batch_rows": 4},
            "checkpoint": {"every": 2, "keep": "all"},
            **values,
        }
    )
    pretrain(config, folder / "run", resume=False, progress=False)
    return folder / "run"
