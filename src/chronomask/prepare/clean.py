"""Which documents are kept: datatrove's filters first, then all but one of those that occur more than once.

Filters go through each part by itself, before anything else sees its documents. Duplicates are equal to the
letter (``exact``, hashes of whole texts) or nearly so (``minhash``, datatrove's signatures by part, then
buckets and clusters in one process); the parts stay as they are, and each gets a list of what to leave out.
"""

from __future__ import annotations

import hashlib
import inspect
import io
import json
import struct
from collections.abc import Iterable, Sequence
from contextlib import redirect_stderr
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from chronomask.config import Alternative, Config
from chronomask.errors import DataError, UsageError, nearest, need
from chronomask.prepare.read.left_out import Skipped
from chronomask.prepare.work import leave_out, mark, read_mark, read_text, write_text, write_work
from chronomask.storage import remove_all
from chronomask.types import Document

__all__ = [
    "FILTER",
    "SIGN",
    "DatatroveFilter",
    "Deduplication",
    "ExactDuplicates",
    "MinHashDuplicates",
    "NoDeduplication",
    "drop_duplicates",
    "filter_part",
    "filtered_out",
    "sign_part",
]


class DatatroveFilter(Config):
    """A filter of datatrove; documents that it refuses are skipped, counted and named."""

    kind: Literal[
        "gopher_quality", "gopher_repetition", "c4_quality", "fineweb_quality", "language"
    ]
    """Which of its filters; ``c4_quality`` also takes single lines out of a document."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Options of the filter's class that differ from its defaults, by their own names."""

    def step(self) -> Any:
        """The datatrove step; it is quiet, and its statistics are not used.

        Raises :class:`UsageError` for a missing package or an unknown option, :class:`DataError` where
        the filter refuses its options.
        """
        library = need("datatrove.pipeline.filters", "filters", f"filter {self.kind}")
        need("loguru", "filters", f"filter {self.kind}").logger.disable("datatrove")
        kinds = {
            "gopher_quality": library.GopherQualityFilter,
            "gopher_repetition": library.GopherRepetitionFilter,
            "c4_quality": library.C4QualityFilter,
            "fineweb_quality": library.FineWebQualityFilter,
            "language": library.LanguageFilter,
        }
        step = kinds[self.kind]
        known = [name for name in inspect.signature(step).parameters if name != "exclusion_writer"]
        for name in self.options:
            if name not in known:
                raise UsageError(
                    f"filter {self.kind} has no option '{name}'; {nearest(name, known)}"
                )
        try:
            made = step(**self.options)
            if self.kind != "language":  # which may load its model from a network first
                made.filter(_as_theirs(_ORDINARY))
        except ImportError as error:
            raise UsageError(f"filter {self.kind} cannot be used: {error}") from None
        except Exception as error:  # of a value that some line of the filter cannot take
            raise DataError(
                f"filter {self.kind} refuses its options {self.options}: {error}"
            ) from None
        return made


_ORDINARY = (
    "The river rises in the hills and flows through two old towns before it meets the sea. Boats "
    "carried wool and corn along it for many years, until the railway came and took most of that trade. "
    "Now people walk on its banks, and herons stand where the mills once stood. In spring the water is "
    "high, and the lower fields are flooded with it for a week or more."
)
"""Prose that every filter takes, to see that its options can be used."""
FILTER = "filter"
"""Name of the stage."""


def filter_part(filters: Sequence[DatatroveFilter], work: Path, number: int) -> None:
    """Task: filter a part; its mark is the account of what was left out."""
    steps, skipped = _steps(json.dumps([choice.to_dict() for choice in filters])), Skipped()
    passed = (_apply(document, steps, skipped) for document in read_text(work, number))
    kept = [document for document in passed if document is not None]
    write_text(work, number, kept, filtered=True)
    characters = sum(len(document.text) for document in kept)
    account = {"kept": len(kept), "characters": characters, "skipped": skipped.to_dict()}
    mark(work, FILTER, number, account)


def filtered_out(work: Path, num_parts: int) -> tuple[int, int, Skipped]:
    """Documents and characters that are left, and what was left out of all parts."""
    documents = characters = 0
    skipped = Skipped()
    for number in range(num_parts):
        account = read_mark(work, FILTER, number)
        documents += account["kept"]
        characters += account["characters"]
        skipped.merge(account["skipped"])
    return documents, characters, skipped


