"""Sources: files, datasets of a hub and installed packages become documents in a fixed order.

Text that cannot be used is skipped, counted and named; a source that gives nothing at all, or cannot
be what it claims, is refused.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal, Protocol

from pydantic import Field

from chronomask.compressed import COMPRESSIONS
from chronomask.config import Alternative
from chronomask.errors import DataError, UsageError, in_words, nearest, need, printable
from chronomask.folders import is_of_training, what_it_is
from chronomask.prepare.read.files import SourceFile, file_state
from chronomask.prepare.read.find import (
    RemoteFile,
    check_regular,
    find_local,
    find_remote,
    is_address,
)
from chronomask.prepare.read.left_out import Skipped, list_names
from chronomask.prepare.read.packages import installed_versions, read_installed
from chronomask.prepare.read.readers import READERS, TAGGED_FORMATS
from chronomask.prepare.read.records import Fields, from_record
from chronomask.storage import as_a_shell_has_it
from chronomask.types import Document

__all__ = [
    "Files",
    "Found",
    "HubDataset",
    "InstalledPackages",
    "Source",
    "are_as_noted",
    "differences_from",
    "find_sources",
    "snapshot",
    "source_of_text",
]


class Found(Protocol):
    """What documents are read from in one go: a file, or what is no file."""

    def state(self) -> list[dict[str, Any]]:
        """What it is now: equal states mean that nothing has to be read again."""
        ...

    def documents(self, fields: Fields, skipped: Skipped) -> Iterator[Document]:
        """Its documents in order.

        Raises :class:`DataError` for a named file that is empty, what is not of its format, or a first
        record without the fields; :class:`UsageError` where a package is missing.
        """
        ...


class Source(Alternative):
    """Where text comes from."""

    @abstractmethod
    def find(self, fields: Fields, skipped: Skipped) -> Sequence[Found]:
        """What is to be read, in order; what is left out is counted.

        Raises :class:`UsageError` for what is not there, or cannot bring the words and tags that
        ``fields`` ask for.
        """


class Files(Source):
    """Text files: .txt, .jsonl, .csv, .tsv, .parquet, .conllu, .wet or .warc, each also with .gz, .xz
    or .zst.
    """

    kind: Literal["files"] = "files"
    path: str
    """A file, a folder (searched in depth, in sorted order) or a glob pattern; or an address of them
    that fsspec opens, such as ``s3://bucket/corpus/*.jsonl.zst``."""

    def find(self, fields: Fields, skipped: Skipped) -> Sequence[Found]:
        """Files of known formats; others in a folder are skipped and counted."""
        formats = TAGGED_FORMATS if fields.words_and_tags else tuple(READERS)
        if is_address(self.path) and not self.path.startswith("file://"):
            candidates, given = find_remote(self.path, skipped)
            return self._of_formats(candidates, given, formats, skipped)
        if not self.path:
            raise UsageError(
                "a source is empty text, as of a variable without a value; name a file or a folder, such as "
                ". for this one"
            )
        path = as_a_shell_has_it(self.path.removeprefix("file://"))
        if path.is_file():
            return self._of_formats([path], True, formats, skipped)
        if not path.is_dir():
            check_regular(path)
        if is_of_training(path):
            raise UsageError(f"source {printable(self.path)} is no text{what_it_is(path)}")
        files = find_local(path, skipped)
        if not files and not path.is_dir():
            is_pattern = any(mark in self.path for mark in "*?[")
            why = "matches no file" if is_pattern else "does not exist"
            raise UsageError(f"source {printable(self.path)} {why}; {_nearest_path(path)}")
        return self._of_formats(files, False, formats, skipped)

    def _of_formats(
        self,
        candidates: Sequence[Path | RemoteFile],
        given: bool,
        formats: Sequence[str],
        skipped: Skipped,
    ) -> list[_File]:
        """The files that can be read; ``given``: the path names a single one, which then must be one."""
        if given:
            file = _source_file(candidates[0], given=True)
            if file.format not in formats:
                raise UsageError(_no_words(f"source {printable(self.path)}"))
            return [_File(file)]
        files = []
        for candidate in candidates:
            if _format_of(candidate)[0] in formats:
                files.append(_File(_source_file(candidate, given=False)))
            else:
                size = file_state(candidate)["bytes"] or 0
                skipped.add("file of another format", str(candidate), size, "files")
        if not files:
            listing = f" ({skipped.summary()})" if skipped.reasons else ""
            raise UsageError(
                f"source {printable(self.path)} holds no {', '.join(formats)} file (each also with "
                f"{', '.join(COMPRESSIONS)}){what_it_is(Path(self.path))}{listing}"
            )
        return files


