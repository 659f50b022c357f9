"""Zero-shot sets of the BabyLM challenge, from its own files: BLiMP supplement, EWoK, entity tracking.

Folders and lines are those of https://github.com/babylm/evaluation-pipeline-2025 (its ``full_eval``
or ``fast_eval``). Means are taken as there: each subset counts the same, whatever its size. Ties, which
count as right there where the right text stands first, count as their share here. A text's score is that of
:mod:`chronomask.evaluate.pseudo`; ``score=original`` masks one token at a time, as the pipeline does.
"""

from __future__ import annotations

import io
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chronomask.errors import DataError, UsageError, shown
from chronomask.evaluate.jsonl_files import read_jsonl_files
from chronomask.evaluate.likelihood import Candidate, LikelihoodTask, even_weights
from chronomask.evaluate.subject import Subject
from chronomask.evaluate.task import folder_of, json_lines, texts_in
from chronomask.evaluate.tasks.blimp import BlimpTask, Pair, read_pairs
from chronomask.runs.result import TaskResult
from chronomask.text_files import check_text, lines_in

__all__ = ["EntityTrackingTask", "EwokTask", "SupplementTask", "Tracked", "WorldItem"]

_SUPPLEMENT = ("supplement_filtered", "supplement_fast", "blimp_supplement", "supplement")
_EWOK = ("ewok_filtered", "ewok_fast", "ewok")
_TRACKING = ("entity_tracking", "entity_tracking_fast")


class SupplementTask(BlimpTask):
    """BLiMP's supplement (Warstadt et al., CoNLL 2023): pairs as BLiMP's; the mean over its files."""

    name = "blimp_supplement"
    title = "BLiMP supplement"
    family = "babylm"

    def contents(self, task_data: Path) -> dict[str, bytes]:
        """The .jsonl files by name; raises UsageError or DataError."""
        return _contents(task_data, _SUPPLEMENT, "BLiMP's supplement")

    def read(self, found: dict[str, bytes]) -> list[Pair]:
        """The pairs, at most ``limit`` of each file; raises DataError."""
        return read_pairs(found, self.config.limit, "supplement")

    def weights(self, pairs: Sequence[Pair]) -> dict[str, NDArray[np.float64]]:
        """Each paradigm has the same share."""
        return {"weight": even_weights([pair.paradigm for pair in pairs])}


@dataclass(frozen=True, slots=True)
class WorldItem:
    """Two contexts and two targets of EWoK: each target fits the context of its number."""

    contexts: tuple[str, str]
    targets: tuple[str, str]
    domain: str

    def pair(self, context: int, target: int) -> Candidate:
        """A target after a context, scored from the blank between them on."""
        begin = len(self.contexts[context])
        return Candidate(f"{self.contexts[context]} {self.targets[target]}", begin)


class EwokTask(LikelihoodTask[WorldItem]):
    """EWoK (Ivanova et al., 2024): is the fitting target the likelier one?

    ``accuracy`` is BabyLM's: given a context, the target that fits it against the other.
    ``accuracy_contexts`` is EWoK's own: a target given the context that it fits against the same target given
    the other. Each item is asked both ways round, and has ½ for each.
    """

    name = "ewok"
    title = "EWoK"
    family = "babylm"

    def contents(self, task_data: Path) -> dict[str, bytes]:
        """The .jsonl files by name; raises UsageError or DataError."""
        return _contents(task_data, _EWOK, "EWoK")

    def read(self, found: dict[str, bytes]) -> list[WorldItem]:
        """The items, at most ``limit`` of each file; raises DataError."""
        keys = ("Context1", "Context2", "Target1", "Target2", "Domain")
        items = []
        for _, where, values in _lines(found, self.config.limit):
            first, second, one, two, domain = texts_in(values, keys, where)
            for key, text in zip(keys, (first, second, one, two), strict=False):
                if not text.strip():
                    raise DataError(f"{where}: {key} is empty")
            items.append(WorldItem((first, second), (one, two), domain))
        return items

    def candidates(self, item: WorldItem) -> Sequence[Candidate]:
        """Both targets after both contexts."""
        return [item.pair(context, target) for context in range(2) for target in range(2)]

    def run(self, model: Subject, task_data: Path, seed: int, progress: bool) -> TaskResult:
        """Score every target after every context once."""
        started = time.monotonic()
        items, digest = self.items(task_data)
        scores = self.scores(model, task_data, progress)
        table = np.array([[scores[each] for each in self.candidates(item)] for item in items])
        found = table.reshape(-1, 2, 2)  # item, context, target
        fitting = np.stack([found[:, 0, 0], found[:, 1, 1]], 1)
        margins = {
            "accuracy": fitting - np.stack([found[:, 0, 1], found[:, 1, 0]], 1),
            "accuracy_contexts": fitting - np.stack([found[:, 1, 0], found[:, 0, 1]], 1),
        }
        right = {name: ((np.sign(m) + 1) / 2).mean(1) for name, m in margins.items()}
        domains = [item.domain for item in items]
        weight = even_weights(domains)
        ties = sum(int((margin == 0).sum()) for margin in margins.values())
        return self.result(
            model,
            seed,
            started,
            metrics={name: float(np.average(r, weights=weight)) for name, r in right.items()},
            primary="accuracy",
            num_examples={"items": len(items), "texts": len(scores)},
            data_sha256=digest,
            details=_by_group("domain", domains, right["accuracy"]),
            examples={**right, "weight": weight},
            left_out={"comparisons scored alike, which count half": ties},
        )


