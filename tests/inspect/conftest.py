"""A tagger that needs no model, and a run that has logged class weights."""

import json
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from chronomask.inspect import subject
from chronomask.prepare.taggers import Spans, UnicodeWords
from chronomask.types import UPOS, UPOS_CLASSES


class HashTagger:
    """Unicode words; the class is a hash of the word."""

    name = "hash 1"
    class_names = UPOS_CLASSES

    def tag(self, texts: Sequence[str]) -> list[Spans]:
        tagged = []
        for text, words in zip(texts, UnicodeWords().tag(texts), strict=True):
            spelled = [text[a:b] for a, b in zip(words.starts, words.ends, strict=True)]
            classes = [1 + zlib.crc32(word.encode()) % len(UPOS) for word in spelled]
            tagged.append(Spans(words.starts, words.ends, np.array(classes, np.uint8)))
        return tagged


@pytest.fixture(autouse=True)
def _hash_tagger(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subject, "load_tagger", lambda *_: HashTagger())


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """A run with uneven weights at progress 0.1 and others at 0.9."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.yaml").write_text(
        "data: somewhere\nname: my run\nmasking:\n  ratio: {kind: constant, base: 0.3}\n"
        "  content: {kind: ptw}\n",
        encoding="utf-8",
    )
    lines = []
    for step, progress in ((10, 0.1), (90, 0.9)):
        weights = {name: 0.1 + 0.8 * progress * k / 17 for k, name in enumerate(UPOS_CLASSES)}
        lines.append(
            {"step": step, "progress": progress, "masking_ratio": 0.2, "class_weight": weights}
        )
    (folder / "metrics.jsonl").write_text(
        "".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8"
    )
    return folder
