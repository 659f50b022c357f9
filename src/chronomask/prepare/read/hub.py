"""Datasets of the Hugging Face hub by name, read as a stream: nothing is kept on disk.

May enter: what turns a dataset's rows into documents.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from chronomask.errors import DataError, UsageError
from chronomask.prepare.read.files import Skipped
from chronomask.prepare.read.readers import Fields, from_record
from chronomask.types import Document

if TYPE_CHECKING:
    from chronomask.prepare.config import HubDataset

__all__ = ["hub_state", "read_hub"]


def hub_state(source: HubDataset) -> dict[str, Any]:
    """What tells two versions apart: a revision, if the config names one."""
    return {"hub": _label(source), "revision": source.revision}


def read_hub(source: HubDataset, fields: Fields, skipped: Skipped) -> Iterator[Document]:
    """One row a document. Raises :class:`UsageError` without the package, :class:`DataError` else."""
    try:
        import datasets
    except ImportError:
        raise UsageError(
            f"source {_label(source)} needs the package datasets; pip install 'chronomask[hub]'"
        ) from None
    label = _label(source)
    try:
        rows = iter(
            datasets.load_dataset(
                source.name,
                source.config,
                split=source.split,
                revision=source.revision,
                streaming=True,
            )
        )
        first = next(rows, None)
    except Exception as error:  # missing, private, another split, no network: the library's words
        raise DataError(_unreadable(label, error)) from None
    if first is None:
        raise DataError(f"{label} has no rows")
    fields.require(first, label)
    number, row = 0, first
    while row is not None:
        assert isinstance(row, Mapping)
        yield from from_record(row, fields, f"{label}:{number}", skipped)
        number += 1
        try:
            row = next(rows, None)
        except Exception as error:
            raise DataError(_unreadable(label, error)) from None


def _label(source: HubDataset) -> str:
    config = f":{source.config}" if source.config else ""
    return f"hub:{source.name}{config}@{source.split}"


def _unreadable(label: str, error: Exception) -> str:
    said = " ".join(str(error).split())[:300] or type(error).__name__
    return (
        f"{label} cannot be read: {said}; check its name, config and split and the network, or give its "
        "files instead"
    )
