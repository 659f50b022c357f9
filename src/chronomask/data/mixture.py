"""Several prepared data sets as one, their rows mixed by weights.

Which part the n-th row of training comes from follows a cycle in which every part has its share and is
never a row or more from it; the k-th row of a part is the k-th visit to that part's rows, so each part has
epochs of its own. Both are arithmetic on n: any step is reached at once, and seed, workers and ranks
change nothing about the shares.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from fractions import Fraction
from functools import cached_property
from math import lcm
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import BeforeValidator, Discriminator, Field, Tag

from chronomask.config import Config
from chronomask.data.folder import PreparedData, PreparedSplit, WithManifest
from chronomask.data.manifest import ADDED
from chronomask.data.order import visits
from chronomask.errors import DataError, UsageError
from chronomask.types import Rows

__all__ = ["DataChoice", "DataPart", "MixedData", "MixedSplit", "open_data"]

MOST_ROWS = 10_000
"""Rows of the longest cycle: the smallest share that weights can give is one row in this many."""


class DataPart(Config):
    """One data set of a mixture."""

    path: str
    """folder of prepared data"""
    weight: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    """its share of the training rows, beside the other parts' weights"""


def _part_of_path(value: Any) -> Any:
    if isinstance(value, Mapping) and isinstance(path := value.get("path"), Path):
        return {**value, "path": str(path)}
    return {"path": str(value)} if isinstance(value, str | Path) else value


def _source_kind(value: Any) -> str:
    return "list" if isinstance(value, list | tuple) else "folder"


DataChoice = Annotated[
    Annotated[str, Tag("folder")]
    | Annotated[
        tuple[
            Annotated[
                DataPart, BeforeValidator(_part_of_path, json_schema_input_type=DataPart | str)
            ],
            ...,
        ],
        Tag("list"),
    ],
    Discriminator(_source_kind),
]
"""A folder of prepared data, or a mixture of several; a part's path alone has weight 1."""


def open_data(
    data: str | Path | Sequence[str | Path | DataPart | Mapping[str, Any]],
) -> PreparedData | MixedData:
    """Prepared data, or a mixture of several, as in a run's config: a part is ``{"path": "data/wiki",
    "weight": 3}``, or its path alone, which has weight 1.

    Raises as :meth:`PreparedData.open` does, and :class:`UsageError` where the parts do not fit together.
    """
    if isinstance(data, str | Path):
        return PreparedData.open(data)
    if not data:
        raise UsageError("data is an empty list; name at least one folder of prepared data")
    named = [
        part if isinstance(part, DataPart) else DataPart.parse(_part_of_path(part)) for part in data
    ]
    parts = [PreparedData.open(part.path) for part in named]
    return MixedData(parts, shares([part.weight for part in named]))


def shares(weights: Sequence[float]) -> list[int]:
    """Rows of each part in one cycle: the smallest whole numbers in the weights' proportions.

    Proportions that need more than :data:`MOST_ROWS` are rounded to it, every part having a row.
    """
    exact = [Fraction(str(weight)) for weight in weights]
    total = sum(exact)
    proportions = [value / total for value in exact]
    length = lcm(*(value.denominator for value in proportions))
    if length <= MOST_ROWS:
        return [int(value * length) for value in proportions]
    wanted = [value * MOST_ROWS for value in proportions]
    counts = [max(1, int(value)) for value in wanted]
    by_rest = sorted(range(len(counts)), key=lambda k: counts[k] - wanted[k])
    for k in by_rest[: max(0, MOST_ROWS - sum(counts))]:
        counts[k] += 1
    return counts


