"""How fast rows come out of a prepared folder, on one core.

    python -m benchmarks.loading [--json] [--data DIR] [--rounds N]

Without ``--data`` rows of 512 made-up tokens with document bounds are written first (100 MB in a
temporary folder). What is read lies in the machine's page cache either way: the figures are those of
the loader, not of a disk.

- ``rows_tokens_per_second``: of :meth:`RowLoader.rows_at`, 256 rows a step in training order, ready for
  masking (ids, words, classes, document bounds).
- ``stored_tokens_per_second``: of the same rows as they are stored, without word numbers.
- ``first_batch_seconds``: from opening the folder to the rows of step 1,000,000.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np

from benchmarks.record import as_json
from chronomask.data.annotation import SPECIAL, WORD_START
from chronomask.data.folder import PreparedData
from chronomask.data.loader import RowLoader
from chronomask.data.writer import RowWriter, write_manifest

ROWS_PER_STEP, LENGTH, NUM_ROWS, LATE_STEP = 256, 512, 1 << 16, 10**6
NUM_CLASSES, VOCAB_SIZE, TOKENS_PER_DOCUMENT = 18, 30_000, 400


def made_up(folder: Path) -> Path:
    """Rows shaped like English text: three words in four of one token, a document every 400 tokens."""
    random = np.random.default_rng(0)
    writer = RowWriter(folder, "train", LENGTH, VOCAB_SIZE)
    rows = 1 << 12
    for _ in range(NUM_ROWS // rows):
        ids = random.integers(0, VOCAB_SIZE, (rows, LENGTH), np.uint16)
        starts = (random.random((rows, LENGTH)) < 0.8) * np.uint8(WORD_START)
        annotation = random.integers(1, NUM_CLASSES, (rows, LENGTH), np.uint8) | starts
        annotation[:, 1] |= WORD_START
        annotation[:, [0, -1]] = SPECIAL
        bounds = np.arange(TOKENS_PER_DOCUMENT, rows * LENGTH, TOKENS_PER_DOCUMENT)
        writer.write(ids, annotation, bounds[bounds % LENGTH > 0], rows * LENGTH)
    facts = {
        "tokenizer_sha256": "0" * 64,
        "tagger": "made up",
        "class_names": ("none", *(f"class {k}" for k in range(1, NUM_CLASSES))),
        "row_length": LENGTH,
        "packing": "concatenate",
        "pad_token_id": 0,
        "vocab_size": VOCAB_SIZE,
    }
    write_manifest(folder, facts, {"train": writer.finish(NUM_ROWS)})
    return folder


def seconds(call: Callable[[], object]) -> float:
    """Wall seconds of one call."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def first_batch(folder: Path) -> None:
    """Open the folder and read the rows of a late step."""
    split = PreparedData.open(folder).split("train")
    next(iter(RowLoader(split, seed=0, rows_per_step=ROWS_PER_STEP, start_step=LATE_STEP)))


def measure(folder: Path, rounds: int) -> dict[str, float]:
    """The figures of a prepared folder; medians of ``rounds``."""
    data = PreparedData.open(folder)
    split = data.split("train")
    loader = RowLoader(split, seed=0, rows_per_step=ROWS_PER_STEP)
    tokens = ROWS_PER_STEP * data.row_length
    for step in range(20):  # every shard is mapped and in the page cache
        loader.rows_at(step)
    read = [seconds(lambda step=step: loader.rows_at(step)) for step in range(rounds)]
    ids = [loader.row_ids_at(step)[0] for step in range(rounds)]
    stored = [seconds(lambda chosen=chosen: split.read_raw(chosen)) for chosen in ids]
    first_batch(folder)  # imports and page cache
    late = [seconds(lambda: first_batch(folder)) for _ in range(5)]
    return {
        "rows_tokens_per_second": round(tokens / median(read)),
        "stored_tokens_per_second": round(tokens / median(stored)),
        "first_batch_seconds": round(median(late), 5),
    }


def main() -> None:
    """Print the figures; with ``--json`` the last line is one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", action="store_true", help="print one JSON object last")
    parser.add_argument("--data", type=Path, help="prepared folder, instead of made-up rows")
    parser.add_argument("--rounds", type=int, default=200, help="steps that are timed")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(options.data or made_up(Path(folder)), options.rounds)
    for key, value in figures.items():
        print(f"{key:28}{value:16,.5g}")
    if options.json:
        print(as_json(figures))


if __name__ == "__main__":
    main()
