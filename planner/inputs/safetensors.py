"""The header of a .safetensors file: what tensors it holds, and where.

Format: https://github.com/huggingface/safetensors, "Format": eight bytes with the length of the
header, little endian, then a JSON object of tensors with type, shape and offsets, then the numbers.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from planner.errors import InputError, Place, Problem
from planner.inputs import documents

_LIMIT_BYTES: Final = 100_000_000  # the format's own limit


@dataclass(frozen=True)
class Header:
    """The header of one file."""

    path: Path
    tensors: dict[str, Any]
    """Name to entry, not checked yet."""
    begin: int
    """Byte of the file at which the numbers begin."""
    room: int
    """Bytes of numbers in the file."""
    metadata: Any = None
    """What stands under `__metadata__`."""

    def span(self, name: str) -> tuple[int, int]:
        """First byte and end of a tensor among the numbers; raises `InputError` if they are not in the file."""
        entry = self.tensors[name]
        offsets = entry.get("data_offsets") if isinstance(entry, dict) else None
        if isinstance(offsets, list) and len(offsets) == 2 and all(type(item) is int for item in offsets):
            begin, end = offsets
            if 0 <= begin <= end <= self.room:
                return begin, end
        message = f"data_offsets {offsets} are not allowed"
        raise InputError(
            Problem(message, Place(str(self.path), key=name), f"expected two numbers from 0 to {self.room}")
        )


def read_header(path: Path) -> Header:
    """Read a header; raises `InputError` if it is too long for the file, or not JSON."""
    where = Place(str(path))
    size = path.stat().st_size
    with path.open("rb") as file:
        first = file.read(8)
        length = struct.unpack("<Q", first)[0] if len(first) == 8 else -1
        if not 2 <= length <= min(_LIMIT_BYTES, size - 8):
            message = f"not a safetensors file: a header of {length} bytes in a file of {size}"
            raise InputError(Problem(message, where, "download it again"))
        raw = file.read(length)
    try:
        header = documents.parse_json(raw.decode("utf-8"), str(path))
    except UnicodeDecodeError:
        raise InputError(Problem("the header is not UTF-8 text", where, "download it again")) from None
    if not isinstance(header, dict):
        raise InputError(Problem("the header is not a JSON object", where, "download it again"))
    tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
    return Header(path, tensors, 8 + length, size - 8 - length, header.get("__metadata__"))