class MixedData(WithManifest):
    """Prepared data sets of one tokenizer, one row length and the same classes."""

    def __init__(self, parts: Sequence[PreparedData], counts: Sequence[int]) -> None:
        """``counts``: rows of each part in a cycle."""
        self.parts = tuple(parts)
        self.counts = tuple(counts)
        self.path = parts[0].path
        self.manifest = parts[0].manifest
        self._splits: dict[str, MixedSplit] = {}
        for part in parts[1:]:
            for name, what in _ALIKE.items():
                a, b = getattr(self.manifest, name), getattr(part.manifest, name)
                if a != b:
                    raise UsageError(
                        f"{parts[0].path} and {part.path} cannot be mixed: they have different "
                        f"{what} ({_abbreviate(a)} and {_abbreviate(b)}); {_WAYS_OUT.get(name, _PREPARE)}"
                    )
        paths = [str(part.path.resolve()) for part in parts]
        twice = next((path for path in paths if paths.count(path) > 1), None)
        if twice is not None:
            raise UsageError(
                f"the mixture lists {twice} twice; list it once, with the sum of the weights"
            )

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 that names the mixture: its parts, in order, and their shares."""
        description = [[p.fingerprint, n] for p, n in zip(self.parts, self.counts, strict=True)]
        return hashlib.sha256(json.dumps(description).encode()).hexdigest()

    def split(self, name: str) -> MixedSplit:
        """The parts' splits ``train`` or ``held_out`` as one."""
        if name not in self._splits:
            splits = [part.split(name) for part in self.parts]
            self._splits[name] = MixedSplit(splits, self.counts, self.fingerprint)
        return self._splits[name]


_ALIKE = {
    "tokenizer_sha256": "tokenizers",
    "class_names": "classes",
    "row_length": "row lengths",
    "pad_token_id": "padding tokens",
    "vocab_size": "vocabularies",
    "scores": "scores",
    "ngrams": "n-grams",
}
_PREPARE = "prepare both with the same"
_WAYS_OUT = {
    "scores": "`chronomask data score FOLDER KIND` gives both the same",
    "ngrams": "`chronomask data ngrams FOLDER` finds those of the one that has none",
    "tokenizer_sha256": "prepare one with --tokenizer FOLDER/tokenizer of the other",
}


def _abbreviate(value: object) -> str:
    if isinstance(value, tuple):
        return f"{len(value)} classes: {', '.join(map(str, value))}"
    return str(value)[:12]


