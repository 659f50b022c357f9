"""BLiMP (Warstadt et al., TACL 2020): of two sentences, does the model find the grammatical one likelier?

Nothing is trained and nothing is drawn. The pairs are read as they are published
(https://github.com/alexwarstadt/blimp): .jsonl files in a folder or an archive, a pair of sentences a line,
in any number of paradigms (the original has 67 files of 1,000 pairs). Other benchmarks have the same format.
"""

from __future__ import annotations

import hashlib
import io
import tarfile
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

import numpy as np
from numpy.typing import NDArray

from chronomask.errors import DataError, UsageError, shown
from chronomask.evaluate.pseudo import (
    PseudoLikelihood,
    Sentences,
    check_pseudo,
    encode_sentences,
    pseudo_log_likelihood,
)
from chronomask.evaluate.subject import Subject
from chronomask.evaluate.task import Cached, Task, check_text, files_in, folder_of, parse_json
from chronomask.runs.result import TaskResult
from chronomask.storage import (
    UNPACKED_LIMIT,
    Bounded,
    bytes_sha256,
    damage_errors,
    decompressed,
    lines_in,
)

__all__ = ["BlimpTask", "Pair", "contents", "read_pairs", "sha256_of_contents"]

_COMPRESSIONS = {".tar.xz": ".xz", ".tar.gz": ".gz", ".tgz": ".gz", ".tar.bz2": ".bz2", ".tar": ""}
_ARCHIVES = (*_COMPRESSIONS, ".zip")
_FIELDS = ("sentence_good", "sentence_bad", "field", "linguistics_term", "UID")


@dataclass(frozen=True, slots=True)
class Pair:
    """A minimal pair; ``paradigm`` is the file's UID, ``term`` its linguistics_term."""

    good: str
    bad: str
    field: str
    term: str
    paradigm: str


class BlimpTask(Task[PseudoLikelihood]):
    """Share of the pairs whose good sentence has the higher pseudo-log-likelihood; a tie counts ½."""

    name = "blimp"
    family = "blimp"
    draws = False
    outside_recipe = ("batch_tokens",)

    def __init__(self, config: PseudoLikelihood | None = None) -> None:
        super().__init__(config or PseudoLikelihood())
        self._read = Cached[tuple[list[Pair], str]]()
        self._encoded = Cached[tuple[list[str], Sentences]]()

    def data_sha256(self, task_data: Path) -> str:
        """Of the .jsonl files, in order of name."""
        return self._pairs(task_data)[1]

    def check(self, model: Subject, task_data: Path) -> None:
        """Read and encode every pair; raises UsageError or DataError."""
        self._pairs(task_data)
        check_pseudo(model, self.config)
        self._sentences(model, task_data)

    def run(self, model: Subject, task_data: Path, seed: int, progress: bool) -> TaskResult:
        """Score every sentence once."""
        from chronomask.model.device import choose_device

        started = time.monotonic()
        pairs, digest = self._pairs(task_data)
        texts, sentences = self._sentences(model, task_data)
        opened = model.masked_lm(choose_device(self.config.device))
        scores = pseudo_log_likelihood(
            opened, sentences, model.tokenizer, self.config, label=self.name, progress=progress
        )
        values = dict(zip(texts, scores, strict=True))
        margin = np.array([values[pair.good] - values[pair.bad] for pair in pairs])
        correct = (np.sign(margin) + 1) / 2
        return self.result(
            model,
            seed,
            started,
            metrics={"accuracy": float(correct.mean())},
            primary="accuracy",
            num_examples={"pairs": len(pairs), "sentences": len(texts)},
            data_sha256=digest,
            details=_means(pairs, correct),
            examples={"correct": correct, "margin": margin},
            left_out={"pairs scored alike, which count half": int((margin == 0).sum())},
        )

    def _pairs(self, task_data: Path) -> tuple[list[Pair], str]:
        def read() -> tuple[list[Pair], str]:
            found = contents(task_data)
            return read_pairs(found, self.config.limit), sha256_of_contents(found)

        return self._read.of(task_data, read)

    def _sentences(self, model: Subject, task_data: Path) -> tuple[list[str], Sentences]:
        """The different sentences, as text and as tokens; raises UsageError for one that is too long."""

        def encode() -> tuple[list[str], Sentences]:
            pairs, _ = self._pairs(task_data)
            texts = sorted({text for pair in pairs for text in (pair.good, pair.bad)})
            sentences, source = encode_sentences(
                model.tokenizer, texts, model.max_length, self.config.score, self.name
            )
            if source.size > len(texts):
                long = texts[int(source[np.flatnonzero(np.diff(source) == 0)[0]])]
                raise UsageError(
                    f"{model.name} has positions for {model.max_length} tokens, too few for the sentence "
                    f"{shown(long)}: evaluate a model of longer rows"
                )
            return texts, sentences

        return self._encoded.of((model.path, task_data), encode)


def contents(task_data: Path) -> dict[str, bytes]:
    """The .jsonl files by name, in order of name; raises UsageError if there is none, DataError for damage.

    Looked for in ``task_data``/blimp, else in ``task_data``, which may also be an archive: .jsonl files
    there or one folder below, else the one archive, which is read and never unpacked onto the disk.
    """
    place = task_data if task_data.is_file() else folder_of(task_data, "blimp")
    if place.is_file():
        found = _in_archive(place)
    elif not place.is_dir():
        raise UsageError(f"{place} does not exist: name a folder with BLiMP, or its archive")
    else:
        files = files_in(place, (".jsonl",), below=True)
        archives = files_in(place, _ARCHIVES)
        if files:
            found = _in_folder(files, place)
        elif len(archives) == 1:
            found = _in_archive(archives[0])
        else:
            why = f"{len(archives)} archives" if archives else "no .jsonl file and no archive"
            raise UsageError(
                f"{place} holds {why}: BLiMP is a folder of .jsonl files or one archive of them "
                f"({', '.join(_ARCHIVES)})"
            )
    by_name: dict[str, tuple[str, bytes]] = {}
    for path, content in found:
        name = PurePosixPath(path).name
        if name in by_name:
            raise DataError(
                f"{place} holds two files called {name} ({by_name[name][0]} and {path}): rename one of "
                "them if both belong to BLiMP, or remove one"
            )
        by_name[name] = path, content
    if not by_name:
        raise DataError(f"{place} holds no .jsonl file: it is not BLiMP")
    return {name: content for name, (_, content) in sorted(by_name.items())}


