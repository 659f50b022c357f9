"""The stage that costs the time: texts become tokens with word starts and classes.

An :class:`Annotator` works on batches of texts with a fast tokenizer and a tagger; no loop of Python
touches a single token. Where both are of the kinds that allow it, what they say about a chunk of
text is kept (:mod:`chronomask.prepare.words.memo`); with any others every text is given to both, with
the same result. :func:`annotate_part` does one part of a preparation.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from chronomask.data.annotation import annotate as annotate_bytes
from chronomask.data.writer import id_dtype
from chronomask.prepare.encoding import ByteRuns, load_backend
from chronomask.prepare.read.left_out import Skipped
from chronomask.prepare.rows.assemble import keep_documents
from chronomask.prepare.words.align import align
from chronomask.prepare.words.memo import ChunkMemo, may_be_cut, token_arrays
from chronomask.prepare.words.tagger import Spans, Tagger, WordFinder, split_long
from chronomask.prepare.work import (
    SPLITS,
    PartCounts,
    TokenPart,
    hash_position,
    mark,
    read_mark,
    read_text,
    write_tokens,
)
from chronomask.vocabulary import vocabulary_size

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = [
    "ANNOTATE",
    "AnnotatedBatch",
    "Annotator",
    "PartJob",
    "annotate_part",
    "counts_of",
    "forget",
]

ANNOTATE = "annotate"
"""Name of the stage."""

BATCH_CHARACTERS = 200_000
"""Text given to tokenizer and tagger at a time; bounds the memory, whatever the documents."""
PIECE_CHARACTERS = 50_000
"""Longer documents are cut for tokenizer and tagger, and joined again after."""


@dataclass(frozen=True, slots=True)
class AnnotatedBatch:
    """Tokens of consecutive pieces of text.

    ``ids`` int64 [T]; ``annotation`` uint8 [T] as stored; ``document`` int64 [P] and ``lengths`` int64
    [P]: which document each piece belongs to and how many tokens it gave; ``unknown`` int64 [P]: characters
    of its unknown tokens; ``num_words`` of the tagger; ``num_without_word`` tokens that overlap no word.
    """

    ids: np.ndarray
    annotation: np.ndarray
    document: np.ndarray
    lengths: np.ndarray
    unknown: np.ndarray
    num_words: int
    num_without_word: int


class Annotator:
    """Makes tokens with words and classes of texts, for one tokenizer and one tagger."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        special_ids: Sequence[int],
        finder: WordFinder | None,
        *,
        keep: bool = True,
    ) -> None:
        """``finder``: the tagger; None where words are given with the texts.

        Without ``keep`` nothing is looked up: the plain way, for comparison.
        """
        self._tokenizer = tokenizer
        self._byte_runs = ByteRuns.of(tokenizer)
        self._finder = finder
        self._is_special = np.zeros(vocabulary_size(tokenizer), bool)
        self._is_special[list(special_ids)] = True
        by_chunk = finder.by_chunk() if finder is not None and keep else None
        cuts = by_chunk is not None and may_be_cut(tokenizer)
        self._memo = ChunkMemo(tokenizer, by_chunk) if by_chunk is not None and cuts else None

    def annotate(
        self, texts: Iterable[str], given: Sequence[Spans] | None = None
    ) -> Iterator[AnnotatedBatch]:
        """Annotate texts in order, in batches bounded by characters; ``given``: the words of every text."""
        pieces: list[str] = []
        documents: list[int] = []
        offsets: list[int] = []
        held = 0
        for number, text in enumerate(texts):
            for offset, piece in split_long(text, PIECE_CHARACTERS):
                pieces.append(piece)
                documents.append(number)
                offsets.append(offset)
                held += len(piece)
                if held >= BATCH_CHARACTERS:
                    yield self._batch(pieces, documents, offsets, given)
                    pieces, documents, offsets, held = [], [], [], 0
        if pieces:
            yield self._batch(pieces, documents, offsets, given)

    def _batch(
        self,
        pieces: list[str],
        documents: list[int],
        offsets: list[int],
        given: Sequence[Spans] | None,
    ) -> AnnotatedBatch:
        """Pieces of texts, each from an offset in its document on."""
        number = np.asarray(documents, np.int64)
        if given is not None:
            places = zip(documents, offsets, pieces, strict=True)
            spans = [given[k].between(at, at + len(piece)) for k, at, piece in places]
        elif self._memo is not None:
            ids, annotation, lengths, unknown, num_words, alone = self._memo.annotate(
                pieces, self._is_special
            )
            return AnnotatedBatch(ids, annotation, number, lengths, unknown, num_words, alone)
        else:
            assert self._finder is not None, "words are neither given nor to be found"
            spans = self._finder.tag(pieces)
        return _align_batch(
            pieces, number, self._tokenizer, spans, self._is_special, self._byte_runs
        )


