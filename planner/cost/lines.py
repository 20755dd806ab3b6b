"""Lines of a GPU's memory: what takes it, how much, and where the figure comes from."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from planner.inputs.sourced import Basis


@dataclass(frozen=True)
class MemoryLine:
    """One use of a GPU's memory."""

    name: str
    num_bytes: int
    basis: Basis
    source: str


def added(lines: Iterable[MemoryLine]) -> tuple[MemoryLine, ...]:
    """Lines of the same name added up, in order of first appearance; empty ones left out."""
    total: dict[str, MemoryLine] = {}
    for line in lines:
        before = total[line.name].num_bytes if line.name in total else 0
        total[line.name] = MemoryLine(line.name, before + line.num_bytes, line.basis, line.source)
    return tuple(line for line in total.values() if line.num_bytes)
