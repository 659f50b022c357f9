"""Frequency bands: classes for any language, made by counting words.

Words are Unicode words, counted without regard to case. Words of equal count are in one band, and the
bands' limits are counts chosen so that each band holds about the same share of the text's words. May
enter: making bands, keeping them, and tagging with them.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from chronomask.errors import DataError
from chronomask.prepare.words.unicode import Spans, UnicodeWords
from chronomask.storage import write_bytes

__all__ = [
    "BANDS_FILE",
    "BandWords",
    "Bands",
    "band_names",
    "bands_label",
    "count_words",
    "make_bands",
]

BANDS_FILE = "frequency_bands.json"
"""Name of the file in the prepared folder."""


@dataclass(frozen=True, slots=True)
class Bands:
    """``words``: those of every band, most frequent first; the last band also has every other word.

    ``shares``: the part of the counted words that each band holds.
    """

    words: tuple[tuple[str, ...], ...]
    shares: tuple[float, ...]

    def save(self, folder: Path) -> None:
        """Write ``frequency_bands.json``; the last band's words, the rarest, are left out."""
        names = band_names(len(self.words))
        values = {
            "share_of_words": dict(zip(names, self.shares, strict=True)),
            "words": dict(zip(names[:-1], self.words[:-1], strict=True)),
            "any_other_word": names[-1],
        }
        text = json.dumps(values, indent=0, ensure_ascii=False) + "\n"
        write_bytes(folder / BANDS_FILE, text.encode())


def band_names(num_bands: int) -> tuple[str, ...]:
    """``band_01``, the most frequent words, and so on."""
    return tuple(f"band_{number:02d}" for number in range(1, num_bands + 1))


def count_words(texts: Iterable[str]) -> Counter[str]:
    """How often each word occurs, upper and lower case together."""
    counts: Counter[str] = Counter()
    find = UnicodeWords()
    for text in texts:
        (spans,) = find.tag([text])
        counts.update(_folded(text, spans))
    return counts


def make_bands(counts: Mapping[str, int], num_bands: int) -> Bands:
    """Bands of about equal shares. With fewer different counts than bands the first ones stay empty.

    The rarest band is made first, and each takes its share of what is left: so one word as frequent
    as several bands costs its own neighbours alone.
    """
    values, different = np.unique(np.fromiter(counts.values(), np.int64), return_counts=True)
    masses = (values * different).tolist()
    band_of_count: dict[int, int] = {}
    band_mass = [0] * num_bands
    band, held, left = num_bands - 1, 0, sum(masses)
    for k, (count, mass) in enumerate(zip(values.tolist(), masses, strict=True)):
        over = (2 * held + mass) * (band + 1) > 2 * left  # closer to its share without this count
        if held and band and (over or len(masses) - k <= band):
            left -= held
            band, held = band - 1, 0
        held += mass
        band_of_count[count] = band
        band_mass[band] += mass
    words: list[list[str]] = [[] for _ in range(num_bands)]
    for word, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        words[band_of_count[count]].append(word)
    total = max(sum(masses), 1)
    return Bands(tuple(map(tuple, words)), tuple(round(mass / total, 6) for mass in band_mass))


class BandWords:
    """Unicode words whose class is the band of their frequency; an unknown word is of the last."""

    def __init__(self, words: Sequence[Sequence[str]]) -> None:
        """``words`` of every band but the last."""
        num_bands = len(words) + 1
        self.name = bands_label(num_bands)
        self.class_names = ("none", *band_names(num_bands))
        self._class_of = {word: k for k, band in enumerate(words, start=1) for word in band}
        self._last = num_bands

    @classmethod
    def open(cls, folder: Path) -> BandWords:
        """The bands of a prepared folder; raises :class:`DataError` where they are not readable."""
        file = folder / BANDS_FILE
        try:
            return cls(list(json.loads(file.read_text(encoding="utf-8"))["words"].values()))
        except (OSError, ValueError, KeyError, AttributeError) as error:
            raise DataError(
                f"{file} is not readable ({error}); run `chronomask prepare` again with --force"
            ) from None

    def tag(self, texts: Sequence[str]) -> list[Spans]:
        class_of, last = self._class_of, self._last
        tagged = []
        for text, words in zip(texts, UnicodeWords().tag(texts), strict=True):
            classes = [class_of.get(word, last) for word in _folded(text, words)]
            tagged.append(Spans(words.starts, words.ends, np.asarray(classes, np.uint8)))
        return tagged


def bands_label(num_bands: int) -> str:
    """What the manifest calls the tagger."""
    return f"frequency_bands ({num_bands} bands of Unicode words)"


def _folded(text: str, spans: Spans) -> list[str]:
    # Folded word by word: folding a whole text may move its characters.
    bounds = zip(spans.starts.tolist(), spans.ends.tolist(), strict=True)
    return [text[a:b].casefold() for a, b in bounds]
