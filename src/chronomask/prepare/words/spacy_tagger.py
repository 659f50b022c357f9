"""Words and universal parts of speech from spaCy: the bundled English pipeline, or any installed one."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib import resources
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from chronomask.errors import DataError, UsageError, nearest, need, python_command
from chronomask.prepare.words.tagger import ChunkTagger, Spans, Tagger, WordFinder
from chronomask.types import UPOS, UPOS_CLASSES

if TYPE_CHECKING:
    from spacy.language import Language
    from spacy.tokens import Doc

__all__ = ["EnglishTagger", "SpacyTagger", "SpacyWords", "bundled_folder"]


class SpacyTagger(Tagger):
    """Any installed spaCy pipeline that sets universal part-of-speech tags."""

    kind: Literal["spacy"] = "spacy"
    name: str
    """Name of an installed pipeline package, such as ``de_core_news_sm``, or its folder, which has a
    ``meta.json``; or a language, such as ``de``, of which one pipeline is installed."""

    def label(self) -> str:
        """The pipeline's name and version, and spaCy's."""
        return _label("spacy", _load(self.name).meta)

    def made_for(self) -> str | None:
        """The pipeline's."""
        return _load(self.name).lang

    def classes(self) -> tuple[str, ...]:
        """Universal parts of speech."""
        return UPOS_CLASSES

    def open(self, folder: Path | None = None) -> WordFinder:
        """The pipeline, of which only what tags need is run.

        Raises :class:`UsageError` for one that is not installed, :class:`DataError` for one that sets no
        universal tags.
        """
        return SpacyWords(_load(self.name))


class EnglishTagger(Tagger):
    """The bundled English part-of-speech tagger."""

    kind: Literal["english"] = "english"

    runs_on_torch = False

    def label(self) -> str:
        """Its name and version, and spaCy's; it is not loaded for that."""
        need("spacy", "prepare", "tagger.kind=english")
        meta = (bundled_folder() / "meta.json").read_text(encoding="utf-8")
        return _label("english", json.loads(meta))

    def made_for(self) -> str:
        """English."""
        return "en"

    def classes(self) -> tuple[str, ...]:
        """Universal parts of speech."""
        return UPOS_CLASSES

    def open(self, folder: Path | None = None) -> WordFinder:
        """The bundled pipeline."""
        return SpacyWords(_load(str(bundled_folder())))


_BATCH_TEXTS = 64


class SpacyWords(WordFinder):
    """A spaCy pipeline: its tokens are the words, their universal part of speech is the class."""

    def __init__(self, pipeline: Language) -> None:
        self._pipeline = pipeline

    def tag(self, texts: Sequence[str]) -> list[Spans]:
        """The words of each text; white space is none."""
        from spacy.attrs import IDX, IS_SPACE, LENGTH, POS

        to_class = _class_of_pos()
        spans = []
        documents = (self._words_of(text) for text in texts)
        for document in self._pipeline.pipe(documents, batch_size=_BATCH_TEXTS):
            table = document.to_array([POS, IDX, LENGTH, IS_SPACE]).astype(np.int64).reshape(-1, 4)
            pos, starts, lengths, _ = table[table[:, 3] == 0].T
            spans.append(Spans(starts, starts + lengths, to_class[pos]))
        return spans

    def _words_of(self, text: str) -> Doc:
        """The text's words, found in time linear in its length: overlong runs are cut beforehand.

        Only spaCy's own tokenizer needs that; those of languages without spaces see whole texts.
        """
        from spacy.tokenizer import Tokenizer
        from spacy.tokens import Doc

        from chronomask.prepare.words.english.words import cut_runs

        parts = cut_runs(text) if type(self._pipeline.tokenizer) is Tokenizer else []
        if len(parts) < 2:
            return self._pipeline.make_doc(text)
        tokens = [token for _, part in parts for token in self._pipeline.make_doc(part)]
        return Doc(
            self._pipeline.vocab,
            words=[token.text for token in tokens],
            spaces=[bool(token.whitespace_) for token in tokens],
        )

    def by_chunk(self) -> ChunkTagger | None:
        """The pipeline as a network that is evaluated faster; None if it is of another kind."""
        from chronomask.prepare.words.english.network import EnglishNetwork

        return EnglishNetwork.of(self._pipeline, _class_of_pos())


