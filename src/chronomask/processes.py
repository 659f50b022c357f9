"""Signals that ask a process to stop, and worker processes: these leave Ctrl-C to the process that started
them, have its environment but for what is theirs, and end with it.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import connection, parent_process, resource_tracker
from types import FrameType

__all__ = ["StopRequest", "deaf_to_interrupts", "end_with_parent", "environment", "listen"]


class StopRequest:
    """The number of the signal that asked to stop, 0 until one did."""

    def __init__(self) -> None:
        self.signal_number = 0


@contextmanager
def listen() -> Iterator[StopRequest]:
    """Collect the signals that ask to stop; the handlers found are put back at the end.

    A second SIGINT stops the process at once. A second SIGTERM does not: schedulers of clusters send one
    to every process of a job, and launchers pass theirs on to processes that have it already. Only the
    main thread may handle signals, so elsewhere the request stays empty.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def ask(number: int, _: FrameType | None) -> None:
        request.signal_number = number
        if number == signal.SIGINT:
            signal.signal(number, before[signal.SIGINT])

    for number in before:
        signal.signal(number, ask)
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def environment(**values: str) -> Iterator[None]:
    """Variables of the environment while the block runs, here and in processes that are started meanwhile.

    Each is put back by itself: other threads never meet an environment that lacks the rest.
    """
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


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
    threading.Thread(target=_watch, args=(end or _end_at_once,), daemon=True).start()


def _watch(end: Callable[[], None]) -> None:
    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        end()


def _end_at_once() -> None:
    os._exit(1)
