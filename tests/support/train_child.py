"""Runs ``pretrain`` in a process of its own: ``train_child.py '{"config": …, "out": …}'``.

``resume``: bool; ``kill_in_step``: SIGKILL oneself between two micro-batches of this 0-based step;
``kill_in_save``: SIGKILL oneself while writing the checkpoint of this step; ``kill_before_summary``:
SIGKILL oneself once the last checkpoint is there; ``kill_at``: [where, n]: SIGKILL oneself at the n-th
call of a function, Python's or C's, counted in the ``save`` thread or anywhere in ``training``;
``count_into``: a file for the numbers of those calls; ``invite_at``: [where, n, calls]: at that call tell
the driver that it may send a SIGKILL, and wait for it where ``training`` has made ``calls`` more;
``ask_to_stop``: [rank, step]: SIGTERM oneself after this step in this process; ``die_once``: [rank, step]:
SIGKILL oneself there if this is the first start of a group that torchrun may start again; ``tick``: seconds
that pass between two looks at the clock of ``hours``. Exits with the error's exit code.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import Any

from chronomask.errors import ChronomaskError
from chronomask.train import hours, loop, saving
from chronomask.train import step as steps
from chronomask.train.config import RunConfig
from chronomask.train.log import RunLog


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def count_calls(spec: dict[str, Any]) -> Counter[str]:
    """Count function calls from the first step on, in the thread that saves and elsewhere."""
    calls: Counter[str] = Counter()
    where_to_die, last = spec.get("kill_at", ("nowhere", 0))
    where_to_invite, first, more = spec.get("invite_at", ("nowhere", 0, 0))
    enough: int | None = None  # calls of training after which it waits for the kill

    def count(frame: Any, event: str, _: Any) -> None:
        nonlocal enough
        if event not in ("call", "c_call"):
            return
        saving = threading.current_thread().name.startswith("checkpoint")
        place = "save" if saving else "training"
        calls[place] += 1
        if place == where_to_die and calls[place] == last:
            die()
        if place == where_to_invite and calls[place] == first:
            enough = calls["training"] + more
            os.write(spec["invitation"], b"!")
        if place == "training" and calls[place] == enough:
            os.read(spec["driver"], 1)  # nothing ever comes: SIGKILL does, or the driver's own end
            os._exit(1)

    threading.setprofile(count)
    sys.setprofile(count)
    return calls


def main(spec: dict[str, Any]) -> int:
    seed_dropout, flush, advance = steps.seed_dropout, saving.flush, RunLog.advance
    summarise = loop.summarise
    calls: Counter[str] | None = None
    rank = int(os.environ.get("RANK", "0"))

    def seed_or_die(seed: int, step: int, rank: int, micro_batch: int) -> None:
        nonlocal calls
        if calls is None and not spec.keys().isdisjoint({"kill_at", "invite_at", "count_into"}):
            calls = count_calls(spec)
        if step == spec.get("kill_in_step") and micro_batch == 1:
            die()
        seed_dropout(seed, step, rank, micro_batch)

    def flush_or_die(path: Any) -> None:
        saved = f"step-{spec['kill_in_save']:08d}" if "kill_in_save" in spec else "never"
        if saved in str(path) and path.name == "state.json":
            die()
        flush(path)

    def advance_or_ask(self: RunLog, step: int, metrics: Any) -> None:
        advance(self, step, metrics)
        if [rank, step] == spec.get("ask_to_stop"):
            os.kill(os.getpid(), signal.SIGTERM)
        if [rank, step] == spec.get("die_once") and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
            die()

    def summarise_or_die(*arguments: Any) -> Any:
        if spec.get("kill_before_summary"):
            die()
        return summarise(*arguments)

    if "tick" in spec:
        hours.clock = (spec["tick"] * number for number in itertools.count()).__next__
    steps.seed_dropout = seed_or_die
    saving.flush = flush_or_die
    RunLog.advance = advance_or_ask
    loop.summarise = summarise_or_die
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
    finally:
        sys.setprofile(None)
        if calls is not None and "count_into" in spec:
            Path(spec["count_into"]).write_text(json.dumps(calls))
    return 0


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))
