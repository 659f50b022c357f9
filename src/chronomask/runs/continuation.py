"""How a run goes on that has ended before its last step, in the words of what it was begun by.

A command, a call, or an adaptation or a study that the run is a part of: these find by themselves what is
there, and a trial leaves nothing to go on from. What begins a run says so, and every message asks here.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace

__all__ = ["begun_by", "goes_on", "on_trial"]


@dataclass(frozen=True, slots=True)
class _Beginning:
    what: str
    option: str
    """with which it goes on; empty where it does so anyway"""
    trial: bool = False


_CALL = _Beginning("call", "resume=True")
_BEGINNING = ContextVar("beginning", default=_CALL)


def goes_on() -> str:
    """A clause that says it, to stand behind what must be done before.

    >>> goes_on()
    'the same call goes on with resume=True'
    """
    begun = _BEGINNING.get()
    if begun.trial:
        return f"the same {begun.what} begins again"
    return f"the same {begun.what} goes on" + (f" with {begun.option}" if begun.option else "")


@contextmanager
def begun_by(what: str, option: str = "") -> Iterator[None]:
    """Runs that begin while this is open are begun by ``what``, and go on with ``option``."""
    with _begun(_Beginning(what, option)):
        yield


@contextmanager
def on_trial() -> Iterator[None]:
    """What is trained while this is open is thrown away."""
    with _begun(replace(_BEGINNING.get(), trial=True)):
        yield


@contextmanager
def _begun(beginning: _Beginning) -> Iterator[None]:
    before = _BEGINNING.set(beginning)
    try:
        yield
    finally:
        _BEGINNING.reset(before)
