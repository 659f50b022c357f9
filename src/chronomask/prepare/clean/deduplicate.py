"""Optional stage: documents that occur more than once, to the letter or nearly.

``exact`` compares hashes of whole texts; ``minhash`` is datatrove's (signatures by part, then buckets and
clusters in one process). The parts stay as they are; each gets a list of what to leave out. May enter:
other ways to find duplicates.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import struct
from collections.abc import Iterator
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import numpy as np

from chronomask.errors import UsageError
from chronomask.prepare.config import ExactDuplicates, MinHashDuplicates
from chronomask.prepare.read.files import Skipped
from chronomask.prepare.tasks import mark_file
from chronomask.prepare.work import duplicates_file, read_text
from chronomask.storage import write_bytes

__all__ = ["check_minhash", "drop_duplicates", "sign_part", "write_minhash"]

_CHOICE = "minhash.json"
_REASON = {"exact": "duplicate", "minhash": "near duplicate (minhash)"}


def check_minhash() -> None:
    """Raises :class:`UsageError`, before any work, where the package is missing."""
    try:
        import datatrove.pipeline.dedup  # noqa: F401
    except ImportError:
        raise UsageError(
            "deduplication.kind=minhash needs the package datatrove; pip install "
            "'chronomask[filters]', or choose deduplication.kind=exact"
        ) from None


def write_minhash(work: Path, choice: MinHashDuplicates) -> None:
    """Leave for the workers how to sign documents."""
    write_bytes(work / _CHOICE, json.dumps(choice.to_dict()).encode())


def sign_part(data: Any = None, rank: int = 0, world_size: int = 1, *, work: Path) -> Iterator[int]:
    """Sign the documents of part ``rank``, or hash their texts; yields how many."""
    mark = mark_file(work, "signatures", rank)
    if mark.is_file():
        return
    texts = [document.text for document in read_text(work, rank, duplicates=True)]
    if (work / _CHOICE).is_file():
        from datatrove.data import Document as TheirDocument
        from datatrove.pipeline.dedup import MinhashDedupSignature

        choice = MinHashDuplicates.parse(json.loads((work / _CHOICE).read_text()))
        step = MinhashDedupSignature(
            str(work / "signatures"), _library_config(choice), choice.language
        )
        step.run((TheirDocument(text=text, id="") for text in texts), rank, world_size)
    else:
        digests = b"".join(hashlib.blake2b(t.encode(), digest_size=16).digest() for t in texts)
        write_bytes(_hashes_file(work, rank), digests)
    write_bytes(mark, json.dumps(len(texts)).encode())
    yield len(texts)


def drop_duplicates(
    work: Path, num_parts: int, choice: ExactDuplicates | MinHashDuplicates
) -> tuple[int, int, Skipped]:
    """Leave out all but one of equal documents, the first where they are equal to the letter.

    Returns how many documents and characters are left, and what was left out.
    """
    if isinstance(choice, ExactDuplicates):
        dropped = _equal_texts(work, num_parts)
    else:
        dropped = _near_texts(work, num_parts, choice)
    documents = characters = 0
    skipped = Skipped()
    for number in range(num_parts):
        leave_out = set(dropped.get(number, ()))
        write_bytes(duplicates_file(work, number), json.dumps(sorted(leave_out)).encode())
        for index, document in enumerate(read_text(work, number, duplicates=True)):
            if index in leave_out:
                skipped.add(_REASON[choice.kind], document.id)
            else:
                documents += 1
                characters += len(document.text)
    return documents, characters, skipped


def _hashes_file(work: Path, number: int) -> Path:
    return work / f"hashes-{number:06d}.bin"


def _equal_texts(work: Path, num_parts: int) -> dict[int, list[int]]:
    """Indices to leave out, by part; all documents' hashes are held, 16 bytes each."""
    hashes = [np.fromfile(_hashes_file(work, k), "S16") for k in range(num_parts)]
    sizes = np.cumsum([0, *(part.size for part in hashes)])
    together = np.concatenate(hashes)
    _, first = np.unique(together, return_index=True)
    again = np.ones(together.size, bool)
    again[first] = False
    return {k: np.flatnonzero(again[sizes[k] : sizes[k + 1]]).tolist() for k in range(num_parts)}


def _near_texts(work: Path, num_parts: int, choice: MinHashDuplicates) -> dict[int, list[int]]:
    from datatrove.pipeline.dedup import MinhashDedupBuckets, MinhashDedupCluster

    config = _library_config(choice)
    signatures, pairs, removed = (work / name for name in ("signatures", "pairs", "removed"))
    for folder in (pairs, removed):  # an interrupted try may have left some
        shutil.rmtree(folder, ignore_errors=True)
    buckets = MinhashDedupBuckets(str(signatures), str(pairs), config=config)
    for bucket in range(choice.num_buckets):
        buckets.run(None, bucket, choice.num_buckets)
    with redirect_stderr(io.StringIO()):  # its progress bar
        MinhashDedupCluster(str(pairs), str(removed), config).run(None, 0, 1)
    found = {}
    for number in range(num_parts):
        file = removed / f"{number:06d}.remove"
        data = file.read_bytes() if file.is_file() else b""
        found[number] = [index for (index,) in struct.iter_unpack("<I", data)]
    return found


def _library_config(choice: MinHashDuplicates) -> Any:
    from datatrove.pipeline.dedup.minhash import MinhashConfig
    from datatrove.utils.hashing import HashConfig
    from loguru import logger

    logger.disable("datatrove")
    return MinhashConfig(
        n_grams=choice.ngram_words,
        num_buckets=choice.num_buckets,
        hashes_per_bucket=choice.hashes_per_bucket,
        hash_config=HashConfig(hash_fc="sha1"),  # its xxhash gives text where xxhash 4 takes bytes
    )
