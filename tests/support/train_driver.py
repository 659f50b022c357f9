"""Imports torch once, then forks the processes of runs: restarts cost what a run costs, not an import.

Reads requests and writes answers, a JSON object a line. ``specs``: one of ``train_child.py`` for every
process; ``kill_after``: seconds after the first process began its first step at which all get SIGKILL.
Answers ``codes`` (of exit, −9 if killed) and ``errors`` (their stderr). The first line read
is a spec that this process does itself, so that what is imported on first use is there for all.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch

from tests.support import train_child


def serve() -> None:
    torch.set_num_threads(1)
    train_child.main(json.loads(sys.stdin.readline()))
    while sys.platform == "linux" and len(os.listdir("/proc/self/task")) > 1:  # noqa: PTH208
        time.sleep(0.01)  # a thread that was joined may be listed a moment longer
    print("ready", flush=True)
    for request in sys.stdin:
        print(json.dumps(run(**json.loads(request))), flush=True)


def run(specs: list[dict[str, Any]], kill_after: float | None = None) -> dict[str, Any]:
    world = {}
    if len(specs) > 1:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = str(probe.getsockname()[1])
        world = {"WORLD_SIZE": str(len(specs)), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    with tempfile.TemporaryDirectory() as folder:
        logs = [os.path.join(folder, str(rank)) for rank in range(len(specs))]  # noqa: PTH118
        started = [
            fork(
                lambda spec=spec: train_child.main(spec),
                world | {"RANK": str(rank), "LOCAL_RANK": str(rank)} if world else {},
                log,
            )
            for rank, (spec, log) in enumerate(zip(specs, logs, strict=True))
        ]
        if kill_after is not None:
            while not os.path.exists(specs[0]["begun"]):  # noqa: PTH110
                time.sleep(0.002)
            time.sleep(kill_after)
            for process in started:
                os.kill(process, 9)
        codes = [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in started]
        errors = [open(log).read() for log in logs]  # noqa: PTH123, SIM115
    return {"codes": codes, "errors": errors}


def fork(main: Callable[[], int], env: dict[str, str], log: str) -> int:
    process = os.fork()
    if process:
        return process
    code = 70
    try:
        target = os.open(log, os.O_WRONLY | os.O_CREAT)
        os.dup2(target, 1)
        os.dup2(target, 2)
        os.environ.update(env)
        code = main()
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    serve()
