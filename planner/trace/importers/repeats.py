"""Finds ranks that recorded the same tokens: tensor-parallel ranks all see them."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from planner.errors import Place
from planner.trace.faults import Fault

_WATCHED: Final = 256
"""Passes compared; enough to tell ranks apart."""


class Repeats:
    """Remembers what the first passes of each rank held."""

    def __init__(self) -> None:
        self._seen: dict[tuple[Any, bytes], str] = {}
        self._alike: dict[tuple[str, str], int] = {}
        self._passes: dict[str, int] = {}

    def add(self, rank: str, key: Any, values: NDArray[Any]) -> None:
        """Note what a rank recorded under `key`, such as a pass."""
        count = self._passes.get(rank, 0)
        if count >= _WATCHED or not np.any(values > 0):
            return
        self._passes[rank] = count + 1
        digest = hashlib.sha256(np.ascontiguousarray(values).data).digest()
        first = self._seen.setdefault((key, digest), rank)
        if first != rank:
            self._alike[first, rank] = self._alike.get((first, rank), 0) + 1

    def faults(self, path: Path) -> list[Fault]:
        """A fault for each rank most of whose passes another one has recorded, too."""
        faults = []
        for (first, rank), count in self._alike.items():
            if 2 * count > self._passes[rank]:
                message = f"{rank} recorded the same as {first} ({count} of {self._passes[rank]} passes compared)"
                cure = "tensor-parallel ranks see the same tokens: give one rank of each data-parallel replica"
                faults.append(Fault("double-count", message, Place(str(path)), cure))
        return faults
