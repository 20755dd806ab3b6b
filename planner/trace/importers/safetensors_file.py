"""Tensors of a .safetensors file, read one by one."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from planner.inputs.safetensors import read_header
from planner.trace.importers.found import bad

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
        self._header = read_header(path)

    @property
    def names(self) -> set[str]:
        """Tensors of the file."""
        return set(self._header.tensors)

    def array(self, name: str) -> NDArray[Any]:
        """One tensor; raises `InputError` if its entry makes no sense or its bytes are not there."""
        begin, end = self._header.span(name)
        entry = self._header.tensors[name]
        kind, shape = entry.get("dtype"), entry.get("shape")
        if kind not in _TYPES:
            raise bad(self.path, f"type {kind} is not read", "expected one of " + ", ".join(_TYPES), key=name)
        dtype = np.dtype(_TYPES[kind])
        natural = isinstance(shape, list) and all(type(length) is int and length >= 0 for length in shape)
        if not natural or end - begin != math.prod(shape) * dtype.itemsize:
            message = f"{shape} of {dtype} does not fill {end - begin} bytes"
            raise bad(self.path, message, "copy the file again", key=name)
        with self.path.open("rb") as file:
            file.seek(self._header.begin + begin)
            return np.frombuffer(file.read(end - begin), dtype).reshape(shape)
