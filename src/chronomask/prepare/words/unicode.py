"""Words in any language from the characters alone, without classes."""

from __future__ import annotations

import sys
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np

from chronomask.prepare.words.tagger import ChunkTagger, Spans, Tagger, WithoutContext, WordFinder

__all__ = ["NoTagger", "UnicodeWords", "scripts_of", "unlikely_language"]


class NoTagger(Tagger):
    """Unicode words without classes, for any language; content that weighs classes has none to prefer."""

    kind: Literal["none"] = "none"

    runs_on_torch = False

    def label(self) -> str:
        """Name for the manifest."""
        return "none"

    def classes(self) -> tuple[str, ...]:
        """No class but "none"."""
        return ("none",)

    def open(self, folder: Path | None = None) -> WordFinder:
        """Unicode words."""
        return UnicodeWords()


class UnicodeWords(WordFinder):
    """Words without classes, in any language, from the characters' kinds alone.

    A word is a run of letters and digits, held together over one apostrophe, full stop or underscore
    between them ("don't", "3.5"); any other visible character is a word of its own, and so is each
    ideograph. Combining marks, joiners and format characters continue what they follow. (Unicode
    Standard Annex 29, simplified; scripts without spaces, such as Thai, give long words.)
    """

    def tag(self, texts: Sequence[str]) -> list[Spans]:
        """The words of each text, all of class 0."""
        return [_words_of(text) for text in texts]

    def by_chunk(self) -> ChunkTagger:
        """White space ends every word."""
        return WithoutContext(self)


def _words_of(text: str) -> Spans:
    """Words by the kinds of neighbouring characters, without a loop over them."""
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


_SCRIPTS = {
    ("LATIN",): "af ca cs cy da de en es et eu fi fr ga gl hr hu id is it la lt lv ms mt nb nl nn no pl pt "
    "ro sk sl sq sv sw tl tr vi",
    ("CYRILLIC",): "be bg kk ky mk mn ru tt uk",
    ("LATIN", "CYRILLIC"): "az sr uz",
    ("HANGUL", "CJK"): "ko",
    ("HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA", "CJK"): "ja",
    ("CJK",): "zh zh-hans zh-hant",
    ("ARABIC",): "ar fa ps sd ug ur",
    ("DEVANAGARI",): "hi mr ne sa",
    ("ARMENIAN",): "hy", ("BENGALI",): "as bn", ("ETHIOPIC",): "am ti", ("GEORGIAN",): "ka",
    ("GREEK",): "el", ("GUJARATI",): "gu", ("GURMUKHI",): "pa", ("HEBREW",): "he yi",
    ("KANNADA",): "kn", ("MALAYALAM",): "ml", ("SINHALA",): "si", ("TAMIL",): "ta", ("TELUGU",): "te",
    ("THAI",): "th",
}  # fmt: skip
"""Scripts, by the first word of their letters' Unicode names, and the languages written in them."""
_ENOUGH = 0.7
"""Share of the letters that are of a language's own script, at the least; names and terms are not."""
_ENGLISH = (
    "the", "of", "and", "to", "in", "is", "that", "with", "from", "this", "are", "have", "by", "were",
    "not", "which", "been",
)  # fmt: skip
"""Frequent words of English that few other languages have: a fifth of English prose, and of Dutch or
Afrikaans, which have most of them, a twentieth."""
_FEW_ENGLISH = 0.06
"""Share of a text's words below which it is hardly English,"""
_WORDS_TO_JUDGE = 100
"""if it has so many words."""


def scripts_of(texts: Iterable[str]) -> dict[str, float]:
    """Share of the letters in each script, the commonest first; scripts are named as Unicode names them."""
    letters: Counter[str] = Counter()
    for text in texts:
        letters.update(text)
    scripts: Counter[str] = Counter()
    for letter, number in letters.items():
        if letter.isalpha():
            scripts[unicodedata.name(letter, "UNNAMED").split()[0]] += number
    return {script: number / scripts.total() for script, number in scripts.most_common()}


def unlikely_language(language: str, texts: Iterable[str]) -> str | None:
    """Why texts are not of a language; None where nothing speaks against it.

    Letters tell a script, such as Greek, and the commonest words tell English from its neighbours.
    """
    own = next((scripts for scripts, codes in _SCRIPTS.items() if language in codes.split()), None)
    texts = list(texts)
    found = scripts_of(texts)
    if own is None or not found:
        return None
    if sum(found.get(script, 0.0) for script in own) >= _ENOUGH:
        return _hardly_english(texts) if language == "en" else None
    other = next(script for script in found if script not in own)
    name = "Chinese" if other == "CJK" else other.capitalize()
    return f"{100 * found[other]:.0f} % of the letters are {name}"


def _hardly_english(texts: Sequence[str]) -> str | None:
    """A clause saying that texts in Latin letters hold few of English's commonest words; None where they do
    not, and for too little text.
    """
    words = [word.lower() for text in texts for word in text.split()]
    share = sum(word in _ENGLISH for word in words) / max(len(words), 1)
    if len(words) < _WORDS_TO_JUDGE or share >= _FEW_ENGLISH:
        return None
    return f"only {100 * share:.1f} % of the words are such as 'the', 'of' and 'and'"
