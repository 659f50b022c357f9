"""What a process may use of this machine: processor cores, memory, open files, semaphores to share work by.

A job of a scheduler or a container seldom has all that the machine has. The system tells which cores it may
run on. How much of their time it has, and how much memory, is written in the files of its control group and
of those above it (https://docs.kernel.org/admin-guide/cgroup-v2.html; version 1 has other files).
"""

from __future__ import annotations

import logging
import os
import resource
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from math import ceil
from multiprocessing import get_context
from pathlib import Path, PurePosixPath

__all__ = ["available_cores", "can_share_work", "make_room_for_files", "memory_of_process"]

logger = logging.getLogger(__name__)

_OWN_GROUPS = Path("/proc/self/cgroup")
_ALL_GROUPS = Path("/sys/fs/cgroup")
_CORES = (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us"))
"""Microseconds of processor time in a period, and how long that is: files of version 2, and of version 1."""
_MEMORY = ("memory.max", "memory.limit_in_bytes")
"""Bytes: the file of version 2, and that of version 1."""


def available_cores() -> int:
    """How many processor cores' time this process may use, at least 1."""
    has_affinity = hasattr(os, "sched_getaffinity")  # macOS has not
    limits = [len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1]
    for group in _groups("cpu"):
        for names in _CORES:
            with suppress(OSError, ValueError, ZeroDivisionError):  # no such file, or "max" in it
                text = " ".join((group / name).read_text() for name in names)
                share, period = map(int, text.split())
                if share > 0:  # else -1, no limit
                    limits.append(ceil(share / period))
    return max(1, min(limits))


def memory_of_process() -> int:
    """Bytes of memory for each process of a run: what the machine, the job or the container has, shared.

    torchrun tells how many processes run on this machine.
    """
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for group in _groups("memory"):
        for name in _MEMORY:
            with suppress(OSError, ValueError):
                limits.append(int((group / name).read_text()))
    return min(limits) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def make_room_for_files() -> None:
    """Let this process open some hundreds of files more, as far as the system lets it.

    A system allows a process few open files at first (1,024, or 256 on macOS) and more where it asks. A
    file that is mapped into memory counts as an open one.
    """
    allowed, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):  # no list of open files, or not so many are allowed
        num_open = sum(1 for _ in Path("/dev/fd").iterdir())
        if allowed != resource.RLIM_INFINITY and num_open + 512 > allowed:
            wanted = max(4096, 2 * allowed)
            if most != resource.RLIM_INFINITY:
                wanted = min(wanted, most)
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))


def _groups(controller: str) -> Iterator[Path]:
    """Folders of this process's control group and of those above it, in both versions.

    Some do not exist, because a container sees its own group as the uppermost.
    """
    try:
        text = _OWN_GROUPS.read_bytes().decode(errors="surrogateescape")
    except OSError:  # not Linux
        return
    for line in text.rstrip("\n").split("\n"):
        controllers, _, path = line.partition(":")[2].partition(":")
        if controllers and controller not in controllers.split(","):
            continue
        own = PurePosixPath(path.lstrip("/"))
        # In version 1 a controller has a folder of its own, or one with others.
        for top in dict.fromkeys((controllers and controller, controllers)):
            for group in (own, *own.parents):
                yield _ALL_GROUPS / top / group


@cache
def can_share_work() -> bool:
    """Whether several processes can share work here; warns, once a process, where they cannot.

    They wait for each other by semaphores, which the system keeps in shared memory. A container may have
    none, or none that may be written.
    """
    try:
        get_context("spawn").Lock()
    except (OSError, ImportError) as error:  # without support the module itself is missing
        logger.warning(
            "this process works alone, because processes that share work need semaphores in shared memory, "
            "and there are none here (%s): let /dev/shm be written for several at a time",
            error,
        )
        return False
    return True
