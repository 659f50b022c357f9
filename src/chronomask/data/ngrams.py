"""Collocations of two to five words in prepared rows: n-grams whose words give each other away.

Levine et al., "PMI-Masking: Principled masking of correlated spans" (ICLR 2021, arXiv 2010.01825). The
measure of an n-gram (equation 3) is the least, over all ways to cut it into parts, of

    PMI = log p(w₁…wₙ) − Σ log p(part),

with p the share among the n-grams of that length in the training rows. N-grams are ranked by it for every
length apart, and kept in the shares of the paper, half pairs, a quarter triples, an eighth each of
four and of five words, as long as they hold no more than the share of the tokens that is asked (about half
in the paper); the first eight are kept whatever they hold. A small text has not so many collocations: those
below a least PMI are left out before (not in the paper).

Rows are passed over several times and only tables of n-grams are held: a longer one is counted only where it
consists of n-grams that are frequent enough themselves. Letters: B rows, T tokens, W words.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from chronomask.data.folder import PreparedData, PreparedSplit
from chronomask.data.scores import MOST_PAIRS, Counts, WordsOfRows, keep_column, mix, words_of
from chronomask.errors import UsageError
from chronomask.progress import Progress

__all__ = ["MAX_WORDS", "Ngrams", "add_ngrams", "find_ngrams"]

MAX_WORDS = 5
"""Words of the longest n-grams."""
_AT_A_LEVEL = {2: 4, 3: 2, 4: 1, 5: 1}
"""How many n-grams of each length are kept with every level: the paper's 50, 25, 12.5 and 12.5 %."""
_NEVER = np.iinfo(np.int64).max


@dataclass
class _Table:
    """The n-grams of one length that occur often enough; arrays in the order of ``keys``, uint64 [N]."""

    keys: np.ndarray
    log_p: np.ndarray
    """float64 [N]: logarithm of the share among all n-grams of this length"""
    pmi: np.ndarray = field(init=False)
    """float64 [N], in nats; of single words nothing"""
    level: np.ndarray = field(init=False)
    """int64 [N]: an n-gram is kept if the cut is above it"""

    def __post_init__(self) -> None:
        self.pmi = np.full(self.keys.size, -np.inf)
        self.level = np.full(self.keys.size, _NEVER)

    def places(self, keys: np.ndarray, there: np.ndarray) -> np.ndarray:
        """int64 [W]: where each n-gram stands in the table; −1 where it does not, or is none."""
        if not self.keys.size:
            return np.full(keys.size, -1)
        place = np.minimum(np.searchsorted(self.keys, keys), self.keys.size - 1)
        return np.where(there & (self.keys[place] == keys), place, -1)

    def rank(self, words: int, least: float) -> None:
        """Give every n-gram its level; those below the least PMI, in nats, have none."""
        # Logarithms differ in their last bits between machines; equal ones are ordered by their keys.
        order = np.lexsort((self.keys, -np.round(self.pmi, 9)))
        self.level[order] = np.arange(order.size) // _AT_A_LEVEL[words]
        self.level[(self.pmi <= 0) | (self.pmi < least)] = _NEVER


@dataclass(frozen=True)
class Ngrams:
    """The collocations that were found: those of the tables whose level is below ``cut``."""

    tables: dict[int, _Table]
    cut: int
    coverage: float
    """share of the training tokens in them, in [0, 1]; what lies in several counts once"""

    @property
    def numbers(self) -> dict[int, int]:
        """How many there are of each length in words."""
        return {n: int((table.level < self.cut).sum()) for n, table in self.tables.items()}

    def columns_of(self, split: PreparedSplit) -> Iterator[np.ndarray]:
        """uint8 [B, T] of consecutive rows of a split: ``Rows.ngrams``."""
        for words in words_of(split):
            longest = np.zeros(words.keys.size, np.uint8)
            for n, (keys, there) in _grams(words):
                if n in self.tables:
                    longest[_levels(self.tables[n], keys, there) < self.cut] = n
            at = np.flatnonzero(words.of_token >= 0)
            begins = at[np.diff(words.of_token[at], prepend=-1) > 0]
            column = np.zeros(words.of_token.size, np.uint8)
            column[begins] = longest
            yield column.reshape(-1, split.row_length)


def find_ngrams(
    train: PreparedSplit,
    *,
    min_count: int = 10,
    coverage: float = 0.5,
    min_pmi: float = 3.0,
    progress: bool = True,
) -> Ngrams:
    """The collocations of the training rows.

    ``min_count``: n-grams met less often are none (10 in the paper); ``coverage``: share of the tokens that
    lie in one at most, in (0, 1], unless the first eight n-grams hold more; ``min_pmi``: n-grams with a lower
    PMI in nats are none. Of more than :data:`~chronomask.data.scores.MOST_PAIRS` different candidates those
    met once are forgotten on the way.
    Raises UsageError for numbers that cannot be and for rows without any collocation.
    """
    if min_count < 2:
        raise UsageError(f"min_count is {min_count}; an n-gram that is met once tells nothing")
    if not 0 < coverage <= 1:
        raise UsageError(f"coverage is {coverage:g}; it must be above 0 and at most 1")
    passes = MAX_WORDS + 2
    if not min_pmi >= 0:
        raise UsageError(f"min_pmi is {min_pmi:g}; it must be 0 or more, in nats")
    with Progress("n-grams", passes * train.num_rows, "rows", shown=progress) as shown:
        tables: dict[int, _Table] = {}
        for n in range(1, MAX_WORDS + 1):
            tables[n] = _count(train, n, tables.get(n - 1), min_count, shown)
        _measure(train, tables, shown)
        del tables[1]
        for n, table in tables.items():
            table.rank(n, min_pmi)
        cut, covered = _cut(train, tables, coverage, shown)
        if not cut:
            raise UsageError(
                f"no two words of {train.path} follow each other {min_count} times and more often than by "
                "chance: lower min_count or min_pmi, or prepare more text"
            )
    return Ngrams(tables, cut, covered)


