"""Reads arrays of an .npz without trusting it: nothing is executed, nothing allocated on promise.

An .npz is a zip of .npy files. Headers are read first and compared with the sizes that the zip
states, so that a header that promises terabytes is refused before any memory is taken; large
arrays are then read in pieces. An array that is stored uncompressed can be read from any row on, past
the checksum of the zip.
"""

from __future__ import annotations

import math
import struct
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tokenize import TokenError
from typing import IO, Any, Final

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from planner.errors import InputError, Place, Problem, UsageError
from planner.inputs.printable import printable

CHUNK_BYTES: Final = 32 << 20
WHOLE_LIMIT_BYTES: Final = 4 << 30
_BOMB_BYTES: Final = 256 << 20
_BOMB_RATIO: Final = 200
"""Recorded ids shrink to a half or a third; deflate can do 1032 to 1."""
# RuntimeError: an encrypted zip; NotImplementedError, one of its kind: an unknown compression.
_BROKEN: Final = (zipfile.BadZipFile, zlib.error, EOFError, ValueError, OSError, RuntimeError, struct.error)
_LOCAL_HEADER: Final = struct.Struct("<4s5H3I2H")  # PKWARE APPNOTE 6.3.10, section 4.3.7

_READERS: Final = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
# What numpy's reader lets through where a header is no Python literal at all.
_NONSENSE: Final = (ValueError, TypeError, SyntaxError, TokenError, MemoryError, RecursionError)


@dataclass(frozen=True)
class ArrayHeader:
    """Shape and type of one array, as its header states them and its size in the zip confirms."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran: bool
    offset: int | None = None
    """Byte of the file at which the numbers begin; None if they are compressed."""
    packed_bytes: int = 0
    """Bytes that they take in the file."""

    @property
    def nbytes(self) -> int:
        """Bytes of the array in memory."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def seekable(self) -> bool:
        """Whether rows can be read from the middle without reading all before."""
        return self.offset is not None and not self.fortran


