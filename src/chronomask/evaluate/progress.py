"""Progress of a long evaluation: a bar on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any, Self

from tqdm import tqdm

__all__ = ["Progress"]

_SECONDS_BETWEEN_LINES = 10.0


class Progress:
    """How much of ``total`` is done, at what rate, and how long the rest will take."""

    def __init__(self, label: str, total: int, unit: str = "examples", shown: bool = True) -> None:
        self._label, self._total, self._unit = label, total, unit
        self._done = 0
        self._started = self._last_line = time.monotonic()
        terminal = shown and sys.stderr.isatty()
        self._lines = shown and not terminal
        self._bar: tqdm[Any] = tqdm(
            desc=label,
            total=total,
            unit=f" {unit}",
            disable=not terminal,
            leave=False,
            dynamic_ncols=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._bar.close()

    def advance(self, done: int = 1, note: str = "") -> None:
        """Count work that was done; ``note`` is shown beside it, such as a loss."""
        self._done += done
        if note:
            self._bar.set_postfix_str(note, refresh=False)
        self._bar.update(done)
        now = time.monotonic()
        if self._lines and now - self._last_line > _SECONDS_BETWEEN_LINES:
            self._last_line = now
            print(self._line(now - self._started, note), file=sys.stderr, flush=True)

    def _line(self, seconds: float, note: str) -> str:
        rate = self._done / max(seconds, 1e-9)
        left = max(0, self._total - self._done) / max(rate, 1e-9)
        share = f"{self._done / max(1, self._total):.0%}"
        parts = [f"{self._label}: {share}", f"{rate:,.1f} {self._unit}/s", f"{left:.0f} s left"]
        return ", ".join([*parts, note] if note else parts)
