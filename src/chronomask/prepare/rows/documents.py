"""The table of documents: id, split, sizes and metadata of each, beside the rows.

Written only where the config names ids or metadata. Within a split the documents are in the order in
which they were read. May enter: what is kept of documents besides their tokens.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from chronomask.prepare.work import SPLITS
from chronomask.storage import replacing, write_bytes
from chronomask.types import Document

__all__ = ["DOCUMENTS_FILE", "write_part", "write_table"]

DOCUMENTS_FILE = "documents.parquet"


def _part_file(work: Path, number: int) -> Path:
    return work / f"documents-{number:06d}.json"


def write_part(
    work: Path,
    number: int,
    documents: Sequence[Document],
    num_tokens: np.ndarray,
    held_out: np.ndarray,
) -> None:
    """Keep what the table says of a part's documents; one that gave no token is left out."""
    lines = [
        [SPLITS[int(held)], document.id, int(tokens), len(document.text), document.metadata]
        for document, tokens, held in zip(documents, num_tokens, held_out, strict=True)
        if tokens
    ]
    write_bytes(_part_file(work, number), json.dumps(lines, ensure_ascii=False).encode())


def write_table(work: Path, num_parts: int, metadata_keys: Sequence[str], file: Path) -> None:
    """Write the table: one row a document; metadata as text, null where a document has none."""
    import pyarrow as pa
    import pyarrow.parquet as pq

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
            lines = json.loads(_part_file(work, number).read_text(encoding="utf-8"))
            rows = [[*line[:4], *(line[4].get(key) for key in metadata_keys)] for line in lines]
            if rows:
                arrays = [
                    pa.array(values, kind)
                    for values, kind in zip(zip(*rows, strict=True), schema.types, strict=True)
                ]
                writer.write_table(pa.Table.from_arrays(arrays, schema=schema))