@dataclass(frozen=True, slots=True)
class Tracked:
    """What was done to boxes, and how the sentence on one of them may end; the first option is right."""

    prefix: str
    options: tuple[str, ...]
    split: str
    """the file's name: regular, ambiref or move_contents"""
    operations: str


class EntityTrackingTask(LikelihoodTask[Tracked]):
    """Entity tracking (Kim and Schuster, ACL 2023), as BabyLM asks it: is the right ending the likeliest?

    The mean over the files of their means over numbers of operations. Where k options are likeliest, the
    right one among them counts 1/k.
    """

    name = "entity_tracking"
    family = "babylm"

    def contents(self, task_data: Path) -> dict[str, bytes]:
        """The .jsonl files by name; raises UsageError or DataError."""
        return _contents(task_data, _TRACKING, "entity tracking")

    def read(self, found: dict[str, bytes]) -> list[Tracked]:
        """The items, at most ``limit`` of each file; raises DataError."""
        items = []
        for split, where, values in _lines(found, self.config.limit):
            (prefix,) = texts_in(values, ("input_prefix",), where)
            options = values.get("options")
            if not (
                isinstance(options, list)
                and len(options) > 1
                and all(isinstance(text, str) and text.strip() for text in options)
            ):
                raise DataError(f"{where}: options is {shown(options)}; expected two texts or more")
            operations = values.get("numops")
            if not isinstance(operations, int | str):
                raise DataError(f"{where} lacks numops, the number of operations")
            texts = tuple(check_text(text, where) for text in options)
            items.append(Tracked(prefix, texts, split, str(operations)))
        return items

    def candidates(self, item: Tracked) -> Sequence[Candidate]:
        """Every ending after the prefix."""
        return [Candidate(item.prefix + option, len(item.prefix)) for option in item.options]

    def run(self, model: Subject, task_data: Path, seed: int, progress: bool) -> TaskResult:
        """Score every ending once."""
        started = time.monotonic()
        items, digest = self.items(task_data)
        scores = self.scores(model, task_data, progress)
        correct, ties = np.zeros(len(items)), 0
        for number, item in enumerate(items):
            found = [scores[each] for each in self.candidates(item)]
            if any(map(math.isnan, found)):
                correct[number] = math.nan
                continue
            best = found.count(max(found))
            correct[number] = (found[0] == max(found)) / best
            ties += best > 1
        subsets = [f"{item.split}_{item.operations}_ops" for item in items]
        weight = _split_weights([item.split for item in items], subsets)
        return self.result(
            model,
            seed,
            started,
            metrics={"accuracy": float(np.average(correct, weights=weight))},
            primary="accuracy",
            num_examples={"items": len(items), "texts": len(scores)},
            data_sha256=digest,
            details=_by_group("subset", subsets, correct),
            examples={"correct": correct, "weight": weight},
            left_out={"items whose likeliest endings are scored alike": ties},
        )


def _split_weights(splits: Sequence[str], subsets: Sequence[str]) -> NDArray[np.float64]:
    """Weights [N] that sum to 1: each split has the same share, and in it each of its subsets."""
    weight = np.zeros(len(splits))
    names = sorted(set(splits))
    for name in names:
        own = [k for k, split in enumerate(splits) if split == name]
        weight[own] = even_weights([subsets[k] for k in own]) / len(names)
    return weight


def _by_group(level: str, groups: Sequence[str], right: NDArray[np.float64]) -> dict[str, float]:
    names = np.array(groups)
    return {f"{level}/{name}": float(right[names == name].mean()) for name in sorted(set(groups))}


def _contents(task_data: Path, folders: Sequence[str], called: str) -> dict[str, bytes]:
    """The .jsonl files by name, of the first of these folders that is in ``task_data``/babylm or
    ``task_data``, or that ``task_data`` is; raises UsageError or DataError.
    """
    place = folder_of(task_data, "babylm")
    for name in folders:
        if (place / name).is_dir():
            return read_jsonl_files(place / name, called)
    if place.name in folders or place.is_file():
        return read_jsonl_files(place, called)
    raise UsageError(
        f"{place / folders[0]} does not exist (nor {', '.join(folders[1:])}): name the folder that holds "
        f"{called}, such as evaluation_data/full_eval of BabyLM's evaluation pipeline"
    )


def _lines(
    found: Mapping[str, bytes], limit: int | None
) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """A file's name without ending, place and object of each line, at most ``limit`` of each file."""
    for name, content in found.items():
        lines = list(json_lines(lines_in(io.BytesIO(content), name), name))
        if not lines:
            raise DataError(f"{name} is empty")
        for where, values in lines[:limit]:
            yield PurePosixPath(name).stem, where, values
