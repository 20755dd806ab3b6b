"""Tensors of a .safetensors file, read one by one.

Format: https://github.com/huggingface/safetensors, "Format": eight bytes with the length of the
header, little endian, then a JSON object of tensors with type, shape and offsets, then the numbers.
"""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from planner.trace.importers.found import bad
from planner.trace.importers.json_lines import parsed

_LIMIT_BYTES: Final = 100_000_000  # of a header: the format's own limit
_TYPES: Final = {
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "<i1",
    "U8": "<u1",
    "U16": "<u2",
    "F32": "<f4",
    "F64": "<f8",
}


class SafetensorsFile:
    """An opened file: headers known, tensors read when asked for."""

    def __init__(self, path: Path) -> None:
        self.path = path
        size = path.stat().st_size
        with path.open("rb") as file:
            first = file.read(8)
            length = struct.unpack("<Q", first)[0] if len(first) == 8 else -1
            if not 2 <= length <= min(_LIMIT_BYTES, size - 8):
                raise bad(
                    path, f"not a safetensors file: a header of {length} bytes in a file of {size}", "copy it again"
                )
            header = parsed(file.read(length), path)
        if not isinstance(header, dict):
            raise bad(path, "the header is not a JSON object", "copy it again")
        self._begin, self._room = 8 + length, size - 8 - length
        self.entries: dict[str, Any] = {name: entry for name, entry in header.items() if name != "__metadata__"}

    def array(self, name: str) -> NDArray[Any]:
        """One tensor; raises `InputError` if its entry makes no sense or its bytes are not there."""
        entry = self.entries[name] if isinstance(self.entries[name], dict) else {}
        offsets: Any = entry.get("data_offsets")
        shape: Any = entry.get("shape")
        dtype = np.dtype(_TYPES.get(str(entry.get("dtype")), "V0"))
        if dtype.itemsize == 0:
            raise bad(
                self.path, f"type {entry.get('dtype')} is not read", "expected one of " + ", ".join(_TYPES), key=name
            )
        if not _naturals(shape) or not _naturals(offsets) or len(offsets) != 2 or offsets[1] > self._room:
            raise bad(self.path, f"shape {shape} with data_offsets {offsets} is not allowed", "copy it again", key=name)
        begin, end = offsets
        if end - begin != math.prod(shape) * dtype.itemsize:
            raise bad(self.path, f"{shape} of {dtype} does not fill {end - begin} bytes", "copy it again", key=name)
        with self.path.open("rb") as file:
            file.seek(self._begin + begin)
            return np.frombuffer(file.read(end - begin), dtype).reshape(shape)


def _naturals(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)
