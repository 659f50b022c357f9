"""Packing: documents of any length into rows of one length.

Both packings place the tokenizer's [CLS] and [SEP] where it has them (``body`` is what is left of a row):

- ``concatenate``: every row is [CLS] body [SEP]; the bodies are the documents one after the other,
  parted by [SEP] and cut wherever a row is full (RoBERTa's "FULL-SENTENCES", Liu et al. 2019, §4.2).
- ``documents``: every document is [CLS] document [SEP] and whole; several share a row, chosen best fit
  decreasing in bounded buffers. Only a document longer than a row is cut, into pieces that are each
  [CLS] piece [SEP].

What comes out depends on the order of the documents alone, not on how they were batched.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from chronomask.config import Alternative
from chronomask.data.annotation import SPECIAL, WORD_START

__all__ = [
    "Concatenate",
    "Documents",
    "Packing",
    "Pieces",
    "Specials",
    "TokenRows",
    "concatenate",
    "pack_documents",
]

_BUFFER_TOKENS = 1 << 22
"""Tokens that best fit chooses among at a time (about 50 MB with its working arrays)."""
_BATCH_ROWS_TOKENS = 1 << 20


@dataclass(frozen=True, slots=True)
class Specials:
    """Ids that packing places; ``None`` where the tokenizer has no such token."""

    cls_id: int | None
    sep_id: int | None
    pad_id: int

    @property
    def overhead(self) -> int:
        """Special tokens around one piece."""
        return (self.cls_id is not None) + (self.sep_id is not None)


@dataclass(frozen=True, slots=True)
class Pieces:
    """Consecutive documents without special tokens: ``ids`` and ``annotation`` [T], ``lengths`` [D]."""

    ids: np.ndarray
    annotation: np.ndarray
    lengths: np.ndarray


@dataclass(frozen=True, slots=True)
class TokenRows:
    """Full rows: ``ids`` int64 and ``annotation`` uint8 [B, T]; ``bounds`` int64: ascending flat

    positions at which a document or the padding begins inside a row; ``num_tokens`` not padding.
    """

    ids: np.ndarray
    annotation: np.ndarray
    bounds: np.ndarray
    num_tokens: int


class Packing(Alternative):
    """How documents are put into rows."""

    @abstractmethod
    def pack(
        self, pieces: Iterable[Pieces], row_length: int, specials: Specials
    ) -> Iterator[TokenRows]:
        """Rows of documents that come in order, some at a time."""


class Concatenate(Packing):
    """Documents one after the other, cut wherever a row is full: no padding but at the very end."""

    kind: Literal["concatenate"] = "concatenate"

    def pack(
        self, pieces: Iterable[Pieces], row_length: int, specials: Specials
    ) -> Iterator[TokenRows]:
        """See :func:`concatenate`."""
        return concatenate(pieces, row_length, specials)


class Documents(Packing):
    """Whole documents side by side in a row, best fit first; only one longer than a row is cut."""

    kind: Literal["documents"] = "documents"

    def pack(
        self, pieces: Iterable[Pieces], row_length: int, specials: Specials
    ) -> Iterator[TokenRows]:
        """See :func:`pack_documents`."""
        return pack_documents(pieces, row_length, specials)


def concatenate(
    pieces: Iterable[Pieces], row_length: int, specials: Specials
) -> Iterator[TokenRows]:
    """Rows of documents one after the other; only the last row is padded."""
    body = row_length - specials.overhead
    rest_ids, rest_annotation = np.empty(0, np.int64), np.empty(0, np.uint8)
    rest_starts = np.empty(0, np.int64)  # where documents begin in the rest
    for part in pieces:
        ids, annotation, starts = _separate(part, specials.sep_id)
        starts = np.concatenate([rest_starts, starts + rest_ids.size])
        ids = np.concatenate([rest_ids, ids])
        annotation = np.concatenate([rest_annotation, annotation])
        whole = ids.size // body
        if whole:
            cut = whole * body
            inside = starts < cut
            yield _frame(ids[:cut], annotation[:cut], starts[inside], row_length, specials)
            ids, annotation, starts = ids[cut:], annotation[cut:], starts[~inside] - cut
        rest_ids, rest_annotation, rest_starts = ids, annotation, starts
    # A last [SEP] alone ends a document that filled its row, which ends with one of its own.
    if rest_ids.size > (specials.sep_id is not None):
        yield _frame(rest_ids, rest_annotation, rest_starts, row_length, specials)


def _separate(part: Pieces, sep_id: int | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A part's documents with [SEP] after each, and where each begins."""
    ends = np.cumsum(part.lengths)
    if sep_id is None:
        return part.ids.astype(np.int64), part.annotation, ends - part.lengths
    ids = np.insert(part.ids.astype(np.int64), ends, sep_id)
    annotation = np.insert(part.annotation, ends, SPECIAL)
    return ids, annotation, ends - part.lengths + np.arange(ends.size)


