"""Words and classes that the sources bring: from tags as they are spelled to class numbers.

May enter: what is particular to input that somebody tagged before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from chronomask.errors import DataError, nearest, shown
from chronomask.prepare.config import MAX_TAGS, ColumnTagger
from chronomask.prepare.words.unicode import Spans
from chronomask.types import UPOS, UPOS_CLASSES, Document, TaggedWords
from chronomask.yaml_text import control_character

__all__ = ["class_names_of", "spans_of"]

_NO_TAG = ("", "none")


def class_names_of(choice: ColumnTagger, tags: Mapping[str, int]) -> tuple[str, ...]:
    """Class names for the tags that occur: those of the config, else the tags in sorted order.

    Tags that are all universal parts of speech give these 17 classes, whichever occur. Raises
    :class:`DataError` for a tag that the config does not name or that holds control characters, and for
    more tags than fit.
    """
    found = sorted(set(tags) - set(_NO_TAG))
    odd = [tag for tag in found if control_character(tag)]
    if odd:
        raise DataError(
            f"{tags[odd[0]]:,} words have the tag {shown(odd[0])}, which holds a control character or line "
            f"break: correct field '{choice.tags_key}'"
        )
    if choice.class_names:
        for tag in found:
            if tag not in choice.class_names:
                raise DataError(
                    f"{tags[tag]:,} words have the tag '{tag}'; {nearest(tag, choice.class_names)}; add "
                    "it to tagger.class_names, or leave that empty for all tags there are"
                )
        return ("none", *choice.class_names)
    if len(found) > MAX_TAGS:
        raise DataError(
            f"field '{choice.tags_key}' has {len(found):,} different tags ({', '.join(found[:5])}, …); "
            f"at most {MAX_TAGS} can be classes: merge some before preparing"
        )
    return UPOS_CLASSES if set(found) <= set(UPOS) else ("none", *found)


def spans_of(documents: Sequence[Document], class_names: Sequence[str]) -> list[Spans]:
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
