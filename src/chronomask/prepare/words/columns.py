"""Words and classes that the sources bring: from tags as they are spelled to class numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, Self

import numpy as np
from pydantic import model_validator

from chronomask.errors import DataError, UsageError, nearest, shown
from chronomask.prepare.words.tagger import Spans, Tagger, WordFinder
from chronomask.types import UPOS, UPOS_CLASSES, Document, TaggedWords
from chronomask.yaml_text import control_character

__all__ = ["ColumnTagger"]

_NO_TAG = ("", "none")
_MAX_TAGS = 62
"""Tags a column may hold: what masking handles, less the class of words without a tag."""


class ColumnTagger(Tagger):
    """Words and classes that the sources bring: two list columns, or a column of CoNLL-U."""

    kind: Literal["column"] = "column"
    words_key: str = "words"
    """Field or column of .jsonl and .parquet files with a list of words; spaces join them to the text.
    CoNLL-U has its own."""
    tags_key: str = "tags"
    """Field or column with as many tags; an empty one or null is no class. In CoNLL-U the universal
    tags, or ``xpos``, ``feats``, ``deprel``, ``lemma`` or ``form``."""
    class_names: tuple[str, ...] = ()
    """The allowed tags; any other is refused. Empty: all that occur."""

    runs_on_torch = False

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        names = self.class_names
        if len(names) > _MAX_TAGS:
            raise ValueError(f"{len(names)} class names; at most {_MAX_TAGS} fit")
        if len(set(names)) < len(names) or not all(names) or "none" in names:
            raise ValueError("class names must be distinct and not empty, and 'none' is taken")
        return self

    @property
    def columns(self) -> tuple[str, str]:
        """The two fields."""
        return self.words_key, self.tags_key

    def label(self) -> str:
        """Name for the manifest."""
        return f"column ({self.tags_key})"

    def classes(self) -> tuple[str, ...]:
        """Those that the config names; without any they are known when the sources have been read."""
        return ("none", *self.class_names)

    def classes_of(self, tags: Mapping[str, int]) -> tuple[str, ...]:
        """Class names for the tags that occur: those of the config, else the tags in sorted order.

        Tags that are all universal parts of speech give these 17 classes, whichever occur. Raises
        :class:`DataError` for a tag that the config does not name or that holds control characters, and
        for more tags than fit.
        """
        found = sorted(set(tags) - set(_NO_TAG))
        odd = [tag for tag in found if control_character(tag)]
        if odd:
            raise DataError(
                f"{_words_have(tags[odd[0]])} the tag {shown(odd[0])}, which holds a control character or "
                f"line break: correct field '{self.tags_key}'"
            )
        if self.class_names:
            for tag in found:
                if tag not in self.class_names:
                    raise DataError(
                        f"{_words_have(tags[tag])} the tag '{tag}'; {nearest(tag, self.class_names)}; add "
                        "it to tagger.class_names, or leave that empty for all tags that occur"
                    )
            return self.classes()
        if len(found) > _MAX_TAGS:
            raise DataError(
                f"field '{self.tags_key}' has {len(found):,} different tags ({', '.join(found[:5])}, …); "
                f"at most {_MAX_TAGS} can be classes: merge some before preparing"
            )
        return UPOS_CLASSES if set(found) <= set(UPOS) else ("none", *found)

    def open(self, folder: Path | None = None) -> WordFinder:
        """Raises :class:`UsageError`: other texts have no such columns."""
        raise UsageError(
            "tagger.kind=column has words and classes for its own sources alone, not for other text: leave "
            "the text out, and rows of the prepared data are shown"
        )

    def given(self, documents: Sequence[Document], class_names: Sequence[str]) -> list[Spans]:
        """The words of every document with their class numbers; no tag is class 0."""
        number = {name: k for k, name in enumerate(class_names)} | dict.fromkeys(_NO_TAG, 0)
        spans = []
        for document in documents:
            words = document.words or TaggedWords((), (), ())
            spans.append(
                Spans(
                    np.asarray(words.starts, np.int64),
                    np.asarray(words.ends, np.int64),
                    np.asarray([number[tag] for tag in words.tags], np.uint8),
                )
            )
        return spans


def _words_have(number: int) -> str:
    """So many words, and the verb."""
    return "1 word has" if number == 1 else f"{number:,} words have"
