"""Progress of long work: what is said of it; a bar on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any, Self

from tqdm import tqdm

from chronomask.errors import harmless

__all__ = ["NOT_SHOWN", "Progress", "be_silent", "clock", "say"]

_SECONDS_BETWEEN_LINES = 10.0
"""Least time between plain lines, so that the log of long work stays readable."""
_SECONDS_BEFORE_BAR = 1.0
"""Time that brief work may take before its bar appears."""
_LEAST_SECONDS = 0.01
"""Time over which a rate is told."""


def say(text: str) -> None:
    """Tell people how far long work is. What acts on a terminal is escaped: names and the errors of other
    programs come from files.
    """
    if sys.stderr is not None:  # which print takes for standard output
        print(harmless(text), file=sys.stderr, flush=True)


def be_silent(_: str) -> None:
    """Stand in for :func:`say` where nobody wants to know."""


class Progress:
    """How much of ``total`` is done (None: not known), at what rate, and how long the rest will take.

    ``unit``: what is counted, in the plural. ``done``: what was done before, by an interrupted run.
    ``shown``: False shows nothing. ``brief``: work that is mostly over at once is told only where it is
    not: its bar comes after a second, and a line in the end only after another. On stderr.
    """

    def __init__(
        self,
        label: str,
        total: int | None,
        unit: str = "examples",
        *,
        shown: bool = True,
        done: int = 0,
        brief: bool = False,
    ) -> None:
        """Start the clock; the bar appears at once, the first line after ten seconds."""
        self._label, self._total, self._unit = label, total, unit
        self._done = self._before = done
        self._others: dict[str, int] = {}
        self._note = ""
        self._started = self._last_line = time.monotonic()
        is_terminal = getattr(sys.stderr, "isatty", None)  # a notebook's stream may have none
        terminal = shown and is_terminal is not None and is_terminal()
        self._lines = shown and not terminal
        self._tells_end = not brief
        self._bar: tqdm[Any] | None = None
        if terminal:  # tqdm starts a thread, also for a bar that it does not show
            self._bar = tqdm(
                desc=harmless(label),
                total=total,
                initial=done,
                unit=f" {unit}",
                unit_scale=True,
                leave=False,
                dynamic_ncols=True,
                delay=_SECONDS_BEFORE_BAR if brief else 0,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.close()
        if self._lines and self._tells_end and kind is None:
            seconds = time.monotonic() - self._started
            self._print([f"{self._done:,} {self._unit} in {clock(seconds)}", *self._rates(seconds)])

    def advance(self, done: int = 1, note: str = "", **others: int) -> None:
        """Count work that was done.

        ``note`` stays beside it until there is another, such as a loss; ``others`` are counted too and
        shown with their rates, such as ``words=120``.
        """
        self._done += done
        for name, number in others.items():
            self._others[name] = self._others.get(name, 0) + number
        self._note = note or self._note
        now = time.monotonic()
        if self._bar is not None:
            beside = [*self._rates(now - self._started)[1:], self._note]
            self._bar.set_postfix_str(harmless(", ".join(filter(None, beside))), refresh=False)
            self._bar.update(done)
        if self._lines and now - self._last_line > _SECONDS_BETWEEN_LINES:
            self._last_line = now
            self._tells_end = True
            self._print(self._state(now - self._started))

    def tell(self, text: str) -> None:
        """Print a line beside the progress, where that is shown."""
        if self._bar is not None:
            tqdm.write(harmless(f"{self._label}: {text}"), file=sys.stderr)
        elif self._lines:
            say(f"{self._label}: {text}")

    def _state(self, seconds: float) -> list[str]:
        if self._total is None:
            return [f"{self._done:,} {self._unit}", *self._rates(seconds)]
        done_now = self._done - self._before
        left = max(0, self._total - self._done) * seconds / max(done_now, 1)
        share = self._done / max(1, self._total)
        return [f"{share:.0%}", *self._rates(seconds), f"about {clock(left)} left"]

    def _rates(self, seconds: float) -> list[str]:
        """The rate of what is counted, then those of the others; none of what took no time to speak of, as
        work that an earlier run had done.
        """
        if seconds < _LEAST_SECONDS:
            return []
        counted = {self._unit: self._done - self._before, **self._others}
        return [f"{_rate(number / seconds)} {name}/s" for name, number in counted.items()]

    def _print(self, parts: list[str]) -> None:
        shown = ", ".join([*parts, self._note] if self._note else parts)
        say(f"{self._label}: {shown}")


NOT_SHOWN = Progress("", None, shown=False)
"""For work of which nobody asks how far it is."""


def _rate(rate: float) -> str:
    """A number with the digits that tell something: 1,234, 5.0 or 0.042."""
    if 0 < rate < 0.1:
        return f"{rate:.2g}"
    return f"{rate:,.{0 if rate > 9 else 1}f}"


def clock(seconds: float) -> str:
    """A time as people read it: 12 s, 3:05 (minutes) or 2:03:05 (hours).

    >>> clock(7385)
    '2:03:05'
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}:{minutes:02d}:{rest:02d}"
    return f"{minutes}:{rest:02d} min" if minutes else f"{rest} s"