@dataclass(frozen=True, slots=True)
class _File:
    """A file of a known format, as something to read."""

    file: SourceFile

    def __str__(self) -> str:
        return self.file.name

    def state(self) -> list[dict[str, Any]]:
        return [file_state(self.file.path)]

    def documents(self, fields: Fields, skipped: Skipped) -> Iterator[Document]:
        try:
            size = file_state(self.file.path)["bytes"]
        except OSError as error:
            raise DataError(f"{self} cannot be read: {in_words(error)}") from None
        if size == 0 and self.file.given:
            raise DataError(f"{self} is empty (0 bytes); give a file with text")
        if size == 0:
            skipped.add("empty file", str(self), 0, "files")
            return
        gave_any, before = False, skipped.counts
        for document in READERS[self.file.format](self.file, fields, skipped):
            gave_any = True
            yield document
        if not gave_any and skipped.counts == before:
            skipped.add("file without a document", str(self), size or 0, "files")


def _no_words(source: str) -> str:
    return (
        f"{source} has no words with tags, which tagger.kind=column needs; give "
        f"{', '.join(TAGGED_FORMATS)} files, or choose another tagger"
    )


def _nearest_path(path: Path) -> str:
    parent = path.parent
    if not parent.is_dir():
        return f"nor does the folder {printable(parent)}"
    there = [printable(p.name) for p in sorted(parent.iterdir())[:1000]]
    return nearest(printable(path.name), there, listed=10)


def _format_of(path: Path | RemoteFile) -> tuple[str, str]:
    if isinstance(path, Path):
        name = path.name
    else:
        # The first link of the chain that has a path, without what a web server is asked beside the name.
        link = next((link for link in path.address.split("::") if "://" in link), path.address)
        name = re.split(r"[?#]", link)[0]
    suffixes = [suffix.lower() for suffix in PurePosixPath(name).suffixes]
    compression = suffixes.pop() if suffixes and suffixes[-1] in COMPRESSIONS else ""
    return (suffixes[-1] if suffixes else ""), compression


_ARCHIVES = {".zip": "zip", **dict.fromkeys((".tar", ".tar.gz", ".tar.xz", ".tar.bz2"), "tar")}
"""Extensions of archives that fsspec opens, and by which protocol."""
_CLOSED_ARCHIVES = (".tar.zst", ".tgz", ".txz", ".tbz2")
"""Extensions of archives that it does not: it goes back in them, or does not know the compression."""


def _source_file(path: Path | RemoteFile, given: bool) -> SourceFile:
    format_, compression = _format_of(path)
    if format_ not in READERS:
        way_out = f"{nearest(format_, READERS)} (each also with {', '.join(COMPRESSIONS)})"
        if isinstance(path, Path):
            way_out = _way_into_archive(path) or way_out
        raise UsageError(
            f"source {printable(path)} has the unknown extension '{printable(format_)}'; {way_out}"
        )
    return SourceFile(path, format_, compression, given)


def _way_into_archive(path: Path) -> str | None:
    """How the files of an archive are read; None for what is none."""
    name = path.name.lower()
    if name.endswith(_CLOSED_ARCHIVES):
        return "it is an archive: unpack it, and name the folder"
    protocol = next((_ARCHIVES[end] for end in _ARCHIVES if name.endswith(end)), None)
    if protocol is None:
        return None
    return f"its files are read as '{protocol}://**::{printable(path)}', or unpack it"


class InstalledPackages(Source):
    """English prose that is on every machine: docstrings and READMEs of installed Python packages."""

    kind: Literal["installed_packages"] = "installed_packages"
    max_bytes: int = Field(default=4_000_000, ge=1_000)
    """Stop after this much text, in bytes of UTF-8; every package gives a fair share of it."""

    def find(self, fields: Fields, skipped: Skipped) -> Sequence[Found]:
        """Itself."""
        if fields.words_and_tags:
            raise UsageError(_no_words(f"source {self.kind}"))
        return [self]

    def state(self) -> list[dict[str, Any]]:
        """Every package with its version."""
        return [{"package": name} for name in installed_versions()]

    def documents(self, fields: Fields, skipped: Skipped) -> Iterator[Document]:
        """One document per README and per module."""
        return read_installed(self.max_bytes)