def _align_batch(
    pieces: list[str],
    documents: np.ndarray,
    tokenizer: Tokenizer,
    spans: Sequence[Spans],
    is_special: np.ndarray,
    byte_runs: ByteRuns | None,
) -> AnnotatedBatch:
    """Tokenise pieces and align their tokens with their words; ``documents`` int64 [P]."""
    encodings = tokenizer.encode_batch(pieces, add_special_tokens=False)
    lengths = np.fromiter((len(e) for e in encodings), np.int64, len(encodings))
    ids, token_starts, token_ends = token_arrays(encodings, int(lengths.sum()))
    if byte_runs is not None:
        edges = np.cumsum([0, *lengths]).tolist()
        for piece, (a, b) in zip(pieces, pairwise(edges), strict=True):
            byte_runs.part(piece, ids[a:b], token_starts[a:b], token_ends[a:b])
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
    piece = np.repeat(np.arange(len(pieces)), lengths)
    unknown = np.bincount(piece, (token_ends - token_starts) * special, minlength=len(pieces))
    return AnnotatedBatch(
        ids,
        annotation,
        documents,
        lengths,
        unknown.astype(np.int64),
        int(words.sum()),
        int(np.count_nonzero(~has_word & ~special)),
    )


@dataclass(frozen=True, slots=True, eq=False)
class PartJob:
    """What a worker must know besides the part's number."""

    run: str
    """Names the preparation: what a process opened for one is not used for another, whose tokenizer or
    tagger may be a changed one in the same folder."""
    tokenizer: str
    """Folder of the saved tokenizer."""
    tagger: Tagger
    class_names: tuple[str, ...]
    out: str
    """The prepared folder, which holds what the tagger learnt from the text, if it learns."""
    special_ids: tuple[int, ...]
    vocab_size: int
    held_out_below: float
    keeps_documents: bool = False
    """Whether ids and metadata go into the table of documents."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PartJob) and self.run == other.run

    def __hash__(self) -> int:
        return hash(self.run)


def annotate_part(job: PartJob, work: Path, number: int) -> None:
    """Task: tokenise, tag and align a part; its mark is its counts."""
    documents = list(read_text(work, number))
    texts = [document.text for document in documents]
    words = job.tagger.given(documents, job.class_names)
    num_words = num_without_word = 0
    stored = id_dtype(job.vocab_size)
    parts_ids, parts_annotation = [np.zeros(0, stored)], [np.zeros(0, np.uint8)]
    lengths, unknown = np.zeros((2, len(texts)), np.int64)
    for batch in _annotator(job).annotate(texts, words):
        parts_ids.append(batch.ids.astype(stored))
        parts_annotation.append(batch.annotation)
        np.add.at(lengths, batch.document, batch.lengths)
        np.add.at(unknown, batch.document, batch.unknown)
        num_words += batch.num_words
        num_without_word += batch.num_without_word
    held_out = np.fromiter((hash_position(t) < job.held_out_below for t in texts), bool, len(texts))
    ids, annotation = np.concatenate(parts_ids), np.concatenate(parts_annotation)
    sizes = np.fromiter(map(len, texts), np.int64, len(texts))
    splits, characters = {}, {}
    for split, chosen in zip(SPLITS, (~held_out, held_out), strict=True):
        characters[split] = (int(sizes[chosen].sum()), int(unknown[chosen].sum()))
        tokens = np.repeat(chosen, lengths)
        kept = chosen & (lengths > 0)
        splits[split] = TokenPart(ids[tokens], annotation[tokens], lengths[kept])
    skipped = Skipped()
    for empty in np.flatnonzero(lengths == 0):
        skipped.add("no token", documents[empty].id, len(texts[empty].encode()))
    counts = PartCounts(
        num_documents=len(texts),
        num_characters=int(sizes.sum()),
        num_words=num_words,
        num_tokens=ids.size,
        num_tokens_without_word=num_without_word,
        characters=characters,
        skipped=skipped.to_dict(),
    )
    if job.keeps_documents:
        keep_documents(work, number, documents, lengths, held_out)
    write_tokens(work, number, splits)
    mark(work, ANNOTATE, number, asdict(counts))


def counts_of(work: Path, number: int) -> PartCounts:
    """The counts of a finished part."""
    counts = read_mark(work, ANNOTATE, number)
    counts.pop("num_special_tokens", None)  # counted by earlier versions
    return PartCounts(**counts)


@lru_cache(maxsize=1)
def _annotator(job: PartJob) -> Annotator:
    """What is opened once for all parts of a preparation that a process does."""
    brings_words = job.tagger.columns is not None
    finder = None if brings_words else job.tagger.open(Path(job.out))
    return Annotator(load_backend(Path(job.tokenizer)), job.special_ids, finder)


def forget() -> None:
    """Let go of what was opened and kept for the parts of a preparation."""
    _annotator.cache_clear()
