"""Stanza's documents become words. No models: the pipeline is made up, its documents are stanza's own."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from typing import Any

import pytest
import stanza

from chronomask.errors import UsageError
from chronomask.prepare.config import StanzaTagger
from chronomask.prepare.words.stanza_tagger import StanzaWords
from chronomask.prepare.words.tagger import Spans
from chronomask.types import UPOS_CLASSES

TEXT = "Il va  du café.\nFin 👍"
SENTENCES = [
    [
        {"id": 1, "text": "Il", "upos": "PRON", "start_char": 0, "end_char": 2},
        {"id": 2, "text": "va", "upos": "VERB", "start_char": 3, "end_char": 5},
        {"id": (3, 4), "text": "du", "start_char": 7, "end_char": 9},
        {"id": 3, "text": "de", "upos": "ADP"},
        {"id": 4, "text": "le", "upos": "DET"},
        {"id": 5, "text": "café", "upos": "NOUN", "start_char": 10, "end_char": 14},
        {"id": 6, "text": ".", "upos": "PUNCT", "start_char": 14, "end_char": 15},
    ],
    [
        {"id": 1, "text": "Fin", "upos": "NOUN", "start_char": 16, "end_char": 19},
        {"id": 2, "text": "👍", "upos": "unheard", "start_char": 20, "end_char": 21},
    ],
]


class MadeUpPipeline:
    """What ``stanza.Pipeline`` offers and the adaptor uses."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []

    def bulk_process(self, docs: list[str]) -> Sequence[Any]:
        from stanza.models.common.doc import Document

        self.asked.append(docs)
        return [Document(SENTENCES, text=text) for text in docs]


def named(text: str, spans: Spans) -> list[tuple[str, str]]:
    words = zip(spans.starts, spans.ends, spans.classes, strict=True)
    return [(text[a:b], UPOS_CLASSES[c]) for a, b, c in words]


def test_tokens_are_words_and_a_multiword_token_has_its_first_tag() -> None:
    pipeline = MadeUpPipeline()
    empty, spans, blank = StanzaWords(pipeline).tag(["", TEXT, " \n"])
    assert named(TEXT, spans) == [
        ("Il", "PRON"), ("va", "VERB"), ("du", "ADP"), ("café", "NOUN"), (".", "PUNCT"),
        ("Fin", "NOUN"), ("👍", "none"),
    ]  # fmt: skip
    assert empty.starts.size == blank.starts.size == 0
    assert pipeline.asked == [[TEXT]]  # stanza refuses texts without a word


def test_models_that_are_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    choice = StanzaTagger(language="fr", folder=str(tmp_path))
    with pytest.raises(
        UsageError, match=r"models \(fr, default\) cannot be loaded: .*download them"
    ):
        choice.check()
    for tagger, asked in (
        (choice, f'"fr", model_dir="{tmp_path}"'),
        (StanzaTagger(language="ko", package="gsd"), '"ko", package="gsd"'),
        (StanzaTagger(language="ko"), '"ko"'),
    ):  # each as it is looked for
        with pytest.raises(UsageError, match=re.escape(f"stanza.download({asked})")):
            tagger.open()
    monkeypatch.setitem(sys.modules, "stanza", None)
    with pytest.raises(UsageError, match=r"needs the package 'stanza', .*chronomask\[stanza\]"):
        choice.open()


def test_the_pipeline_is_never_asked_to_download(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def pipeline(language: str, **values: Any) -> MadeUpPipeline:
        asked.update(values, language=language)
        return MadeUpPipeline()

    monkeypatch.setattr(stanza, "Pipeline", pipeline)
    tagger = StanzaTagger(language="de", package="gsd")
    tagger.open()
    assert asked["download_method"] is None
    assert asked["language"] == "de"
    assert asked["processors"] == "tokenize,mwt,pos"
    assert tagger.label().startswith("stanza (de, gsd, stanza ")
    assert tagger.classes() == UPOS_CLASSES