class HubDataset(Source):
    """A dataset of the Hugging Face hub, or a folder of one, read as a stream."""

    kind: Literal["hub"] = "hub"
    name: str
    """Its name, ``owner/name``, or a folder."""
    config: str | None = None
    """Name of its configuration, where it has several."""
    split: str = "train"
    """Which of its splits to read."""
    revision: str | None = None
    """Commit or tag to read; None: the newest, which may change."""

    def __str__(self) -> str:
        return f"hub:{self.name}{f':{self.config}' if self.config else ''}@{self.split}"

    def find(self, fields: Fields, skipped: Skipped) -> Sequence[Found]:
        """Itself."""
        return [self]

    def state(self) -> list[dict[str, Any]]:
        """What tells two versions apart: a revision, if the config names one, and the files of a folder."""
        state: dict[str, Any] = {"hub": str(self), "revision": self.revision}
        folder = Path(self.name)
        if folder.is_dir():
            state["files"] = [file_state(file) for file in find_local(folder, Skipped())]
        return [state]

    def documents(self, fields: Fields, skipped: Skipped) -> Iterator[Document]:
        """One row a document; nothing is kept on disk."""
        datasets = need("datasets", "hub", f"source {self}")
        try:
            rows = iter(
                datasets.load_dataset(
                    self.name, self.config, split=self.split, revision=self.revision, streaming=True
                )
            )
            row = next(rows, None)
        except (
            Exception
        ) as error:  # missing, private, another split, no network: the library's words
            raise self._unreadable(error) from None
        if row is None:
            raise DataError(f"{self} has no rows")
        fields.require(row, self)
        number = 0
        while row is not None:
            assert isinstance(row, Mapping)
            document = from_record(row, fields, f"{self}:{number}", skipped)
            if document is not None:
                yield document
            number += 1
            try:
                row = next(rows, None)
            except Exception as error:
                raise self._unreadable(error) from None

    def _unreadable(self, error: Exception) -> DataError:
        return DataError(
            f"{self} cannot be read: {in_words(error)}; check its name, config and split and the network, or "
            "give its files instead"
        )


_HUB_NAME = re.compile(r"hub:(?P<name>[^:@]+)(:(?P<config>[^:@]+))?(@(?P<split>.+))?")


def source_of_text(value: Any) -> Any:
    """Keys of a source for a path, an address or ``hub:owner/name[:config][@split]``; else the value.

    Raises ValueError for a name of a hub dataset that is none.
    """
    if not isinstance(value, str):
        return value
    if not value.startswith("hub:"):
        return {"kind": "files", "path": value}
    match = _HUB_NAME.fullmatch(value)
    if match is None:
        raise ValueError("not of the form hub:owner/name[:config][@split]")
    return {"kind": "hub"} | {k: v for k, v in match.groupdict().items() if v is not None}


def find_sources(sources: Sequence[Source], fields: Fields, skipped: Skipped) -> list[Found]:
    """What is to be read of all sources, in order; raises as :meth:`Source.find` does."""
    return [found for source in sources for found in source.find(fields, skipped)]


def are_as_noted(now: Sequence[Mapping[str, Any]], noted: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a snapshot is as one that was noted before, in which an older version may have noted less."""
    return len(now) == len(noted) and all(
        value is None or entry.get(key) == value
        for entry, before in zip(now, noted, strict=True)
        for key, value in before.items()
    )


def differences_from(noted: Sequence[Mapping[str, Any]], now: Sequence[Mapping[str, Any]]) -> str:
    """The first names of what is new, gone and changed in a snapshot, in brackets; "" where none is known."""
    before, after = ({_name_in(entry): entry for entry in entries} for entries in (noted, now))
    names = {
        "new": [name for name in after if name not in before],
        "gone": [name for name in before if name not in after],
        "changed": [
            name
            for name in after
            if name in before and not are_as_noted([after[name]], [before[name]])
        ],
    }
    told = "; ".join(f"{what}: {list_names(those)}" for what, those in names.items() if those)
    return f" ({told})" if told else ""


def _name_in(entry: Mapping[str, Any]) -> str:
    """What a snapshot calls a file, a data set or a package."""
    return next((str(entry[key]) for key in ("file", "hub", "package") if key in entry), str(entry))


def snapshot(sources: Sequence[Found]) -> list[dict[str, Any]]:
    """What the sources are now: equal snapshots mean that nothing has to be read again."""
    return [state for source in sources for state in source.state()]
