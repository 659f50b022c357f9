"""The account of what was left out of a preparation, and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from chronomask.errors import amount, middle_out, printable

__all__ = ["Skipped", "list_names"]

Unit = Literal["documents", "files", "folders"]

_NAMES_KEPT = 20
_NAMES_SHOWN = 3
_LONGEST_NAME = 200
_REASONS_SHOWN = 12


@dataclass
class _LeftOut:
    """What was left out for one reason: how many, of how many bytes, and the first names."""

    unit: Unit
    count: int = 0
    bytes: int = 0
    names: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        """How many and how large, as people read it."""
        size = f" ({amount(self.bytes, 'bytes')})" if self.bytes else ""
        return amount(self.count, self.unit) + size


@dataclass
class Skipped:
    """What was left out, by reason; and what was read in another way than usual."""

    reasons: dict[str, _LeftOut] = field(default_factory=dict)
    by_lines: list[str] = field(default_factory=list)
    """Names of .txt files whose lines were taken for documents, because there was no blank line."""
    lacking: set[str] = field(default_factory=set)
    """Fields that no record of some file had, which is said of the first such file."""

    def add(
        self, reason: str, name: str, size: int = 0, unit: Unit = "documents", count: int = 1
    ) -> None:
        """Count one more, or several, of ``size`` bytes together, by a name."""
        entry = self.reasons.setdefault(reason, _LeftOut(unit))
        entry.count += count
        entry.bytes += size
        if len(entry.names) < _NAMES_KEPT:
            entry.names.append(middle_out(printable(name), _LONGEST_NAME))

    def merge(self, other: Mapping[str, Mapping[str, Any]]) -> None:
        """Add what :meth:`to_dict` of another account says."""
        for reason, theirs in other.items():
            entry = self.reasons.setdefault(reason, _LeftOut(theirs.get("unit", "documents")))
            entry.count += theirs["count"]
            entry.bytes += theirs.get("bytes", 0)
            entry.names.extend(theirs["names"][: _NAMES_KEPT - len(entry.names)])

    @property
    def counts(self) -> dict[str, int]:
        """How many by reason."""
        return {reason: entry.count for reason, entry in self.reasons.items()}

    def listing(self) -> str:
        """The reasons with their counts, on one line."""
        return "; ".join(f"{count:,} × {reason}" for reason, count in self.counts.items())

    def lines(self) -> list[str]:
        """A line a reason, most bytes first: how much was left out, why, and the first names."""
        most_first = sorted(self.reasons.items(), key=lambda item: -item[1].bytes)
        return [f"{entry}, {reason}: {list_names(entry.names)}" for reason, entry in most_first]

    def summary(self) -> str:
        """What was left out on one line, for the end of a preparation; "" if nothing was."""
        lines = self.lines()
        more = len(lines) - _REASONS_SHOWN
        rest = [f"and for {more} other reasons"] if more > 0 else []
        return "left out: " + "; ".join(lines[:_REASONS_SHOWN] + rest) if lines else ""

    def to_dict(self) -> dict[str, Any]:
        """``{reason: {count, bytes, unit, names}}``; at most 20 names each."""
        return {
            reason: {
                "count": entry.count,
                "bytes": entry.bytes,
                "unit": entry.unit,
                "names": entry.names,
            }
            for reason, entry in sorted(self.reasons.items())
        }


def list_names(names: Sequence[str]) -> str:
    """The first names of some, on one line of bounded length."""
    shown = [middle_out(name, 80) for name in names[:_NAMES_SHOWN]]
    return ", ".join(shown + ["…"] * (len(names) > len(shown)))
