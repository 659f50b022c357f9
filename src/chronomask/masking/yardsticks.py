"""Held-out rows with the tokens of a yardstick hidden.

The masks are keyed by row and by nothing of a run: every model meets the same predictions on the same data.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from chronomask.keyed import Stream, bits, row_keys
from chronomask.masking.config import MaskingConfig
from chronomask.masking.masker import Masker, Vocabulary
from chronomask.masking.ratio import Constant
from chronomask.masking.strategy import WholeWord
from chronomask.types import MaskedBatch, Rows
from chronomask.yardsticks import Yardstick

__all__ = ["mask_one", "masker_of"]


def masker_of(yardstick: Yardstick, vocabulary: Vocabulary) -> Callable[[Rows], MaskedBatch]:
    """What hides tokens of host rows: words under the usual replacement (80 % [MASK], 10 % random, 10 %
    kept), or one token of every document, always [MASK].
    """
    if yardstick.ratio is None:
        return partial(mask_one, vocabulary=vocabulary)
    config = MaskingConfig(ratio=Constant(base=yardstick.ratio), strategy=WholeWord())
    return partial(Masker(config, vocabulary), progress=0.0)


def mask_one(rows: Rows, vocabulary: Vocabulary) -> MaskedBatch:
    """Host rows with one maskable token of every document shown as [MASK], drawn by the row's own key."""
    length = rows.row_length
    random = bits(row_keys(0, Stream.SELECT, rows.epoch, rows.row_id), length).ravel()
    maskable = np.flatnonzero(rows.word_id.ravel() >= 0)
    document = np.searchsorted(rows.cu_seqlens, maskable, side="right")
    # Sorted by document and then by random number: the first of each document is its token.
    order = np.lexsort((random[maskable], document))
    first = np.flatnonzero(np.diff(document[order], prepend=-1))
    positions = np.sort(maskable[order[first]]).astype(np.int64)
    ids = np.asarray(rows.input_ids, np.int64).copy()
    targets = ids.ravel()[positions].copy()
    labels = np.full(ids.size, -100, np.int64)
    labels[positions] = targets
    ids.ravel()[positions] = vocabulary.mask_token_id
    return MaskedBatch(
        input_ids=ids,
        labels=labels.reshape(ids.shape),
        positions=positions,
        targets=targets,
        target_class=np.asarray(rows.token_class).ravel()[positions],
        num_maskable=maskable.size,
        masking_ratio=positions.size / max(1, maskable.size),
        cu_seqlens=rows.cu_seqlens,
        attention_mask=rows.attention_mask,
        token_type_ids=rows.token_type_ids,
    )
