"""The work folder of a preparation: parts of the text, what became of them, and marks of what is done.

A part holds about ``part_characters`` of text and becomes one file of tokens. The cut depends on the
documents alone, so every number of workers sees the same parts. A file that exists is whole: it is
written under a name of the process's own, so that several machines may write the same file at once, each
the same bytes.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from chronomask.errors import need
from chronomask.storage import write_bytes
from chronomask.types import Document, TaggedWords

__all__ = [
    "SPLITS",
    "WORK_FORMAT",
    "PartCounts",
    "TokenPart",
    "hash_position",
    "leave_out",
    "mark",
    "mark_file",
    "read_mark",
    "read_text",
    "read_tokens",
    "write_text",
    "write_tokens",
    "write_work",
]

SPLITS = ("train", "held_out")
"""Names of the two parts of a corpus: to train on, and to validate on."""
WORK_FORMAT = 1
"""Of a work folder: counts up where the same text becomes something else, or is kept in another form, so that
what an earlier version began is begun anew."""


@dataclass(frozen=True, slots=True)
class PartCounts:
    """Counts of one part, for statistics and progress; ``words`` as the tagger sees them."""

    num_documents: int
    num_characters: int
    num_words: int
    num_tokens: int
    num_tokens_without_word: int
    characters: dict[str, tuple[int, int]]
    """Of each split: the characters of its text, and those in tokens that the tokenizer does not know."""
    skipped: dict[str, Any]
    """The account of documents that gave no token, by reason."""


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


def write_work(file: Path, content: bytes) -> None:
    """Replace a file of the work folder, which other machines may be replacing as well."""
    write_bytes(file, content, writer=f"{socket.gethostname()}-{os.getpid()}")


def mark_file(work: Path, stage: str, number: int) -> Path:
    """The file that says that a part has been through a stage; it is written last."""
    return work / f"{stage}-{number:06d}.json"


def mark(work: Path, stage: str, number: int, value: object) -> None:
    """Say that a part has been through a stage, and what is to be known of that."""
    write_work(mark_file(work, stage, number), json.dumps(value, ensure_ascii=False).encode())


def read_mark(work: Path, stage: str, number: int) -> Any:
    """What :func:`mark` was given; None where the part has not been through the stage."""
    try:
        return json.loads(mark_file(work, stage, number).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None


def _text_file(work: Path, number: int) -> Path:
    return work / f"text-{number:06d}.zst"


def _filtered_file(work: Path, number: int) -> Path:
    return work / f"filtered-{number:06d}.zst"


def _left_out_file(work: Path, number: int) -> Path:
    return work / f"duplicates-{number:06d}.json"


def _tokens_file(work: Path, number: int) -> Path:
    return work / f"tokens-{number:06d}.npz"


def write_text(
    work: Path, number: int, documents: Sequence[Document], *, filtered: bool = False
) -> None:
    """Write a part's documents: ids, texts, metadata, and words where they came with the text.

    ``filtered``: they are those that filters let pass, maybe changed; the part's text stays.
    """
    zstandard = need("zstandard", "prepare", "preparation")
    lines = "\n".join(json.dumps(_as_list(item), ensure_ascii=False) for item in documents)
    data = zstandard.ZstdCompressor(level=1).compress(lines.encode())
    write_work((_filtered_file if filtered else _text_file)(work, number), data)


def _as_list(document: Document) -> list[object]:
    words = document.words
    plain: list[object] = [document.id, document.text, document.metadata]
    return plain if words is None else [*plain, words.starts, words.ends, words.tags]


def leave_out(work: Path, number: int, indices: Sequence[int]) -> None:
    """List those of a part's documents that are duplicates of others."""
    write_work(_left_out_file(work, number), json.dumps(indices).encode())


def read_text(work: Path, number: int, *, duplicates: bool = False) -> Iterator[Document]:
    """Every document of a part; duplicates, where they were looked for, only if asked for."""
    zstandard = need("zstandard", "prepare", "preparation")
    filtered = _filtered_file(work, number)
    file = filtered if filtered.is_file() else _text_file(work, number)
    listed = _left_out_file(work, number)
    left_out: set[int] = set()
    if not duplicates and listed.is_file():
        left_out = set(json.loads(listed.read_text()))
    data = zstandard.ZstdDecompressor().decompress(file.read_bytes())
    # Not splitlines(): a text may hold U+2028, which JSON leaves as it is.
    lines = data.decode().split("\n") if data else []
    for index, line in enumerate(lines):
        if index in left_out:
            continue
        identifier, text, metadata, *words = json.loads(line)
        yield Document(identifier, text, metadata, TaggedWords(*words) if words else None)


def write_tokens(work: Path, number: int, splits: Mapping[str, TokenPart]) -> None:
    """Write a part's tokens."""
    arrays = {
        f"{split}.{name}": getattr(part, name)
        for split, part in splits.items()
        for name in TokenPart.__slots__
    }
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    write_work(_tokens_file(work, number), buffer.getvalue())


def read_tokens(work: Path, number: int, split: str) -> TokenPart:
    """One split's documents of a part; the other's are not read."""
    with np.load(_tokens_file(work, number), allow_pickle=False) as arrays:
        return TokenPart(*(arrays[f"{split}.{name}"] for name in TokenPart.__slots__))
