"""Recorded routing in the native form: per token, or counted per window.

Legend: T tokens, L traced layers, K choices per token, S windows, E experts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from planner.trace.npz import NpzFile

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class TokenTrace:
    """Every token's choices. The choices themselves stay in the file and are read in blocks."""

    path: Path
    num_tokens: int
    num_experts: int
    top_k: int
    layer_ids_L: Ints
    """Hidden-layer index of each traced layer."""
    seq_id_T: Ints | None
    pos_T: Ints | None
    step_id_T: Ints | None
    source: NpzFile

    def blocks(self) -> Iterator[tuple[int, NDArray[Any]]]:
        """Blocks of expert ids [tokens, L, K] with the index of their first token; -1 is no expert."""
        return self.source.rows("expert_ids")


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
