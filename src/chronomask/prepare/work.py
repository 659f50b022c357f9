"""Parts: the unit of work between the stages, one numbered file each in the work folder.

A part holds about ``part_characters`` of text and becomes one file of tokens. The cut depends on the
documents alone, so every worker count sees the same parts; a file that exists is whole. May enter:
reading and writing these files.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from chronomask.storage import write_bytes
from chronomask.types import Document, TaggedWords

__all__ = ["SPLITS", "PartCounts", "TokenPart", "hash_position", "read_text", "read_tokens"]

SPLITS = ("train", "held_out")


@dataclass(frozen=True, slots=True)
class PartCounts:
    """Counts of one part, for statistics and progress; ``words`` as the tagger sees them."""

    num_documents: int
    num_characters: int
    num_words: int
    num_tokens: int
    num_tokens_without_word: int
    num_special_tokens: int
    empty_documents: list[str]
    """Names of documents that gave no token."""


@dataclass(frozen=True, slots=True)
class TokenPart:
    """The documents of a part that belong to one split.

    ``ids`` uint16 or uint32 [T]; ``annotation`` uint8 [T]; ``lengths`` int64 [D].
    """

    ids: np.ndarray
    annotation: np.ndarray
    lengths: np.ndarray


def hash_position(text: str) -> float:
    """Where a text falls in [0, 1): equal texts always fall together."""
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) * 2.0**-53


def text_file(work: Path, number: int) -> Path:
    return work / f"text-{number:06d}.zst"


def filtered_file(work: Path, number: int) -> Path:
    return work / f"filtered-{number:06d}.zst"


def duplicates_file(work: Path, number: int) -> Path:
    return work / f"duplicates-{number:06d}.json"


def tokens_file(work: Path, number: int) -> Path:
    return work / f"tokens-{number:06d}.npz"


def counts_file(work: Path, number: int) -> Path:
    return work / f"counts-{number:06d}.json"


def write_text(
    work: Path, number: int, documents: Sequence[Document], file: Path | None = None
) -> None:
    """Write a part's documents: ids, texts, metadata, and words where they came with the text."""
    import zstandard

    lines = "\n".join(json.dumps(_as_list(item), ensure_ascii=False) for item in documents)
    data = zstandard.ZstdCompressor(level=1).compress(lines.encode())
    write_bytes(file or text_file(work, number), data)


def _as_list(document: Document) -> list[object]:
    words = document.words
    plain: list[object] = [document.id, document.text, document.metadata]
    return plain if words is None else [*plain, words.starts, words.ends, words.tags]


def write_filtered(work: Path, number: int, documents: Sequence[Document]) -> None:
    """Write those of a part's documents that filters let pass, maybe changed."""
    write_text(work, number, documents, filtered_file(work, number))


def read_text(work: Path, number: int, *, duplicates: bool = False) -> Iterator[Document]:
    """Every document of a part; duplicates, where they were looked for, only if asked for."""
    import zstandard

    filtered = filtered_file(work, number)
    file = filtered if filtered.is_file() else text_file(work, number)
    listed = duplicates_file(work, number)
    leave_out: set[int] = set()
    if not duplicates and listed.is_file():
        leave_out = set(json.loads(listed.read_text()))
    data = zstandard.ZstdDecompressor().decompress(file.read_bytes())
    # Not splitlines(): a text may hold U+2028, which JSON leaves as it is.
    lines = data.decode().split("\n") if data else []
    for index, line in enumerate(lines):
        if index in leave_out:
            continue
        identifier, text, metadata, *words = json.loads(line)
        yield Document(identifier, text, metadata, TaggedWords(*words) if words else None)


def write_tokens(
    work: Path, number: int, splits: Mapping[str, TokenPart], counts: PartCounts
) -> None:
    """Write a part's tokens, then its counts: the counts' file marks the part as done."""
    arrays = {
        f"{split}.{name}": getattr(part, name)
        for split, part in splits.items()
        for name in TokenPart.__slots__
    }
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    write_bytes(tokens_file(work, number), buffer.getvalue())
    write_bytes(counts_file(work, number), json.dumps(asdict(counts)).encode())


def read_tokens(work: Path, number: int, split: str) -> TokenPart:
    """One split's documents of a part; the other's are not read."""
    with np.load(tokens_file(work, number), allow_pickle=False) as arrays:
        return TokenPart(*(arrays[f"{split}.{name}"] for name in TokenPart.__slots__))


def read_counts(work: Path, number: int) -> PartCounts | None:
    """The counts of a finished part, None where it is not finished."""
    try:
        return PartCounts(**json.loads(counts_file(work, number).read_text()))
    except FileNotFoundError:
        return None
