"""First stage: read every source once and cut its documents into parts.

May enter: what happens to a document before it meets a tokenizer.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from chronomask.errors import DataError
from chronomask.prepare.config import PrepareConfig
from chronomask.prepare.progress import Progress
from chronomask.prepare.read.files import Skipped
from chronomask.prepare.read.sources import AnySource, fields_of_config, read_documents
from chronomask.prepare.words.taggers import split_long
from chronomask.prepare.work import hash_position, read_text, write_text
from chronomask.storage import write_bytes
from chronomask.types import Document

__all__ = ["Gathered", "gather", "sample_texts"]

_FILE = "gathered.json"
_SAMPLE_CHARACTERS = 10_000


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
    tags: dict[str, int] = field(default_factory=dict)
    """Words of every tag, where words and tags came with the text."""


def gather(
    work: Path,
    config: PrepareConfig,
    sources: list[AnySource],
    skipped: Skipped,
    progress: Progress,
) -> Gathered:
    """Write the parts' texts to ``work``; a gathering that finished before is taken as it is.

    Raises :class:`DataError` where no source gives a document.
    """
    done = work / _FILE
    if done.is_file():
        return Gathered(**json.loads(done.read_text()))
    positions = _Positions()
    num_documents = 0
    sizes: list[int] = []
    part: list[Document] = []
    held = 0
    fields = fields_of_config(config)
    tags: Counter[str] = Counter()
    for source in sources:
        for document in read_documents(source, fields, skipped):
            if not fields.words_and_tags:  # a tagger will say where the words are
                document = replace(document, words=None)
            if len(document.text) < config.min_characters:
                skipped.add(f"fewer than {config.min_characters} characters", document.id)
                continue
            if _is_longer(document.text, config.max_document_bytes):
                skipped.add(fields.too_long, document.id)
                continue
            positions.add(hash_position(document.text))
            num_documents += 1
            part.append(document)
            if document.words:
                tags.update(document.words.tags)
            held += len(document.text)
            progress.advance(len(document.text), documents=1)
            if held >= config.part_characters:
                write_text(work, len(sizes), part)
                sizes.append(held)
                part, held = [], 0
    if part:
        write_text(work, len(sizes), part)
        sizes.append(held)
    if not num_documents:
        reasons = "; ".join(f"{count} × {reason}" for reason, count in skipped.counts.items())
        names = ", ".join(str(getattr(s, "path", s)) for s in sources[:5])
        raise DataError(f"no document in {names}" + (f" (skipped: {reasons})" if reasons else ""))
    gathered = Gathered(
        num_parts=len(sizes),
        num_documents=num_documents,
        num_characters=sum(sizes),
        part_characters=sizes,
        held_out_below=positions.threshold(config.held_out),
        skipped=skipped.to_dict(),
        tags=dict(sorted(tags.items())),
    )
    write_bytes(done, json.dumps(asdict(gathered)).encode())
    return gathered


def _is_longer(text: str, limit: int) -> bool:
    """Whether a text has more than ``limit`` bytes of UTF-8, at most four for a character."""
    return len(text) * 4 > limit and len(text.encode()) > limit


@dataclass
class _Positions:
    """The hash positions seen: their two lowest values and the highest."""

    lowest: float = 1.0
    second: float = 1.0
    highest: float = -1.0

    def add(self, position: float) -> None:
        if position < self.lowest:
            self.lowest, self.second = position, self.lowest
        elif self.lowest < position < self.second:
            self.second = position
        self.highest = max(self.highest, position)

    def threshold(self, share: float) -> float:
        """``share``, moved for tiny corpora so that neither split is empty if there are two texts."""
        if not share or self.lowest == self.highest:
            return 0.0
        some_held_out = max(share, self.second) if share <= self.lowest else share
        return min(some_held_out, self.highest)


def sample_texts(work: Path, gathered: Gathered, characters: int) -> Iterator[str]:
    """About ``characters`` of the training text, in pieces chosen by hash, in order; never nothing."""
    share = characters / max(gathered.num_characters, 1)
    first = True
    for number in range(gathered.num_parts):
        for document in read_text(work, number):
            text = document.text
            if hash_position(text) < gathered.held_out_below:
                continue
            for _, piece in split_long(text, _SAMPLE_CHARACTERS):
                if first or hash_position(piece) < share:
                    first = False
                    yield piece
