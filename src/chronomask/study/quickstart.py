"""The main job at its smallest: real text, four arms, one report, in minutes on a laptop.

Arms share the data order and the initial weights; only the masking differs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from chronomask.config import read_yaml
from chronomask.errors import UsageError
from chronomask.prepare.config import PrepareConfig
from chronomask.prepare.pipeline import prepare
from chronomask.report.page import write_report
from chronomask.report.tables import arms_table
from chronomask.train.config import RunConfig
from chronomask.train.loop import pretrain

__all__ = ["ARMS", "quickstart"]

ARMS: dict[str, dict[str, Any]] = {
    "fixed 15 %": {"ratio": {"kind": "constant", "base": 0.15}, "content": {"kind": "none"}},
    "MRD cosine": {"ratio": {"kind": "cosine_decay"}, "content": {"kind": "none"}},
    "PTW": {"ratio": {"kind": "constant", "base": 0.15}, "content": {"kind": "ptw"}},
    "MRD + PTW": {"ratio": {"kind": "cosine_decay"}, "content": {"kind": "ptw"}},
}
"""What each arm masks; everything else is the same for all."""

PREPARATION: dict[str, Any] = {
    "sources": [{"kind": "installed_packages"}],
    "tokenizer": {"kind": "wordpiece", "vocab_size": 8192},
    "held_out": 0.04,
}

RUN: dict[str, Any] = {
    "model": {
        "kind": "config",
        "model_type": "modernbert",
        "overrides": {
            "hidden_size": 128,
            "num_hidden_layers": 4,
            "num_attention_heads": 2,
            "intermediate_size": 192,
            "global_attn_every_n_layers": 1,
        },
    },
    "rows_per_step": 16,
    "learning_rate": {"kind": "linear", "peak": 1.5e-3, "warmup_steps": 60},
    "log_every": 5,
    "validation": {"rows": 128},
    "checkpoint": {"every": 0, "keep": 1},
}


def quickstart(out: Path, *, steps: int, progress: bool = True) -> str:
    """Prepare, train the arms, write the report; the arms table and the report's path as text.

    What is already there is used again, so an interrupted quickstart goes on where it stopped.
    """
    data = prepare(PrepareConfig.parse(PREPARATION), out / "data", progress=progress)
    folders = []
    for number, (name, masking) in enumerate(ARMS.items(), start=1):
        folder = out / f"arm-{number}"
        values = {
            **RUN,
            "name": name,
            "data": str(data.path),
            "steps": steps,
            "masking": masking,
            "validation": {**RUN["validation"], "every": max(1, steps // 10)},
        }
        config = RunConfig.parse(values)
        started = (folder / "config.yaml").is_file()
        if started and RunConfig.parse(read_yaml(folder / "config.yaml")) != config:
            raise UsageError(
                f"{folder} holds an arm with another config; remove {out} or choose another --out"
            )
        if progress:
            print(f"arm {number} of {len(ARMS)}: {name}", flush=True)
        pretrain(config, folder, resume=started, progress=progress)
        folders.append(folder)
    page = write_report(folders, out, "Quickstart: four ways to mask")
    return f"{arms_table(folders)}\n\nreport: {page.resolve()}"
