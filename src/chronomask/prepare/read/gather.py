"""First stage: every source is read once and its documents are cut into parts.

The parts and what was found lie in the work folder; a tokenizer, and a tagger that learns, see a sample
of their text.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from chronomask.errors import DataError
from chronomask.prepare.read.left_out import Skipped
from chronomask.prepare.read.records import Fields, how_to_read
from chronomask.prepare.read.sources import Found
from chronomask.prepare.words.tagger import split_long
from chronomask.prepare.work import hash_position, read_text, write_text, write_work
from chronomask.progress import Progress
from chronomask.types import Document

__all__ = ["Gathered", "bound_again", "gather", "is_gathered", "sample_texts"]

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
    by_lines: list[str] = field(default_factory=list)
    """Names of .txt files whose lines were taken for documents, because there was no blank line."""
    tags: dict[str, int] = field(default_factory=dict)
    """Words of every tag, where words and tags came with the text."""

    def without(self, documents: int, characters: int, left_out: Skipped) -> Gathered:
        """What is left after documents were left out, of which ``left_out`` is the account.

        Raises :class:`DataError` if none is left.
        """
        skipped = Skipped()
        skipped.merge(self.skipped)
        skipped.merge(left_out.to_dict())
        if not documents:
            raise DataError(f"filters and deduplication left no document ({skipped.listing()})")
        return replace(
            self, num_documents=documents, num_characters=characters, skipped=skipped.to_dict()
        )


def gather(
    work: Path,
    sources: Sequence[Found],
    fields: Fields,
    skipped: Skipped,
    progress: Progress,
    *,
    min_characters: int,
    part_characters: int,
    held_out: float,
) -> Gathered:
    """Write the parts' texts to ``work``; a gathering that finished before is taken as it is.

    ``held_out``: the share of documents to validate on. Raises :class:`DataError` where no source gives
    a document.
    """
    finished = work / _FILE
    if is_gathered(work):
        return Gathered(**json.loads(finished.read_text()))
    positions = _Positions()
    num_documents = held = 0
    sizes: list[int] = []
    part: list[Document] = []
    tags: Counter[str] = Counter()
    for document in _usable(sources, fields, skipped, min_characters):
        positions.add(hash_position(document.text))
        num_documents += 1
        part.append(document)
        if document.words:
            tags.update(document.words.tags)
        held += len(document.text)
        progress.advance(len(document.text), documents=1)
        if held >= part_characters:
            write_text(work, len(sizes), part)
            sizes.append(held)
            part, held = [], 0
    if part:
        write_text(work, len(sizes), part)
        sizes.append(held)
    if not num_documents:
        names = ", ".join(map(str, sources[:5]))
        reasons = f" (skipped: {skipped.listing()})" if skipped.reasons else ""
        way_out = how_to_read(skipped) or f"; {_way_out(skipped, fields)}"
        raise DataError(f"no document in {names}{reasons}{way_out}")
    gathered = Gathered(
        num_parts=len(sizes),
        num_documents=num_documents,
        num_characters=sum(sizes),
        part_characters=sizes,
        held_out_below=positions.threshold(held_out),
        skipped=skipped.to_dict(),
        by_lines=skipped.by_lines,
        tags=dict(sorted(tags.items())),
    )
    write_work(finished, json.dumps(asdict(gathered)).encode())
    return gathered


def is_gathered(work: Path) -> bool:
    """Whether all text was read."""
    return (work / _FILE).is_file()


def bound_again(work: Path, gathered: Gathered, held_out: float) -> Gathered:
    """With the bound of what is held out as it is for the documents that filters and deduplication left.

    It is the same for all but tiny corpora, and then few documents are read.
    """
    positions = _Positions()
    for number in range(gathered.num_parts) if held_out else ():
        for document in read_text(work, number):
            positions.add(hash_position(document.text))
            if positions.lowest < held_out <= positions.highest:  # neither split is empty
                return replace(gathered, held_out_below=held_out)
    return replace(gathered, held_out_below=positions.threshold(held_out))


def _way_out(skipped: Skipped, fields: Fields) -> str:
    """What can be done where no document is left, by why most were left out."""
    if not skipped.reasons:
        return "give a file with text"
    reason = max(skipped.counts, key=skipped.counts.__getitem__)
    if reason == fields.too_long:
        return "--set max_document_bytes=NUMBER takes longer ones"
    if reason.startswith("fewer than"):
        return "--set min_characters=NUMBER takes shorter ones"
    if reason.startswith("corrupt data"):
        return "copy it again, or name it without its last ending where it is not compressed at all"
    if reason.startswith("no text in field"):
        return "--set text_key=NAME names the field that holds the text"
    return "give a file with text that can be used"


def _usable(
    sources: Sequence[Found], fields: Fields, skipped: Skipped, min_characters: int
) -> Iterator[Document]:
    """The documents of all sources, those too short and too long left out and counted."""
    for source in sources:
        for document in source.documents(fields, skipped):
            if len(document.text) < min_characters:
                reason = f"fewer than {min_characters} characters"
                skipped.add(reason, document.id, len(document.text.encode()))
            elif _is_longer(document.text, fields.max_bytes):
                skipped.add(fields.too_long, document.id, len(document.text.encode()))
            elif fields.words_and_tags:
                yield document
            else:  # a tagger will say where the words are
                yield replace(document, words=None)


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
