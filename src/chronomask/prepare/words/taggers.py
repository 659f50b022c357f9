"""Taggers: where the words of a text are and which class each has, as character spans.

A tagger is anything with ``name``, ``class_names`` and ``tag(texts)``; the spans refer to the original
text, so any tokenizer can be aligned with them. May enter: taggers and the table that finds one.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from importlib import resources
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from chronomask.errors import DataError, UsageError, nearest
from chronomask.prepare.config import (
    ColumnTagger,
    EnglishTagger,
    FrequencyBands,
    NoTagger,
    SpacyTagger,
    StanzaTagger,
    Tagger,
)
from chronomask.prepare.words.bands import BandWords, band_names, bands_label
from chronomask.prepare.words.stanza_words import load_stanza
from chronomask.prepare.words.unicode import Spans, UnicodeWords
from chronomask.types import UPOS, UPOS_CLASSES

if TYPE_CHECKING:
    from spacy.language import Language

    from chronomask.prepare.words.english.network import EnglishNetwork

__all__ = [
    "SpacyWords",
    "Spans",
    "TaggerProtocol",
    "UnicodeWords",
    "describe_tagger",
    "load_tagger",
]


class TaggerProtocol(Protocol):
    """What every tagger offers."""

    @property
    def name(self) -> str:
        """Name and version, for the manifest."""
        ...

    @property
    def class_names(self) -> tuple[str, ...]:
        """Class 0 is "none"."""
        ...

    def tag(self, texts: Sequence[str]) -> list[Spans]:
        """The words of each text."""
        ...


class SpacyWords:
    """A spaCy pipeline: its tokens are the words, their universal part of speech is the class."""

    class_names = UPOS_CLASSES

    def __init__(self, pipeline: Language, label: str) -> None:
        self._pipeline = pipeline
        self.name = _spacy_name(label, pipeline.meta)

    def tag(self, texts: Sequence[str]) -> list[Spans]:
        from spacy.attrs import IDX, IS_SPACE, LENGTH, POS

        to_class = _class_of_pos()
        spans = []
        for document in self._pipeline.pipe(texts, batch_size=_BATCH_TEXTS):
            table = document.to_array([POS, IDX, LENGTH, IS_SPACE]).astype(np.int64).reshape(-1, 4)
            pos, starts, lengths, _ = table[table[:, 3] == 0].T  # white space is no word
            spans.append(Spans(starts, starts + lengths, to_class[pos]))
        return spans

    def network(self) -> EnglishNetwork | None:
        """The pipeline as a network that is evaluated faster; None if it is of another kind."""
        from chronomask.prepare.words.english.network import EnglishNetwork

        return EnglishNetwork.of(self._pipeline, _class_of_pos())


_BATCH_TEXTS = 64


@lru_cache(maxsize=1)
def _class_of_pos() -> np.ndarray:
    """uint8 [256]: class of each spaCy part-of-speech symbol; no tag is class 0."""
    from spacy.parts_of_speech import IDS

    table = np.zeros(256, np.uint8)
    for number, tag in enumerate(UPOS, start=1):
        table[IDS[tag]] = number
    table[IDS["CONJ"]] = UPOS_CLASSES.index("CCONJ")  # the tag's name before UD 2
    return table


def load_tagger(choice: Tagger, folder: Path | None = None) -> TaggerProtocol:
    """The chosen tagger, loaded once per process; ``folder``: prepared data, for what it learnt there.

    Raises :class:`UsageError` for a spaCy pipeline that is not installed and for words that only the
    sources have, :class:`DataError` for a pipeline that sets no universal tags.
    """
    if isinstance(choice, NoTagger):
        return UnicodeWords()
    if isinstance(choice, FrequencyBands):
        if folder is None:
            raise UsageError("frequency bands are made by a preparation; name its folder")
        return _bands(folder)
    if isinstance(choice, ColumnTagger):
        raise UsageError(
            "tagger.kind=column has words and classes for its own sources alone, not for other text"
        )
    if isinstance(choice, StanzaTagger):
        return load_stanza(choice)
    if isinstance(choice, SpacyTagger):
        return _spacy_words(choice.name, "spacy")
    assert isinstance(choice, EnglishTagger)
    with _bundled() as folder:
        return _spacy_words(str(folder), "english")


@lru_cache(maxsize=1)
def _bands(folder: Path) -> BandWords:
    return BandWords.open(folder)


@lru_cache(maxsize=2)
def _spacy_words(name: str, label: str) -> SpacyWords:
    return SpacyWords(_load_spacy(name), label)


def describe_tagger(choice: Tagger) -> tuple[str, tuple[str, ...]]:
    """``name`` and ``class_names`` of the chosen tagger; the bundled one is not loaded for it.

    For a column without names in the config the classes are known when the sources have been read.

    Raises as :func:`load_tagger` does.
    """
    if isinstance(choice, EnglishTagger):
        with _bundled() as folder:
            meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
            return _spacy_name("english", meta), UPOS_CLASSES
    if isinstance(choice, FrequencyBands):
        return bands_label(choice.num_bands), ("none", *band_names(choice.num_bands))
    if isinstance(choice, ColumnTagger):
        return f"column ({choice.tags_key})", ("none", *choice.class_names)
    tagger = load_tagger(choice)
    return tagger.name, tagger.class_names


def _spacy_name(label: str, meta: Mapping[str, Any]) -> str:
    pipeline = f"{meta.get('lang')}_{meta.get('name')} {meta.get('version')}"
    return f"{label} ({pipeline}, spaCy {version('spacy')})"


@contextmanager
def _bundled() -> Iterator[Path]:
    with resources.as_file(
        resources.files("chronomask.prepare.words.english") / "english_tagger"
    ) as folder:
        if not (folder / "meta.json").is_file():
            raise DataError(
                f"the bundled tagger is missing from {folder}; install chronomask again, or choose "
                "another with --set tagger.kind=none"
            )
        yield folder


def _load_spacy(name: str) -> Language:
    import spacy
    from spacy.util import get_installed_models

    installed = get_installed_models()
    if name not in installed and not Path(name).is_dir():
        raise UsageError(f"spaCy pipeline '{name}' is not installed; {nearest(name, installed)}")
    with warnings.catch_warnings():
        # spaCy warns when a pipeline was trained with another minor version; the tags' use is the
        # user's own decision and the manifest records both versions.
        warnings.simplefilter("ignore", UserWarning)
        pipeline = spacy.load(name)
    setters = _pos_setters(pipeline)
    if not setters:
        raise DataError(
            f"spaCy pipeline '{name}' has no component that sets universal part-of-speech tags; "
            f"its components are: {', '.join(pipeline.pipe_names) or 'none'}"
        )
    pipeline.select_pipes(enable=setters)
    pipeline.max_length = 1 << 62  # long texts are cut before they come here
    return pipeline


def _pos_setters(pipeline: Language) -> list[str]:
    """The components that ``token.pos_`` needs, in order; empty if nothing sets it."""
    kinds = {name: pipeline.get_pipe_meta(name).factory for name in pipeline.pipe_names}
    needed = {"tok2vec", "transformer", "tagger", "morphologizer", "attribute_ruler"}
    keep = [name for name, kind in kinds.items() if kind in needed]
    sets = any("token.pos" in pipeline.get_pipe_meta(name).assigns for name in keep)
    rules = any(kinds[name] == "attribute_ruler" for name in keep)
    return keep if sets or rules else []


def split_long(text: str, limit: int) -> Iterator[tuple[int, str]]:
    """(offset, piece) of a text in pieces of at most ``limit`` characters, whose joint is the text.

    Cut after a line end if there is one in the second half of a piece, else after the end of a
    sentence, else at white space, else anywhere.
    """
    start = 0
    while len(text) - start > limit:
        stop = start + limit
        for mark in ("\n", ". ", " "):
            found = text.rfind(mark, start + limit // 2, stop)
            if found >= 0:
                stop = found + len(mark)
                break
        yield start, text[start:stop]
        start = stop
    yield start, text[start:]
