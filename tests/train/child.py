"""Runs ``pretrain`` in a process of its own: ``python child.py '{"config": …, "out": …}'``.

``resume``: bool; ``kill_in_step``: SIGKILL oneself between two micro-batches of this 0-based step;
``kill_in_save``: SIGKILL oneself while writing the checkpoint of this step; ``ask_to_stop``:
[rank, step]: SIGTERM oneself after this step in this process. Exits with the error's exit code.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import Any

from chronomask.errors import ChronomaskError
from chronomask.train import checkpoint, loop
from chronomask.train.config import RunConfig
from chronomask.train.log import RunLog


def main(spec: dict[str, Any]) -> int:
    seed_dropout, flush, advance = loop._seed_dropout, checkpoint._flush, RunLog.advance

    def seed_or_die(seed: int, step: int, rank: int, micro_batch: int) -> None:
        if step == spec.get("kill_in_step") and micro_batch == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        seed_dropout(seed, step, rank, micro_batch)

    def flush_or_die(path: Any) -> None:
        if f"{spec.get('kill_in_save', -1):08d}" in str(path) and path.name == "state.json":
            os.kill(os.getpid(), signal.SIGKILL)
        flush(path)

    def advance_or_ask(self: RunLog, step: int, steps: int, metrics: Any) -> None:
        advance(self, step, steps, metrics)
        if [int(os.environ.get("RANK", "0")), step] == spec.get("ask_to_stop"):
            os.kill(os.getpid(), signal.SIGTERM)

    loop._seed_dropout = seed_or_die
    checkpoint._flush = flush_or_die
    RunLog.advance = advance_or_ask
    try:
        loop.pretrain(
            RunConfig.parse(spec["config"]),
            spec["out"],
            resume=spec.get("resume", False),
            progress=False,
        )
    except ChronomaskError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))
