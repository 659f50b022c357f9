"""A tagger that needs no model, of a kind that the package does not have."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Literal

import numpy as np
import pytest

from chronomask.prepare.config import EnglishTagger
from chronomask.prepare.words.tagger import Spans, Tagger
from chronomask.prepare.words.unicode import UnicodeWords
from chronomask.types import UPOS, UPOS_CLASSES


class FixedTagger(Tagger):
    """Unicode words; a word's class is a hash of its text, so that classes need no model."""

    kind: Literal["by_hash"] = "by_hash"

    runs_on_torch = False

    def label(self) -> str:
        return "fixed 1"

    def classes(self) -> tuple[str, ...]:
        return UPOS_CLASSES

    def tag(self, texts: Sequence[str]) -> list[Spans]:
        found = UnicodeWords().tag(texts)
        return [self._classed(text, words) for text, words in zip(texts, found, strict=True)]

    @staticmethod
    def _classed(text: str, words: Spans) -> Spans:
        spelled = (text[a:b] for a, b in zip(words.starts, words.ends, strict=True))
        classes = [1 + zlib.crc32(word.lower().encode()) % len(UPOS) for word in spelled]
        return Spans(words.starts, words.ends, np.asarray(classes, np.uint8))


def stand_in_for_english(patch: pytest.MonkeyPatch, tagger: Tagger) -> None:
    """Make the bundled English tagger tag as another one does."""
    patch.setattr(EnglishTagger, "open", lambda self, folder=None: tagger.open(folder))
    patch.setattr(EnglishTagger, "label", lambda self: tagger.label())
    patch.setattr(EnglishTagger, "classes", lambda self: tagger.classes())
