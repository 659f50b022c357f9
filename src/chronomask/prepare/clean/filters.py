"""Optional stage: each part's documents through datatrove's filters, before anything else sees them.

May enter: filters by name, and running them over a part.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from chronomask.errors import DataError, UsageError, nearest
from chronomask.prepare.config import DatatroveFilter
from chronomask.prepare.read.files import Skipped
from chronomask.prepare.tasks import mark_file
from chronomask.prepare.work import read_text, write_filtered
from chronomask.storage import write_bytes
from chronomask.types import Document

__all__ = ["check_filters", "filter_part", "filtered_out", "write_choice"]

_CHOICE = "filters.json"


def check_filters(filters: Sequence[DatatroveFilter]) -> None:
    """Raises :class:`UsageError`, before any work, for a missing package or an unknown option."""
    for choice in filters:
        _build(choice)


def write_choice(work: Path, filters: Sequence[DatatroveFilter]) -> None:
    """Leave for the workers which filters to run."""
    choices = [choice.to_dict() for choice in filters]
    write_bytes(work / _CHOICE, json.dumps(choices).encode())


def filter_part(
    data: Any = None, rank: int = 0, world_size: int = 1, *, work: Path
) -> Iterator[dict[str, Any]]:
    """Filter part ``rank``; yields what was left out. A part that is done already is left alone."""
    mark = mark_file(work, "filter", rank)
    if mark.is_file():
        return
    filters = _filters((work / _CHOICE).read_text())
    skipped = Skipped()
    kept = [
        changed
        for document in read_text(work, rank)
        if (changed := _passed(document, filters, skipped)) is not None
    ]
    write_filtered(work, rank, kept)
    told = {"kept": len(kept), "characters": sum(len(document.text) for document in kept)}
    told |= {"skipped": skipped.to_dict()}
    write_bytes(mark, json.dumps(told, ensure_ascii=False).encode())
    yield told


def filtered_out(work: Path, num_parts: int) -> tuple[int, int, Skipped]:
    """Documents and characters that are left, and what was left out of all parts."""
    documents = characters = 0
    skipped = Skipped()
    for number in range(num_parts):
        told = json.loads(mark_file(work, "filter", number).read_text(encoding="utf-8"))
        documents += told["kept"]
        characters += told["characters"]
        skipped.merge(told["skipped"])
    return documents, characters, skipped


def _passed(
    document: Document, filters: Sequence[tuple[str, Any]], skipped: Skipped
) -> Document | None:
    from datatrove.data import Document as TheirDocument

    theirs = TheirDocument(text=document.text, id=document.id)
    for name, step in filters:
        answer = step.filter(theirs)
        passes, reason = answer if isinstance(answer, tuple) else (answer, "")
        if not passes:
            skipped.add(f"filter {name}" + (f": {reason}" if reason else ""), document.id)
            return None
    if theirs.text == document.text:
        return document
    return Document(document.id, theirs.text, document.metadata)


@lru_cache(maxsize=1)
def _filters(choices: str) -> list[tuple[str, Any]]:
    return [
        (choice.kind, _build(choice))
        for choice in TypeAdapter(list[DatatroveFilter]).validate_json(choices)
    ]


def _build(choice: DatatroveFilter) -> Any:
    """The datatrove step; it is quiet, and its statistics are not used."""
    try:
        from datatrove.pipeline import filters as library
        from loguru import logger
    except ImportError:
        raise UsageError(
            f"filter {choice.kind} needs the package datatrove; pip install 'chronomask[filters]'"
        ) from None
    logger.disable("datatrove")
    kinds = {
        "gopher_quality": library.GopherQualityFilter,
        "gopher_repetition": library.GopherRepetitionFilter,
        "c4_quality": library.C4QualityFilter,
        "fineweb_quality": library.FineWebQualityFilter,
        "language": library.LanguageFilter,
    }
    kind = kinds[choice.kind]
    known = [name for name in inspect.signature(kind).parameters if name != "exclusion_writer"]
    for name in choice.options:
        if name not in known:
            raise UsageError(f"filter {choice.kind} has no option '{name}'; {nearest(name, known)}")
    try:
        return kind(**choice.options)
    except ImportError as error:
        raise UsageError(f"filter {choice.kind} cannot be used: {error}") from None
    except (TypeError, ValueError) as error:
        raise DataError(f"filter {choice.kind} refuses its options: {error}") from None
