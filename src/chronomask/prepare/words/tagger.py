"""What a tagger is: where the words of a text are and which class each has, as character spans.

The spans refer to the original text, so any tokenizer can be aligned with them. A tagger is one class in
one file, a member of :class:`Tagger`; one of your own is a subclass with a ``kind``, anywhere.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np

from chronomask.config import Alternative
from chronomask.types import Document

__all__ = [
    "ChunkTagger",
    "ChunkWords",
    "Spans",
    "Tagger",
    "WithoutContext",
    "WordFinder",
    "split_long",
    "tagger_of_text",
]


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


class ChunkTagger(Protocol):
    """Finds the words of chunks, each once, and their classes in context."""

    def learn(self, texts: Sequence[str], at_start: Sequence[bool]) -> ChunkWords:
        """Words of new chunks; ``at_start``: the chunk's white space begins its text."""
        ...

    def classify(self, types: np.ndarray) -> np.ndarray:
        """uint8 [W]: classes of words by type, two zeros around every text's."""
        ...

    def forget(self) -> None:
        """Drop what was learnt."""
        ...


class WordFinder:
    """A tagger at work: what it learnt or loaded is in memory."""

    def tag(self, texts: Sequence[str]) -> list[Spans]:
        """The words of each text."""
        raise NotImplementedError

    def by_chunk(self) -> ChunkTagger | None:
        """The same for chunks of text, which is faster; None where a text must be seen as a whole."""
        return None


class Tagger(Alternative, WordFinder):
    """How words and their classes are found.

    A member says what it is called (:meth:`label`) and which classes there are (:meth:`classes`), and
    tags (:meth:`tag`) or opens something that does (:meth:`open`). Workers are processes of their own,
    to which its values are sent: its class must be defined in a module that they can import, or in
    the script that was started. In a notebook, prepare with one worker.
    """

    runs_on_torch: ClassVar[bool] = True
    """Whether its model may run on torch. Workers of others cannot import it, which saves 190 MB each."""
    learns: ClassVar[str | None] = None
    """The file of the prepared folder that :meth:`learn` writes, for a tagger that learns from the text."""

    @property
    def columns(self) -> tuple[str, str] | None:
        """Fields of a source's records with words and with tags, for a tagger that takes them from there."""
        return None

    @abstractmethod
    def label(self) -> str:
        """Name and version, for the manifest."""

    @abstractmethod
    def classes(self) -> tuple[str, ...]:
        """Names of the classes; class 0 is "none"."""

    def check(self) -> None:
        """Raises, before any work, as :meth:`open` does, as far as that can be known."""

    def made_for(self) -> str | None:
        """Code of the language whose text it tags, such as ``en``; None for one that takes any."""
        return None

    def classes_of(self, tags: Mapping[str, int]) -> tuple[str, ...]:
        """The classes, where words and tags come with the text: it has so many words of each of ``tags``."""
        return self.classes()

    def learn(self, texts: Iterable[str], folder: Path) -> None:
        """Write what a sample of the training text teaches to a file of the prepared folder."""
        raise NotImplementedError

    def open(self, folder: Path | None = None) -> WordFinder:
        """Load what tagging needs; ``folder``: prepared data, for what was learnt there.

        Raises :class:`UsageError` for what is not installed and for words that only the sources have,
        :class:`DataError` for a model that sets no such classes.
        """
        return self

    def given(
        self, documents: Sequence[Document], class_names: Sequence[str]
    ) -> list[Spans] | None:
        """The words of documents that came with them; None: they are to be found."""
        return None


def tagger_of_text(value: Any) -> Any:
    """A tagger's name as the values of its config; what is no text stays as it is.

    ``english``, ``none``, ``column`` and every other kind; ``bands``; ``spacy:PIPELINE`` or
    ``spacy:LANGUAGE``; ``stanza:LANGUAGE`` or ``stanza:LANGUAGE/PACKAGE``.
    """
    if not isinstance(value, str):
        return value
    kind, _, name = value.partition(":")
    if name and kind == "spacy":
        return {"kind": kind, "name": name}
    if name and kind == "stanza":
        language, _, package = name.partition("/")
        return {"kind": kind, "language": language, "package": package or "default"}
    return {"kind": "frequency_bands" if value == "bands" else value}


class WithoutContext:
    """A tagger whose classes depend on the word alone; white space ends every word."""

    def __init__(self, finder: WordFinder) -> None:
        self._tag = finder.tag

    def learn(self, texts: Sequence[str], at_start: Sequence[bool]) -> ChunkWords:
        """Words of new chunks; their type is their class."""
        lengths = np.fromiter((len(text) + 1 for text in texts), np.int64, len(texts))
        begins = np.cumsum(lengths) - lengths
        spans = self._tag([" ".join(texts)])[0]
        owner = np.searchsorted(begins, spans.starts, side="right") - 1
        return ChunkWords(
            np.bincount(owner, minlength=len(texts)),
            spans.starts - begins[owner],
            spans.ends - begins[owner],
            np.ones(owner.size, bool),
            spans.classes.astype(np.int64),
        )

    def classify(self, types: np.ndarray) -> np.ndarray:
        """The types."""
        return types.astype(np.uint8)

    def forget(self) -> None:
        """Nothing is kept."""


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
