"""Second stage, if the config asks for it: filters, then duplicates; what is left replaces the parts' texts.

May enter: what decides which documents are kept, after reading and before a tokenizer is trained.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from chronomask.errors import DataError
from chronomask.prepare.clean.deduplicate import drop_duplicates, write_minhash
from chronomask.prepare.clean.filters import filtered_out, write_choice
from chronomask.prepare.config import MinHashDuplicates, NoDeduplication, PrepareConfig
from chronomask.prepare.executors import Stage, run_stage
from chronomask.prepare.progress import Progress
from chronomask.prepare.read.files import Skipped
from chronomask.prepare.read.gather import Gathered

__all__ = ["refine"]


def refine(
    work: Path, config: PrepareConfig, gathered: Gathered, workers: int, shown: bool
) -> Gathered:
    """Filter and deduplicate the gathered documents; raises :class:`DataError` if none is left."""
    if config.filters:
        write_choice(work, config.filters)
        _run(Stage(work, "filter"), config, gathered, workers, shown, "filtering")
        gathered = _less(gathered, *filtered_out(work, gathered.num_parts))
    if not isinstance(config.deduplication, NoDeduplication):
        if isinstance(config.deduplication, MinHashDuplicates):
            write_minhash(work, config.deduplication)
        _run(Stage(work, "signatures"), config, gathered, workers, shown, "finding duplicates")
        left = drop_duplicates(work, gathered.num_parts, config.deduplication)
        gathered = _less(gathered, *left)
    return gathered


def _run(
    stage: Stage, config: PrepareConfig, gathered: Gathered, workers: int, shown: bool, label: str
) -> None:
    sizes = gathered.part_characters
    with Progress(label, sum(sizes), shown) as bar:
        run_stage(
            stage,
            gathered.num_parts,
            workers,
            config.executor,
            lambda number: bar.advance(sizes[number]),
        )


def _less(gathered: Gathered, documents: int, characters: int, left_out: Skipped) -> Gathered:
    skipped = Skipped()
    skipped.merge(gathered.skipped)
    skipped.merge(left_out.to_dict())
    if not documents:
        reasons = "; ".join(f"{count} × {reason}" for reason, count in skipped.counts.items())
        raise DataError(f"filters and deduplication left no document ({reasons})")
    return replace(
        gathered, num_documents=documents, num_characters=characters, skipped=skipped.to_dict()
    )