def _frame(
    ids: np.ndarray, annotation: np.ndarray, starts: np.ndarray, row_length: int, specials: Specials
) -> TokenRows:
    """Rows of a stream cut into bodies; a last short body is padded."""
    body = row_length - specials.overhead
    num_rows = -(-ids.size // body)
    last = ids.size - (num_rows - 1) * body
    first = specials.cls_id is not None
    out_ids = np.full((num_rows, row_length), specials.pad_id, np.int64)
    out_annotation = np.full((num_rows, row_length), SPECIAL, np.uint8)
    padded = np.full(num_rows * body, specials.pad_id, np.int64)
    padded[: ids.size] = ids
    out_ids[:, first : first + body] = padded.reshape(num_rows, body)
    padded = np.full(num_rows * body, SPECIAL, np.uint8)
    padded[: ids.size] = annotation
    out_annotation[:, first : first + body] = padded.reshape(num_rows, body)
    if specials.cls_id is not None:
        out_ids[:, 0] = specials.cls_id
    if specials.sep_id is not None:
        out_ids[:-1, first + body] = specials.sep_id
        out_ids[-1, first + last] = specials.sep_id
    row, column = np.divmod(starts, body)
    bounds = (row * row_length + column + first)[column > 0]
    padding = body - last
    if padding:
        bounds = np.append(bounds, num_rows * row_length - padding)
    _begin_words(out_annotation)
    return TokenRows(out_ids, out_annotation, bounds, num_rows * row_length - padding)


def _begin_words(annotation: np.ndarray) -> None:
    """In place: the first maskable token of every row begins a word, also one cut by the row's edge.

    Documents begin with a word start of their own already, because alignment never joins two.
    """
    first = np.argmax(annotation < SPECIAL, axis=1)
    rows = np.arange(len(annotation))
    maskable = annotation[rows, first] < SPECIAL
    annotation[rows[maskable], first[maskable]] |= WORD_START


def pack_documents(
    pieces: Iterable[Pieces],
    row_length: int,
    specials: Specials,
) -> Iterator[TokenRows]:
    """Rows of whole documents, padded at their ends."""
    body = row_length - specials.overhead
    held: list[Pieces] = []
    held_tokens = 0
    for part in pieces:
        begin = 0
        while begin < part.lengths.size:
            # Take documents until the buffer is full: the cut depends on the documents alone.
            sizes = np.cumsum(part.lengths[begin:])
            take = int(np.searchsorted(sizes, _BUFFER_TOKENS - held_tokens)) + 1
            taken = part.lengths[begin : begin + take]
            token = int(part.lengths[:begin].sum())
            end = token + int(taken.sum())
            held.append(Pieces(part.ids[token:end], part.annotation[token:end], taken))
            held_tokens += end - token
            begin += take
            if held_tokens >= _BUFFER_TOKENS:
                yield from _best_fit(held, row_length, body, specials)
                held, held_tokens = [], 0
    if held_tokens:
        yield from _best_fit(held, row_length, body, specials)


def _best_fit(
    held: list[Pieces], row_length: int, body: int, specials: Specials
) -> Iterator[TokenRows]:
    """Pack one buffer, a bounded number of rows at a time."""
    ids = np.concatenate([part.ids for part in held])
    annotation = np.concatenate([part.annotation for part in held])
    lengths = np.concatenate([part.lengths for part in held]).astype(np.int64)
    num_cuts = -(-lengths // body)
    document = np.repeat(np.arange(lengths.size), num_cuts)
    order = np.arange(document.size) - np.repeat(np.cumsum(num_cuts) - num_cuts, num_cuts)
    size = np.minimum(body, lengths[document] - order * body)
    start = (np.cumsum(lengths) - lengths)[document] + order * body
    row = _rows_best_fit(size + specials.overhead, row_length)

    by_row = np.lexsort((np.arange(row.size), row))
    row, start, size = row[by_row], start[by_row], size[by_row]
    full = size + specials.overhead
    before = np.cumsum(full) - full
    first_of_row = np.searchsorted(row, np.arange(row[-1] + 1))
    column = before - before[first_of_row][row]
    step = max(1, _BATCH_ROWS_TOKENS // row_length)
    for first in range(0, int(row[-1]) + 1, step):
        a, b = np.searchsorted(row, [first, first + step])
        num_rows = int(row[b - 1]) + 1 - first
        yield _place(
            ids, annotation, start[a:b], size[a:b], (row[a:b] - first) * row_length + column[a:b],
            num_rows, row_length, specials,
        )  # fmt: skip


def _rows_best_fit(sizes: np.ndarray, row_length: int) -> np.ndarray:
    """int64: the row of each piece by best fit decreasing; rows are numbered by their first piece."""
    order = np.argsort(-sizes, kind="stable").tolist()
    needs = sizes.tolist()
    rows_with: list[list[int]] = [[] for _ in range(row_length + 1)]  # by free space
    free_spaces = 0  # bit n is set where a row with n free tokens exists
    row_of = np.empty(sizes.size, np.int64)
    num_rows = 0
    for piece in order:
        need = needs[piece]
        fitting = free_spaces >> need
        if fitting:
            free = need + (fitting & -fitting).bit_length() - 1
            rows = rows_with[free]
            row = rows.pop()
            if not rows:
                free_spaces ^= 1 << free
        else:
            free, row = row_length, num_rows
            num_rows += 1
        row_of[piece] = row
        left = free - need
        if left:
            rows_with[left].append(row)
            free_spaces |= 1 << left
    first_piece = np.full(num_rows, sizes.size, np.int64)
    np.minimum.at(first_piece, row_of, np.arange(sizes.size))
    rank = np.empty(num_rows, np.int64)
    rank[np.argsort(first_piece)] = np.arange(num_rows)
    return rank[row_of]


def _place(
    ids: np.ndarray,
    annotation: np.ndarray,
    start: np.ndarray,
    size: np.ndarray,
    target: np.ndarray,
    num_rows: int,
    row_length: int,
    specials: Specials,
) -> TokenRows:
    """Rows with piece k, ``ids[start[k] : start[k] + size[k]]``, framed at flat position target[k]."""
    first = specials.cls_id is not None
    out_ids = np.full(num_rows * row_length, specials.pad_id, np.int64)
    out_annotation = np.full(num_rows * row_length, SPECIAL, np.uint8)
    within = np.arange(size.sum()) - np.repeat(np.cumsum(size) - size, size)
    source = np.repeat(start, size) + within
    destination = np.repeat(target + first, size) + within
    out_ids[destination] = ids[source]
    out_annotation[destination] = annotation[source]
    out_annotation[target + first] |= np.where(
        out_annotation[target + first] < SPECIAL, WORD_START, 0
    ).astype(np.uint8)
    if specials.cls_id is not None:
        out_ids[target] = specials.cls_id
    if specials.sep_id is not None:
        out_ids[target + first + size] = specials.sep_id
    ends = target + size + specials.overhead
    edges = np.union1d(target, ends)  # an end is the next piece's start or the padding's
    bounds = edges[edges % row_length > 0]
    return TokenRows(
        out_ids.reshape(num_rows, row_length),
        out_annotation.reshape(num_rows, row_length),
        bounds,
        int((size + specials.overhead).sum()),
    )
