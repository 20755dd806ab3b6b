"""A single .npy array, in a file or in memory, read in blocks; nothing is allocated on promise."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from planner.trace.importers.found import bad
from planner.trace.npz import CHUNK_BYTES, read_header

_FORTRAN_BYTES: Final = 1 << 30
MAGIC: Final = b"\x93NUMPY"


@dataclass(frozen=True)
class NpyFile:
    """An opened .npy whose header agrees with the bytes that are there."""

    path: Path
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran: bool
    offset: int

    def blocks(self) -> Iterator[NDArray[Any]]:
        """Rows along the first axis, some at a time."""
        row_bytes = math.prod(self.shape[1:]) * self.dtype.itemsize
        rows = self.shape[0] if self.fortran else max(1, CHUNK_BYTES // max(1, row_bytes))
        with self.path.open("rb") as file:
            file.seek(self.offset)
            for first in range(0, self.shape[0], rows):
                count = min(rows, self.shape[0] - first)
                raw = file.read(count * row_bytes)
                if len(raw) < count * row_bytes:
                    raise bad(self.path, "the file became shorter while it was read")
                flat = np.frombuffer(raw, self.dtype)
                yield flat.reshape((count, *self.shape[1:]), order="F" if self.fortran else "C")


def open_npy(path: Path) -> NpyFile:
    """Check the header of a .npy file; raises `InputError` if it is broken or promises what is not there."""
    size = path.stat().st_size
    with path.open("rb") as file:
        shape, fortran, dtype, offset = _checked(file, size, path)
    if fortran and size > _FORTRAN_BYTES:
        hint = "save it in C order: numpy.save(PATH, numpy.ascontiguousarray(ARRAY))"
        raise bad(path, f"{size >> 30} GiB in Fortran order, which cannot be read token by token", hint)
    return NpyFile(path, shape, dtype, fortran, offset)


def array_of(raw: bytes, path: Path, key: str) -> NDArray[Any]:
    """The array in the bytes of a .npy file that came inside another file."""
    stream = io.BytesIO(raw)
    shape, fortran, dtype, offset = _checked(stream, len(raw), path, key)
    return np.frombuffer(raw, dtype, offset=offset).reshape(shape, order="F" if fortran else "C")


def _checked(stream: Any, size: int, path: Path, key: str = "") -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    try:
        shape, fortran, dtype = read_header(stream)
    except (ValueError, EOFError) as error:
        raise bad(path, f"not a readable .npy ({error})", "expected what numpy.save writes", key=key) from None
    if dtype.hasobject:
        raise bad(path, "holds Python objects, which are never loaded", "save plain numbers", key=key)
    offset = stream.tell()
    stated, there = math.prod(shape) * dtype.itemsize, size - offset
    if stated != there:
        hint = "cut off while it was copied? copy it again" if there < stated else "expected one array and nothing else"
        raise bad(path, f"{shape} of {dtype} is {stated:,} bytes, but {there:,} are there", hint, key=key)
    return shape, fortran, dtype, offset
