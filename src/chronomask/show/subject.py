"""What masking is shown on: a text or prepared rows, as tokens that know how they are written.

Three ways to one :class:`Subject`: a text whose words are its tokens, a text cut by a tokenizer, and
rows of prepared data.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from chronomask.data.folder import PreparedData
from chronomask.errors import DataError, UsageError
from chronomask.folders import way_to_prepare_again
from chronomask.masking.masker import Vocabulary
from chronomask.model.open import open_tokenizer
from chronomask.prepare.config import EnglishTagger, PrepareConfig
from chronomask.prepare.encoding import ByteRuns, for_documents
from chronomask.prepare.tokenizer import TokenizerFolder
from chronomask.prepare.words.align import align
from chronomask.prepare.words.tagger import Spans, Tagger
from chronomask.prepare.words.unicode import NoTagger, unlikely_language
from chronomask.show.request import english_is_installed
from chronomask.types import Rows
from chronomask.vocabulary import special_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["MAX_CHARACTERS", "Subject", "of_rows", "of_some_rows", "of_text", "shorten"]

MAX_CHARACTERS = 4000
"""Longer texts are cut: a page of them would be read by nobody."""


@dataclass(frozen=True, slots=True)
class Subject:
    """Unmasked rows and how their tokens are written.

    ``rows`` B rows of T tokens; ``gaps`` [B][T]: white space before each token; ``pieces`` [B][T]: the
    letters of each token, empty for padding; ``spell`` writes any token id; ``description`` says where
    text, tokens and classes come from; ``language``: its code, empty where nobody knows.
    """

    rows: Rows
    gaps: tuple[tuple[str, ...], ...]
    pieces: tuple[tuple[str, ...], ...]
    class_names: tuple[str, ...]
    vocabulary: Vocabulary
    spell: Callable[[int], str]
    description: str
    language: str = ""

    @property
    def mask(self) -> str:
        """The mask token as the tokenizer writes it, ``[MASK]`` or ``<mask>``."""
        return self.spell(self.vocabulary.mask_token_id)


def shorten(text: str, limit: int = MAX_CHARACTERS) -> tuple[str, list[str]]:
    """The text, cut after a word so that it has at most ``limit`` characters, and a note if it was."""
    if len(text) <= limit:
        return text, []
    shown = text[:limit].rsplit(maxsplit=1)[0]
    return shown, [
        f"only the first {len(shown):,} of {len(text):,} characters are shown (at most {limit:,})"
    ]


def of_text(
    text: str,
    tokenizer: Path | PreTrainedTokenizerBase | None,
    data: PreparedData | None,
    *,
    needs_classes: bool = True,
) -> Subject:
    """One row with all of ``text``, cut by a tokenizer (or that of a folder) or the data's tokenizer.

    Without either every word is one token. Words and classes come from the data's tagger, else from
    the bundled English one; where its spaCy is not installed, words have no classes and come from their
    characters, unless the masking ``needs_classes``. Raises UsageError for a text without words and for
    a folder that is no fast tokenizer with a mask token.
    """
    if data is None:
        tagger = EnglishTagger() if needs_classes or english_is_installed() else NoTagger()
        spans = tagger.open().tag([text])[0]
    else:
        if not (data.path / "config.yaml").is_file():
            raise DataError(
                f"{data.path / 'config.yaml'} is missing; {way_to_prepare_again(data.path)}"
            )
        tagger = PrepareConfig.load(data.path / "config.yaml").tagger
        spans = tagger.open(data.path).tag([text])[0]
    if isinstance(tokenizer, Path):
        opened = _open_tokenizer(tokenizer)
        return _cut_by_tokenizer(text, tagger, spans, opened, _backend_of(opened), tokenizer.name)
    if tokenizer is not None:
        backend = _backend_of(tokenizer)
        name = Path(tokenizer.name_or_path).name or type(tokenizer).__name__
        return _cut_by_tokenizer(text, tagger, spans, tokenizer, backend, name)
    if data is not None:
        opened = _open_tokenizer(data.tokenizer_path)
        name = f"that of {data.path.name}"
        return _cut_by_tokenizer(text, tagger, spans, opened, _backend_of(opened), name)
    return _words_as_tokens(text, tagger, spans)


def of_rows(data: PreparedData, number: int) -> Subject:
    """The first ``number`` training rows of prepared data (all, if there are fewer)."""
    split = data.split("train")
    if split.num_rows == 0:
        raise UsageError(f"{data.path} has no training rows to show; prepare more text")
    shown = min(number, split.num_rows)
    named = "row" if shown == 1 else f"{shown} rows"
    description = f"The first {named} of {data.path.name}, tagged by {data.manifest.tagger}."
    return of_some_rows(data, "train", np.arange(shown), description)


def of_some_rows(data: PreparedData, split: str, row_ids: np.ndarray, description: str) -> Subject:
    """Rows ``row_ids`` (int64 [B]) of a split of prepared data."""
    rows = data.split(split).read(row_ids)
    opened = _open_tokenizer(data.tokenizer_path)
    backend = opened.backend_tokenizer
    written = [
        _spell_pieces(row.tolist(), words.tolist(), backend, data.manifest.pad_token_id)
        for row, words in zip(rows.input_ids, rows.word_id, strict=True)
    ]
    return Subject(
        rows,
        tuple(tuple(gaps) for gaps, _ in written),
        tuple(tuple(pieces) for _, pieces in written),
        data.class_names,
        Vocabulary.from_tokenizer(opened),
        lambda token: backend.decode([token], skip_special_tokens=False).strip(),
        description,
    )


def _words_as_tokens(text: str, tagger: Tagger, spans: Spans) -> Subject:
    words = [text[a:b] for a, b in zip(spans.starts.tolist(), spans.ends.tolist(), strict=True)]
    _refuse_empty(words)
    distinct = sorted(set(words))
    number = {word: index for index, word in enumerate(distinct, start=1)}
    return Subject(
        _one_row([number[w] for w in words], np.arange(len(words)), spans.classes),
        *_gaps_and_pieces(text, spans.ends),
        tagger.classes(),
        Vocabulary(0, np.arange(1, len(distinct) + 1), len(distinct) + 1),
        lambda token: "[MASK]" if token == 0 else distinct[token - 1],
        f"Every word is one token; {_describe(tagger)}.",
        _language_of(text, tagger),
    )


def _cut_by_tokenizer(
    text: str, tagger: Tagger, spans: Spans, opened: Any, backend: Any, name: str
) -> Subject:
    """One row with the text's tokens, each with its word and class; special tokens have neither."""
    vocabulary = Vocabulary.from_tokenizer(opened)
    encoding = backend.encode(text, add_special_tokens=False)
    _refuse_empty(encoding.ids)
    offsets = np.array(encoding.offsets, np.int64)
    byte_runs = ByteRuns.of(backend)
    if byte_runs is not None:
        byte_runs.part(text, np.asarray(encoding.ids), offsets[:, 0], offsets[:, 1])
    special = np.isin(encoding.ids, sorted(special_ids(opened)))
    starts, classes, _ = align(
        offsets[:, 0], offsets[:, 1], spans.starts, spans.ends, spans.classes, no_word=special
    )
    word_id = np.where(special, -1, np.cumsum(starts) - 1)
    return Subject(
        _one_row(encoding.ids, word_id, np.where(special, 0, classes)),
        *_gaps_and_pieces(text, offsets[:, 1]),
        tagger.classes(),
        vocabulary,
        lambda token: opened.backend_tokenizer.decode([token], skip_special_tokens=False).strip(),
        f"Tokenizer: {name}. W{_describe(tagger)[1:]}.",
        _language_of(text, tagger),
    )


