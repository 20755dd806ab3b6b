"""Recorded routing in the native form: per token, or counted per window.

Legend: T tokens, L traced layers, K choices per token, S windows, E experts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from planner.trace.npz import NpzFile

Ints = NDArray[np.int64]
COLUMN_ROWS: Final = 1 << 18


@dataclass(frozen=True)
class TokenTrace:
    """Every token's choices. They stay in the file, as do the columns beside them, and are read in blocks."""

    path: Path
    num_tokens: int
    num_experts: int
    top_k: int
    layer_ids_L: Ints
    """Hidden-layer index of each traced layer."""
    columns: frozenset[str]
    """Those there are of seq_id, pos and step_id."""
    source: NpzFile

    @property
    def seekable(self) -> bool:
        """Whether blocks can be read from the middle of the file."""
        return self.source.headers["expert_ids"].seekable

    def blocks(self, first: int = 0, end: int | None = None) -> Iterator[tuple[int, NDArray[Any]]]:
        """Blocks of expert ids [tokens, L, K] with the index of their first token; -1 is no expert."""
        return self.source.rows("expert_ids", first, end)

    def column(self, name: str) -> Iterator[tuple[int, Ints]]:
        """Blocks of a column, all columns in the same blocks, with the index of their first token."""
        held: Ints = np.zeros(0, dtype=np.int64)
        start = 0
        for _, values in self.source.rows(name, block_bytes=8 * COLUMN_ROWS):
            held = np.concatenate([held, values.astype(np.int64)])
            while len(held) >= COLUMN_ROWS:
                yield start, held[:COLUMN_ROWS]
                start, held = start + COLUMN_ROWS, held[COLUMN_ROWS:]
        if len(held):
            yield start, held

    def _whole(self, name: str) -> Ints | None:
        return self.source.whole(name).astype(np.int64) if name in self.columns else None

    @property
    def seq_id_T(self) -> Ints | None:
        """The request of each token, all at once."""
        return self._whole("seq_id")

    @property
    def pos_T(self) -> Ints | None:
        """The position of each token in its request, all at once."""
        return self._whole("pos")

    @property
    def step_id_T(self) -> Ints | None:
        """The engine step of each token, all at once."""
        return self._whole("step_id")


@dataclass(frozen=True)
class CountTrace:
    """Only how often each expert was chosen in each window."""

    path: Path
    num_experts: int
    top_k: int
    layer_ids_L: Ints
    counts_SLE: Ints
    names_S: tuple[str, ...]


Trace = TokenTrace | CountTrace
