"""What prepared rows hold, counted from the rows themselves."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from chronomask.data.annotation import MAX_CLASSES, is_special, is_word_start, totals
from chronomask.data.folder import PreparedSplit

__all__ = ["MOST_PIECES", "SplitSummary", "summarise"]

MOST_PIECES = 6
"""Words of this many pieces or more are counted together."""
_BLOCK_TOKENS = 1 << 22


@dataclass(frozen=True, slots=True)
class SplitSummary:
    """Counts of one split.

    ``num_tokens``: all but padding; ``num_maskable``: those that are neither special nor unknown;
    ``row_utilisation``: tokens per place in a row; ``class_tokens`` and ``class_words`` int64 [C]: of
    maskable tokens; ``words_of_pieces`` int64 [6]: words of 1, 2, … and of 6 or more tokens;
    ``num_bytes``: of the split's files.
    """

    num_documents: int
    num_rows: int
    num_tokens: int
    num_maskable: int
    num_words: int
    row_utilisation: float
    class_tokens: np.ndarray
    class_words: np.ndarray
    words_of_pieces: np.ndarray
    num_bytes: int

    @property
    def tokens_per_word(self) -> float:
        """Mean pieces of a word; NaN without words."""
        return self.num_maskable / self.num_words if self.num_words else float("nan")

    @property
    def bytes_per_token(self) -> float:
        """Bytes on disk for a token; NaN without tokens."""
        return self.num_bytes / self.num_tokens if self.num_tokens else float("nan")


def summarise(split: PreparedSplit, num_classes: int) -> SplitSummary:
    """Read every annotation byte of a split once.

    Raises :class:`DataError` where a shard cannot be read.
    """
    tally = np.zeros((2, MAX_CLASSES), np.int64)
    pieces = np.zeros(MOST_PIECES + 1, np.int64)
    for shard in split.annotations():
        rows = max(1, _BLOCK_TOKENS // split.row_length)
        for start in range(0, len(shard), rows):
            block = shard[start : start + rows].ravel()
            tally += totals(block)
            pieces += _count_words_by_pieces(block)
    words_by_class, tokens_by_class = tally[1], tally.sum(0)
    places = split.num_rows * split.row_length
    files = (entry.bytes for shard in split.entry.shards for entry in shard.files)
    return SplitSummary(
        num_documents=split.num_documents,
        num_rows=split.num_rows,
        num_tokens=split.num_tokens,
        num_maskable=int(tokens_by_class.sum()),
        num_words=int(words_by_class.sum()),
        row_utilisation=split.num_tokens / places if places else float("nan"),
        class_tokens=tokens_by_class[:num_classes],
        class_words=words_by_class[:num_classes],
        words_of_pieces=pieces[1:],
        num_bytes=sum(files),
    )


def _count_words_by_pieces(annotation: np.ndarray) -> np.ndarray:
    """int64 [7]: how many words of whole rows have 0 (none), 1, …, 6 or more tokens."""
    maskable = annotation[~is_special(annotation)]
    # The first token of a row that may be masked starts a word, so no word crosses a row's end.
    starts = np.flatnonzero(is_word_start(maskable))
    lengths = np.diff(np.append(starts, maskable.size))
    return np.bincount(np.minimum(lengths, MOST_PIECES), minlength=MOST_PIECES + 1)