def sha256_of_contents(found: dict[str, bytes]) -> str:
    """SHA-256 over the files' content in order of name: the same for a folder and its archive."""
    total = hashlib.sha256()
    for content in found.values():
        total.update(bytes.fromhex(bytes_sha256(content)))
    return total.hexdigest()


def read_pairs(found: dict[str, bytes], limit: int | None = None) -> list[Pair]:
    """The pairs in order of file and line, at most the first ``limit`` of each file; raises DataError."""
    pairs: list[Pair] = []
    for name, content in found.items():
        of_file = [
            _pair(line, f"{name}, line {number}")
            for number, line in enumerate(lines_in(io.BytesIO(content), name), start=1)
            if line.strip()
        ]
        if not of_file:
            raise DataError(f"{name} is empty")
        pairs += of_file[:limit]
    return pairs


def _pair(line: str, where: str) -> Pair:
    """The pair in a line; raises DataError for a line that holds none."""
    values = parse_json(line, where)
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
    good, bad, field, term, paradigm = (check_text(values[name], where) for name in _FIELDS)
    return Pair(good, bad, field, term, paradigm)


def _means(pairs: list[Pair], correct: NDArray[np.float64]) -> dict[str, float]:
    """Accuracy of every field, term and paradigm: ``field/…``, ``term/…``, ``paradigm/…``."""
    groups: dict[str, list[int]] = {}
    for level in ("field", "term", "paradigm"):
        for number, pair in enumerate(pairs):
            groups.setdefault(f"{level}/{getattr(pair, level)}", []).append(number)
    return {name: float(correct[members].mean()) for name, members in groups.items()}


def _in_folder(files: list[Path], place: Path) -> list[tuple[str, bytes]]:
    try:
        return [(path.relative_to(place).as_posix(), path.read_bytes()) for path in files]
    except OSError as error:
        raise DataError(f"{error.filename} cannot be read: {error.strerror}") from None


def _in_archive(path: Path) -> list[tuple[str, bytes]]:
    """Names and contents of an archive's .jsonl files; raises DataError for one that cannot be read."""
    if not path.name.endswith(_ARCHIVES):
        raise UsageError(
            f"{path} is not an archive of BLiMP: its name must end in {', '.join(_ARCHIVES)}"
        )
    members = _in_zip if path.name.endswith(".zip") else _in_tar
    try:
        with path.open("rb") as raw:
            return list(members(raw, path))
    except (
        tarfile.TarError,
        zipfile.BadZipFile,
        NotImplementedError,
        *damage_errors(),
        OSError,
    ) as error:
        raise DataError(
            f"{path} cannot be read as an archive ({error}): it is damaged or cut short, download it again"
        ) from None


def _in_tar(raw: IO[bytes], path: Path) -> Iterator[tuple[str, bytes]]:
    compression = next(_COMPRESSIONS[end] for end in _COMPRESSIONS if path.name.endswith(end))
    with _unpack(raw, compression) as handle:
        # Read as a stream, header by header: whatever a header says, no more than the limit is read.
        bounded = io.BufferedReader(Bounded(handle, UNPACKED_LIMIT, _too_large(path)))
        left = UNPACKED_LIMIT
        with tarfile.open(fileobj=bounded, mode="r|") as archive:
            for member in archive:
                if member.isfile() and _is_wanted(member.name):
                    left -= member.size  # a sparse file may be larger than what is stored of it
                    if left < 0:
                        raise DataError(_too_large(path))
                    content = archive.extractfile(member)
                    assert content is not None  # of a file
                    yield member.name, content.read()


def _unpack(raw: IO[bytes], compression: str) -> IO[bytes]:
    if compression == ".bz2":
        import bz2

        return bz2.BZ2File(raw)  # pyright: ignore[reportReturnType]
    return decompressed(raw, compression)


def _in_zip(raw: IO[bytes], path: Path) -> Iterator[tuple[str, bytes]]:
    unpack = "unpack it and name the folder instead"
    with zipfile.ZipFile(raw) as archive:
        members = [member for member in archive.infolist() if _is_wanted(member.filename)]
        # Never more than its stated size is read of a member.
        if sum(member.file_size for member in members) > UNPACKED_LIMIT:
            raise DataError(_too_large(path))
        for member in members:
            if member.flag_bits & 1:
                raise DataError(f"{path}: {member.filename} is encrypted: {unpack}")
            if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise DataError(
                    f"{path}: {member.filename} is compressed by another method than deflate: {unpack}"
                )
            yield member.filename, archive.read(member)


def _too_large(path: Path) -> str:
    return (
        f"{path} unpacks to more than {UNPACKED_LIMIT:,} bytes, and the original is 30 million: if that "
        "is right, unpack it and name the folder instead"
    )


def _is_wanted(name: str) -> bool:
    parts = PurePosixPath(name).parts
    return name.endswith(".jsonl") and not any(part.startswith(".") for part in parts)
