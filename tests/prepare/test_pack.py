"""Rows hold every token of every document once, framed as the packing says."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chronomask.data.annotation import SPECIAL, WORD_START
from chronomask.prepare.rows.pack import Pieces, Specials, TokenRows, concatenate, pack_documents

BERT = Specials(cls_id=2, sep_id=3, pad_id=0)
BARE = Specials(cls_id=None, sep_id=None, pad_id=0)
CLS_ONLY = Specials(cls_id=2, sep_id=None, pad_id=0)
SPECIALS = [BERT, BARE, CLS_ONLY]
PACKINGS = [concatenate, pack_documents]


def documents(lengths: list[int], batch: int = 3) -> Iterator[Pieces]:
    """Documents whose ids count up from 10; words of two tokens, each document starting one."""
    first = 10
    for start in range(0, len(lengths), batch):
        chosen = np.array(lengths[start : start + batch])
        ids = np.arange(first, first + chosen.sum())
        inside = np.concatenate([np.arange(n) for n in chosen]).astype(np.int64)
        annotation = np.where(inside % 2, 1, WORD_START | 1).astype(np.uint8)
        first += int(chosen.sum())
        yield Pieces(ids, annotation, chosen)


def joined(rows: list[TokenRows]) -> TokenRows:
    offsets = np.cumsum([0] + [part.ids.size for part in rows])[:-1]
    return TokenRows(
        np.concatenate([part.ids for part in rows]),
        np.concatenate([part.annotation for part in rows]),
        np.concatenate([part.bounds + at for part, at in zip(rows, offsets, strict=True)]),
        sum(part.num_tokens for part in rows),
    )


lengths_of_documents = st.lists(st.integers(1, 40), min_size=1, max_size=30)


@settings(max_examples=80)
@given(
    lengths=lengths_of_documents, specials=st.sampled_from(SPECIALS), row_length=st.integers(8, 20)
)
@pytest.mark.parametrize("pack", PACKINGS)
def test_every_token_is_packed_once(
    pack: type, lengths: list[int], specials: Specials, row_length: int
) -> None:
    rows = joined(list(pack(documents(lengths), row_length, specials)))
    assert rows.ids.shape[1] == row_length
    maskable = rows.annotation < SPECIAL
    kept = rows.ids[maskable]
    if pack is concatenate:
        assert kept.tolist() == list(range(10, 10 + sum(lengths)))
    assert sorted(kept.tolist()) == list(range(10, 10 + sum(lengths)))
    assert rows.num_tokens == np.count_nonzero(rows.ids != specials.pad_id)
    first = np.argmax(maskable, axis=1)
    has_any = maskable.any(axis=1)
    first_notes = rows.annotation[np.arange(len(first)), first]
    assert (first_notes[has_any] & WORD_START).all()
    assert has_any.all()
    assert (np.diff(rows.bounds) > 0).all()
    assert (rows.bounds % row_length > 0).all()


@settings(max_examples=80)
@given(lengths=lengths_of_documents, specials=st.sampled_from(SPECIALS))
@pytest.mark.parametrize("pack", PACKINGS)
def test_no_attention_span_holds_two_documents(
    pack: type, lengths: list[int], specials: Specials
) -> None:
    rows = joined(list(pack(documents(lengths), 16, specials)))
    owner = np.repeat(np.arange(len(lengths)), lengths)
    edges = sorted({*range(0, rows.ids.size + 1, 16), *rows.bounds.tolist()})
    ids, notes = rows.ids.ravel(), rows.annotation.ravel()
    for start, stop in pairwise(edges):
        piece, note = ids[start:stop], notes[start:stop]
        owners = set(owner[piece[note < SPECIAL] - 10].tolist())
        assert len(owners) <= 1
        if specials.pad_id in piece:
            assert (piece == specials.pad_id).all()


@settings(max_examples=60)
@given(lengths=lengths_of_documents, specials=st.sampled_from(SPECIALS), batch=st.integers(1, 30))
@pytest.mark.parametrize("pack", PACKINGS)
def test_batches_do_not_matter(
    pack: type, lengths: list[int], specials: Specials, batch: int
) -> None:
    with patch("chronomask.prepare.rows.pack._BUFFER_TOKENS", 64):
        left = joined(list(pack(documents(lengths, batch), 12, specials)))
        right = joined(list(pack(documents(lengths, 1), 12, specials)))
    for name in ("ids", "annotation", "bounds"):
        np.testing.assert_array_equal(getattr(left, name), getattr(right, name))


def test_concatenated_rows_look_as_documented() -> None:
    rows = joined(list(concatenate(documents([3, 7, 2]), 8, BERT)))
    assert rows.ids.tolist() == [
        [2, 10, 11, 12, 3, 13, 14, 3],
        [2, 15, 16, 17, 18, 19, 3, 3],
        [2, 20, 21, 3, 3, 0, 0, 0],
    ]
    assert rows.bounds.tolist() == [5, 21]
    assert rows.num_tokens == 21
    assert rows.annotation[1, 1] & WORD_START  # a word cut by the row's edge starts anew


def test_a_last_document_that_fills_its_row_is_followed_by_no_row() -> None:
    rows = list(concatenate(documents([3, 6]), 8, BERT))
    assert [part.ids.tolist() for part in rows] == [
        [[2, 10, 11, 12, 3, 13, 14, 3]],
        [[2, 15, 16, 17, 18, 3, 3, 0]],
    ]
    (full,) = concatenate(documents([6]), 8, BERT)
    assert full.ids.tolist() == [[2, 10, 11, 12, 13, 14, 15, 3]]


def test_whole_documents_share_rows() -> None:
    rows = joined(list(pack_documents(documents([3, 5, 1, 20, 2]), 8, BERT)))
    body = [row[row >= 10].tolist() for row in rows.ids]
    assert len(body) == 6
    spans = [set(piece) for piece in body]
    for document in (range(10, 13), range(13, 18), range(18, 19), range(39, 41)):
        assert sum(set(document) <= span for span in spans) == 1
    assert [2, *range(19, 25), 3] in rows.ids.tolist()  # the long one is cut into full rows


def test_short_documents_fill_rows_well() -> None:
    lengths = np.random.default_rng(0).integers(20, 700, 4000).tolist()
    rows = joined(list(pack_documents(documents(lengths, 100), 512, BERT)))
    assert rows.num_tokens / rows.ids.size > 0.99


def test_separators_come_between_documents_only_with_a_token_for_it() -> None:
    rows = joined(list(concatenate(documents([3, 7]), 8, BARE)))
    assert rows.ids.tolist() == [[10, 11, 12, 13, 14, 15, 16, 17], [18, 19, 0, 0, 0, 0, 0, 0]]
    assert rows.bounds.tolist() == [3, 10]
