"""Second stage: the parts are annotated, each by itself, by any number of processes.

A part is a task: numbered, independent, marked as done by its counts file. :func:`annotate_part` has
the shape of a datatrove step (``data, rank, world_size``), the part number being the rank. May enter:
ways to run tasks.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import TypeAdapter

from chronomask.data.format import SPECIAL
from chronomask.data.writer import id_dtype, write_file
from chronomask.errors import RunError
from chronomask.prepare.annotate import annotate
from chronomask.prepare.columns import spans_of
from chronomask.prepare.config import ColumnTagger, Tagger
from chronomask.prepare.parts import (
    SPLITS,
    PartCounts,
    TokenPart,
    hash_position,
    read_counts,
    read_text,
    write_tokens,
)
from chronomask.prepare.progress import Progress
from chronomask.prepare.taggers import load_tagger
from chronomask.prepare.tokenizer import load_backend

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["PartJob", "annotate_part", "run_parts"]

_ATTEMPTS = 3
_JOB = "job.json"


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
    parts_ids, parts_annotation = [], []
    lengths = np.zeros(len(texts), np.int64)
    stored = id_dtype(job.vocab_size)
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
        num_special_tokens=int(np.count_nonzero(annotation >= SPECIAL)),
        empty_documents=[documents[k].id for k in np.flatnonzero(lengths == 0)],
    )
    write_tokens(work, rank, splits, counts)
    yield counts


@lru_cache(maxsize=1)
def _backend(folder: str, sha256: str) -> Tokenizer:
    """The tokenizer, loaded once; ``sha256`` only tells two tokenizers of one folder apart."""
    return load_backend(Path(folder))


def run_parts(
    work: Path, num_parts: int, job: PartJob, workers: int, progress: Progress
) -> list[PartCounts]:
    """Annotate every part that is not done; returns the counts of all, in order.

    A worker that is killed costs its part alone: what is missing is run again with fresh workers.
    Raises :class:`RunError` naming the parts that still fail.
    """
    write_file(work / _JOB, json.dumps(asdict(job)).encode())
    todo = []
    for number in range(num_parts):
        counts = read_counts(work, number)
        if counts is None:
            todo.append(number)
        else:
            _advance(progress, counts)
    if min(workers, len(todo)) <= 1:
        with _single_threaded():
            for number in todo:
                for counts in annotate_part(rank=number, work=work):
                    _advance(progress, counts)
    else:
        for _ in range(_ATTEMPTS):
            todo = _run_in_processes(
                work, todo, min(workers, len(todo)), job.tagger["kind"] == "spacy", progress
            )
            if not todo:
                break
        else:
            raise RunError(
                f"worker processes were killed {_ATTEMPTS} times while preparing parts "
                f"{', '.join(map(str, todo[:10]))} (out of memory?); run the same command again to "
                "continue, with fewer --workers or a smaller part_characters"
            )
    done = [read_counts(work, number) for number in range(num_parts)]
    return [counts for counts in done if counts is not None]


def _run_in_processes(
    work: Path, todo: list[int], workers: int, needs_torch: bool, progress: Progress
) -> list[int]:
    """One pool's try; returns the parts that a killed worker left undone."""
    # Spawned, not forked: the parent may hold threads of the tokenizer or of torch.
    with _single_threaded():
        pool = ProcessPoolExecutor(
            workers, get_context("spawn"), initializer=_begin_worker, initargs=(needs_torch,)
        )
        try:
            futures = [pool.submit(_counts_of_part, work, number) for number in todo]
            for future in as_completed(futures):
                _advance(progress, future.result())
        except BrokenProcessPool:
            return [number for number in todo if read_counts(work, number) is None]
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
    return []


def _begin_worker(needs_torch: bool) -> None:
    """Prepare a worker process."""
    # Ctrl-C reaches the parent, which lets the parts in hand finish and hands out no more.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if not needs_torch:
        # spaCy imports torch if it is there, for models other than the bundled one: two seconds and
        # 190 MB for every worker.
        sys.modules.setdefault("torch", None)  # type: ignore[arg-type]


def _counts_of_part(work: Path, number: int) -> PartCounts:
    (counts,) = annotate_part(rank=number, work=work)
    return counts


def _advance(progress: Progress, counts: PartCounts) -> None:
    progress.advance(counts.num_characters, counts.num_documents, counts.num_words)


@contextmanager
def _single_threaded() -> Iterator[None]:
    """One thread a process, here and in children: the processes are the parallelism."""
    wanted = {"TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
    before = {key: os.environ.get(key) for key in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value