def _describe(tagger: Tagger) -> str:
    """Where words and classes come from, within a sentence."""
    if tagger.classes() == NoTagger().classes():
        return "words by their characters, without classes"
    return f"words and classes by {tagger.label()}"


def _language_of(text: str, tagger: Tagger) -> str:
    """The language that the tagger is for, unless the text is hardly in it."""
    language = tagger.made_for()
    return "" if language is None or unlikely_language(language, [text]) else language


def _one_row(ids: Sequence[int], word_id: np.ndarray, classes: np.ndarray) -> Rows:
    return Rows(
        np.array([ids], np.int64),
        word_id[None].astype(np.int32),
        classes[None].astype(np.uint8),
        np.zeros(1, np.int64),
        np.zeros(1, np.int64),
        np.array([0, len(ids)], np.int32),
    )


def _refuse_empty(tokens: Sequence[Any]) -> None:
    if not tokens:
        raise UsageError("the text has no words; give a text of at least one word")


def _gaps_and_pieces(
    text: str, ends: np.ndarray
) -> tuple[tuple[tuple[str, ...]], tuple[tuple[str, ...]]]:
    """The text cut at its tokens, as the one row of a subject.

    White space that a token begins with (byte-level BPE) counts as gap; characters before a token
    that belong to none are kept with it; a character shared by two tokens goes to the first.
    """
    gaps, pieces, done = [], [], 0
    for end in np.maximum.accumulate(ends).tolist():
        whole = text[done:end]
        piece = whole.lstrip()
        gaps.append(whole[: len(whole) - len(piece)])
        pieces.append(piece)
        done = end
    return (tuple(gaps),), (tuple(pieces),)


def _spell_pieces(
    ids: list[int], words: list[int], backend: Any, pad: int
) -> tuple[list[str], list[str]]:
    """Gaps and pieces of a stored row, whose original text is gone.

    A token is written as what it adds to its predecessor when both are decoded together, so that
    every tokenizer's own mark of a new word is understood.
    """
    drops_spaces = type(backend.model).__name__ == "WordPiece"
    gaps, pieces, before = [], [], ""
    for index, token in enumerate(ids):
        if token == pad:
            gaps.append("")
            pieces.append("")
            continue
        if index == 0:
            text = backend.decode([token], skip_special_tokens=False)
        else:
            alone = backend.decode([ids[index - 1]], skip_special_tokens=False)
            text = backend.decode([ids[index - 1], token], skip_special_tokens=False)[len(alone) :]
        piece = text.lstrip()
        gap = text[: len(text) - len(piece)]
        same_word = index > 0 and words[index] >= 0 and words[index] == words[index - 1]
        if drops_spaces and (same_word or _joins(before, piece)):
            gap = ""
        gaps.append(gap)
        pieces.append(piece)
        before = piece
    return gaps, pieces


def _joins(before: str, piece: str) -> bool:
    """Whether print puts no space between two words, where a tokenizer has dropped them all."""
    return piece[:1] in set(",.;:!?)]}%’”") or before[-1:] in set("([{“‘")


def _backend_of(tokenizer: PreTrainedTokenizerBase) -> Any:
    """A copy of a fast tokenizer's backend for documents; raises UsageError for others."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise UsageError(
            f"the tokenizer is a {type(tokenizer).__name__}; give a fast tokenizer of transformers or "
            "the folder of one, because others do not report the position of their tokens in the text"
        )
    return for_documents(backend.to_str())


def _open_tokenizer(folder: Path) -> Any:
    return open_tokenizer(TokenizerFolder(path=str(folder)).folder())