class NpzFile:
    """An opened .npz: headers known, arrays read when asked for."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.headers: dict[str, ArrayHeader] = {}
        try:
            with zipfile.ZipFile(path) as archive:
                for info in archive.infolist():
                    if info.filename.endswith(".npy"):
                        self._read_header(archive, info)
        except FileNotFoundError:
            raise UsageError(f"{path}: no such file") from None
        except PermissionError as error:
            raise UsageError(f"{path}: {error.strerror}") from None
        except _BROKEN as error:
            hint = "expected a file written by numpy.savez"
            raise InputError(Problem(f"not a readable .npz ({error})", Place(str(path)), hint)) from None

    def _read_header(self, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> None:
        name = info.filename.removesuffix(".npy")
        with archive.open(info) as stream:
            shape, fortran, dtype = read_header(stream)
            start = stream.tell()
        offset = self._offset(info) + start if info.compress_type == zipfile.ZIP_STORED else None
        header = ArrayHeader(name, shape, dtype, fortran, offset, info.compress_size)
        if dtype.hasobject:
            raise self.error(name, "holds Python objects, which are never loaded", "save plain numbers")
        if header.nbytes != info.file_size - start:
            stated = info.file_size - start
            raise self.error(name, f"{shape} of {dtype} is {header.nbytes:,} bytes, but {stated:,} are there")
        self.headers[name] = header

    def _offset(self, info: zipfile.ZipInfo) -> int:
        """Where the bytes of a member begin: behind its local header, name and extra field."""
        with self.path.open("rb") as file:
            file.seek(info.header_offset)
            *_, name_bytes, extra_bytes = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
        return int(info.header_offset + _LOCAL_HEADER.size + name_bytes + extra_bytes)

    def error(self, name: str, message: str, hint: str = "") -> InputError:
        """An error that names an array of this file."""
        return InputError(Problem(message, Place(str(self.path), key=printable(name)), hint))

    def whole(self, name: str) -> NDArray[Any]:
        """One array, all at once; refused above 4 GiB, or if it grows like a zip bomb."""
        header = self.headers[name]
        if header.nbytes > _BOMB_BYTES and header.nbytes > _BOMB_RATIO * header.packed_bytes:
            shrunk = f"{header.nbytes:,} bytes from {header.packed_bytes:,}: this grows like a zip bomb"
            raise self.error(name, shrunk, "if it is a trace, store it uncompressed: numpy.savez")
        if header.nbytes > WHOLE_LIMIT_BYTES:
            raise self.error(name, f"{header.nbytes >> 30} GiB is more than can be read at once")
        pieces = [piece for _, piece in self._pieces(header, max(1, header.nbytes))]
        flat = np.concatenate(pieces) if pieces else np.empty(0, header.dtype)
        return flat.reshape(header.shape, order="F" if header.fortran else "C")

    def rows(
        self, name: str, first: int = 0, end: int | None = None, block_bytes: int | None = None
    ) -> Iterator[tuple[int, NDArray[Any]]]:
        """Rows `first` to before `end` (default: all) of an array, in blocks: pairs of first row and block."""
        most = block_bytes or CHUNK_BYTES
        header = self.headers[name]
        last = header.shape[0] if end is None and header.shape else (end or 0)
        if header.fortran or not header.shape or header.nbytes <= most:
            yield first, self.whole(name)[first:last] if header.shape else self.whole(name)
            return
        row_bytes = max(1, header.nbytes // header.shape[0])
        rows = max(1, most // row_bytes)
        if header.offset is not None:
            yield from self._stored_rows(header, header.offset, range(first, last, rows), last)
            return
        for start, flat in self._pieces(header, rows * row_bytes):
            row, block = start // row_bytes, flat.reshape(-1, *header.shape[1:])
            inside = block[max(first - row, 0) : max(last - row, 0)]
            if len(inside):
                yield max(row, first), inside

    def _stored_rows(
        self, header: ArrayHeader, offset: int, begins: range, last: int
    ) -> Iterator[tuple[int, NDArray[Any]]]:
        row_bytes = header.nbytes // header.shape[0]
        with self.path.open("rb") as file:
            file.seek(offset + begins.start * row_bytes)
            for row in begins:
                wanted = min(begins.step, last - row) * row_bytes
                raw = file.read(wanted)
                if len(raw) < wanted:
                    raise self.error(header.name, "the file is cut off in the middle of this array")
                yield row, np.frombuffer(raw, header.dtype).reshape(-1, *header.shape[1:])

    def _pieces(self, header: ArrayHeader, piece_bytes: int) -> Iterator[tuple[int, NDArray[Any]]]:
        try:
            with (
                zipfile.ZipFile(self.path) as archive,
                archive.open(f"{header.name}.npy") as stream,
            ):
                read_header(stream)
                done = 0
                while done < header.nbytes:
                    wanted = min(piece_bytes, header.nbytes - done)
                    raw = stream.read(wanted)
                    if len(raw) < wanted:
                        raise self.error(header.name, "the file is cut off in the middle of this array")
                    yield done, np.frombuffer(raw, header.dtype)
                    done += wanted
        except _BROKEN as error:
            raise self.error(header.name, f"cannot be read: {error}") from None


def read_header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, Fortran order and type of a .npy file; the stream then stands at its numbers.

    Raises:
        ValueError: no header, or one that makes no sense.
    """
    version = npy.read_magic(stream)
    if version not in _READERS:
        raise ValueError(f".npy version {version} is not read")
    try:
        shape, fortran, dtype = _READERS[version](stream)
    except _NONSENSE as error:
        raise ValueError(str(error).partition("\n")[0] or "an array header that makes no sense") from error
    if any(type(length) is not int or length < 0 for length in shape):
        raise ValueError(f"shape is not valid: {shape}")
    return shape, fortran, dtype
