"""Writes the native `trace.npz` piece by piece, so that a trace of any length takes little memory.

Arrays are stored uncompressed: expert ids hardly compress, and so every part of the file can be
read on its own, by several processes at once (`planner/trace/npz.py`).
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from planner.files import replacing
from planner.trace.npz import CHUNK_BYTES

_EPOCH: Final = (1980, 1, 1, 0, 0, 0)  # the zip format's first day: the same trace, the same bytes
Array = NDArray[Any]


@dataclass(frozen=True)
class Column:
    """An array that is made block by block while it is written."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    blocks: Iterable[Array]
    """Together all rows, in order."""


def write_npz(path: Path, arrays: Mapping[str, Array | Column]) -> None:
    """Write an .npz, whole or not at all.

    Args:
        path: the file.
        arrays: name to array; a `Column` is asked for its blocks one by one.

    Raises:
        MissingEnvironmentError: no room, or no permission to write.
    """
    with replacing(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            column = array if isinstance(array, Column) else Column(array.shape, array.dtype, [array])
            with archive.open(zipfile.ZipInfo(f"{name}.npy", _EPOCH), "w", force_zip64=True) as stream:
                _write_array(stream, column)


def _write_array(stream: IO[bytes], column: Column) -> None:
    header = {"descr": npy.dtype_to_descr(column.dtype), "fortran_order": False, "shape": column.shape}
    npy.write_array_header_1_0(stream, header)
    rows = 0
    for block in column.blocks:
        assert (block.shape[1:], block.dtype) == (column.shape[1:], column.dtype)
        rows += len(block) if block.shape else 0
        stream.write(np.ascontiguousarray(block).tobytes())
    assert not column.shape or rows == column.shape[0]


def _as_is(block: Array) -> Array:
    return block


class Spool:
    """Arrays that grow on disk, some rows at a time, until it is known what to make of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files: dict[str, IO[bytes]] = {}
        self._rows: dict[str, int] = {}
        self._kind: dict[str, tuple[tuple[int, ...], np.dtype[Any]]] = {}

    def append(self, name: str, rows: Array) -> None:
        """Add rows at the end of an array; all must be alike in type and shape."""
        kind = (rows.shape[1:], rows.dtype)
        if name not in self._files:
            self._files[name] = (self.folder / name).open("wb")
            self._rows[name], self._kind[name] = 0, kind
        assert self._kind[name] == kind
        self._files[name].write(np.ascontiguousarray(rows).data)
        self._rows[name] += len(rows)

    def retype(self, name: str, dtype: np.dtype[Any]) -> None:
        """Change the type of an array that has grown already."""
        if name not in self._files or self._kind[name][1] == dtype:
            return
        shape, _ = self._kind[name]
        wider = self.folder / f"{name}.wider"
        with wider.open("wb") as file:
            for block in self._blocks(name):
                file.write(block.astype(dtype).data)
        self._files[name].close()
        wider.replace(self.folder / name)
        self._files[name], self._kind[name] = (self.folder / name).open("ab"), (shape, dtype)

    def names(self) -> list[str]:
        """Arrays begun so far."""
        return list(self._rows)

    def rows(self, name: str) -> int:
        """Rows of an array so far; 0 if it was not begun."""
        return self._rows.get(name, 0)

    def column(self, name: str, change: Callable[[Array], Array] = _as_is) -> Column:
        """An array as far as it has grown; `change` is applied to each block and must keep its rows."""
        shape, dtype = self._kind[name]
        changed = change(np.zeros((0, *shape), dtype))
        return Column((self._rows[name], *changed.shape[1:]), changed.dtype, map(change, self._blocks(name)))

    def _blocks(self, name: str) -> Iterator[Array]:
        self._files[name].flush()
        shape, dtype = self._kind[name]
        row_bytes = max(1, int(np.prod(shape, dtype=np.int64)) * dtype.itemsize)
        with (self.folder / name).open("rb") as file:
            while raw := file.read(max(1, CHUNK_BYTES // row_bytes) * row_bytes):
                yield np.frombuffer(raw, dtype).reshape(-1, *shape)

    def close(self) -> None:
        """Close the files; the folder is its owner's to remove."""
        for file in self._files.values():
            file.close()
