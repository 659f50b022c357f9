"""How often a part-of-speech tagger is right: universal tags against a CoNLL-U file, on gold tokens.

May enter: reading the two CoNLL-U columns a tagger is trained and judged on, and counting. The words
of the file are given to the tagger as they stand, so that the figure is about tags and not about
tokenisation. From a shell::

    python -m chronomask.prepare.tagger_accuracy en_ewt-ud-test.conllu.gz
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
import time
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from spacy.language import Language
    from spacy.tokens import Doc

UPOS_TAGS = (
    "ADJ", "ADP", "ADV", "AUX", "CCONJ", "DET", "INTJ", "NOUN", "NUM",
    "PART", "PRON", "PROPN", "PUNCT", "SCONJ", "SYM", "VERB", "X",
)  # fmt: skip
"""The 17 universal part-of-speech tags (https://universaldependencies.org/u/pos/)."""

BUNDLED_TAGGER = "english_tagger"
"""Name of the bundled model and of its folder beside this file."""

_NUM_COLUMNS = 10


class ConlluError(ValueError):
    """A file that is not CoNLL-U, or lacks universal tags; the message names file and line."""


@dataclass(frozen=True, slots=True)
class Sentence:
    """One sentence of a treebank: syntactic words, whether a space follows each, universal tags."""

    words: tuple[str, ...]
    spaces: tuple[bool, ...]
    upos: tuple[str, ...]
    starts_document: bool


@dataclass(frozen=True, slots=True)
class TagScore:
    """Counts of one tag: words carrying it in the file, predicted words, words where both agree."""

    gold: int
    predicted: int
    correct: int

    @property
    def recall(self) -> float | None:
        """Share of the tag's gold words found; None when the file has none."""
        return self.correct / self.gold if self.gold else None

    @property
    def precision(self) -> float | None:
        """Share of the tag's predictions that are right; None when it was never predicted."""
        return self.correct / self.predicted if self.predicted else None


@dataclass(frozen=True, slots=True)
class TaggerAccuracy:
    """Result of `tagger_accuracy`. `words_per_second` is per CPU second, tagging only."""

    tagger: str
    num_sentences: int
    num_words: int
    num_correct: int
    words_per_second: float
    per_tag: dict[str, TagScore]

    @property
    def accuracy(self) -> float:
        """Share of words whose predicted universal tag is the gold one, in [0, 1]."""
        return self.num_correct / self.num_words


def read_conllu(path: str | Path) -> Iterator[Sentence]:
    """Yield the sentences of a CoNLL-U file, plain or gzip-compressed (by the suffix `.gz`).

    A word is a syntactic word: the line `3-4 don't` of a multiword token only says whether a space
    follows its last word (none follows the others), and empty nodes (`8.1`) are passed over.
    Format: https://universaldependencies.org/format.html.

    Raises:
        FileNotFoundError: there is no such file.
        ConlluError: a malformed line, a tag outside `UPOS_TAGS`, a damaged archive, text that is
            not UTF-8, or no sentence at all.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    try:
        with _open_text(path) as lines:
            yield from _sentences(lines, path)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ConlluError(f"{path}: damaged gzip file: {error}") from error
    except UnicodeDecodeError as error:
        raise ConlluError(f"{path}: not UTF-8 text: {error}") from error


def _open_text(path: Path) -> TextIO:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8")
    return path.open(encoding="utf-8")


def _sentences(lines: TextIO, path: Path) -> Iterator[Sentence]:
    words: list[str] = []
    spaces: list[bool] = []
    upos: list[str] = []
    starts_document = False
    multiword_end = 0  # id of the last word of the multiword token being read
    multiword_space = True
    num_sentences = 0

    for number, line in enumerate(lines, start=1):
        line = line.rstrip("\n")
        if line.startswith("#"):
            starts_document |= line.startswith("# newdoc")
            continue
        if line:
            columns = line.split("\t")
            if len(columns) != _NUM_COLUMNS:
                raise ConlluError(
                    f"{path}:{number}: {len(columns)} tab-separated columns, "
                    f"CoNLL-U has {_NUM_COLUMNS}"
                )
            token_id, word, tag, misc = columns[0], columns[1], columns[3], columns[9]
            space = "SpaceAfter=No" not in misc.split("|")
            if "." in token_id:
                continue
            if "-" in token_id:
                multiword_end, multiword_space = _range_end(token_id, path, number), space
                continue
            if token_id != str(len(words) + 1):
                raise ConlluError(
                    f"{path}:{number}: word id {token_id!r}, expected {len(words) + 1}"
                )
            if tag not in UPOS_TAGS:
                raise ConlluError(
                    f"{path}:{number}: {tag!r} is no universal tag; "
                    f"the tags are {', '.join(UPOS_TAGS)}"
                )
            words.append(word)
            upos.append(tag)
            if len(words) < multiword_end:
                spaces.append(False)
            elif len(words) == multiword_end:
                spaces.append(multiword_space)
            else:
                spaces.append(space)
        elif words:
            yield Sentence(tuple(words), tuple(spaces), tuple(upos), starts_document)
            num_sentences += 1
            words, spaces, upos = [], [], []
            starts_document, multiword_end = False, 0
    if words:
        raise ConlluError(f"{path}: ends inside a sentence (no empty line after the last word)")
    if not num_sentences:
        raise ConlluError(f"{path}: no sentence found")


def _range_end(token_id: str, path: Path, number: int) -> int:
    start, _, end = token_id.partition("-")
    if not (start.isdecimal() and end.isdecimal() and int(start) < int(end)):
        raise ConlluError(f"{path}:{number}: {token_id!r} is no range of word ids")
    return int(end)
