"""A set of .jsonl files, in a folder or an archive: read whole, and never unpacked onto the disk."""

from __future__ import annotations

import hashlib
import io
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO

from chronomask.compressed import Bounded, damage_errors, decompressed
from chronomask.errors import DataError, UsageError
from chronomask.evaluate.task import files_in
from chronomask.storage import bytes_sha256
from chronomask.text_files import UNPACKED_LIMIT

__all__ = ["read_jsonl_files", "sha256_of_contents"]

FOLDER_LIMIT = 1_000_000_000
"""Bytes that are read of a folder; what is too large for an archive is unpacked into one."""
_COMPRESSIONS = {".tar.xz": ".xz", ".tar.gz": ".gz", ".tgz": ".gz", ".tar.bz2": ".bz2", ".tar": ""}
_ARCHIVES = (*_COMPRESSIONS, ".zip")


def read_jsonl_files(place: Path, called: str) -> dict[str, bytes]:
    """The .jsonl files by name, in order of name; raises UsageError if there is none, DataError for damage.

    ``place`` is an archive, or a folder with .jsonl files in it or one folder below, or with one archive;
    ``called`` is what messages call the set. An archive is read up to :data:`UNPACKED_LIMIT` bytes, a folder
    up to :data:`FOLDER_LIMIT`.
    """
    if place.is_file():
        found = _in_archive(place, called)
    elif not place.is_dir():
        raise UsageError(f"{place} does not exist: name a folder with {called}, or its archive")
    else:
        files = files_in(place, (".jsonl",), below=True)
        archives = files_in(place, _ARCHIVES)
        if files:
            found = _in_folder(files, place, called)
        elif len(archives) == 1:
            found = _in_archive(archives[0], called)
        else:
            why = f"{len(archives)} archives" if archives else "no .jsonl file and no archive"
            raise UsageError(
                f"{place} holds {why}: {called} is a folder of .jsonl files or one archive of them "
                f"({', '.join(_ARCHIVES)})"
            )
    by_name: dict[str, tuple[str, bytes]] = {}
    for path, content in found:
        name = PurePosixPath(path).name
        if name in by_name:
            raise DataError(
                f"{place} holds two files called {name} ({by_name[name][0]} and {path}): rename one of "
                f"them if both belong to {called}, or remove one"
            )
        by_name[name] = path, content
    if not by_name:
        raise DataError(f"{place} holds no .jsonl file: it is not {called}")
    return {name: content for name, (_, content) in sorted(by_name.items())}


def sha256_of_contents(found: dict[str, bytes]) -> str:
    """SHA-256 over the files' content in order of name: the same for a folder and its archive."""
    total = hashlib.sha256()
    for content in found.values():
        total.update(bytes.fromhex(bytes_sha256(content)))
    return total.hexdigest()


def _in_folder(files: list[Path], place: Path, called: str) -> list[tuple[str, bytes]]:
    """Names and contents of a folder's files, up to :data:`FOLDER_LIMIT` bytes of them together."""
    refusal = (
        f"the .jsonl files in {place} have more than {FOLDER_LIMIT:,} bytes: name a folder with the files of "
        f"{called} alone"
    )
    found, left = [], FOLDER_LIMIT
    try:
        for path in files:
            with path.open("rb") as raw:
                content = Bounded(raw, left, refusal).readall()
            left -= len(content)
            found.append((path.relative_to(place).as_posix(), content))
    except OSError as error:
        raise DataError(f"{error.filename} cannot be read: {error.strerror}") from None
    return found


def _in_archive(path: Path, called: str) -> list[tuple[str, bytes]]:
    """Names and contents of an archive's .jsonl files; raises DataError for one that cannot be read."""
    if not path.name.endswith(_ARCHIVES):
        raise UsageError(
            f"{path} is not an archive of {called}: its name must end in {', '.join(_ARCHIVES)}"
        )
    members = _in_zip if path.name.endswith(".zip") else _in_tar
    try:
        with path.open("rb") as raw:
            return list(members(raw, path))
    except (
        tarfile.TarError,
        zipfile.BadZipFile,
        NotImplementedError,
        *damage_errors(),
        OSError,
    ) as error:
        raise DataError(
            f"{path} cannot be read as an archive ({error}): it is damaged or cut short, download it again"
        ) from None


def _in_tar(raw: IO[bytes], path: Path) -> Iterator[tuple[str, bytes]]:
    compression = next(_COMPRESSIONS[end] for end in _COMPRESSIONS if path.name.endswith(end))
    with _unpack(raw, compression) as handle:
        # Read as a stream, header by header: whatever a header says, no more than the limit is read.
        bounded = io.BufferedReader(Bounded(handle, UNPACKED_LIMIT, _too_large(path)))
        left = UNPACKED_LIMIT
        with tarfile.open(fileobj=bounded, mode="r|") as archive:
            for member in archive:
                if member.isfile() and _is_wanted(member.name):
                    left -= member.size  # a sparse file may be larger than what is stored of it
                    if left < 0:
                        raise DataError(_too_large(path))
                    content = archive.extractfile(member)
                    assert content is not None  # of a file
                    yield member.name, content.read()


def _unpack(raw: IO[bytes], compression: str) -> IO[bytes]:
    if compression == ".bz2":
        import bz2

        return bz2.BZ2File(raw)  # pyright: ignore[reportReturnType]
    return decompressed(raw, compression)


def _in_zip(raw: IO[bytes], path: Path) -> Iterator[tuple[str, bytes]]:
    unpack = "unpack it and name the folder instead"
    with zipfile.ZipFile(raw) as archive:
        members = [member for member in archive.infolist() if _is_wanted(member.filename)]
        # Never more than its stated size is read of a member.
        if sum(member.file_size for member in members) > UNPACKED_LIMIT:
            raise DataError(_too_large(path))
        for member in members:
            if member.flag_bits & 1:
                raise DataError(f"{path}: {member.filename} is encrypted: {unpack}")
            if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise DataError(
                    f"{path}: {member.filename} is compressed by another method than deflate: {unpack}"
                )
            yield member.filename, archive.read(member)


def _too_large(path: Path) -> str:
    return (
        f"{path} unpacks to more than {UNPACKED_LIMIT:,} bytes, and BLiMP to 30 million: if that is "
        "right, unpack it and name the folder instead"
    )


def _is_wanted(name: str) -> bool:
    parts = PurePosixPath(name).parts
    return name.endswith(".jsonl") and not any(part.startswith(".") for part in parts)
