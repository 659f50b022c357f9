"""SIGTERM and SIGINT ask a run to stop at the next step boundary; a second SIGINT stops it at once.

A second SIGTERM does not: cluster schedulers send one to every process of a job, and launchers pass theirs
on to processes that have it already. SIGKILL stops a run at once.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from chronomask.errors import ChronomaskError

__all__ = ["StopRequest", "Stopped", "listen"]


class Stopped(ChronomaskError):
    """A run stopped on request with its state saved; exits like a process ended by the signal."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number


class StopRequest:
    """The number of the signal that asked to stop, 0 until one did."""

    def __init__(self) -> None:
        self.signal_number = 0


@contextmanager
def listen() -> Iterator[StopRequest]:
    """Collect stop signals; the handlers found are put back at the end.

    Only the main thread may handle signals, so elsewhere the request stays empty.
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
