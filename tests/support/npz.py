"""The bytes of ``.npz`` files, whole ones and such as nobody writes in good faith."""

from __future__ import annotations

import io
import zipfile

import numpy as np


def npz(**arrays: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # pyright: ignore[reportArgumentType]
    return buffer.getvalue()


def npz_of_header(shape: tuple[int, ...], begin: bytes = b"") -> bytes:
    """An array of which there is the header alone; ``begin``: what stands in place of its first bytes."""
    header = io.BytesIO()
    values = {"descr": "<f8", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, values)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("label.npy", begin + header.getvalue()[len(begin) :])
    return buffer.getvalue()
