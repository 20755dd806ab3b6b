"""Tokens made up from counts: the choices of a window, in order of expert, are dealt to its tokens like cards.

So every token chooses exactly as counted, no expert twice, and where a choice starts is known although only counts
were recorded. What is booked and what `ep-plan validate` replays both follow this.

Legend: L traced layers, E experts, N choices.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


def dealt_tokens(counts_LE: Ints, top_k: int) -> int:
    """Tokens that the choices of a window are dealt to, the same in all its layers."""
    fewest = -(-int(counts_LE.sum(axis=1).max()) // top_k)
    return max(fewest, int(counts_LE.max()), 1)  # no token chooses an expert twice


def dealt(position_N: Ints, tokens: Ints | int) -> tuple[Ints, Ints]:
    """The round in which choices are dealt, and the token that gets each, by their position in order of expert."""
    round_N, token_N = np.divmod(position_N, tokens)
    return round_N, token_N
