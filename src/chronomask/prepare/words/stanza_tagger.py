"""Words and universal parts of speech from a stanza pipeline."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from chronomask.errors import UsageError, need, python_command
from chronomask.prepare.words.tagger import Spans, Tagger, WordFinder
from chronomask.types import UPOS, UPOS_CLASSES

__all__ = ["StanzaTagger", "StanzaWords"]

_CLASS_OF = {tag: number for number, tag in enumerate(UPOS, start=1)}


class StanzaTagger(Tagger):
    """A stanza pipeline whose models are on this machine; stanza is never asked to download any."""

    kind: Literal["stanza"] = "stanza"
    language: str
    """Language of the models, such as ``de``."""
    package: str = "default"
    """Which of the language's models, such as ``gsd``."""
    folder: str | None = None
    """Where the models are; None: stanza's own folder."""

    def label(self) -> str:
        """Name and version, for the manifest."""
        return f"stanza ({self.language}, {self.package}, stanza {version('stanza')})"

    def made_for(self) -> str:
        """The models' language."""
        return self.language

    def classes(self) -> tuple[str, ...]:
        """Universal parts of speech."""
        return UPOS_CLASSES

    def check(self) -> None:
        """Raises as :meth:`open` does."""
        self.open()

    def open(self, folder: Path | None = None) -> WordFinder:
        """Raises :class:`UsageError` where the package or its models are not installed."""
        stanza = need("stanza", "stanza", "tagger.kind=stanza")
        where: dict[str, Any] = {"dir": self.folder} if self.folder else {}
        try:
            pipeline = stanza.Pipeline(
                self.language,
                package=self.package,
                processors="tokenize,mwt,pos",
                download_method=None,
                verbose=False,
                **where,
            )
        except Exception as error:  # it has a kind of error for everything that can be missing
            raise UsageError(
                f"stanza's models ({self.language}, {self.package}) cannot be loaded: "
                f"{' '.join(str(error).split())}; download them first with {self._download()}"
            ) from None
        return StanzaWords(pipeline)

    def _download(self) -> str:
        """The command that brings the models to where they are looked for."""
        asked = [json.dumps(self.language)]
        if self.package != "default":
            asked.append(f"package={json.dumps(self.package)}")
        if self.folder:
            asked.append(f"model_dir={json.dumps(self.folder)}")
        return python_command("-c", f"import stanza; stanza.download({', '.join(asked)})")


class Pipeline(Protocol):
    """What is used of ``stanza.Pipeline``."""

    def bulk_process(self, docs: list[str]) -> Sequence[Any]:
        """Documents of sentences of tokens of words, for each text."""
        ...


class StanzaWords(WordFinder):
    """Stanza's tokens are the words; a multiword token (French "du") has the tag of its first word."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline

    def tag(self, texts: Sequence[str]) -> list[Spans]:
        """The words of each text."""
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
