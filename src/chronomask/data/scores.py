"""How hard each token of prepared rows is: one number a position, kept beside the rows for masking to use.

Scores are computed from the rows alone, so no tokenizer and no tagger is needed, and any number of workers
gives the same: :class:`Informativeness` and :class:`PairedInformation` count the words of the training
rows. Scores of one's own, such as the losses of a model, are arrays of the rows' shape
(:func:`add_scores`). They are stored as float16 and read as float32 into ``Rows.scores``; a higher one is
harder. Computed ones are 0 for special tokens and padding; given ones are kept as they are, for these are
never masked.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field

from chronomask.config import Alternative, kind_of
from chronomask.data.annotation import is_special, is_word_start
from chronomask.data.folder import PreparedData, PreparedSplit
from chronomask.data.manifest import Column, FileEntry
from chronomask.data.writer import write_column, write_manifest
from chronomask.errors import DataError, UsageError, nearest
from chronomask.locks import in_turn
from chronomask.progress import Progress
from chronomask.storage import lock_of, way_to_read

__all__ = [
    "Informativeness",
    "NoScores",
    "PairedInformation",
    "Scores",
    "add_scores",
    "blocks_of",
    "keep_column",
    "mix",
    "score_split",
    "showing_scores",
    "words_of",
]

_BLOCK_TOKENS = 1 << 21
MOST_PAIRS = 1 << 24
"""Different pairs of words that are counted at most; beyond it those met once are forgotten."""

Scorer = Callable[["WordsOfRows"], np.ndarray]
"""Gives every word its score, float64 [W]."""


class Scores(Alternative):
    """What makes a word hard; all its tokens have the word's score."""

    @abstractmethod
    def learn(self, train: PreparedSplit, shown: Progress) -> Scorer | None:
        """Count what the scores are made of in the training rows, which ``shown`` counts too; None: there
        are to be no scores.
        """


class NoScores(Scores):
    """No scores are kept: masking cannot weigh by them."""

    kind: Literal["none"] = "none"

    def learn(self, train: PreparedSplit, shown: Progress) -> None:
        """Nothing."""


class Informativeness(Scores):
    """Bits of information of a word alone: −log₂ of its share of the training words.

    Its self-information (Shannon, 1948): the rarer, the harder. A word that the training rows do not hold
    counts as one that they hold once.
    """

    kind: Literal["informativeness"] = "informativeness"

    def learn(self, train: PreparedSplit, shown: Progress) -> Scorer:
        """Count the words."""
        counts = Counts()
        for words in words_of(train):
            counts.add(words.keys)
            shown.advance(words.of_token.size // train.row_length)
        return lambda words: _bits(counts, words.keys)


class PairedInformation(Scores):
    """Bits that are left of a word once its more telling neighbour is known.

    Its informativeness less the pointwise mutual information (PMI) with the word before or after it,
    whichever is larger: min over neighbours of −log₂ p(word | neighbour). So words of a collocation
    ("Puerto Rico"), which give each other away (Levine et al., 2021, "PMI-Masking"), are easy.
    """

    kind: Literal["pmi"] = "pmi"
    min_count: int = Field(default=5, ge=1)
    """Pairs that occur less often in the training rows are ignored: their score would be chance."""

    def learn(self, train: PreparedSplit, shown: Progress) -> Scorer:
        """Count the words and their pairs."""
        counts, pairs = Counts(), Counts(MOST_PAIRS)
        for words in words_of(train):
            counts.add(words.keys)
            pairs.add(words.pairs[words.follows])
            shown.advance(words.of_token.size // train.row_length)

        def score(words: WordsOfRows) -> np.ndarray:
            own = counts.of(words.keys)
            both = np.where(words.follows, pairs.of(words.pairs), 0)
            both[both < self.min_count] = 0
            before = np.roll(own, 1)
            scores = _bits(counts, words.keys)
            told = both > 0
            given_before = -np.log2(both[told] / before[told])
            given_after = -np.log2(both[told] / own[told])
            at = np.flatnonzero(told)
            np.minimum.at(scores, at, given_before)
            np.minimum.at(scores, at - 1, given_after)
            return scores

        return score


@dataclass
class Counts:
    """How often each key was added; ``most``: when there are more keys, those met once are forgotten."""

    most: int | None = None
    total: int = 0
    _keys: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint64))
    _counts: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    _new: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)

    def add(self, keys: np.ndarray) -> None:
        """Count keys, uint64 [N]."""
        self._new.append(np.unique(keys, return_counts=True))
        self.total += keys.size
        # A merge sorts the whole table, so new keys are collected until there are many.
        if sum(new.size for new, _ in self._new) > max(self._keys.size, _BLOCK_TOKENS):
            self._merge()

    def _merge(self) -> None:
        """Bring what was counted apart into one table, in the order of the keys."""
        keys, counts = zip((self._keys, self._counts), *self._new, strict=True)
        merged, place = np.unique(np.concatenate(keys), return_inverse=True)
        # Weights are float64, exact for counts below 2^53.
        counts = np.bincount(place, np.concatenate(counts), merged.size).astype(np.int64)
        self._new = []
        if self.most is not None and merged.size > self.most:
            merged, counts = merged[counts > 1], counts[counts > 1]
        self._keys, self._counts = merged, counts

    def at_least(self, least: int) -> tuple[np.ndarray, np.ndarray]:
        """The keys that were added so often or more, uint64 [N] in their order, and how often, int64 [N]."""
        self._merge()
        often = self._counts >= least
        return self._keys[often], self._counts[often]

    def of(self, keys: np.ndarray) -> np.ndarray:
        """int64 [N]: how often each was added."""
        if self._new:
            self._merge()
        if not self._keys.size:
            return np.zeros(keys.size, np.int64)
        place = np.minimum(np.searchsorted(self._keys, keys), self._keys.size - 1)
        return np.where(self._keys[place] == keys, self._counts[place], 0)


def _bits(counts: Counts, keys: np.ndarray) -> np.ndarray:
    """float64 [N]: −log₂ of each key's share of all that were added."""
    return -np.log2(np.maximum(counts.of(keys), 1) / max(counts.total, 1))


@dataclass(frozen=True, slots=True)
class WordsOfRows:
    """The words of some rows, one row after the other.

    ``keys`` uint64 [W]: equal for words of equal tokens; ``pairs`` uint64 [W]: the same for a word and the
    one before it, meant only where the word ``follows`` (bool [W]) that one directly, in the same row and
    document; ``of_token`` int64 [B · T]: the word of every token, −1 for special tokens and padding.
    """

    keys: np.ndarray
    pairs: np.ndarray
    follows: np.ndarray
    of_token: np.ndarray

    @classmethod
    def of(cls, ids: np.ndarray, annotation: np.ndarray, cu_seqlens: np.ndarray) -> WordsOfRows:
        """``ids`` and ``annotation`` [B, T] as stored; ``cu_seqlens``: where documents begin."""
        maskable = np.flatnonzero(~is_special(annotation.ravel()))
        # The first token of a row that may be masked begins a word, so no word crosses a row's end.
        first = np.flatnonzero(is_word_start(annotation.ravel()[maskable]))
        lengths = np.diff(np.append(first, maskable.size))
        of_token = np.full(ids.size, -1)
        of_token[maskable] = np.repeat(np.arange(first.size), lengths)
        within = np.arange(maskable.size) - np.repeat(first, lengths)
        tokens = mix(ids.ravel()[maskable].astype(np.uint64), within.astype(np.uint64))
        keys = np.add.reduceat(tokens, first) if first.size else np.zeros(0, np.uint64)
        begins = maskable[first]
        follows = np.zeros(first.size, bool)
        follows[1:] = begins[1:] == maskable[first[1:] - 1] + 1
        follows &= ~np.isin(begins, cu_seqlens)
        return cls(keys, mix(np.roll(keys, 1), keys), follows, of_token)


