"""Frequency bands: classes for any language, made by counting words.

Words are Unicode words, counted without regard to case. Words of equal count are in one band, and the
bands' limits are counts chosen so that each band holds about the same share of the text's words.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field

from chronomask.errors import DataError, UsageError
from chronomask.folders import way_to_prepare_again
from chronomask.prepare.words.tagger import ChunkTagger, Spans, Tagger, WithoutContext, WordFinder
from chronomask.prepare.words.unicode import UnicodeWords
from chronomask.storage import way_to_read, write_text

__all__ = [
    "BANDS_FILE",
    "BandWords",
    "Bands",
    "FrequencyBands",
    "band_names",
    "count_words",
    "make_bands",
]

BANDS_FILE = "frequency_bands.json"
"""Name of the file in the prepared folder."""


class FrequencyBands(Tagger):
    """Unicode words, for any language; a word's class is how frequent it is: ``band_01`` the most."""

    kind: Literal["frequency_bands"] = "frequency_bands"
    num_bands: int = Field(default=10, ge=1, le=60)
    """Number of bands; each holds about the same share of the text's words."""

    runs_on_torch = False
    learns = BANDS_FILE

    def label(self) -> str:
        """Name for the manifest."""
        return f"frequency_bands ({self.num_bands} bands of Unicode words)"

    def classes(self) -> tuple[str, ...]:
        """``band_01``, the most frequent words, and so on."""
        return ("none", *band_names(self.num_bands))

    def learn(self, texts: Iterable[str], folder: Path) -> None:
        """Count the words and make bands of them."""
        make_bands(count_words(texts), self.num_bands).save(folder)

    def open(self, folder: Path | None = None) -> WordFinder:
        """The bands that were made; raises as :meth:`BandWords.open` does."""
        if folder is None:
            raise UsageError(
                "frequency bands are made by a preparation; name the folder that has them"
            )
        return BandWords.open(folder)


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
        write_text(folder / BANDS_FILE, text)


def band_names(num_bands: int) -> tuple[str, ...]:
    """``band_01``, the most frequent words, and so on."""
    return tuple(f"band_{number:02d}" for number in range(1, num_bands + 1))


def count_words(texts: Iterable[str]) -> Counter[str]:
    """How often each word occurs, upper and lower case together."""
    counts: Counter[str] = Counter()
    find = UnicodeWords()
    for text in texts:
        (spans,) = find.tag([text])
        counts.update(_fold(text, spans))
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


class BandWords(WordFinder):
    """Unicode words whose class is the band of their frequency; an unknown word is of the last."""

    def __init__(self, words: Sequence[Sequence[str]]) -> None:
        """``words`` of every band but the last."""
        self._class_of = {word: k for k, band in enumerate(words, start=1) for word in band}
        self._last = len(words) + 1

    @classmethod
    def open(cls, folder: Path) -> BandWords:
        """The bands of a prepared folder; raises :class:`DataError` where they are not readable."""
        file = folder / BANDS_FILE
        try:
            return cls(list(json.loads(file.read_text(encoding="utf-8"))["words"].values()))
        except (OSError, ValueError, KeyError, AttributeError) as error:
            way_out = way_to_read(error, way_to_prepare_again(folder))
            raise DataError(f"{file} is not readable ({error}); {way_out}") from None

    def tag(self, texts: Sequence[str]) -> list[Spans]:
        """The words of each text with their bands."""
        class_of, last = self._class_of, self._last
        tagged = []
        for text, words in zip(texts, UnicodeWords().tag(texts), strict=True):
            classes = [class_of.get(word, last) for word in _fold(text, words)]
            tagged.append(Spans(words.starts, words.ends, np.asarray(classes, np.uint8)))
        return tagged

    def by_chunk(self) -> ChunkTagger:
        """White space ends every word."""
        return WithoutContext(self)


def _fold(text: str, spans: Spans) -> list[str]:
    # Folded word by word: folding a whole text may move its characters.
    bounds = zip(spans.starts.tolist(), spans.ends.tolist(), strict=True)
    return [text[a:b].casefold() for a, b in bounds]
