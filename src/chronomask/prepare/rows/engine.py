"""Second stage: the parts are annotated, each by itself, by any number of processes.

A part is a task: numbered, independent, marked as done by its counts file. :func:`annotate_part` has
the shape of a datatrove step (``data, rank, world_size``), the part number being the rank. May enter:
what a part goes through between text and tokens.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import TypeAdapter

from chronomask.data.annotation import is_special
from chronomask.data.writer import id_dtype
from chronomask.prepare.config import ColumnTagger, Executor, LocalExecutor, Tagger
from chronomask.prepare.executors import Stage, run_stage
from chronomask.prepare.progress import Progress
from chronomask.prepare.rows.annotate import annotate
from chronomask.prepare.rows.documents import write_part
from chronomask.prepare.tokenizer import load_backend
from chronomask.prepare.words.columns import spans_of
from chronomask.prepare.words.taggers import load_tagger
from chronomask.prepare.work import (
    SPLITS,
    PartCounts,
    TokenPart,
    hash_position,
    read_counts,
    read_text,
    write_tokens,
)
from chronomask.storage import write_bytes

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["PartJob", "annotate_part", "run_parts"]

_JOB = "job.json"
_LOCAL = LocalExecutor()
_RUN_BY_TORCH = ("spacy", "stanza")
"""Taggers whose models may run on torch."""


@dataclass(frozen=True, slots=True)
class PartJob:
    """What a worker must know besides the part number; kept in the work folder."""

    tokenizer: str
    """Folder of the saved tokenizer."""
    tokenizer_sha256: str
    tagger: dict[str, Any]
    """The tagger's config values."""
    class_names: tuple[str, ...]
    out: str
    """The prepared folder, which holds what the tagger learnt from the text, if it learns."""
    special_ids: tuple[int, ...]
    vocab_size: int
    held_out_below: float
    keeps_documents: bool = False
    """Whether ids and metadata go into the table of documents."""


def annotate_part(
    data: Any = None, rank: int = 0, world_size: int = 1, *, work: Path
) -> Iterator[PartCounts]:
    """Tokenise, tag and align part ``rank`` of the work folder; yields its counts.

    A part that is done already is left alone. ``data`` and ``world_size`` are what datatrove passes.
    """
    done = read_counts(work, rank)
    if done is not None:
        yield done
        return
    job = PartJob(**json.loads((work / _JOB).read_text()))
    tokenizer = _backend(job.tokenizer, job.tokenizer_sha256)
    choice = TypeAdapter(Tagger).validate_python(job.tagger)
    documents = list(read_text(work, rank))
    texts = [document.text for document in documents]
    if isinstance(choice, ColumnTagger):
        words = spans_of(documents, job.class_names)
    else:
        words = load_tagger(choice, Path(job.out))
    num_words = num_without_word = 0
    stored = id_dtype(job.vocab_size)
    parts_ids, parts_annotation = [np.zeros(0, stored)], [np.zeros(0, np.uint8)]
    lengths = np.zeros(len(texts), np.int64)
    for batch in annotate(texts, tokenizer, words, job.special_ids):
        parts_ids.append(batch.ids.astype(stored))
        parts_annotation.append(batch.annotation)
        np.add.at(lengths, batch.document, batch.lengths)
        num_words += batch.num_words
        num_without_word += batch.num_without_word
    held_out = np.fromiter((hash_position(t) < job.held_out_below for t in texts), bool, len(texts))
    ids, annotation = np.concatenate(parts_ids), np.concatenate(parts_annotation)
    splits = {}
    for split, chosen in zip(SPLITS, (~held_out, held_out), strict=True):
        tokens = np.repeat(chosen, lengths)
        kept = chosen & (lengths > 0)
        splits[split] = TokenPart(ids[tokens], annotation[tokens], lengths[kept])
    counts = PartCounts(
        num_documents=len(texts),
        num_characters=sum(map(len, texts)),
        num_words=num_words,
        num_tokens=ids.size,
        num_tokens_without_word=num_without_word,
        num_special_tokens=int(np.count_nonzero(is_special(annotation))),
        empty_documents=[documents[k].id for k in np.flatnonzero(lengths == 0)],
    )
    if job.keeps_documents:
        write_part(work, rank, documents, lengths, held_out)
    write_tokens(work, rank, splits, counts)
    yield counts


@lru_cache(maxsize=1)
def _backend(folder: str, sha256: str) -> Tokenizer:
    """The tokenizer, loaded once; ``sha256`` only tells two tokenizers of one folder apart."""
    return load_backend(Path(folder))


def run_parts(
    work: Path,
    num_parts: int,
    job: PartJob,
    workers: int,
    progress: Progress,
    executor: Executor = _LOCAL,
) -> list[PartCounts]:
    """Annotate every part that is not done; returns the counts of all, in order.

    Raises :class:`RunError` as :func:`chronomask.prepare.executors.run_stage` does.
    """
    write_bytes(work / _JOB, json.dumps(asdict(job)).encode())
    counts: dict[int, PartCounts] = {}

    def done(number: int) -> None:
        found = read_counts(work, number)
        assert found is not None
        counts[number] = found
        progress.advance(found.num_characters, found.num_documents, found.num_words)

    stage = Stage(work, "annotate", needs_torch=job.tagger["kind"] in _RUN_BY_TORCH)
    run_stage(stage, num_parts, workers, executor, done)
    return [counts[number] for number in range(num_parts)]
