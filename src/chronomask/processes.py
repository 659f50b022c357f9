"""Worker processes: they leave Ctrl-C to the process that started them, and end with it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import connection, parent_process, resource_tracker
from threading import Thread

__all__ = ["deaf_to_interrupts", "end_with_parent"]


@contextmanager
def deaf_to_interrupts() -> Iterator[None]:
    """Processes that are started meanwhile never get SIGINT, from their first moment on.

    Ctrl-C goes to all processes of a terminal; the one that started the others says what becomes of them. One
    that comes meanwhile reaches this process at the end.
    """
    resource_tracker.ensure_running()  # its start, with the first process, would unblock SIGINT again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def end_with_parent(end: Callable[[], None] | None = None) -> None:
    """Let this worker process end once the one that started it has ended, however that was.

    A parent that is killed cannot say goodbye, and a worker that waits for it would wait for ever: its end of
    the queue stays open, because the workers hold the other end too. ``end`` is called then; None: the
    process ends at once, as it may where what is half written is a draft under another name.
    """
    Thread(target=_watch, args=(end or _end_at_once,), daemon=True).start()


def _watch(end: Callable[[], None]) -> None:
    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        end()


def _end_at_once() -> None:
    os._exit(1)
