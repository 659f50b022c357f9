"""Rows shaped like real text: word lengths, classes and specials, made from a seed."""

import numpy as np

from chronomask.types import UPOS_CLASSES, Rows

PIECES = np.array([0.82, 0.11, 0.045, 0.018, 0.005, 0.002])
"""Share of words with 1, 2, … pieces: English Wikipedia in a WordPiece vocabulary of 8,000."""
CLASS_SHARE = np.array([7, 10, 4, 5, 3, 9, 0.2, 17, 3, 2, 6, 9, 12, 1.5, 0.3, 10.5, 0.5])
"""Per cent of words with each part of speech, in the order of ``UPOS``: about UD English EWT."""
FIRST_ORDINARY, VOCAB_SIZE = 5, 8000


def rows_like_text(num_rows: int, length: int, seed: int = 0, multi_only: bool = False) -> Rows:
    """``num_rows`` rows of ``length`` tokens: [CLS] words … [SEP]; every fourth row is padded.

    Collocations of two to five words begin at half of the words, so that many overlap.
    """
    rng = np.random.default_rng(seed)
    share = PIECES.copy()
    if multi_only:
        share[0] = 0
    sizes = rng.choice(np.arange(1, 7), size=(num_rows, length), p=share / share.sum())
    classes = rng.choice(np.arange(1, 18), size=sizes.shape, p=CLASS_SHARE / CLASS_SHARE.sum())
    word_id = np.full((num_rows, length), -1, np.int32)
    token_class = np.zeros((num_rows, length), np.uint8)
    for row in range(num_rows):
        end = length - 1 if row % 4 else length - 1 - length // 8
        words = np.repeat(np.arange(length), sizes[row])[: end - 1]
        word_id[row, 1:end] = words
        token_class[row, 1:end] = classes[row][words]
    input_ids = rng.integers(FIRST_ORDINARY, VOCAB_SIZE, size=word_id.shape)
    input_ids[word_id < 0] = 0
    begins = word_id >= 0
    begins[:, 1:] &= word_id[:, 1:] != word_id[:, :-1]
    longest = np.random.default_rng([seed, 1]).choice([0, 0, 0, 0, 2, 3, 4, 5], word_id.shape)
    return Rows(
        input_ids,
        word_id,
        token_class,
        np.arange(num_rows),
        np.zeros(num_rows, np.int64),
        np.arange(0, num_rows * length + 1, length, dtype=np.int32),
        np.arange(num_rows),
        ngrams=np.where(begins, longest, 0).astype(np.uint8),
    )


def word_sizes(rows: Rows) -> np.ndarray:
    """int [B, T]: pieces of each token's word, 0 where nothing may be masked."""
    sizes = np.zeros(rows.word_id.shape, int)
    for row, words in enumerate(rows.word_id):
        count = np.bincount(words[words >= 0], minlength=1)
        sizes[row] = np.where(words >= 0, count[np.maximum(words, 0)], 0)
    return sizes


CLASSES = UPOS_CLASSES
