"""Progress of a long preparation: a bar in a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Self

from tqdm import tqdm

__all__ = ["Progress"]

_LINE_SECONDS = 10.0


class Progress:
    """Characters done of ``total`` (None: not known), with documents, words and their rates."""

    def __init__(self, label: str, total: int | None = None, shown: bool = True) -> None:
        self._label = label
        self._total = total
        self._documents = self._words = self._characters = 0
        self._started = self._last_line = time.monotonic()
        terminal = shown and sys.stderr.isatty()
        self._lines = shown and not terminal
        self._bar = tqdm(
            desc=label, total=total, unit="char", unit_scale=True, disable=not terminal, leave=False
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
        if self._lines and kind is None:
            self._print("done")

    def advance(self, characters: int, documents: int = 0, words: int = 0) -> None:
        """Count work that was done."""
        self._characters += characters
        self._documents += documents
        self._words += words
        self._bar.update(characters)
        if not self._bar.disable:
            self._bar.set_postfix_str(self._rates(), refresh=False)
        now = time.monotonic()
        if self._lines and now - self._last_line > _LINE_SECONDS:
            self._last_line = now
            self._print(self._left(now - self._started))

    def _rates(self) -> str:
        seconds = max(time.monotonic() - self._started, 1e-9)
        parts = [f"{self._documents / seconds:,.0f} documents/s"]
        if self._words:
            parts.append(f"{self._words / seconds:,.0f} words/s")
        return ", ".join(parts)

    def _left(self, seconds: float) -> str:
        if not self._total or not self._characters:
            return f"{self._characters:,} characters"
        left = seconds * (self._total - self._characters) / self._characters
        return f"{self._characters / self._total:.0%}, about {max(left, 0):.0f} s left"

    def _print(self, state: str) -> None:
        print(f"{self._label}: {state} ({self._rates()})", file=sys.stderr, flush=True)
