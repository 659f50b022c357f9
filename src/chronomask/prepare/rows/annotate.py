"""The step that costs the time: texts become tokens with word starts and classes.

Works on batches of texts with a fast tokenizer and a tagger; no loop of Python touches a single token.
Where tokenizer and tagger are of the kinds that allow it, what they say about a chunk of text is kept
(:mod:`memo`); with any others every text is given to both, with the same result. May enter: joining
tokenizer, tagger and alignment.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from chronomask.data.annotation import annotate as annotate_bytes
from chronomask.prepare.words.align import align
from chronomask.prepare.words.bands import BandWords
from chronomask.prepare.words.chunks import may_be_cut
from chronomask.prepare.words.memo import ChunkMemo, WithoutContext, token_arrays
from chronomask.prepare.words.taggers import SpacyWords, TaggerProtocol, split_long
from chronomask.prepare.words.unicode import Spans, UnicodeWords

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["AnnotatedBatch", "annotate"]

BATCH_CHARACTERS = 200_000
"""Text given to tokenizer and tagger at a time; bounds the memory, whatever the documents."""
PIECE_CHARACTERS = 50_000
"""Longer documents are cut for tokenizer and tagger, and joined again after."""


@dataclass(frozen=True, slots=True)
class AnnotatedBatch:
    """Tokens of consecutive pieces of text.

    ``ids`` int64 [T]; ``annotation`` uint8 [T] as stored; ``document`` int64 [P] and ``lengths`` int64
    [P]: which document each piece belongs to and how many tokens it gave; ``num_words`` of the
    tagger; ``num_without_word`` tokens that overlap no word.
    """

    ids: np.ndarray
    annotation: np.ndarray
    document: np.ndarray
    lengths: np.ndarray
    num_words: int
    num_without_word: int


def annotate(
    texts: Iterable[str],
    tokenizer: Tokenizer,
    words: TaggerProtocol | Sequence[Spans],
    special_ids: Sequence[int],
    *,
    keep: bool = True,
) -> Iterator[AnnotatedBatch]:
    """Annotate texts in order, in batches bounded by characters.

    ``words`` come from a tagger, or are those of every text. Without ``keep`` nothing is looked up: the
    plain way, for comparison.
    """
    is_special = np.zeros(tokenizer.get_vocab_size(with_added_tokens=True), bool)
    is_special[list(special_ids)] = True
    pieces: list[str] = []
    documents: list[int] = []
    offsets: list[int] = []
    held = 0
    memo = None if isinstance(words, Sequence) or not keep else _memo(tokenizer, words)

    def annotated() -> AnnotatedBatch:
        if memo is not None:
            ids, annotation, lengths, num_words, alone = memo.annotate(pieces, is_special)
            number = np.asarray(documents, np.int64)
            return AnnotatedBatch(ids, annotation, number, lengths, num_words, alone)
        if isinstance(words, Sequence):
            spans = [
                words[number].between(offset, offset + len(piece))
                for number, offset, piece in zip(documents, offsets, pieces, strict=True)
            ]
        else:
            spans = words.tag(pieces)
        return _annotate_batch(pieces, documents, tokenizer, spans, is_special)

    for number, text in enumerate(texts):
        for offset, piece in split_long(text, PIECE_CHARACTERS):
            pieces.append(piece)
            documents.append(number)
            offsets.append(offset)
            held += len(piece)
            if held >= BATCH_CHARACTERS:
                yield annotated()
                pieces, documents, offsets, held = [], [], [], 0
    if pieces:
        yield annotated()


@lru_cache(maxsize=1)
def _memo(tokenizer: Tokenizer, tagger: TaggerProtocol) -> ChunkMemo | None:
    """What is kept for a tokenizer and a tagger; None where one of them does not allow it."""
    if isinstance(tagger, UnicodeWords | BandWords):
        chunk_tagger = WithoutContext(tagger)
    else:
        chunk_tagger = tagger.network() if isinstance(tagger, SpacyWords) else None
    if chunk_tagger is None or not may_be_cut(tokenizer):
        return None
    return ChunkMemo(tokenizer, chunk_tagger)


def _annotate_batch(
    pieces: list[str],
    documents: list[int],
    tokenizer: Tokenizer,
    spans: Sequence[Spans],
    is_special: np.ndarray,
) -> AnnotatedBatch:
    encodings = tokenizer.encode_batch(pieces, add_special_tokens=False)
    lengths = np.fromiter((len(e) for e in encodings), np.int64, len(encodings))
    ids, token_starts, token_ends = token_arrays(encodings, int(lengths.sum()))
    # One character axis for the whole batch, with a gap so that no token reaches the next piece.
    sizes = np.fromiter((len(piece) + 2 for piece in pieces), np.int64, len(pieces))
    base = np.cumsum(sizes) - sizes
    shift = np.repeat(base, lengths)
    words = np.fromiter((s.starts.size for s in spans), np.int64, len(spans))
    word_shift = np.repeat(base, words)
    starts, classes, has_word = align(
        token_starts + shift,
        token_ends + shift,
        np.concatenate([s.starts for s in spans]) + word_shift,
        np.concatenate([s.ends for s in spans]) + word_shift,
        np.concatenate([s.classes for s in spans]),
        no_word=is_special[ids],
    )
    special = is_special[ids]
    annotation = annotate_bytes(classes, starts, special)
    return AnnotatedBatch(
        ids,
        annotation,
        np.asarray(documents, np.int64),
        lengths,
        int(words.sum()),
        int(np.count_nonzero(~has_word & ~special)),
    )
