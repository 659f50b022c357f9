"""Where the words of a text are, as character spans; and words in any language without a model.

May enter: spans, and finding words from the characters alone.
"""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Generic, TypeVar

import numpy as np

__all__ = ["ChunkWords", "Numbers", "Spans", "UnicodeWords"]


@dataclass(frozen=True, slots=True)
class Spans:
    """Words of one text, in order and without overlap.

    ``starts`` and ``ends`` int64 [W] in characters (end exclusive); ``classes`` uint8 [W].
    """

    starts: np.ndarray
    ends: np.ndarray
    classes: np.ndarray

    def between(self, start: int, stop: int) -> Spans:
        """The words of the characters ``start`` to ``stop`` (exclusive), counted from ``start``.

        A word across an edge is cut there.
        """
        first = int(np.searchsorted(self.ends, start, side="right"))
        last = int(np.searchsorted(self.starts, stop))
        return Spans(
            np.maximum(self.starts[first:last], start) - start,
            np.minimum(self.ends[first:last], stop) - start,
            self.classes[first:last],
        )


@dataclass(frozen=True, slots=True)
class ChunkWords:
    """Words of several chunks of text, one chunk after the other.

    ``counts`` int64 [N]: words of each chunk; ``starts`` and ``ends`` int64 [W] in characters of the
    word's chunk; ``visible`` bool [W]: a word, not white space that the tagger treats as one;
    ``types`` int64 [W]: what the tagger makes classes of.
    """

    counts: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    visible: np.ndarray
    types: np.ndarray


_Thing = TypeVar("_Thing", str, bytes)


class Numbers(dict[_Thing, int], Generic[_Thing]):
    """Things numbered as they are met, from ``first``; ``new``: those met since it was emptied."""

    def __init__(self, first: int = 0) -> None:
        super().__init__()
        self._first = first
        self.new: list[_Thing] = []

    def __missing__(self, thing: _Thing) -> int:
        number = self[thing] = self._first + len(self)
        self.new.append(thing)
        return number


class UnicodeWords:
    """Words without classes, in any language, from the characters' kinds alone.

    A word is a run of letters and digits, held together over one apostrophe, full stop or underscore
    between them ("don't", "3.5"); any other visible character is a word of its own, and so is each
    ideograph. Combining marks, joiners and format characters continue what they follow. (Unicode
    Standard Annex 29, simplified; scripts without spaces, such as Thai, give long words.)
    """

    name = "none"
    class_names = ("none",)

    def tag(self, texts: Sequence[str]) -> list[Spans]:
        return [self._words(text) for text in texts]

    @staticmethod
    def _words(text: str) -> Spans:
        codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
        kinds = _kind_table()[codes]
        mark, space = kinds == _MARK, kinds == _SPACE
        if mark.any():  # a mark is of the kind of what it follows, and never begins anything
            base = np.maximum.accumulate(np.where(mark, 0, np.arange(codes.size)))
            kinds = kinds[base]
            mark[1:] |= (codes[:-1] == _JOINER_OF_EMOJI) & ~space[1:]
        letter = kinds == _LETTER
        letter[1:-1] |= (kinds[1:-1] == _JOINER) & letter[:-2] & letter[2:]
        space = kinds == _SPACE
        begins = ~space & ~mark
        begins[1:] &= ~(letter[1:] & letter[:-1])
        starts = np.flatnonzero(begins)
        # A word ends at the next start, or at the white space before it.
        edges = np.append(starts[1:], codes.size)
        spaces = np.append(np.flatnonzero(space), codes.size)
        ends = np.minimum(edges, spaces[np.searchsorted(spaces, starts)])
        return Spans(starts, ends, np.zeros(starts.size, np.uint8))


_SPACE, _LETTER, _MARK, _JOINER, _SINGLE = range(5)
_JOINER_OF_EMOJI = 0x200D


@lru_cache(maxsize=1)
def _kind_table() -> np.ndarray:
    """uint8 [0x110000]: the kind of every code point."""
    kind_of = {"L": _LETTER, "N": _LETTER, "M": _MARK, "Z": _SPACE, "C": _SPACE, "Cf": _MARK}
    table = np.full(sys.maxunicode + 1, _SPACE, np.uint8)
    for code in [*range(0x323B0), *range(0xE0000, 0xE01F0)]:  # the rest is not assigned
        category = unicodedata.category(chr(code))
        table[code] = kind_of.get(category, kind_of.get(category[0], _SINGLE))
    for first, last in ((0x2E80, 0x2FFF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF)):
        table[first : last + 1] = _SINGLE
    table[0x20000:0x323B0] = _SINGLE  # ideographs beyond the first plane
    table[[ord("'"), ord("’"), ord("."), ord("_")]] = _JOINER
    table[0x1F3FB:0x1F400] = _MARK  # skin tones
    return table
