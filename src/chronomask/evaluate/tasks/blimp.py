"""BLiMP (Warstadt et al., TACL 2020): of two sentences, does the model find the grammatical one likelier?

Nothing is trained and nothing is drawn.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import tarfile
import time
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chronomask.errors import DataError, UsageError
from chronomask.evaluate.device import device_of, placed
from chronomask.evaluate.pseudo import (
    PseudoLikelihood,
    Sentences,
    check_pseudo,
    encode_sentences,
    pseudo_log_likelihood,
)
from chronomask.evaluate.subject import Subject
from chronomask.evaluate.task import Kept, folder_of, recipe_of, result_of
from chronomask.runs.result import TaskResult

__all__ = ["BlimpTask", "Pair", "contents", "read_pairs", "sha256_of_contents"]

_ARCHIVES = (".tar.xz", ".tar.gz", ".tgz", ".tar.bz2", ".tar", ".zip")
_DAMAGE = (tarfile.TarError, zipfile.BadZipFile, EOFError, OSError, lzma.LZMAError, zlib.error)
_FIELDS = ("sentence_good", "sentence_bad", "field", "linguistics_term", "UID")


@dataclass(frozen=True, slots=True)
class Pair:
    """A minimal pair; ``paradigm`` is the file's UID, ``term`` its linguistics_term."""

    good: str
    bad: str
    field: str
    term: str
    paradigm: str


def contents(data: Path) -> dict[str, bytes]:
    """The .jsonl files by name, in order of name; raises UsageError if there is none, DataError for damage.

    Looked for in ``data``/blimp, else in ``data``, which may also be an archive: .jsonl files there or
    one folder below, else the one archive.
    """
    place = data if data.is_file() else folder_of(data, "blimp")
    if place.is_file():
        found = _in_archive(place)
    elif not place.is_dir():
        raise UsageError(f"{place} does not exist: name a folder with BLiMP, or its archive")
    else:
        files = sorted([*place.glob("*.jsonl"), *place.glob("*/*.jsonl")])
        archives = sorted(path for path in place.iterdir() if path.name.endswith(_ARCHIVES))
        if files:
            found = _in_folder(files)
        elif len(archives) == 1:
            found = _in_archive(archives[0])
        else:
            why = f"{len(archives)} archives" if archives else "no .jsonl file and no archive"
            raise UsageError(
                f"{place} holds {why}: BLiMP is a folder of .jsonl files or one archive of them "
                f"({', '.join(_ARCHIVES)})"
            )
    if not found:
        raise DataError(f"{place} holds no .jsonl file: it is not BLiMP")
    return dict(sorted(found.items()))


def sha256_of_contents(found: dict[str, bytes]) -> str:
    """SHA-256 over the files' content in order of name: the same for a folder and its archive."""
    total = hashlib.sha256()
    for content in found.values():
        total.update(hashlib.sha256(content).digest())
    return total.hexdigest()


def read_pairs(found: dict[str, bytes], limit: int | None = None) -> list[Pair]:
    """The pairs in order of file and line, at most the first ``limit`` of each file; raises DataError."""
    pairs: list[Pair] = []
    for name, content in found.items():
        lines = content.decode("utf-8", errors="replace").split("\n")
        of_file = [
            _pair(line, f"{name}:{number}")
            for number, line in enumerate(lines, start=1)
            if line.strip()
        ]
        if not of_file:
            raise DataError(f"{name} is empty")
        pairs += of_file[:limit]
    return pairs


def _pair(line: str, where: str) -> Pair:
    try:
        values = json.loads(line)
    except ValueError as error:
        raise DataError(
            f"{where} is not JSON ({error}): the file is cut short or damaged"
        ) from None
    if not isinstance(values, dict):
        raise DataError(f"{where} is not a JSON object")
    missing = [name for name in _FIELDS if not isinstance(values.get(name), str)]
    if missing:
        raise DataError(
            f"{where} lacks {', '.join(missing)}: every pair needs {', '.join(_FIELDS)}"
        )
    for name in ("sentence_good", "sentence_bad"):
        if not values[name].strip():
            raise DataError(f"{where}: {name} is empty")
    good, bad, field, term, paradigm = (values[name] for name in _FIELDS)
    return Pair(good, bad, field, term, paradigm)


def _in_folder(files: list[Path]) -> dict[str, bytes]:
    try:
        return {path.name: path.read_bytes() for path in files}
    except OSError as error:
        raise DataError(f"{error.filename} cannot be read: {error.strerror}") from None