def _apply(
    document: Document, steps: Sequence[tuple[str, Any]], skipped: Skipped
) -> Document | None:
    """The document as the filters leave it, None if one refuses it."""
    theirs = _as_theirs(document.text, document.id)
    for name, step in steps:
        answer = step.filter(theirs)
        passes, reason = answer if isinstance(answer, tuple) else (answer, "")
        if not passes:
            why = f"filter {name}" + (f": {reason}" if reason else "")
            skipped.add(why, document.id, len(document.text.encode()))
            return None
    if theirs.text == document.text:
        return document
    return Document(document.id, theirs.text, document.metadata)


def _as_theirs(text: str, name: str = "") -> Any:
    """A text as a document of datatrove."""
    from datatrove.data import Document as TheirDocument

    return TheirDocument(text=text, id=name)


@lru_cache(maxsize=1)
def _steps(filters: str) -> list[tuple[str, Any]]:
    """Name and step of each of some filters (as JSON), made once a process."""
    choices = [DatatroveFilter.parse(values) for values in json.loads(filters)]
    return [(choice.kind, choice.step()) for choice in choices]


SIGN = "sign"
"""Name of the stage that looks at every part; what it finds is compared by one process."""


class Deduplication(Alternative):
    """Which documents count as the same."""

    reason: ClassVar[str | None] = None
    """What the account says of a document that was left out; None: every document is kept."""

    def check(self) -> None:
        """Raises :class:`UsageError`, before any work, where a package is missing or a value cannot be."""

    def sign(self, texts: Sequence[str], work: Path, number: int) -> None:
        """Write what is compared of the texts of a part."""
        raise NotImplementedError

    def duplicates(self, work: Path, num_parts: int) -> dict[int, list[int]]:
        """Which documents to leave out of each part, by their places in it."""
        raise NotImplementedError


class NoDeduplication(Deduplication):
    """Every document is kept."""

    kind: Literal["none"] = "none"


class ExactDuplicates(Deduplication):
    """Of documents whose texts are equal the first is kept."""

    kind: Literal["exact"] = "exact"
    reason = "duplicate"

    def sign(self, texts: Sequence[str], work: Path, number: int) -> None:
        """A hash of every text, 16 bytes each."""
        _write_hashes(texts, range(len(texts)), work, number)

    def duplicates(self, work: Path, num_parts: int) -> dict[int, list[int]]:
        """Those whose hash was met before; the hashes of all documents are held."""
        return _met_before(work, num_parts)


_HASH = np.dtype([("place", "<u4"), ("hash", "S16")])
"""The hash of a text and its place in its part."""


def _write_hashes(texts: Sequence[str], places: Iterable[int], work: Path, number: int) -> None:
    """Write the hashes of those texts of a part that stand at ``places``."""
    hashes = [(k, hashlib.blake2b(texts[k].encode(), digest_size=16).digest()) for k in places]
    write_work(_hashes_file(work, number), np.array(hashes, _HASH).tobytes())


