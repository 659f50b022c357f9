"""Sources: files, folders and installed packages become documents in a fixed order.

Text that cannot be used is skipped, counted and named; a source that gives nothing at all, or cannot
be what it claims, is refused. May enter: kinds of sources, and finding the files.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from chronomask.errors import DataError, UsageError, nearest
from chronomask.prepare.config import (
    ColumnTagger,
    Files,
    HubDataset,
    InstalledPackages,
    PrepareConfig,
    Source,
    Tagger,
)
from chronomask.prepare.read.addresses import RemoteFile, find_remote, is_address
from chronomask.prepare.read.files import Skipped, SourceFile
from chronomask.prepare.read.hub import hub_state, read_hub
from chronomask.prepare.read.readers import READERS, TAGGED_FORMATS, Fields
from chronomask.prepare.read.warc import read_warc
from chronomask.storage import COMPRESSIONS
from chronomask.types import Document

__all__ = [
    "AnySource",
    "fields_of",
    "fields_of_config",
    "file_state",
    "find_sources",
    "read_documents",
    "snapshot",
]

WARC_FORMATS = (".wet", ".warc")
FORMATS = (*READERS, *WARC_FORMATS)

AnySource = SourceFile | InstalledPackages | HubDataset
"""What documents are read from: a file, or what is no file."""


def fields_of(text_key: str, tagger: Tagger) -> Fields:
    """What to read of a record: its text, or the words and tags of ``tagger.kind=column``."""
    tagged = isinstance(tagger, ColumnTagger)
    return Fields(text_key, (tagger.words_key, tagger.tags_key) if tagged else None)


def fields_of_config(config: PrepareConfig) -> Fields:
    """As :func:`fields_of`, with the document's id and metadata, and the bound of its size."""
    return replace(
        fields_of(config.text_key, config.tagger),
        max_bytes=config.max_document_bytes,
        id_key=config.id_key,
        metadata_keys=config.metadata_keys,
    )


def find_sources(sources: Sequence[Source], fields: Fields, skipped: Skipped) -> list[AnySource]:
    """Every file to read, in order; files of other kinds in a folder are skipped and counted.

    Raises :class:`UsageError` for a path that does not exist, has an unknown extension, holds no
    file of a known format, or cannot bring the words and tags that ``fields`` ask for.
    """
    found: list[AnySource] = []
    for source in sources:
        if isinstance(source, Files):
            found.extend(_find_files(source, fields, skipped))
        elif fields.words_and_tags and not isinstance(source, HubDataset):
            raise UsageError(_no_words(f"source {source.kind}"))
        else:
            found.append(source)
    return found


def _no_words(source: str) -> str:
    return (
        f"{source} has no words with tags, which tagger.kind=column needs; give "
        f"{', '.join(TAGGED_FORMATS)} files, or choose another tagger"
    )


def _find_files(source: Files, fields: Fields, skipped: Skipped) -> list[SourceFile]:
    formats = TAGGED_FORMATS if fields.words_and_tags else FORMATS
    if is_address(source.path):
        candidates, named = find_remote(source.path)
        return _of_formats(candidates, named, formats, source, skipped)
    path = Path(source.path).expanduser()
    if path.is_file():
        return _of_formats([path], True, formats, source, skipped)
    if path.is_dir():
        candidates = sorted(p for p in path.rglob("*") if p.is_file())
    else:
        # Not Path.glob, which refuses absolute patterns.
        names = sorted(glob.glob(str(path), recursive=True))  # noqa: PTH207
        candidates = [file for file in map(Path, names) if file.is_file()]
        if not candidates:
            raise UsageError(f"source {source.path} does not exist; {_nearest_path(path)}")
    return _of_formats(candidates, False, formats, source, skipped)


def _of_formats(
    candidates: Sequence[Path | RemoteFile],
    named: bool,
    formats: Sequence[str],
    source: Files,
    skipped: Skipped,
) -> list[SourceFile]:
    """The files that can be read; ``named`` where the source is a single one, which then must be."""
    if named:
        file = _source_file(candidates[0], named=True)
        if file.format not in formats:
            raise UsageError(_no_words(f"source {source.path}"))
        return [file]
    files = []
    for candidate in candidates:
        if _format_of(candidate)[0] in formats:
            files.append(_source_file(candidate, named=False))
        else:
            skipped.add("file of another format", str(candidate))
    if not files:
        raise UsageError(
            f"source {source.path} holds no {', '.join(formats)} file (each also with "
            f"{', '.join(COMPRESSIONS)})"
        )
    return files


def _nearest_path(path: Path) -> str:
    parent = path.parent
    if not parent.is_dir():
        return f"nor does the folder {parent}"
    return nearest(path.name, [p.name for p in sorted(parent.iterdir())[:50]])


def _format_of(path: Path | RemoteFile) -> tuple[str, str]:
    # Of an address the first link of the chain, without what a web server is asked beside the name.
    name = re.split(r"::|[?#]", path.address)[0] if isinstance(path, RemoteFile) else path.name
    suffixes = [suffix.lower() for suffix in PurePosixPath(name).suffixes]
    compression = suffixes.pop() if suffixes and suffixes[-1] in COMPRESSIONS else ""
    return (suffixes[-1] if suffixes else ""), compression


def _source_file(path: Path | RemoteFile, named: bool) -> SourceFile:
    format_, compression = _format_of(path)
    if format_ not in FORMATS:
        raise UsageError(
            f"source {path} has the unknown extension '{format_}'; "
            f"{nearest(format_, FORMATS)} (each also with {', '.join(COMPRESSIONS)})"
        )
    return SourceFile(path, format_, compression, named)


def snapshot(sources: Sequence[AnySource]) -> list[dict[str, Any]]:
    """What the sources are now: equal snapshots mean that nothing has to be read again."""
    result: list[dict[str, Any]] = []
    for source in sources:
        if isinstance(source, InstalledPackages):
            from chronomask.prepare.read.installed import installed_versions

            result += [{"package": name} for name in installed_versions()]
        elif isinstance(source, HubDataset):
            result.append(hub_state(source))
        else:
            result.append(file_state(source.path))
    return result


def file_state(path: Path | RemoteFile) -> dict[str, Any]:
    """Name, size and time of change of a file, or what its file system has instead."""
    if isinstance(path, RemoteFile):
        return path.state()
    status = path.stat()
    return {"file": str(path), "bytes": status.st_size, "modified_ns": status.st_mtime_ns}


def read_documents(source: AnySource, fields: Fields, skipped: Skipped) -> Iterator[Document]:
    """The documents of one source in order.

    Raises :class:`DataError` for a named file that is empty, a file that is not of its format, or a
    first record without the fields.
    """
    if isinstance(source, InstalledPackages):
        from chronomask.prepare.read.installed import read_installed

        yield from read_installed(source.max_bytes)
        return
    if isinstance(source, HubDataset):
        yield from read_hub(source, fields, skipped)
        return
    try:
        empty = file_state(source.path)["bytes"] == 0
    except OSError as error:
        raise DataError(f"{source.path} cannot be read: {error.strerror}") from None
    if empty:
        if source.named:
            raise DataError(f"{source.path} is empty (0 bytes); give a file with text")
        skipped.add("empty file", str(source.path))
        return
    read = read_warc if source.format in WARC_FORMATS else READERS[source.format]
    yield from read(source, fields, skipped)
