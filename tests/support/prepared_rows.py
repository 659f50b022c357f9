"""Prepared rows of random ids, written without preparing any text, and their comparison."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import numpy as np

from chronomask.data.annotation import SPECIAL, WORD_START
from chronomask.data.folder import PreparedData
from chronomask.data.writer import RowWriter, write_manifest
from chronomask.types import Rows

FACTS = {
    "tokenizer_sha256": "0" * 64,
    "tagger": "fixed",
    "class_names": ("none", "a", "b"),
    "row_length": 8,
    "packing": "concatenate",
    "pad_token_id": 0,
    "vocab_size": 1000,
}


def made_rows(num_rows: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    ids = random.integers(0, 1000, (num_rows, 8))
    annotation = random.integers(0, 3, (num_rows, 8)) | WORD_START * random.integers(
        0, 2, (num_rows, 8)
    )
    annotation[:, 1] |= WORD_START
    annotation[:, [0, 7]] = SPECIAL
    inside = np.flatnonzero(np.arange(num_rows * 8) % 8)
    bounds = np.sort(random.choice(inside, min(num_rows, inside.size), replace=False))
    return ids, annotation, bounds


def written(folder: Path, num_rows: int, shard_rows: int, batch: int) -> PreparedData:
    ids, annotation, bounds = made_rows(num_rows)
    out = RowWriter(folder, "train", 8, 1000, shard_tokens=shard_rows * 8)
    for start in range(0, num_rows, batch):
        stop = min(start + batch, num_rows)
        inside = (bounds >= start * 8) & (bounds < stop * 8)
        out.write(
            ids[start:stop], annotation[start:stop], bounds[inside] - start * 8, (stop - start) * 8
        )
    write_manifest(folder, FACTS, {"train": out.finish(3)})
    return PreparedData.open(folder)


def words_one_by_one(data: PreparedData, split: str) -> list[list[list[tuple[int, ...]]]]:
    """Token ids of every word, by row and by stretch of words that follow each other."""
    rows = data.split(split).read(np.arange(data.split(split).num_rows))
    begins = set(rows.cu_seqlens.tolist())
    found = []
    for row in range(rows.num_rows):
        stretches: list[list[tuple[int, ...]]] = [[]]
        last = -1
        for token, (number, word) in enumerate(
            zip(rows.input_ids[row].tolist(), rows.word_id[row].tolist(), strict=True)
        ):
            if word < 0 or row * rows.row_length + token in begins:
                stretches.append([])
            if word >= 0 and word == last and stretches[-1]:
                stretches[-1][-1] += (number,)
            elif word >= 0:
                stretches[-1].append((number,))
            last = word
        found.append(stretches)
    return found


def assert_equal(left: Rows, right: Rows) -> None:
    for item in fields(left):
        if item.name == "order" and (left.order is None or right.order is None):
            continue  # rows read by number have no place in training
        np.testing.assert_array_equal(getattr(left, item.name), getattr(right, item.name))
