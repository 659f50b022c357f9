"""Words and universal parts of speech from a stanza pipeline.

May enter: what is particular to stanza.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from importlib.metadata import version
from typing import Any, Protocol

import numpy as np

from chronomask.errors import UsageError
from chronomask.prepare.config import StanzaTagger
from chronomask.prepare.words.unicode import Spans
from chronomask.types import UPOS, UPOS_CLASSES

__all__ = ["StanzaWords", "load_stanza"]

_CLASS_OF = {tag: number for number, tag in enumerate(UPOS, start=1)}


class Pipeline(Protocol):
    """What is used of ``stanza.Pipeline``."""

    def bulk_process(self, docs: list[str]) -> Sequence[Any]:
        """Documents of sentences of tokens of words, for each text."""
        ...


class StanzaWords:
    """Stanza's tokens are the words; a multiword token (French "du") has the tag of its first word."""

    class_names = UPOS_CLASSES

    def __init__(self, pipeline: Pipeline, name: str) -> None:
        self._pipeline = pipeline
        self.name = name

    def tag(self, texts: Sequence[str]) -> list[Spans]:
        # Stanza refuses a text without a word.
        filled = [number for number, text in enumerate(texts) if text.strip()]
        spans = [Spans(_NOTHING, _NOTHING, _NOTHING.astype(np.uint8)) for _ in texts]
        if filled:
            documents = self._pipeline.bulk_process([texts[number] for number in filled])
            for number, document in zip(filled, documents, strict=True):
                spans[number] = _spans_of(document)
        return spans


_NOTHING = np.zeros(0, np.int64)


def _spans_of(document: Any) -> Spans:
    tokens = [
        (token.start_char, token.end_char, _CLASS_OF.get(token.words[0].upos, 0))
        for sentence in document.sentences
        for token in sentence.tokens
        if token.end_char > token.start_char
    ]
    table = np.asarray(tokens, np.int64).reshape(-1, 3)
    return Spans(table[:, 0], table[:, 1], table[:, 2].astype(np.uint8))


def load_stanza(choice: StanzaTagger) -> StanzaWords:
    """The models, loaded once a process.

    Raises :class:`UsageError` where the package or they are not installed.
    """
    return _load(choice.language, choice.package, choice.folder)


@lru_cache(maxsize=1)
def _load(language: str, package: str, folder: str | None) -> StanzaWords:
    try:
        import stanza
    except ImportError:
        raise UsageError(
            "tagger.kind=stanza needs the package stanza; pip install 'chronomask[stanza]'"
        ) from None
    label = f"{language}, {package}"
    where: dict[str, Any] = {"dir": folder} if folder else {}
    try:
        pipeline = stanza.Pipeline(
            language,
            package=package,
            processors="tokenize,mwt,pos",
            download_method=None,  # pyright: ignore[reportArgumentType]
            verbose=False,
            **where,
        )
    except Exception as error:  # the library has a kind of error for everything that can be missing
        raise UsageError(
            f"stanza's models ({label}) cannot be loaded: {' '.join(str(error).split())}; download them "
            f"first with python -c \"import stanza; stanza.download('{language}')\""
        ) from None
    return StanzaWords(pipeline, f"stanza ({label}, stanza {version('stanza')})")
