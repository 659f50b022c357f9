"""Whether all processes of a run do the same: they open config, data and checkpoints each by itself.

On one machine they see the same files. Two machines may have a disk each: then one may find a checkpoint that
another has not, and sums over both would mean nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from chronomask.errors import UsageError, shown
from chronomask.runs.layout import RunFolder, checkpoints_in
from chronomask.train.config import RunConfig
from chronomask.train.distributed import World

__all__ = ["refuse_other_folder", "refuse_unlike"]

_PRECISION = "precision in force"
_OWN = {"name", "data", "branch", "device", "loggers", "peak_flops", "threads", "loader_workers"}
"""Keys of a config that may differ between machines. Files at the named places are compared by their content
instead."""


def refuse_unlike(
    world: World, config: RunConfig, fingerprint: str, step: int, weights: str, precision: str
) -> None:
    """Raise UsageError in every process where they have other settings, or begin otherwise.

    ``fingerprint``: of the data; ``step``, ``weights``: where the run begins, and a hash of what with;
    ``precision``: the one in force, which ``auto`` chooses by the machine. No process goes on before all are
    here.
    """
    values = {key: value for key, value in config.to_dict().items() if key not in _OWN}
    values["model"].pop("path", None)
    values |= {
        "the data's fingerprint": fingerprint,
        "step": step,
        "weights (SHA-256)": weights,
        _PRECISION: precision,
    }
    _refuse(world, values)


def refuse_other_folder(world: World, folder: RunFolder) -> None:
    """Raise UsageError in every process where they do not find the same in the run's folder, for what is done
    before a run is opened.
    """
    config = folder.config.read_text(encoding="utf-8") if folder.config.is_file() else None
    saved = [path.name for path in checkpoints_in(folder.checkpoints)]
    _refuse(world, {"config.yaml": config, "checkpoints": saved})


def _refuse(world: World, values: Mapping[str, Any]) -> None:
    """Raise UsageError in every process where one of the values, by what it is called, is not the same."""
    differing = world.differ(map(_number, values.values()))
    unlike = [name for name, differs in zip(values, differing, strict=True) if differs]
    if unlike:
        here = ", ".join(f"{name} {shown(values[name])}" for name in unlike)
        way_out = (
            "set precision=fp32, which every machine has"
            if unlike == [_PRECISION]
            else "start all with the same command, and let the run's folder and the data lie on a disk that "
            "all machines see"
        )
        raise UsageError(
            f"process {world.rank} of {world.size}, counted from 0, has {here}, and another process has "
            f"something else: {way_out}"
        )


def _number(value: Any) -> int:
    """56 bits of a hash of a value of a config."""
    text = json.dumps(value, sort_keys=True)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7])
