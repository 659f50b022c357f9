"""Reads ``.npz`` files, whose few bytes may stand for any number of them."""

from __future__ import annotations

import io
import math
from typing import Any
from zipfile import ZipFile, ZipInfo

import numpy as np
from numpy.typing import NDArray

__all__ = ["MOST_BYTES", "read_arrays"]

MOST_BYTES = 1 << 30
"""Of the arrays of one file together: far more than 10 million held-out rows take."""


def read_arrays(content: bytes, most: int = MOST_BYTES) -> dict[str, NDArray[Any]]:
    """The arrays in the bytes of an ``.npz`` file, by name, of any shape and type but objects.

    Raises ValueError where the bytes are damaged, or the arrays together take more than ``most`` bytes. That
    is known before memory is taken for them.
    """
    try:
        with ZipFile(io.BytesIO(content)) as archive:
            members = archive.infolist()
            size = sum(member.file_size for member in members)
            if size > most:
                raise ValueError(f"its arrays take {size:,} bytes, more than {most:,}")
            for member in members:
                _check_size(archive, member)
        with np.load(io.BytesIO(content), allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    except ValueError:
        raise
    except Exception as error:  # damaged bytes raise errors of many kinds here
        raise ValueError(str(error) or type(error).__name__) from error


def _check_size(archive: ZipFile, member: ZipInfo) -> None:
    """Raise ValueError where an array's header speaks of other bytes than are there."""
    formats = np.lib.format
    readers = {(1, 0): formats.read_array_header_1_0, (2, 0): formats.read_array_header_2_0}
    with archive.open(member) as file:
        read = readers.get(formats.read_magic(file))
        if read is None:
            raise ValueError(
                f"{member.filename} is of a version that numpy does not write for numbers"
            )
        shape, _, kind = read(file)
        size = file.tell() + math.prod(shape) * kind.itemsize
    if size != member.file_size:
        raise ValueError(
            f"{member.filename} is to take {size:,} bytes, and has {member.file_size:,}"
        )
