"""Rows cut into shorter rows: the same tokens, for training that begins with short rows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from chronomask.types import Rows

__all__ = ["cut_rows"]

_VISIT_BITS = 32


def cut_rows(rows: Rows, pieces: int) -> Rows:
    """Each host row as ``pieces`` rows of equal length, one after the other.

    A word that lies on both sides of a cut is predicted in neither piece, so that no word is masked in
    part. Pieces keep their row's number in the data; ``epoch`` distinguishes them from the whole row and
    from pieces of other lengths: it holds the visit in the low 32 bits and pieces − 1 + the piece's place
    above them (unique where numbers of pieces are powers of 2).
    """
    if pieces == 1:
        return rows
    num_rows, length = rows.input_ids.shape
    short = length // pieces
    assert short * pieces == length  # LengthWarmUp allows no other lengths
    shape = (num_rows * pieces, short)

    place = np.tile(np.arange(pieces, dtype=np.int64), num_rows)
    order = None if rows.order is None else np.repeat(rows.order, pieces) * pieces + place
    every = np.arange(0, num_rows * length + 1, short, dtype=rows.cu_seqlens.dtype)
    return replace(
        rows,
        input_ids=rows.input_ids.reshape(shape),
        word_id=_recount(_exclude_split_words(rows.word_id, short).reshape(shape)),
        token_class=rows.token_class.reshape(shape),
        row_id=np.repeat(rows.row_id, pieces),
        epoch=np.repeat(rows.epoch, pieces) + ((pieces - 1 + place) << _VISIT_BITS),
        cu_seqlens=np.union1d(rows.cu_seqlens, every),
        order=order,
        scores=None if rows.scores is None else rows.scores.reshape(shape),
    )


def _exclude_split_words(word_id: np.ndarray, short: int) -> np.ndarray:
    """``word_id`` [B, T] with −1 at every token of a word that lies on both sides of a cut."""
    before, after = word_id[:, short - 1 : -1 : short], word_id[:, short::short]
    row, cut = np.nonzero((before == after) & (after >= 0))
    is_split = np.zeros((word_id.shape[0], int(word_id.max(initial=0)) + 2), bool)
    is_split[row, after[row, cut]] = True  # the last column, which −1 reads, stays False
    return np.where(np.take_along_axis(is_split, word_id.astype(np.intp), 1), -1, word_id)


def _recount(word_id: np.ndarray) -> np.ndarray:
    """Words of each row counted from 0."""
    before = np.concatenate((np.full((len(word_id), 1), -1, word_id.dtype), word_id[:, :-1]), 1)
    begins = (word_id >= 0) & (word_id != before)
    return np.where(word_id >= 0, begins.cumsum(1) - 1, -1).astype(np.int32)
