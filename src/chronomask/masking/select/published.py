"""The published PTW selection: a walk over shuffled words that skips what overshoots the budget.

Yang, Zhang and Zhao (ACL 2023, arXiv 2208.10806) and their public code, step by step: shuffle the
words of a row; walk once; skip a word whose pieces would exceed the budget round(ratio · length)
(at least 1; specials count in the length, padding does not); accept it with the weight of its class;
stop when the budget is full. Kept for reproduction; :mod:`chronomask.masking.select.exact` is what to
train with.
"""

from __future__ import annotations

import numpy as np

from chronomask import keyed

__all__ = ["walk"]


def walk(
    unit_id: np.ndarray,
    token_class: np.ndarray,
    weights: np.ndarray,
    ratio: np.ndarray,
    keys: np.ndarray,
    accept_keys: np.ndarray,
    own_length: np.ndarray | None = None,
) -> np.ndarray:
    """int64 [N], ascending: flat positions of the tokens of the accepted units.

    ``unit_id`` integer [B, T], −1 = not maskable; ``token_class`` uint8 [B, T]; ``weights`` float64
    [C], the probability of accepting a unit of each class; ``ratio`` float64 [B]; ``keys``,
    ``accept_keys`` uint64 [B] of the streams SELECT and ACCEPT; ``own_length`` int64 [B]: tokens of each row
    that are not padding; None: rows have none.
    """
    num_rows, length = unit_id.shape
    begins = unit_id >= 0
    begins[:, 1:] &= unit_id[:, 1:] != unit_id[:, :-1]
    ends = unit_id >= 0
    ends[:, :-1] &= unit_id[:, 1:] != unit_id[:, :-1]
    size = np.zeros((num_rows, length), np.int64)
    size[begins] = np.flatnonzero(ends) - np.flatnonzero(begins) + 1

    order = keyed.bits(keys, length).astype(np.int64)
    order[~begins] = 2**32
    order = np.argsort(order, axis=1, kind="stable")
    accepted = keyed.bits(accept_keys, length) < np.rint(weights * 2.0**32)[token_class]
    size_in_order = np.take_along_axis(np.where(accepted, size, 0), order, axis=1)

    counted = length if own_length is None else own_length
    left = np.maximum(1, np.rint(ratio * counted)).astype(np.int64)
    covered = np.cumsum(size_in_order, axis=1)
    chosen = (covered <= left[:, None]) & (size_in_order > 0)
    # Until the first word that overshoots, everything fits; from there on at most as many words fit
    # as that word has pieces, each the first one small enough after the one before.
    left -= np.where(chosen, size_in_order, 0).sum(axis=1)
    behind = covered > left[:, None] + np.where(chosen, size_in_order, 0).sum(axis=1)[:, None]
    while True:
        fits = behind & (size_in_order > 0) & (size_in_order <= left[:, None])
        rows = np.flatnonzero(fits.any(axis=1))
        if not rows.size:
            break
        pick = fits[rows].argmax(axis=1)
        chosen[rows, pick] = True
        left[rows] -= size_in_order[rows, pick]
        behind[rows] &= np.arange(length) > pick[:, None]

    starts = np.zeros((num_rows, length), bool)
    np.put_along_axis(starts, order, chosen, axis=1)
    flat = np.flatnonzero(starts)
    selected = np.zeros(num_rows * length, bool)
    run = size.ravel()[flat]
    offsets = np.arange(run.sum()) - np.repeat(np.cumsum(run) - run, run)
    selected[np.repeat(flat, run) + offsets] = True
    return np.flatnonzero(selected)
