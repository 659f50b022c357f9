"""Fixtures for every room: a small tokenizer and a small prepared folder, made once per session."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # spinning threads starve a busy machine
os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports transformers
os.environ["USE_HUB_KERNELS"] = "0"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from tests_text import made_up_text

from chronomask.data.format import PreparedData
from chronomask.prepare import engine, pipeline
from chronomask.prepare.config import PrepareConfig
from chronomask.prepare.taggers import Spans, UnicodeWords
from chronomask.types import UPOS, UPOS_CLASSES


class FixedTagger:
    """Unicode words; a word's class is a hash of its text, so that classes need no model."""

    name = "fixed 1"
    class_names = UPOS_CLASSES

    def tag(self, texts: Sequence[str]) -> list[Spans]:
        return [
            self._classed(text, words)
            for text, words in zip(texts, UnicodeWords().tag(texts), strict=True)
        ]

    @staticmethod
    def _classed(text: str, words: Spans) -> Spans:
        spelled = (text[a:b] for a, b in zip(words.starts, words.ends, strict=True))
        classes = [1 + zlib.crc32(word.lower().encode()) % len(UPOS) for word in spelled]
        return Spans(words.starts, words.ends, np.asarray(classes, np.uint8))


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> PreparedData:
    """A prepared folder: rows of 32 tokens, 18 classes, a WordPiece of at most 512 ids, both splits.

    Read only: copy ``tiny_data.path`` before changing anything in it.
    """
    folder = tmp_path_factory.mktemp("tiny")
    (folder / "text.txt").write_text("\n\n".join(made_up_text(300)), encoding="utf-8")
    config = PrepareConfig.parse(
        {
            "sources": [str(folder / "text.txt")],
            "tokenizer": {"kind": "wordpiece", "vocab_size": 512},
            "row_length": 32,
            "held_out": 0.1,
            "workers": 1,
        }
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "load_tagger", lambda *_: FixedTagger())
        patch.setattr(
            pipeline, "describe_tagger", lambda choice: (FixedTagger.name, FixedTagger.class_names)
        )
        return pipeline.prepare(config, folder / "data", progress=False)


@pytest.fixture(scope="session")
def tiny_tokenizer(tiny_data: PreparedData) -> Path:
    """Folder of the tokenizer of ``tiny_data``; ``AutoTokenizer.from_pretrained`` opens it."""
    return tiny_data.tokenizer_path
