"""First stage: read every source once and cut its documents into parts.

May enter: what happens to a document before it meets a tokenizer.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from chronomask.data.writer import write_file
from chronomask.errors import DataError
from chronomask.prepare.config import InstalledPackages, PrepareConfig
from chronomask.prepare.parts import hash_position, read_text, write_text
from chronomask.prepare.progress import Progress
from chronomask.prepare.sources import Skipped, SourceFile, read_documents
from chronomask.types import Document

__all__ = ["Gathered", "gather", "sample_texts"]

_FILE = "gathered.json"


@dataclass(frozen=True, slots=True)
class Gathered:
    """What the first stage found."""

    num_parts: int
    num_documents: int
    num_characters: int
    part_characters: list[int]
    held_out_below: float
    """Documents whose hash position is below this are held out."""
    skipped: dict[str, Any]


def gather(
    work: Path,
    config: PrepareConfig,
    sources: list[SourceFile | InstalledPackages],
    skipped: Skipped,
    progress: Progress,
) -> Gathered:
    """Write the parts' texts to ``work``; a gathering that finished before is taken as it is.

    Raises :class:`DataError` where no source gives a document.
    """
    done = work / _FILE
    if done.is_file():
        return Gathered(**json.loads(done.read_text()))
    positions: list[float] = []
    sizes: list[int] = []
    part: list[Document] = []
    held = 0
    for source in sources:
        for document in read_documents(source, config.text_key, skipped):
            if len(document.text) < config.min_characters:
                skipped.add(f"fewer than {config.min_characters} characters", document.id)
                continue
            positions.append(hash_position(document.text))
            part.append(document)
            held += len(document.text)
            progress.advance(len(document.text), documents=1)
            if held >= config.part_characters:
                write_text(work, len(sizes), part)
                sizes.append(held)
                part, held = [], 0
    if part:
        write_text(work, len(sizes), part)
        sizes.append(held)
    if not positions:
        reasons = "; ".join(f"{count} × {reason}" for reason, count in skipped.counts.items())
        names = ", ".join(str(getattr(s, "path", s)) for s in sources[:5])
        raise DataError(f"no document in {names}" + (f" (skipped: {reasons})" if reasons else ""))
    gathered = Gathered(
        num_parts=len(sizes),
        num_documents=len(positions),
        num_characters=sum(sizes),
        part_characters=sizes,
        held_out_below=_threshold(positions, config.held_out),
        skipped=skipped.to_dict(),
    )
    write_file(done, json.dumps(asdict(gathered)).encode())
    return gathered


def _threshold(positions: list[float], share: float) -> float:
    """``share``, moved for tiny corpora so that neither split is empty if there are two texts."""
    if not share:
        return 0.0
    distinct = sorted(set(positions))
    if len(distinct) < 2:
        return 0.0
    return min(max(share, distinct[1]) if share <= distinct[0] else share, distinct[-1])


def sample_texts(work: Path, gathered: Gathered, characters: int) -> Iterator[str]:
    """About ``characters`` of the training documents, chosen by hash, in order."""
    train_share = 1.0 - gathered.held_out_below
    share = min(1.0, characters / max(gathered.num_characters * train_share, 1.0)) * train_share
    for number in range(gathered.num_parts):
        for _, text in read_text(work, number):
            position = hash_position(text)
            if position >= gathered.held_out_below and position - gathered.held_out_below < share:
                yield text