@lru_cache(maxsize=1)
def _class_of_pos() -> np.ndarray:
    """uint8 [256]: class of each spaCy part-of-speech symbol; no tag is class 0."""
    from spacy.parts_of_speech import IDS

    table = np.zeros(256, np.uint8)
    for number, tag in enumerate(UPOS, start=1):
        table[IDS[tag]] = number
    table[IDS["CONJ"]] = UPOS_CLASSES.index("CCONJ")  # the tag's name before UD 2
    return table


def _label(kind: str, meta: Mapping[str, Any]) -> str:
    pipeline = f"{meta.get('lang')}_{meta.get('name')} {meta.get('version')}"
    return f"{kind} ({pipeline}, spaCy {version('spacy')})"


def bundled_folder() -> Path:
    """The folder of the bundled English pipeline; raises :class:`DataError` where it is missing."""
    folder = Path(str(resources.files("chronomask.prepare.words.english") / "english_tagger"))
    if not (folder / "meta.json").is_file():
        raise DataError(
            f"the bundled tagger is missing from {folder}; install chronomask again, or choose "
            "another with --set tagger.kind=none"
        )
    return folder


_PUBLISHED = (
    "ca", "da", "de", "el", "en", "es", "fi", "fr", "hr", "it", "ja", "ko",
    "lt", "mk", "nb", "nl", "pl", "pt", "ro", "ru", "sl", "sv", "uk", "zh",
)  # fmt: skip
"""Languages of which spaCy publishes a pipeline that tags (https://spacy.io/models, version 3.8)."""


def _find(name: str, installed: Sequence[str]) -> str:
    """The pipeline that is meant by its name, its folder or its language; raises :class:`UsageError`."""
    if name in installed or (Path(name) / "meta.json").is_file():
        return name
    if "/" in name and Path(name).is_dir():
        raise UsageError(f"{name} is not the folder of a spaCy pipeline: it has no meta.json")
    if "_" in name or not name.isalpha():
        known = f"; {nearest(name, installed)}" if installed else ""
        download = python_command("-m", "spacy", "download", name)
        raise UsageError(
            f"spaCy pipeline '{name}' is not installed{known}; `{download}` "
            "installs one that spaCy publishes, such as en_core_web_sm"
        )
    of_language = sorted(other for other in installed if other.startswith(f"{name}_"))
    if not of_language:
        genre = "web" if name in ("en", "zh") else "news"
        download = python_command("-m", "spacy", "download", f"{name}_core_{genre}_sm")
        way_out = (
            f"install one, such as `{download}`"
            if name in _PUBLISHED
            else "spaCy publishes none that tags it"
        )
        raise UsageError(
            f"no spaCy pipeline for '{name}' is installed; {way_out}. Other taggers are stanza:{name}, "
            "where stanza has it, and in a preparation bands, which any language has"
        )
    if len(of_language) > 1:
        raise UsageError(
            f"several spaCy pipelines for '{name}' are installed; name one: "
            + ", ".join(f"spacy:{other}" for other in of_language)
        )
    return of_language[0]


def _load(name: str) -> Language:
    """A pipeline by its name, folder or language, with what tags need and nothing else."""
    spacy = need("spacy", "prepare", "a spaCy tagger")
    name = _find(name, spacy.util.get_installed_models())
    with warnings.catch_warnings():
        # spaCy warns when a pipeline was trained with another minor version; the tags' use is the
        # user's own decision and the manifest records both versions.
        warnings.simplefilter("ignore", UserWarning)
        try:
            pipeline = spacy.load(name)
        except (OSError, ValueError) as error:
            why = " ".join(str(error).split())
            raise DataError(f"spaCy cannot load the pipeline '{name}': {why}") from None
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
