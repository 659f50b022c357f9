"""The compiled loops by which strategies make units of words: spans, n-grams, turns.

``spread`` is that of :func:`chronomask.keyed.spread_of_range` for a row's length.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from chronomask import keyed
from chronomask.compiled import KEPT
from chronomask.keyed import Scalar
from chronomask.masking.select import draws

# numba keeps compiled code by this file's contents; those of the compiled files that it imports are:
# compiled in: 5fe601f99c59

__all__ = ["cut_spans", "deal_units", "join_ngrams"]

_U32 = np.uint64(0xFFFFFFFF)


@njit(cache=KEPT, nogil=True)
def cut_spans(
    word_id: np.ndarray, keys: np.ndarray, spread: np.ndarray, stop_below: Scalar, max_words: Scalar
) -> np.ndarray:
    """int32 [B, T]: spans of words, counted from 0 in each row, −1 where nothing may be masked.

    ``word_id`` int32 [B, T]; ``keys`` uint64 [B]. A span ends before a word whose bits are below
    ``stop_below`` of 2³², after ``max_words`` words, and at tokens that are never masked.
    """
    out = np.empty(word_id.shape, np.int32)
    for row in range(word_id.shape[0]):
        low = np.uint32(keys[row] & _U32)
        odd = np.uint32(keys[row] >> np.uint64(32)) | np.uint32(1)
        span, words, previous = -1, 0, np.int32(-1)
        for column in range(word_id.shape[1]):
            word = word_id[row, column]
            if word < 0:
                out[row, column] = -1
            else:
                if word != previous:
                    stops = keyed.scalar_mix(spread[column], low, odd) < stop_below
                    if previous < 0 or stops or words == max_words:
                        span, words = span + 1, 0
                    words += 1
                out[row, column] = span
            previous = word
    return out


@njit(cache=KEPT, nogil=True)
def join_ngrams(
    word_id: np.ndarray, ngrams: np.ndarray, keys: np.ndarray, spread: np.ndarray
) -> np.ndarray:
    """int32 [B, T]: n-grams, and words in none, counted from 0 in each row, −1 where nothing may be masked.

    ``word_id`` int32 [B, T]; ``ngrams`` uint8 [B, T] as in ``Rows``; ``keys`` uint64 [B]. An
    n-gram within another is part of it. Of n-grams that overlap, that with the smallest random number is a
    unit, then of those left, and so on; other words are units of their own.
    """
    num_rows, length = word_id.shape
    out = np.empty((num_rows, length), np.int32)
    first = np.empty(length, np.int64)  # of each word, its first column
    joins = np.empty(length, np.bool_)  # whether it is part of the unit of the word before
    begin, end = np.empty(length, np.int64), np.empty(length, np.int64)  # of n-grams, in words
    drawn = np.empty(length, np.int64)
    for row in range(num_rows):
        low = np.uint32(keys[row] & _U32)
        odd = np.uint32(keys[row] >> np.uint64(32)) | np.uint32(1)
        num, previous = 0, np.int32(-1)
        for column in range(length):
            word = word_id[row, column]
            if word >= 0 and word != previous:
                first[num], joins[num] = column, False
                num += 1
            previous = word
        found, furthest = 0, 0
        for w in range(num):
            stop = w + np.int64(ngrams[row, first[w]])
            if stop < w + 2 or stop > num or stop <= furthest:
                continue
            whole = True  # rows that were cut have words that are never masked
            for v in range(w + 1, stop):
                whole &= word_id[row, first[v] - 1] >= 0
            if whole:
                begin[found], end[found] = w, stop
                drawn[found] = np.int64(keyed.scalar_mix(spread[first[w]], low, odd))
                found, furthest = found + 1, stop
        here = 0
        while here < found:  # n-grams that overlap one after the other
            after = here + 1
            while after < found and begin[after] < end[after - 1]:
                after += 1
            while True:
                best = -1
                for i in range(here, after):
                    if drawn[i] >= 0 and (best < 0 or drawn[i] < drawn[best]):
                        best = i
                if best < 0:
                    break
                joins[begin[best] + 1 : end[best]] = True
                for i in range(here, after):
                    if begin[i] < end[best] and end[i] > begin[best]:
                        drawn[i] = -1
            here = after
        w, unit, previous = -1, np.int32(-1), np.int32(-1)
        for column in range(length):
            word = word_id[row, column]
            if word >= 0 and word != previous:
                w += 1
                unit += not joins[w]
            out[row, column] = unit if word >= 0 else -1
            previous = word
    return out


@njit(cache=KEPT, nogil=True)
def deal_units(
    unit_id: np.ndarray, keys: np.ndarray, spread: np.ndarray, turn: np.ndarray, num_turns: Scalar
) -> np.ndarray:
    """int32 [B, T]: ``unit_id`` where the unit's turn is the row's ``turn``, else −1.

    ``unit_id`` integer [B, T], −1 = not maskable; ``keys`` uint64 [B];
    ``turn`` int64 [B] below ``num_turns``. The units of a row lie end to end on a circle, in random order
    and from a random start; arcs of equal length are the turns, and a unit belongs to that in which it
    begins. So every unit has each turn with the same chance, and turns have as many tokens, to a unit.
    """
    num_rows, length = unit_id.shape
    out = np.empty((num_rows, length), np.int32)
    first, size = np.empty(length, np.int64), np.empty(length, np.int64)
    hashed, own = np.empty(length, np.uint32), np.empty(length, np.bool_)
    order, buckets = np.empty(length, np.uint32), np.empty(1 << draws.ORDER_BITS, np.uint32)
    for row in range(num_rows):
        draws.hash_row(keys[row], spread, hashed)
        num, total, previous = 0, 0, -1
        for column in range(length):
            here = unit_id[row, column]
            if here >= 0:
                if here != previous:
                    first[num], size[num] = column, 0
                    num += 1
                size[num - 1] += 1
                total += 1
            previous = here
        start = np.int64(keys[row] >> np.uint64(32))
        before = 0
        draws.shuffle(hashed, first, num, order, buckets)
        for i in range(num):
            u = order[i]
            place = (start + (before << 32) // total) & np.int64(0xFFFFFFFF)
            own[u] = (place * num_turns) >> 32 == turn[row]
            before += size[u]
        u, previous = -1, -1
        for column in range(length):
            here = unit_id[row, column]
            if here >= 0 and here != previous:
                u += 1
            out[row, column] = here if here >= 0 and own[u] else -1
            previous = here
    return out
