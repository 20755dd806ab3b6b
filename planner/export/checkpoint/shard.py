"""One file of weights, streamed: bytes go from the old file to the new one in pieces, never a tensor at once.

The new file is read again from disk and compared, tensor by tensor, with what was read from the old one.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Final

from planner.export.checkpoint.moves import Move
from planner.inputs.safetensors import Header, read_header

PIECE_BYTES: Final = 4 << 20
_ALIGNED: Final = 8


def write_shard(header: Header, moves: Mapping[str, Move], target: Path) -> str:
    """Write a permuted file beside nothing else that has its name, and verify it.

    Args:
        header: the old file.
        moves: what happens to each of its tensors; tensors that are not named are left out.
        target: a file that does not exist yet.

    Returns:
        The SHA-256 of the new file.

    Raises:
        OSError: it cannot be written; whoever calls removes it.
        AssertionError: what was written is not what was read.
    """
    kept = sorted((name for name in header.tensors if name in moves), key=header.span)
    head, digests = _head(header, kept, moves), {}
    with header.path.open("rb") as old, target.open("xb") as new:
        new.write(head)
        for name in kept:
            digest = hashlib.sha256()
            for piece in _pieces(old, header, name, moves[name]):
                digest.update(piece)
                new.write(piece)
            digests[moves[name].name] = digest.hexdigest()
        new.flush()
        os.fsync(new.fileno())
    return _verified(target, head, digests)


def _head(header: Header, kept: list[str], moves: Mapping[str, Move]) -> bytes:
    """The new header: entries in the order of their bytes, offsets closed up, padded with spaces."""
    entries: dict[str, object] = {}
    if header.metadata is not None:
        entries["__metadata__"] = header.metadata
    end = 0
    for name in kept:
        first, last = header.span(name)
        entries[moves[name].name] = {**header.tensors[name], "data_offsets": [end, end + last - first]}
        end += last - first
    text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNED)
    return struct.pack("<Q", len(text)) + text


def _pieces(file: IO[bytes], header: Header, name: str, move: Move) -> Iterator[bytes]:
    """The bytes of a tensor in their new order."""
    first, last = header.span(name)
    if not move.rows:
        yield from _range(file, header, first, last)
        return
    row_bytes = (last - first) // len(move.rows)
    for row in move.rows:
        yield from _range(file, header, first + row * row_bytes, first + (row + 1) * row_bytes)


def _range(file: IO[bytes], header: Header, first: int, last: int) -> Iterator[bytes]:
    file.seek(header.begin + first)
    while first < last:
        piece = file.read(min(PIECE_BYTES, last - first))
        if not piece:
            raise OSError(None, f"{header.path.name} became shorter while it was read")
        first += len(piece)
        yield piece


def _verified(target: Path, head: bytes, digests: Mapping[str, str]) -> str:
    """Read a new file again: its header as any reader takes it, and every tensor."""
    header = read_header(target)
    whole = hashlib.sha256(head)
    wrong = [] if header.tensors.keys() == digests.keys() else ["the names of its tensors"]
    with target.open("rb") as file:
        if file.read(len(head)) != head:
            wrong.append("its header")
        for name in sorted(header.tensors, key=header.span):
            digest = hashlib.sha256()
            for piece in _range(file, header, *header.span(name)):
                digest.update(piece)
                whole.update(piece)
            if digest.hexdigest() != digests.get(name):
                wrong.append(name)
    if wrong:  # not an assert: it must hold under python -O, too
        raise AssertionError(f"{target.name}: read back otherwise than written: {', '.join(wrong[:5])}")
    return whole.hexdigest()
