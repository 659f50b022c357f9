"""Trains, is stopped and goes on under Weights & Biases: ``wandb_run.py <config as JSON> <run folder>``.

Prints the ids of its sessions and the points that their files hold, as JSON.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2

from chronomask.train.config import RunConfig
from chronomask.train.loop import pretrain
from tests.support.tiny_training import back_to_step_3


def records(log: bytes) -> Iterator[bytes]:
    """The records of a .wandb file: seven bytes of head, then LevelDB's log format."""
    position, record = 7, b""
    while position + 7 <= len(log):
        left = 2**15 - position % 2**15
        if left < 7:
            position += left
            continue
        size, kind = int.from_bytes(log[position + 4 : position + 6], "little"), log[position + 6]
        record += log[position + 7 : position + 7 + size]
        position += 7 + size
        if kind in (1, 4):  # whole, or the last part
            yield record
            record = b""


def main(config: RunConfig, run: Path) -> None:
    pretrain(config, run, progress=False)
    back_to_step_3(run)
    pretrain(config.replace(["steps=6"]), run, resume=True, progress=False)
    ids: list[str] = []
    points: list[dict[str, Any]] = []
    files = run.glob("wandb/offline-run-*/run-*.wandb")
    for path in sorted(files, key=lambda path: path.stat().st_mtime):
        ids.append(path.stem)
        for data in records(path.read_bytes()):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            if record.HasField("history"):
                items = record.history.item
                points.append(
                    {(i.key or "/".join(i.nested_key)): json.loads(i.value_json) for i in items}
                )
    print(json.dumps([ids, points]))


if __name__ == "__main__":
    main(RunConfig.parse(json.loads(sys.argv[1])), Path(sys.argv[2]))
