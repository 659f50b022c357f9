"""Data sets by name, through the ``datasets`` library, which is loaded when one is asked for."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from chronomask.errors import DataError, UsageError

__all__ = ["content_sha256", "is_hub", "load_split"]


def is_hub(data: Path) -> bool:
    """Whether ``--data hub`` was said, rather than a folder of that name meant."""
    return str(data) == "hub" and not data.exists()


def load_split(dataset: str, name: str | None, split: str) -> Any:
    """One split as a ``datasets.Dataset``; raises UsageError where it cannot be had."""
    try:
        import datasets
    except ImportError:
        raise UsageError(
            "--data hub needs the 'datasets' package: pip install 'chronomask[hub]', "
            "or name a folder that holds the files"
        ) from None
    shown = f"{dataset} ({name}, {split})" if name else f"{dataset} ({split})"
    try:
        loaded = datasets.load_dataset(dataset, name, split=split)
    except Exception as error:  # the library raises what its transport layers do
        first = next(iter(str(error).splitlines()), "")
        raise UsageError(
            f"{shown} cannot be had from the hub: {type(error).__name__}: {first}; "
            "name a folder that holds the files instead"
        ) from None
    if not len(loaded):
        raise DataError(f"{shown} is empty")
    return loaded


def content_sha256(*parts: Any) -> str:
    """SHA-256 over JSON-able content, where there is no file of ours to hash."""
    total = hashlib.sha256()
    for part in parts:
        total.update(json.dumps(part, ensure_ascii=False).encode("utf-8") + b"\n")
    return total.hexdigest()