def add_ngrams(data: PreparedData, found: Ngrams) -> PreparedData:
    """Keep beside the rows where collocations begin, and open them; they have another fingerprint then."""
    splits = (data.split(name) for name, entry in data.manifest.splits.items() if entry.num_rows)
    blocks = {split.path.name: found.columns_of(split) for split in splits}
    return keep_column(data, "ngrams", "pmi", blocks)


def _grams(words: WordsOfRows) -> Iterator[tuple[int, tuple[np.ndarray, np.ndarray]]]:
    """For each length, a key of the n-gram that begins at every word, uint64 [W], and whether so many
    words follow each other there, bool [W].
    """
    keys, there = words.keys, np.ones(words.keys.size, bool)
    yield 1, (keys, there)
    for n in range(2, MAX_WORDS + 1):
        keys = mix(keys, _ahead(words.keys, n - 1, 0))
        there = there & _ahead(words.follows, n - 1, False)
        yield n, (keys, there)


def _ahead(values: np.ndarray, words: int, beyond: float) -> np.ndarray:
    """What stands so many words further on; ``beyond`` behind the last."""
    return np.append(values[words:], np.full(min(words, values.size), beyond, values.dtype))


def _levels(table: _Table, keys: np.ndarray, there: np.ndarray) -> np.ndarray:
    """int64 [W]: the level of each n-gram."""
    return np.append(table.level, _NEVER)[table.places(keys, there)]


def _count(
    train: PreparedSplit, n: int, shorter: _Table | None, min_count: int, shown: Progress
) -> _Table:
    """The n-grams of a length that occur often enough; no n-gram does unless both its (n − 1)-grams do."""
    counts, total = Counts(MOST_PAIRS), 0
    for words in words_of(train):
        grams = dict(_grams(words))
        keys, there = grams[n]
        total += int(there.sum())
        if shorter is not None:
            known = shorter.places(*grams[n - 1]) >= 0
            there = there & known & _ahead(known, 1, False)
        counts.add(keys[there])
        shown.advance(words.of_token.size // train.row_length)
    keys, number = counts.at_least(min_count)
    return _Table(keys, np.log(number / max(total, 1)))


def _measure(train: PreparedSplit, tables: dict[int, _Table], shown: Progress) -> None:
    """Give every n-gram its PMI; where it occurs, all its parts are seen too."""
    for words in words_of(train):
        places = {n: tables[n].places(*gram) for n, gram in _grams(words)}
        log_p = {n: np.append(tables[n].log_p, -np.inf)[place] for n, place in places.items()}
        best = {1: log_p[1]}  # the largest sum of log p over all ways to cut, uncut among them
        for n in range(2, MAX_WORDS + 1):
            parts = np.max(
                [log_p[k] + _ahead(best[n - k], k, -np.inf) for k in range(1, n)], axis=0
            )
            held = places[n] >= 0
            tables[n].pmi[places[n][held]] = log_p[n][held] - parts[held]
            best[n] = np.maximum(log_p[n], parts)
        shown.advance(words.of_token.size // train.row_length)


def _cut(
    train: PreparedSplit, tables: dict[int, _Table], coverage: float, shown: Progress
) -> tuple[int, float]:
    """The highest level below which n-grams hold at most the share of tokens that is asked, and what they
    hold.

    The first level is kept although it may hold more, for a share below it would leave no n-gram.
    """
    levels = [table.level[table.level < _NEVER] for table in tables.values()]
    top = max(int(level.max(initial=-1)) for level in levels) + 1
    tokens = np.zeros(top + 1)
    for words in words_of(train):
        least = np.full(words.keys.size, top)  # of all n-grams that a word lies in
        for n, gram in _grams(words):
            if n in tables:
                here = np.minimum(_levels(tables[n], *gram), top)
                for k in range(min(n, least.size)):
                    np.minimum(least[k:], here[: least.size - k], out=least[k:])
        of_token = words.of_token[words.of_token >= 0]
        tokens += np.bincount(least[of_token], minlength=top + 1)
        shown.advance(words.of_token.size // train.row_length)
    held = np.cumsum(tokens[:top]) / max(tokens.sum(), 1.0)
    cut = min(max(int(np.searchsorted(held, coverage, side="right")), 1), top)
    return cut, float(held[cut - 1]) if cut else 0.0
