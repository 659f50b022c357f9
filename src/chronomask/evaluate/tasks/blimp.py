"""BLiMP (Warstadt et al., TACL 2020): of two sentences, does the model find the grammatical one likelier?

Nothing is trained and nothing is drawn. The pairs are read as they are published
(https://github.com/alexwarstadt/blimp): .jsonl files in a folder or an archive, a pair of sentences a line,
in any number of paradigms (the original has 67 files of 1,000 pairs). Other benchmarks have the same format.
"""

from __future__ import annotations

import io
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chronomask.errors import DataError
from chronomask.evaluate.jsonl_files import read_jsonl_files, sha256_of_contents
from chronomask.evaluate.likelihood import Candidate, LikelihoodTask
from chronomask.evaluate.subject import Subject
from chronomask.evaluate.task import folder_of, json_lines, texts_in
from chronomask.runs.result import TaskResult
from chronomask.text_files import lines_in

__all__ = ["BlimpTask", "Pair", "contents", "read_pairs", "sha256_of_contents"]

_FIELDS = ("sentence_good", "sentence_bad", "field", "linguistics_term", "UID")


@dataclass(frozen=True, slots=True)
class Pair:
    """A minimal pair; ``paradigm`` is the file's UID, ``term`` its linguistics_term."""

    good: str
    bad: str
    field: str
    term: str
    paradigm: str


class BlimpTask(LikelihoodTask[Pair]):
    """Share of the pairs whose good sentence has the higher pseudo-log-likelihood; a tie counts ½."""

    name = "blimp"
    title = "BLiMP"
    family = "blimp"

    def contents(self, task_data: Path) -> dict[str, bytes]:
        """The .jsonl files by name; raises UsageError or DataError."""
        return contents(task_data)

    def read(self, found: dict[str, bytes]) -> list[Pair]:
        """The pairs, at most ``limit`` of each file; raises DataError."""
        return read_pairs(found, self.config.limit)

    def candidates(self, item: Pair) -> Sequence[Candidate]:
        """Both sentences."""
        return Candidate(item.good), Candidate(item.bad)

    def weights(self, pairs: Sequence[Pair]) -> dict[str, NDArray[np.float64]]:
        """What ``examples`` hold beside right and wrong, if pairs do not count the same."""
        return {}

    def run(self, model: Subject, task_data: Path, seed: int, progress: bool) -> TaskResult:
        """Score every sentence once."""
        started = time.monotonic()
        pairs, digest = self.items(task_data)
        scores = self.scores(model, task_data, progress)
        margin = np.array([scores[Candidate(p.good)] - scores[Candidate(p.bad)] for p in pairs])
        correct = (np.sign(margin) + 1) / 2
        weights = self.weights(pairs)
        return self.result(
            model,
            seed,
            started,
            metrics={"accuracy": float(np.average(correct, weights=weights.get("weight")))},
            primary="accuracy",
            num_examples={"pairs": len(pairs), "sentences": len(scores)},
            data_sha256=digest,
            details=_means(pairs, correct),
            examples={"correct": correct, "margin": margin, **weights},
            left_out={"pairs scored alike, which count half": int((margin == 0).sum())},
        )


def contents(task_data: Path) -> dict[str, bytes]:
    """The .jsonl files of ``task_data``/blimp, else of ``task_data``, which may also be an archive, by name.

    Raises UsageError if there is none, DataError for damage.
    """
    place = task_data if task_data.is_file() else folder_of(task_data, "blimp")
    return read_jsonl_files(place, "BLiMP")


def read_pairs(
    found: Mapping[str, bytes], limit: int | None = None, kind: str | None = None
) -> list[Pair]:
    """The pairs in order of file and line, at most the first ``limit`` of each file; raises DataError.

    Where ``kind`` is given, a line may lack its field and term, which are ``kind`` then, and its UID, which
    is the file's name.
    """
    pairs: list[Pair] = []
    for name, content in found.items():
        stem = PurePosixPath(name).stem
        usual = {} if kind is None else {"field": kind, "linguistics_term": kind, "UID": stem}
        lines = json_lines(lines_in(io.BytesIO(content), name), name)
        of_file = [_pair({**usual, **values}, where) for where, values in lines]
        if not of_file:
            raise DataError(f"{name} is empty")
        pairs += of_file[:limit]
    return pairs


def _pair(values: Mapping[str, Any], where: str) -> Pair:
    """The pair in a line; raises DataError for a line that holds none."""
    good, bad, field, term, paradigm = texts_in(values, _FIELDS, where)
    for name, text in (("sentence_good", good), ("sentence_bad", bad)):
        if not text.strip():
            raise DataError(f"{where}: {name} is empty")
    return Pair(good, bad, field, term, paradigm)


def _means(pairs: list[Pair], correct: NDArray[np.float64]) -> dict[str, float]:
    """Accuracy of every field, term and paradigm: ``field/…``, ``term/…``, ``paradigm/…``."""
    groups: dict[str, list[int]] = {}
    for level in ("field", "term", "paradigm"):
        for number, pair in enumerate(pairs):
            groups.setdefault(f"{level}/{getattr(pair, level)}", []).append(number)
    return {name: float(correct[members].mean()) for name, members in groups.items()}
