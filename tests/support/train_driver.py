"""Imports torch once, then forks the processes of runs: restarts cost what a run costs, not an import.

Reads requests and writes answers, a JSON object a line. ``specs``: one of ``train_child.py`` for every
process of a group, or with ``apart`` for each of several that know nothing of each other. A process whose
spec has ``invite_at`` gets SIGKILL as soon as it invites it; until then it goes on, so where the kill meets
it depends on nothing but the system. Answers ``codes`` (of exit, −9 if killed) and ``errors`` (their
stderr). The first line read is a spec that this process does itself, so that what is imported on first use
is there for all.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from tests.support import train_child


def serve() -> None:
    torch.set_num_threads(1)
    train_child.main(json.loads(sys.stdin.readline()))
    while sys.platform == "linux" and len(threads()) > 1:
        time.sleep(0.01)  # a thread that was joined may be listed a moment longer
    print("ready", flush=True)
    for request in sys.stdin:
        print(json.dumps(run(**json.loads(request))), flush=True)


def threads() -> list[str]:
    """Names of this process's threads, but for that of pyarrow's allocator, which stays and bears a fork."""
    names = []
    for path in Path("/proc/self/task").glob("*/comm"):
        with suppress(OSError):  # it has just ended
            names.append(path.read_text().strip())
    return [name for name in names if name != "jemalloc_bg_thd"]


def run(specs: list[dict[str, Any]], apart: bool) -> dict[str, Any]:
    world = {}
    if len(specs) > 1 and not apart:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = str(probe.getsockname()[1])
        world = {"WORLD_SIZE": str(len(specs)), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    with tempfile.TemporaryDirectory() as folder:
        started, invitations, logs = [], [], []
        for rank, spec in enumerate(specs):
            log = os.path.join(folder, str(rank))  # noqa: PTH118
            place = world | {"RANK": str(rank), "LOCAL_RANK": str(rank)} if world else {}
            process, invitation = start(spec, place, log)
            started.append(process)
            invitations.append(invitation)
            logs.append(log)
        for process, invitation in zip(started, invitations, strict=True):
            if invitation is not None:
                wait_and_kill(process, *invitation)
        codes = [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in started]
        errors = [open(log).read() for log in logs]  # noqa: PTH123, SIM115
    return {"codes": codes, "errors": errors}


def start(
    spec: dict[str, Any], env: dict[str, str], log: str
) -> tuple[int, tuple[int, int] | None]:
    """A process that does ``spec``; and, if it will invite a kill, this side's ends of two pipes."""
    if "invite_at" not in spec:
        return fork(lambda: train_child.main(spec), env, log), None
    heard, invitation = os.pipe()  # the process writes when it may be killed
    driver, held = os.pipe()  # the process reads, and wakes only if this one is gone

    def main() -> int:
        os.close(heard)
        os.close(held)
        return train_child.main(spec | {"invitation": invitation, "driver": driver})

    process = fork(main, env, log)
    os.close(invitation)
    os.close(driver)
    return process, (heard, held)


def wait_and_kill(process: int, heard: int, held: int) -> None:
    """SIGKILL once the process invites it; one that ends without is left to its exit code."""
    if os.read(heard, 1):
        os.kill(process, signal.SIGKILL)
    os.close(heard)
    os.close(held)


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