def _met_before(work: Path, num_parts: int) -> dict[int, list[int]]:
    """Of the texts whose hashes were written, those whose hash was met before: their places in each part."""
    files = [_hashes_file(work, number) for number in range(num_parts)]
    ends = np.cumsum([0, *(file.stat().st_size // _HASH.itemsize for file in files)])
    hashes = np.empty(ends[-1], _HASH["hash"])
    for file, start, end in zip(files, ends, ends[1:], strict=False):
        hashes[start:end] = np.fromfile(file, _HASH)["hash"]
    order = np.argsort(hashes, kind="stable")  # of equal ones the first comes first
    again = [np.empty(0, order.dtype)]
    for start in range(1, order.size, _AT_ONCE):
        these = order[start : start + _AT_ONCE]
        before = order[start - 1 : start - 1 + these.size]
        again.append(these[hashes[these] == hashes[before]])
    repeated = np.sort(np.concatenate(again))
    of_part = np.split(repeated, np.searchsorted(repeated, ends[1:-1]))
    return {
        number: np.fromfile(file, _HASH)["place"][indices - ends[number]].tolist()
        if indices.size
        else []
        for number, (file, indices) in enumerate(zip(files, of_part, strict=True))
    }


_AT_ONCE = 1 << 20
"""Hashes compared at a time, so that no copy of all of them is made."""


def _hashes_file(work: Path, number: int) -> Path:
    return work / f"hashes-{number:06d}.bin"


class MinHashDuplicates(Deduplication):
    """Of documents that share most of their word n-grams one is kept (datatrove's MinHash).

    Words are compared in small letters, without punctuation and without marks on letters; numbers count. A
    document that is too short for an n-gram counts as the same as another only where their texts are equal.
    """

    kind: Literal["minhash"] = "minhash"
    reason = "near duplicate (minhash)"
    ngram_words: int = Field(default=5, ge=1)
    """Words of an n-gram."""
    num_buckets: int = Field(default=14, ge=1, le=999)
    """Buckets; two documents are near duplicates if all hashes of one bucket agree."""
    hashes_per_bucket: int = Field(default=8, ge=1)
    """Hashes of a bucket."""
    language: str = "eng"
    """Language that words are split by, in three letters."""

    def check(self) -> None:
        """Raises :class:`UsageError` without datatrove, or what it needs to split words of the language."""
        need("datatrove.pipeline.dedup", "filters", "deduplication.kind=minhash")
        words = need("datatrove.utils.word_tokenizers", "filters", "deduplication.kind=minhash")
        try:
            words.load_word_tokenizer(self.language).word_tokenize(_ORDINARY)
        except Exception as error:  # every language has a library, with errors of its own
            raise UsageError(
                f"deduplication.language={self.language}: its words cannot be split: {error}"
            ) from None

    def sign(self, texts: Sequence[str], work: Path, number: int) -> None:
        """The library's signatures, and hashes of the texts that it gives none."""
        from datatrove.pipeline.dedup import MinhashDedupSignature

        folder = work / "signatures"
        step = MinhashDedupSignature(str(folder), self._library_config(), self.language)
        step.run(map(_as_theirs, texts), number, 1)
        # A record of a bucket ends with the place of its text.
        record = self.hashes_per_bucket * np.dtype(step.config.hash_config.np_dtype).itemsize
        records = folder / "bucket_000" / f"{number:05d}.minhash.sig"
        bucket = np.fromfile(records, [("hashes", f"V{record}"), ("place", "<u4")])
        signed = set(bucket["place"].tolist())
        _write_hashes(texts, (k for k in range(len(texts)) if k not in signed), work, number)

    def duplicates(self, work: Path, num_parts: int) -> dict[int, list[int]]:
        """What the library's clusters leave out, and equal texts without a signature."""
        from datatrove.pipeline.dedup import MinhashDedupBuckets, MinhashDedupCluster

        config = self._library_config()
        signatures, pairs, removed = (work / name for name in ("signatures", "pairs", "removed"))
        for folder in (pairs, removed):  # an interrupted try may have left some
            remove_all(folder, ignore_errors=True)
        buckets = MinhashDedupBuckets(str(signatures), str(pairs), config=config)
        for bucket in range(self.num_buckets):
            buckets.run(None, bucket, self.num_buckets)
        with redirect_stderr(io.StringIO()):  # its progress bar
            MinhashDedupCluster(str(pairs), str(removed), config).run(None, 0, 1)
        found = _met_before(work, num_parts)
        for number in range(num_parts):
            file = removed / f"{number:06d}.remove"
            data = file.read_bytes() if file.is_file() else b""
            found[number] += [index for (index,) in struct.iter_unpack("<I", data)]
        return found

    def _library_config(self) -> Any:
        from datatrove.pipeline.dedup.minhash import MinhashConfig
        from datatrove.utils.hashing import HashConfig
        from datatrove.utils.text import TextNormConfig
        from loguru import logger

        logger.disable("datatrove")
        return MinhashConfig(
            n_grams=self.ngram_words,
            num_buckets=self.num_buckets,
            hashes_per_bucket=self.hashes_per_bucket,
            norm_config=TextNormConfig(norm_numbers=False),
            # Its xxhash gives text where xxhash 4 takes bytes.
            hash_config=HashConfig(hash_fc="sha1"),
        )


def sign_part(choice: Deduplication, work: Path, number: int) -> None:
    """Task: write what is compared of a part's documents."""
    texts = [document.text for document in read_text(work, number, duplicates=True)]
    choice.sign(texts, work, number)
    mark(work, SIGN, number, len(texts))


def drop_duplicates(work: Path, num_parts: int, choice: Deduplication) -> tuple[int, int, Skipped]:
    """Leave out all but one of equal documents, the first where they are equal to the letter.

    Returns how many documents and characters are left, and what was left out; dropping that finished
    before is taken as it is.
    """
    finished = work / "deduplicated.json"
    skipped = Skipped()
    if finished.is_file():
        documents, characters, account = json.loads(finished.read_text(encoding="utf-8"))
        skipped.merge(account)
        return documents, characters, skipped
    documents = characters = 0
    assert choice.reason is not None
    found = choice.duplicates(work, num_parts)
    for number in range(num_parts):
        indices = set(found.get(number, ()))
        leave_out(work, number, sorted(indices))
        for index, document in enumerate(read_text(work, number, duplicates=True)):
            if index in indices:
                skipped.add(choice.reason, document.id, len(document.text.encode()))
            else:
                documents += 1
                characters += len(document.text)
    account = [documents, characters, skipped.to_dict()]
    write_work(finished, json.dumps(account, ensure_ascii=False).encode())
    return documents, characters, skipped
