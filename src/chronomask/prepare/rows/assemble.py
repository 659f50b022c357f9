"""Last stage: the parts' tokens, in order, become the rows of the two splits, and a table of documents.

One process does it, because a row may hold the end of one part and the start of the next; it copies
numbers and keeps well ahead of many annotating workers.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from chronomask.data.annotation import MAX_CLASSES, is_special, totals
from chronomask.data.folder import SplitEntry
from chronomask.data.writer import RowWriter
from chronomask.errors import need
from chronomask.prepare.read.gather import Gathered
from chronomask.prepare.read.left_out import Skipped
from chronomask.prepare.rows.pack import Packing, Pieces, Specials
from chronomask.prepare.work import SPLITS, PartCounts, read_tokens, write_work
from chronomask.storage import replacing
from chronomask.types import Document

__all__ = ["DOCUMENTS_FILE", "keep_documents", "statistics", "write_split", "write_table"]

DOCUMENTS_FILE = "documents.parquet"
"""Name of the table of documents in the prepared folder, where the config names ids or metadata."""


def write_split(
    work: Path,
    writer: RowWriter,
    split: str,
    num_parts: int,
    packing: Packing,
    row_length: int,
    specials: Specials,
    done: Callable[[int], None],
) -> tuple[SplitEntry, dict[str, Any]]:
    """Pack and write one split; returns its manifest entry and its counts for people.

    ``done`` is told of every part whose tokens were taken.
    """
    tally = np.zeros((2, MAX_CLASSES), np.int64)
    num_documents = num_unknown = 0

    def pieces() -> Iterator[Pieces]:
        nonlocal num_documents, num_unknown
        for number in range(num_parts):
            part = read_tokens(work, number, split)
            if part.lengths.size:
                num_documents += part.lengths.size
                tally[:] += totals(part.annotation)
                num_unknown += int(np.count_nonzero(is_special(part.annotation)))
                yield Pieces(part.ids, part.annotation, part.lengths)
            done(number)

    for rows in packing.pack(pieces(), row_length, specials):
        writer.write(rows.ids, rows.annotation, rows.bounds, rows.num_tokens)
    entry = writer.finish(num_documents)
    words, tokens = int(tally[1].sum()), int(tally.sum())
    counts = {
        "documents": entry.num_documents,
        "rows": entry.num_rows,
        "tokens": entry.num_tokens,
        "tokens_without_specials": tokens,
        "words": words,
        "tokens_per_word": round(tokens / words, 4) if words else None,
        "row_utilisation": round(entry.num_tokens / (entry.num_rows * row_length), 6)
        if entry.num_rows
        else None,
        "unknown_tokens": num_unknown,
        "class_tokens": tally.sum(0).tolist(),
        "class_words": tally[1].tolist(),
    }
    return entry, counts


def statistics(
    splits: dict[str, dict[str, Any]],
    class_names: tuple[str, ...],
    gathered: Gathered,
    parts: list[PartCounts],
    sources: list[dict[str, Any]],
) -> dict[str, Any]:
    """Counts for people: what was read, what it became, what was left out and why."""
    for name, counts in splits.items():
        both = np.sum([part.characters[name] for part in parts], axis=0)
        counts["characters"], counts["unknown_characters"] = both.tolist()
        for key in ("class_tokens", "class_words"):
            total = max(sum(counts[key]), 1)
            named = zip(class_names, counts.pop(key), strict=False)
            counts[f"{key.removeprefix('class_').removesuffix('s')}_share_per_class"] = {
                name: round(number / total, 6) for name, number in named
            }
    skipped = Skipped()
    for account in (gathered.skipped, *(part.skipped for part in parts)):
        skipped.merge(account)
    return {
        "documents": gathered.num_documents,
        "characters": gathered.num_characters,
        "words": sum(part.num_words for part in parts),
        "tokens_without_word": sum(part.num_tokens_without_word for part in parts),
        "splits": splits,
        "skipped": skipped.to_dict(),
        "read_by_lines": gathered.by_lines,
        "sources": sources,
    }


def _documents_file(work: Path, number: int) -> Path:
    return work / f"documents-{number:06d}.json"


def keep_documents(
    work: Path,
    number: int,
    documents: Sequence[Document],
    num_tokens: np.ndarray,
    held_out: np.ndarray,
) -> None:
    """Keep for the table what it says of a part's documents; one that gave no token is left out."""
    lines = [
        [SPLITS[int(held)], document.id, int(tokens), len(document.text), document.metadata]
        for document, tokens, held in zip(documents, num_tokens, held_out, strict=True)
        if tokens
    ]
    write_work(_documents_file(work, number), json.dumps(lines, ensure_ascii=False).encode())


def write_table(work: Path, num_parts: int, metadata_keys: Sequence[str], file: Path) -> None:
    """Write the table: one row a document; metadata as text, null where a document has none.

    Within a split the documents are in the order in which they were read.
    """
    pa = need("pyarrow", "prepare", "the table of documents")
    pq = need("pyarrow.parquet", "prepare", "the table of documents")

    columns = [
        ("split", pa.string()), ("id", pa.string()), ("num_tokens", pa.int64()),
        ("num_characters", pa.int64()), *((f"metadata.{key}", pa.string()) for key in metadata_keys),
    ]  # fmt: skip
    schema = pa.schema(columns)
    with (
        replacing(file) as writing,
        pq.ParquetWriter(writing, schema, compression="zstd") as writer,
    ):
        for number in range(num_parts):
            lines = json.loads(_documents_file(work, number).read_text(encoding="utf-8"))
            rows = [[*line[:4], *(line[4].get(key) for key in metadata_keys)] for line in lines]
            if rows:
                arrays = [
                    pa.array(values, kind)
                    for values, kind in zip(zip(*rows, strict=True), schema.types, strict=True)
                ]
                writer.write_table(pa.Table.from_arrays(arrays, schema=schema))
