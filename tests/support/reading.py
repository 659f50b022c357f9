"""Sources read as a preparation reads them, and what a prepared folder holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from chronomask.prepare.config import PrepareConfig
from chronomask.prepare.read.left_out import Skipped
from chronomask.prepare.read.sources import find_sources
from chronomask.types import Document

TINY: dict[str, Any] = {
    "tagger": {"kind": "none"},
    "tokenizer": {"kind": "wordpiece", "vocab_size": 300},
    "row_length": 32,
    "held_out": 0.1,
    "part_characters": 5000,
    "workers": 1,
}
"""A preparation that a test can afford; without sources."""


def tiny_config(source: str | Path, *overrides: str, **values: Any) -> PrepareConfig:
    """The config of a tiny preparation of a source."""
    return PrepareConfig.parse(TINY | {"sources": [str(source)]} | values).replace(overrides)


def read(*sources: str | Path, **values: Any) -> tuple[list[Document], Skipped]:
    """The documents of sources, and the account of what was left out; ``values``: keys of the config."""
    skipped = Skipped()
    config = PrepareConfig.parse({"sources": [str(source) for source in sources]} | values)
    fields = config.fields()
    found = find_sources(config.sources, fields, skipped)
    return [d for source in found for d in source.documents(fields, skipped)], skipped


def files(folder: Path) -> dict[str, bytes]:
    """Name and content of every file in a folder."""
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }
