"""Compressed files: unpacked as they are read, never further than memory allows.

A few bytes can stand for a full memory, by what they unpack to or by how far a decompressor must look
back. Both have a bound here, and what is beyond it is refused with a way out.
"""

from __future__ import annotations

import io
import lzma
import zlib
from typing import IO, Any

from chronomask.errors import DataError, UsageError

__all__ = ["COMPRESSIONS", "Bounded", "damage_errors", "decompressed"]

COMPRESSIONS = (".gz", ".xz", ".zst")
"""Ends of the names of compressed files that :func:`decompressed` opens."""

_BLOCK = 1 << 16
_PIECE = 1 << 10
"""What a frame is given at a time: four bytes of .zst may stand for 128 KiB, so this for 32 MiB."""
_WINDOW_LIMIT = 1 << 27
"""Most bytes of text behind it that a decompressor may look back to, and so holds."""
_LONGEST_FRAME_HEADER = 18


def decompressed(raw: IO[bytes], compression: str, name: object = None) -> IO[bytes]:
    """The bytes inside ``raw``; ``compression`` is one of :data:`COMPRESSIONS`, or "" for none.

    Reading it raises one of :func:`damage_errors` where the data are damaged or end too early, and
    DataError, naming ``name``, where unpacking would hold more than 128 MiB. What is unpacked is not
    seekable. Raises UsageError where ``.zst`` is asked for without the package it needs.
    """
    name = name or getattr(raw, "name", "the compressed file")
    if compression == ".gz":
        import gzip

        return gzip.GzipFile(fileobj=raw)  # pyright: ignore[reportReturnType]
    if compression == ".xz":
        return io.BufferedReader(_XzFile(raw, name), _BLOCK)
    if compression == ".zst":
        return io.BufferedReader(_ZstdFile(raw, name), _BLOCK)
    return raw


def damage_errors() -> tuple[type[Exception], ...]:
    """What reading damaged compressed data raises, beside OSError for the disk's own errors."""
    import gzip

    known = (EOFError, gzip.BadGzipFile, lzma.LZMAError, zlib.error)
    try:
        import zstandard
    except ImportError:
        return known
    return (*known, zstandard.ZstdError)


class Bounded(io.RawIOBase):
    """A stream that is read at most ``limit`` bytes far, so that few bytes cannot unpack to a full memory.

    Reading further raises DataError, with ``refusal`` for its message.
    """

    def __init__(self, raw: IO[bytes], limit: int, refusal: str) -> None:
        self._raw, self._left, self._refusal = raw, limit, refusal

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        block = self._raw.read(min(len(buffer), self._left + 1))
        if len(block) > self._left:
            raise DataError(self._refusal)
        self._left -= len(block)
        buffer[: len(block)] = block
        return len(block)


class _Frames(io.RawIOBase):
    """What is unpacked from frames that follow one another; a missing end is an EOFError.

    Input is handed over in small pieces, so that a frame that unpacks to a multiple of a thousand
    is never held as a whole.
    """

    padding = b""
    """Bytes that may stand between frames and mean nothing."""

    def __init__(self, raw: IO[bytes], name: object) -> None:
        self._raw, self._name = raw, name
        self._block, self._at = b"", 0  # input, and how much of it was handed over
        self._frame = self._new_frame()
        self._head = b""  # the first bytes of the frame
        self._left = b""  # unpacked and not yet read
        self._left_at = 0

    def _new_frame(self) -> Any:
        """A decompressor of one frame, with ``decompress``, ``eof`` and ``unused_data``."""
        raise NotImplementedError

    def _refusal(self) -> str:
        """What is wrong with a frame that takes too much memory, and what to do."""
        raise NotImplementedError

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        while self._left_at == len(self._left):
            if not self._unpack_some():
                return 0
        size = min(len(buffer), len(self._left) - self._left_at)
        buffer[:size] = self._left[self._left_at : self._left_at + size]
        self._left_at += size
        return size

    def _unpack_some(self) -> bool:
        """Unpack the next piece, maybe to nothing; False at the end of the last frame."""
        if self._frame.eof and self.padding:
            self._block, self._at = self._block[self._at :].lstrip(self.padding), 0
        if self._at == len(self._block):
            self._block, self._at = self._raw.read(_BLOCK), 0
            if not self._block:
                if not self._frame.eof:
                    raise EOFError("compressed file ended before the end of its frame")
                return False
            return True  # padding may go on
        if self._frame.eof:
            self._frame, self._head = self._new_frame(), b""
        piece = self._block[self._at : self._at + _PIECE]
        self._head = (self._head + piece)[:_LONGEST_FRAME_HEADER]
        try:
            self._left, self._left_at = self._frame.decompress(piece), 0
        except damage_errors() as error:
            if "memory" in str(error).lower():
                raise DataError(self._refusal()) from None
            raise
        self._at += len(piece) - len(self._frame.unused_data)
        return True


class _XzFile(_Frames):
    padding = b"\0"

    def _new_frame(self) -> Any:
        return lzma.LZMADecompressor(memlimit=_WINDOW_LIMIT)

    def _refusal(self) -> str:
        return (
            f"{self._name} takes more than {_WINDOW_LIMIT:,} bytes of memory to unpack, by its dictionary: "
            "compress it again with a smaller one: xz -dc OLD | xz -6 > NEW"
        )


class _ZstdFile(_Frames):
    def __init__(self, raw: IO[bytes], name: object) -> None:
        try:
            import zstandard
        except ImportError:
            raise UsageError(
                ".zst files need the 'zstandard' package: pip install 'chronomask[prepare]', "
                "or decompress the file first"
            ) from None
        self._library = zstandard
        self._unpack = zstandard.ZstdDecompressor(max_window_size=_WINDOW_LIMIT)
        super().__init__(raw, name)

    def _new_frame(self) -> Any:
        return self._unpack.decompressobj()

    def _refusal(self) -> str:
        window = self._library.get_frame_parameters(self._head).window_size
        return (
            f"{self._name} was compressed with a window of {window:,} bytes, which unpacking it would hold; "
            f"at most {_WINDOW_LIMIT:,} are taken: compress it again: zstd -dc --long=31 OLD | zstd -o NEW"
        )
