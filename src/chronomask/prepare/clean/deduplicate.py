"""Documents that occur more than once, to the letter or nearly: all but one of them are left out.

``exact`` compares hashes of whole texts; ``minhash`` is datatrove's (signatures by part, then buckets and
clusters in one process). The parts stay as they are; each gets a list of what to leave out.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import struct
from collections.abc import Sequence
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from chronomask.config import Alternative
from chronomask.errors import need
from chronomask.prepare.read.files import Skipped
from chronomask.prepare.work import leave_out, mark, read_text, write_work

__all__ = [
    "SIGN",
    "Deduplication",
    "ExactDuplicates",
    "MinHashDuplicates",
    "NoDeduplication",
    "drop_duplicates",
    "sign_part",
]

SIGN = "sign"
"""Name of the stage that looks at every part; what it finds is compared by one process."""


class Deduplication(Alternative):
    """Which documents count as the same."""

    reason: ClassVar[str | None] = None
    """What the account says of a document that was left out; None: every document is kept."""

    def check(self) -> None:
        """Raises :class:`UsageError`, before any work, where a package is missing."""

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
        digests = b"".join(hashlib.blake2b(t.encode(), digest_size=16).digest() for t in texts)
        write_work(_hashes_file(work, number), digests)

    def duplicates(self, work: Path, num_parts: int) -> dict[int, list[int]]:
        """Those whose hash was met before; the hashes of all documents are held."""
        hashes = [np.fromfile(_hashes_file(work, k), "S16") for k in range(num_parts)]
        sizes = np.cumsum([0, *(part.size for part in hashes)])
        together = np.concatenate(hashes)
        _, first = np.unique(together, return_index=True)
        again = np.ones(together.size, bool)
        again[first] = False
        return {
            k: np.flatnonzero(again[sizes[k] : sizes[k + 1]]).tolist() for k in range(num_parts)
        }


def _hashes_file(work: Path, number: int) -> Path:
    return work / f"hashes-{number:06d}.bin"


class MinHashDuplicates(Deduplication):
    """Of documents that share most of their word n-grams one is kept (datatrove's MinHash)."""

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
        """Raises :class:`UsageError` without datatrove."""
        need("datatrove.pipeline.dedup", "filters", "deduplication.kind=minhash")

    def sign(self, texts: Sequence[str], work: Path, number: int) -> None:
        """The library's signatures."""
        from datatrove.data import Document as TheirDocument
        from datatrove.pipeline.dedup import MinhashDedupSignature

        step = MinhashDedupSignature(
            str(work / "signatures"), self._library_config(), self.language
        )
        step.run((TheirDocument(text=text, id="") for text in texts), number, 1)

    def duplicates(self, work: Path, num_parts: int) -> dict[int, list[int]]:
        """What the library's clusters leave out."""
        from datatrove.pipeline.dedup import MinhashDedupBuckets, MinhashDedupCluster

        config = self._library_config()
        signatures, pairs, removed = (work / name for name in ("signatures", "pairs", "removed"))
        for folder in (pairs, removed):  # an interrupted try may have left some
            shutil.rmtree(folder, ignore_errors=True)
        buckets = MinhashDedupBuckets(str(signatures), str(pairs), config=config)
        for bucket in range(self.num_buckets):
            buckets.run(None, bucket, self.num_buckets)
        with redirect_stderr(io.StringIO()):  # its progress bar
            MinhashDedupCluster(str(pairs), str(removed), config).run(None, 0, 1)
        found = {}
        for number in range(num_parts):
            file = removed / f"{number:06d}.remove"
            data = file.read_bytes() if file.is_file() else b""
            found[number] = [index for (index,) in struct.iter_unpack("<I", data)]
        return found

    def _library_config(self) -> Any:
        from datatrove.pipeline.dedup.minhash import MinhashConfig
        from datatrove.utils.hashing import HashConfig
        from loguru import logger

        logger.disable("datatrove")
        return MinhashConfig(
            n_grams=self.ngram_words,
            num_buckets=self.num_buckets,
            hashes_per_bucket=self.hashes_per_bucket,
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
