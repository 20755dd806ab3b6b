"""Work of the core of attention, softmax(Q K^T) V, as kernels do it: in tiles of queries and blocks of the cache."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Core:
    """Work of one launch."""

    flop: float
    """Needed."""
    computed_flop: float
    """Done, in whole tiles."""
    read_bytes: float
    """Cache entries or states, read at the memory's pace."""
    moved_bytes: float
    """Queries, outputs, new cache entries."""
    chain: float
    """Steps that follow one another."""

    @property
    def least_bytes(self) -> float:
        """What must pass the memory at least: what decode reads, or prefill takes in and gives out."""
        return self.read_bytes or self.moved_bytes


QUERY_TILE: Final = 128
"""Queries, and keys, that a prefill kernel works on at once (FlashAttention-2 and -3 for heads of 128)."""
FIRST_ENTRIES: Final = 64
"""Cache entries that a decode kernel reads of any sequence at the pace of its queries: the first block."""


def tiled_keys(seen: float) -> float:
    """Keys that a prefill kernel computes per query that sees so many on average.

    Tiles on the diagonal are computed whole, half a tile more than causal attention needs; and no
    query has fewer than a tile. Never falls with `seen`.
    """
    return max(seen + (QUERY_TILE - 1) / 2, float(QUERY_TILE))


def split_chain(seen: float) -> float:
    """Steps of a decode kernel over so many cache entries, which it splits into parts worked on side by side.

    With s parts a unit goes through seen / s entries, and then s results are put together one after
    the other: least where both are equal, at the square root.
    """
    return math.sqrt(seen)