def mix(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """uint64 [N]: a hash of two numbers each, the finaliser of SplitMix64 (Steele et al., 2014).

    The numbers enter it otherwise than in :mod:`chronomask.keyed`, and stored tables of scores rest on that.
    """
    value = a * np.uint64(0x9E3779B97F4A7C15) + (b + np.uint64(1)) * np.uint64(0xD1342543DE82EF95)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


def blocks_of(split: PreparedSplit) -> Iterator[np.ndarray]:
    """Numbers of consecutive rows, some two million tokens at a time."""
    step = max(1, _BLOCK_TOKENS // split.row_length)
    for start in range(0, split.num_rows, step):
        yield np.arange(start, min(start + step, split.num_rows))


def words_of(split: PreparedSplit) -> Iterator[WordsOfRows]:
    """The words of a split's rows, some two million tokens at a time."""
    for numbers in blocks_of(split):
        yield WordsOfRows.of(*split.read_raw(numbers))


def score_split(scorer: Scorer, split: PreparedSplit, shown: Progress) -> Iterator[np.ndarray]:
    """float64 [B, T] of consecutive rows of a split, in order: every token's score is its word's.

    ``shown`` counts the rows.
    """
    for words in words_of(split):
        scores = np.append(scorer(words), 0.0)  # the last one, which −1 reads
        shown.advance(words.of_token.size // split.row_length)
        yield scores[words.of_token].reshape(-1, split.row_length)


def showing_scores(splits: Mapping[str, PreparedSplit], *, shown: bool) -> Progress:
    """The progress of scoring: the training rows are read once to learn, and all rows to be scored."""
    rows = sum(split.num_rows for split in splits.values())
    total = splits["train"].num_rows + rows
    return Progress("scoring words", total, "rows", shown=shown, brief=True)


def add_scores(
    path: str | Path, scores: Scores | Mapping[str, np.ndarray], *, progress: bool = True
) -> PreparedData:
    """Give prepared rows scores, or other ones than they have, and open them.

    ``scores``: how to compute them; or arrays by split, each [rows, row_length] of numbers, of every split
    that has rows. ``progress``: whether to show how far computing is. The rows' fingerprint becomes another
    one; a run on the rows as they were is not resumed on them. Raises :class:`UsageError` for arrays that do
    not fit, :class:`DataError` for numbers that float16 does not hold.
    """
    data = PreparedData.open(path)
    splits = {
        name: data.split(name) for name, entry in data.manifest.splits.items() if entry.num_rows
    }
    if not isinstance(scores, Scores):
        return keep_column(data, "scores", "given", _given(scores, splits, data.row_length))
    with showing_scores(splits, shown=progress) as shown:
        scorer = scores.learn(splits["train"], shown)
        blocks = (
            {}
            if scorer is None
            else {name: score_split(scorer, split, shown) for name, split in splits.items()}
        )
        return keep_column(data, "scores", kind_of(scores), blocks)


def keep_column(
    data: PreparedData, column: Column, label: str, blocks: Mapping[str, Iterator[np.ndarray]]
) -> PreparedData:
    """Keep a column beside the rows of prepared data, in place of one that there may be, and open them.

    ``blocks``: for each split with rows the numbers [B, T] of all its rows, in order; ``label``: what the
    manifest calls the column. Whatever happens meanwhile, the folder holds the old column or the new one,
    and the other column as another command may have left it since ``data`` was opened; a command that writes
    the folder now is waited for.
    Raises :class:`DataError` for damaged data, for the manifest that is written hashes every file anew, and
    where the rows are no longer those of ``data``.
    """
    with in_turn(lock_of(data.path)):
        now = PreparedData.open(data.path, verify=True)
        _refuse_other_rows(now, data)
        entries = dict(now.manifest.splits)
        for name, parts in blocks.items():
            entries[name] = write_column(data.path, name, entries[name], column, parts)
        values = now.manifest.to_dict()
        for key in (
            "schema_version",
            "chronomask_version",
            "splits",
            "fingerprint",
            "files",
            "values_sha256",
        ):
            values.pop(key, None)
        before = {entry.file for entry in now.manifest.shard_files()}
        files = [entry.file for entry in now.manifest.files]
        manifest = write_manifest(data.path, values | {column: label}, entries, files)
        for name in before - {entry.file for entry in manifest.shard_files()}:
            (data.path / name).unlink()  # the column that there was
    return PreparedData.open(data.path)


def _refuse_other_rows(now: PreparedData, then: PreparedData) -> None:
    """Raise :class:`DataError` where a folder holds other rows ``now`` than it did ``then``."""

    def ids(data: PreparedData) -> list[list[FileEntry]]:
        """The files of the ids, with their hashes, shard by shard."""
        return [[shard.ids for shard in split.shards] for split in data.manifest.splits.values()]

    if ids(now) != ids(then):
        raise DataError(
            f"{now.path} was prepared anew meanwhile, with other rows: run the command again"
        )


def scores_named(text: str) -> Scores | dict[str, np.ndarray]:
    """Scores by their kind, or the arrays in a folder: ``train.npy`` and so on, mapped and not read.

    Raises :class:`UsageError` for what is neither, :class:`DataError` for a file that is not readable.
    """
    kinds = {kind: member for kind, member in Scores.kinds().items() if kind != "none"}
    if text in kinds:
        return kinds[text]()
    files = sorted(Path(text).glob("*.npy"))
    if not files:
        raise UsageError(
            f"scores '{text}' is neither a folder with train.npy and held_out.npy nor a kind of scores; "
            f"{nearest(text, kinds)}"
        )
    return {file.stem: _array_of(file) for file in files}


def _array_of(file: Path) -> np.ndarray:
    """The array of an ``.npy`` file, not read yet; raises :class:`DataError` for a file that holds none."""
    try:
        return np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        way_out = way_to_read(error, "write it anew, such as with numpy.save")
        raise DataError(f"{file} is not an array of numbers ({error}); {way_out}") from None


def _given(
    arrays: Mapping[str, np.ndarray], splits: Mapping[str, PreparedSplit], length: int
) -> dict[str, Iterator[np.ndarray]]:
    """The rows of arrays whose shapes are those of the splits; raises :class:`UsageError`."""
    if arrays.keys() != splits.keys():
        raise UsageError(
            f"scores are given for {', '.join(sorted(arrays)) or 'no split'}; they must be given for "
            f"every split with rows: {', '.join(sorted(splits))}"
        )
    for name, split in splits.items():
        shape = np.shape(arrays[name])
        if shape != (split.num_rows, length):
            raise UsageError(
                f"the scores of {name} have the shape {list(shape)}; its rows have the shape "
                f"{[split.num_rows, length]}"
            )
        if np.asarray(arrays[name]).dtype.kind not in "fiu":
            raise UsageError(f"the scores of {name} are {arrays[name].dtype}; they must be numbers")
    return {name: _rows_of(arrays[name], split) for name, split in splits.items()}


def _rows_of(array: np.ndarray, split: PreparedSplit) -> Iterator[np.ndarray]:
    for numbers in blocks_of(split):
        yield np.asarray(array[numbers])