class MixedSplit:
    """The rows of several splits; a row's number counts through the parts, one after the other."""

    def __init__(
        self, splits: Sequence[PreparedSplit], counts: Sequence[int], fingerprint: str
    ) -> None:
        self.splits = tuple(splits)
        self.fingerprint = fingerprint
        self.path = splits[0].path
        self.row_length = splits[0].row_length
        self._first_rows = np.cumsum([0, *(split.num_rows for split in splits)])
        self._counts = np.asarray(counts, np.int64)
        self._cycle = _cycle(counts)
        before = np.zeros((self._cycle.size, len(splits)), np.int64)
        before[np.arange(self._cycle.size), self._cycle] = 1
        self._before = (np.cumsum(before, axis=0) - before)[
            np.arange(self._cycle.size), self._cycle
        ]

    @property
    def num_rows(self) -> int:
        return int(self._first_rows[-1])

    @property
    def num_tokens(self) -> int:
        """Tokens of all parts that are not padding, special tokens included."""
        return sum(split.num_tokens for split in self.splits)

    @property
    def num_documents(self) -> int:
        """Documents of all parts."""
        return sum(split.num_documents for split in self.splits)

    def part_of(self, row_ids: np.ndarray) -> np.ndarray:
        """int64: which part each row comes from."""
        return np.searchsorted(self._first_rows, row_ids, side="right") - 1

    def order(self, seed: int, number: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Row numbers and epochs of their own part, of rows ``number`` of the training."""
        cycles, place = np.divmod(np.asarray(number, np.int64), self._cycle.size)
        part = self._cycle[place]
        visit = cycles * self._counts[part] + self._before[place]
        row_ids, epochs = np.empty_like(visit), np.empty_like(visit)
        for k, split in enumerate(self.splits):
            inside = part == k
            if not inside.any():
                continue
            rows, epochs[inside] = visits(split.num_rows, seed, visit[inside], part=k)
            row_ids[inside] = rows + self._first_rows[k]
        return row_ids, epochs

    def first_rows(self, num: int, shuffled: bool = False) -> np.ndarray:
        """int64: up to ``num`` rows from the beginning of every part, in the turns of training.

        ``shuffled``: from that of a fixed order of all its rows. No row comes twice: a part that ends leaves
        its turns to the others.
        """
        turns = []
        for k, split in enumerate(self.splits):
            visit = np.arange(min(num, split.num_rows))
            cycles, index = np.divmod(visit, self._counts[k])
            turns.append(cycles * self._cycle.size + np.flatnonzero(self._cycle == k)[index])
        rows = [
            split.first_rows(turn.size, shuffled) + first
            for split, turn, first in zip(self.splits, turns, self._first_rows, strict=False)
        ]
        return np.concatenate(rows)[np.argsort(np.concatenate(turns))][:num]

    def read(self, row_ids: np.ndarray, epoch: np.ndarray | int = 0) -> Rows:
        """As :meth:`PreparedSplit.read`."""
        row_ids = np.asarray(row_ids, np.int64)
        if row_ids.size and (row_ids.min() < 0 or row_ids.max() >= self.num_rows):
            bad = row_ids[(row_ids < 0) | (row_ids >= self.num_rows)][0]
            raise DataError(f"the mixture has no row {bad}; its rows are 0 to {self.num_rows - 1}")
        shape, length = (row_ids.size, self.row_length), self.row_length
        input_ids = np.empty(shape, np.int64)
        word_id = np.empty(shape, np.int32)
        token_class = np.empty(shape, np.uint8)
        parts_have = {c: any(split.has(c) for split in self.splits) for c in ADDED}
        scores = np.empty(shape, np.float32) if parts_have["scores"] else None
        ngrams = np.empty(shape, np.uint8) if parts_have["ngrams"] else None
        bounds = [np.arange(row_ids.size + 1, dtype=np.int32) * np.int32(length)]
        part_of = self.part_of(row_ids)
        for part in np.unique(part_of).tolist():
            where = np.flatnonzero(part_of == part)
            rows = self.splits[part].read(row_ids[where] - self._first_rows[part])
            input_ids[where] = rows.input_ids
            word_id[where] = rows.word_id
            token_class[where] = rows.token_class
            if scores is not None:
                scores[where] = rows.scores
            if ngrams is not None:
                ngrams[where] = rows.ngrams
            row, token = np.divmod(rows.cu_seqlens[:-1], length)
            inner = token > 0
            bounds.append((where[row[inner]] * length + token[inner]).astype(np.int32))
        return Rows(
            input_ids=input_ids,
            word_id=word_id,
            token_class=token_class,
            row_id=row_ids,
            epoch=np.broadcast_to(np.asarray(epoch, np.int64), row_ids.shape).copy(),
            cu_seqlens=np.sort(np.concatenate(bounds)),
            scores=scores,
            ngrams=ngrams,
        )


def _cycle(counts: Sequence[int]) -> np.ndarray:
    """int64 [sum]: the parts in turn, ``counts`` of each.

    Of the parts that may have a row without being ahead of their share, the one whose next row is due
    first has it: so every part is less than a row from its share at any place (Tijdeman's rule for the
    chairman assignment problem, 1980).
    """
    length = sum(counts)
    had = [0] * len(counts)
    cycle = np.empty(length, np.int64)
    for place in range(length):
        # All in whole numbers: a part may have its next row once had · length < counts · (place + 1).
        may = [k for k, n in enumerate(counts) if had[k] * length < n * (place + 1)]
        chosen = min(may, key=lambda k: (Fraction((had[k] + 1) * length - 1, counts[k]), k))
        cycle[place] = chosen
        had[chosen] += 1
    return cycle
