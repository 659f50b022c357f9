"""Filters: each part's documents go through datatrove's, before anything else sees them."""

from __future__ import annotations

import inspect
import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from chronomask.config import Config
from chronomask.errors import DataError, UsageError, nearest, need
from chronomask.prepare.read.files import Skipped
from chronomask.prepare.work import mark, read_mark, read_text, write_text
from chronomask.types import Document

__all__ = ["FILTER", "DatatroveFilter", "filter_part", "filtered_out"]


class DatatroveFilter(Config):
    """A filter of datatrove; documents that it refuses are skipped, counted and named."""

    kind: Literal[
        "gopher_quality", "gopher_repetition", "c4_quality", "fineweb_quality", "language"
    ]
    """Which of its filters; ``c4_quality`` also takes single lines out of a document."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Options of the filter's class that differ from its defaults, by their own names."""

    def step(self) -> Any:
        """The datatrove step; it is quiet, and its statistics are not used.

        Raises :class:`UsageError` for a missing package or an unknown option, :class:`DataError` where
        the filter refuses its options.
        """
        library = need("datatrove.pipeline.filters", "filters", f"filter {self.kind}")
        need("loguru", "filters", f"filter {self.kind}").logger.disable("datatrove")
        kinds = {
            "gopher_quality": library.GopherQualityFilter,
            "gopher_repetition": library.GopherRepetitionFilter,
            "c4_quality": library.C4QualityFilter,
            "fineweb_quality": library.FineWebQualityFilter,
            "language": library.LanguageFilter,
        }
        step = kinds[self.kind]
        known = [name for name in inspect.signature(step).parameters if name != "exclusion_writer"]
        for name in self.options:
            if name not in known:
                raise UsageError(
                    f"filter {self.kind} has no option '{name}'; {nearest(name, known)}"
                )
        try:
            return step(**self.options)
        except ImportError as error:
            raise UsageError(f"filter {self.kind} cannot be used: {error}") from None
        except (TypeError, ValueError) as error:
            raise DataError(f"filter {self.kind} refuses its options: {error}") from None


FILTER = "filter"
"""Name of the stage."""


def filter_part(filters: Sequence[DatatroveFilter], work: Path, number: int) -> None:
    """Task: filter a part; its mark is the account of what was left out."""
    steps, skipped = _steps(json.dumps([choice.to_dict() for choice in filters])), Skipped()
    passed = (_apply(document, steps, skipped) for document in read_text(work, number))
    kept = [document for document in passed if document is not None]
    write_text(work, number, kept, filtered=True)
    characters = sum(len(document.text) for document in kept)
    account = {"kept": len(kept), "characters": characters, "skipped": skipped.to_dict()}
    mark(work, FILTER, number, account)


def filtered_out(work: Path, num_parts: int) -> tuple[int, int, Skipped]:
    """Documents and characters that are left, and what was left out of all parts."""
    documents = characters = 0
    skipped = Skipped()
    for number in range(num_parts):
        account = read_mark(work, FILTER, number)
        documents += account["kept"]
        characters += account["characters"]
        skipped.merge(account["skipped"])
    return documents, characters, skipped


def _apply(
    document: Document, steps: Sequence[tuple[str, Any]], skipped: Skipped
) -> Document | None:
    """The document as the filters leave it, None if one refuses it."""
    from datatrove.data import Document as TheirDocument

    theirs = TheirDocument(text=document.text, id=document.id)
    for name, step in steps:
        answer = step.filter(theirs)
        passes, reason = answer if isinstance(answer, tuple) else (answer, "")
        if not passes:
            why = f"filter {name}" + (f": {reason}" if reason else "")
            skipped.add(why, document.id, len(document.text.encode()))
            return None
    if theirs.text == document.text:
        return document
    return Document(document.id, theirs.text, document.metadata)


@lru_cache(maxsize=1)
def _steps(filters: str) -> list[tuple[str, Any]]:
    """Name and step of each of some filters (as JSON), made once a process."""
    choices = [DatatroveFilter.parse(values) for values in json.loads(filters)]
    return [(choice.kind, choice.step()) for choice in choices]