def _in_archive(path: Path) -> dict[str, bytes]:
    """Files are read, never unpacked onto the disk."""
    try:
        if path.name.endswith(".zip"):
            with zipfile.ZipFile(path) as archive:
                return {
                    PurePosixPath(name).name: archive.read(name)
                    for name in archive.namelist()
                    if _wanted(name)
                }
        found = {}
        with tarfile.open(path) as archive:
            for member in archive:
                if member.isfile() and _wanted(member.name):
                    handle = archive.extractfile(member)
                    assert handle is not None
                    found[PurePosixPath(member.name).name] = handle.read()
        return found
    except _DAMAGE as error:
        raise DataError(
            f"{path} cannot be read as an archive ({error}): it is damaged or cut short, get it again"
        ) from None


def _wanted(name: str) -> bool:
    return name.endswith(".jsonl") and not PurePosixPath(name).name.startswith(".")


class BlimpTask:
    """Share of the pairs whose good sentence has the higher pseudo-log-likelihood; a tie counts ½."""

    name = "blimp"
    family = "blimp"
    draws = False

    def __init__(self, config: PseudoLikelihood | None = None) -> None:
        self.config = config or PseudoLikelihood()
        self._read = Kept[tuple[list[Pair], str]]()
        self._encoded = Kept[tuple[list[str], Sentences]]()

    @property
    def recipe(self) -> Mapping[str, Any]:
        """Every setting that decides the numbers."""
        return recipe_of(self.config, "batch_tokens")

    def data_sha256(self, data: Path) -> str:
        """Of the .jsonl files, in order of name."""
        return self._pairs(data)[1]

    def check(self, model: Subject, data: Path) -> None:
        """Read and encode every pair; raises UsageError or DataError."""
        check_pseudo(model, self.config)
        self._sentences(model, data)

    def run(self, model: Subject, data: Path, seed: int, progress: bool) -> TaskResult:
        """Score every sentence once."""
        started = time.monotonic()
        pairs, digest = self._pairs(data)
        texts, sentences = self._sentences(model, data)
        opened = placed(model.masked_lm(), device_of(self.config.device))
        scores = pseudo_log_likelihood(
            opened, sentences, model.tokenizer, self.config, label=self.name, progress=progress
        )
        values = dict(zip(texts, scores, strict=True))
        margin = np.array([values[pair.good] - values[pair.bad] for pair in pairs])
        correct = (np.sign(margin) + 1) / 2
        return result_of(
            self,
            model,
            seed,
            started,
            metrics={"accuracy": float(correct.mean())},
            primary="accuracy",
            num_examples={"pairs": len(pairs), "sentences": len(texts)},
            data_sha256=digest,
            details=_means(pairs, correct),
            examples={"correct": correct, "margin": margin},
        )

    def _pairs(self, data: Path) -> tuple[list[Pair], str]:
        def read() -> tuple[list[Pair], str]:
            found = contents(data)
            return read_pairs(found, self.config.limit), sha256_of_contents(found)

        return self._read.of(data, read)

    def _sentences(self, model: Subject, data: Path) -> tuple[list[str], Sentences]:
        """The different sentences, as text and as tokens; raises UsageError for one that is too long."""

        def encoded() -> tuple[list[str], Sentences]:
            pairs, _ = self._pairs(data)
            texts = sorted({text for pair in pairs for text in (pair.good, pair.bad)})
            sentences, source = encode_sentences(model.tokenizer, texts, model.max_length)
            if source.size > len(texts):
                long = texts[int(source[np.flatnonzero(np.diff(source) == 0)[0]])]
                raise UsageError(
                    f"{model.name} has room for {model.max_length} tokens, too few for the sentence "
                    f"{long[:60]!r}: evaluate a model of longer rows"
                )
            return texts, sentences

        return self._encoded.of((model.path, data), encoded)


def _means(pairs: list[Pair], correct: NDArray[np.float64]) -> dict[str, float]:
    """Accuracy of every field, term and paradigm: ``field/…``, ``term/…``, ``paradigm/…``."""
    groups: dict[str, list[int]] = {}
    for level in ("field", "term", "paradigm"):
        for number, pair in enumerate(pairs):
            groups.setdefault(f"{level}/{getattr(pair, level)}", []).append(number)
    return {name: float(correct[members].mean()) for name, members in groups.items()}
